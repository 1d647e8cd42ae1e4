"""One hash for each of some 400 calls: out, lse and gradients, on every set and several threads.

    python tests/fingerprint.py --save before.json
    python tests/fingerprint.py --compare before.json

A change that is to keep all bits has the same hashes before and after. Beside that, each call must
have the same bits on all sets that this machine runs, and on one, two and three threads. bfloat16
takes part where ml_dtypes is installed.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

import selfattn
from selfattn import _core
from selfattn.nn import rope

DTYPES = (np.float32, np.float64)
HALVES = (np.float16,)  # a third as many calls of each
if importlib.util.find_spec("ml_dtypes"):
    HALVES += (importlib.import_module("ml_dtypes").bfloat16,)
LENGTHS = (1, 2, 3, 5, 8, 9, 16, 17, 31, 48, 64, 97, 128, 130, 300)
LONG = (*LENGTHS, 512, 513, 700, 1100)
HEAD_DIMS = (1, 3, 8, 16, 31, 32, 64, 65, 80, 96, 128, 130, 256)
THREADS = (1, 2, 3)


def _laid_out(rng, x):
    """x, in one of the ways in which an array may lie in memory."""
    layouts = [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, -1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: a[..., ::-1, :].copy()[..., ::-1, :],
    ]
    if x.ndim > 2:  # positions before heads
        layouts += 3 * [lambda a: a.swapaxes(-2, -3).copy().swapaxes(-2, -3)]
    return layouts[rng.integers(len(layouts))](x)


def _normal(rng, dtype, *shape):
    return _laid_out(rng, rng.standard_normal(shape).astype(dtype))


def _options(rng, dtype, batch, heads, seqlen_q, seqlen_k):
    """A few options of attention, drawn by the generator."""

    def drawn(share=0.3):
        return rng.random() < share

    options = {}
    if drawn():
        options["is_causal"] = True
    if drawn(0.2):
        options["window_size"] = tuple(int(n) for n in rng.integers(-1, seqlen_k, 2))
    if drawn(0.2):
        options["query_offset"] = rng.integers(-seqlen_q, seqlen_k, batch)
    if drawn(0.2):
        options["kv_lengths"] = rng.integers(0, seqlen_k + 1, batch)
    if drawn():
        seen = rng.random((batch, heads, seqlen_q, seqlen_k)) < rng.choice([0.1, 0.5, 0.97])
        x = np.where(seen, rng.standard_normal(seen.shape), -np.inf).astype(dtype)
        options["attn_mask"] = _laid_out(rng, seen if drawn(0.5) else x)
    if drawn(0.15):
        ids = [np.sort(rng.integers(0, 3, (batch, n))) for n in (seqlen_q, seqlen_k)]
        options["segment_ids"] = tuple(ids)
    if drawn(0.15):
        options["alibi_slopes"] = (0.5 * rng.standard_normal(heads)).astype(dtype)
    if drawn(0.15):
        options["sinks"] = rng.standard_normal(heads).astype(dtype)
    if drawn(0.15):
        options["softcap"] = float(rng.choice([0.5, 2, 30]))
    if drawn(0.15):
        options["scale"] = float(rng.uniform(-1, 1))
    if drawn(0.2):
        options["dropout_p"], options["dropout_seed"] = 0.2, int(rng.integers(1 << 40))
    return options


def _attention(rng, dtype, lengths):
    """query, key, value and options; one NaN among the values now and then."""
    batch, heads_kv, group = (int(n) for n in rng.integers(1, 4, 3))
    seqlen_q, seqlen_k = (int(n) for n in rng.choice(lengths, 2))
    head_dim, head_dim_v = (int(n) for n in rng.choice(HEAD_DIMS, 2))
    query = _normal(rng, dtype, batch, heads_kv * group, seqlen_q, head_dim)
    key = _normal(rng, dtype, batch, heads_kv, seqlen_k, head_dim)
    value = _normal(rng, dtype, batch, heads_kv, seqlen_k, head_dim_v)
    if rng.random() < 0.1:
        value[0, 0, seqlen_k // 2, 0] = np.nan
    options = _options(rng, dtype, batch, heads_kv * group, seqlen_q, seqlen_k)
    return (query, key, value), options | {"enable_gqa": True}


def _forward(rng, dtype):
    arrays, options = _attention(rng, dtype, LONG)
    return lambda **threads: selfattn.scaled_dot_product_attention(
        *arrays, **options, return_lse=True, **threads
    )


def _backward(rng, dtype):
    arrays, options = _attention(rng, dtype, LENGTHS)
    out, lse = selfattn.scaled_dot_product_attention(*arrays, **options, return_lse=True)
    grad_out = _normal(rng, dtype, *out.shape)
    return lambda **threads: selfattn.scaled_dot_product_attention_backward(
        grad_out,
        *arrays,
        out,
        lse,
        **options,
        mask_grad="attn_mask" in options and options["attn_mask"].dtype != np.bool_,
        sinks_grad="sinks" in options,
        **threads,
    )


def _varlen(rng, dtype):
    heads, head_dim = int(rng.integers(1, 5)), int(rng.choice(HEAD_DIMS))
    ends_q, ends_k = (np.cumsum([0, *rng.choice(LENGTHS, 4)]) for _ in range(2))
    query, key, value = (
        _normal(rng, dtype, int(ends[-1]), heads, head_dim) for ends in (ends_q, ends_k, ends_k)
    )
    causal = bool(rng.integers(2))
    out, lse = selfattn.varlen_attention(
        query, key, value, ends_q, ends_k, is_causal=causal, return_lse=True
    )
    grad_out = _normal(rng, dtype, *out.shape)

    def call(**threads):
        forward = selfattn.varlen_attention(
            query, key, value, ends_q, ends_k, is_causal=causal, return_lse=True, **threads
        )
        return *forward, *selfattn.varlen_attention_backward(
            grad_out, query, key, value, out, lse, ends_q, ends_k, is_causal=causal, **threads
        )

    return call


def _steps(rng, dtype):
    (query, key, value), options = _attention(rng, dtype, LENGTHS)
    for name in ("sinks", "dropout_p", "dropout_seed"):
        options.pop(name, None)

    def call(**threads):
        scores = selfattn.scaled_dot_product(query, key, **options, **threads)
        weights = selfattn.attention_weights(query, key, **options, **threads)
        rows = selfattn.softmax(scores, **threads)
        group = query.shape[1] // key.shape[1]
        values = np.repeat(value, group, axis=1)
        return scores, weights, rows, selfattn.weighted_sum(weights, values, **threads)

    return call


def _projection(rng, dtype):
    rows = int(rng.choice([1, 2, 4, 5, 8, 9, 30, 97, 145, 300]))
    n_in, n_out = (int(n) for n in rng.choice([1, 7, 32, 63, 64, 65, 128, 300, 768, 1030], 2))
    x, weight = _normal(rng, dtype, rows, n_in), _normal(rng, dtype, n_out, n_in)
    bias, grad_out = _normal(rng, dtype, 1, n_out)[0], _normal(rng, dtype, rows, n_out)

    def call(**threads):
        grads = selfattn.project_backward(grad_out, x, weight, bias, **threads)
        return selfattn.project(x, weight, bias, **threads), *grads

    return call


def _rope(rng, dtype):
    length, pairs = int(rng.choice(LENGTHS)), int(rng.choice([1, 4, 16, 33]))
    x = _normal(rng, dtype, 2, 3, length, 2 * pairs)
    layout = str(rng.choice(["half", "interleaved"]))
    return lambda num_threads: (rope(x, 7, layout=layout, num_threads=num_threads),)


KINDS = [(_forward, 70), (_backward, 35), (_varlen, 8), (_steps, 15), (_projection, 20), (_rope, 3)]


def calls():
    """(name, call) of each: what `call(num_threads=n)` returns is arrays, or None for some."""
    for number, (kind, count) in enumerate(KINDS):
        for dtype in DTYPES + HALVES:
            for i in range(count // 3 if dtype in HALVES else count):
                rng = np.random.default_rng((number, i))
                name = f"{kind.__name__.strip('_')}-{np.dtype(dtype)}-{i}"
                yield name, kind(rng, dtype)


def _hash(arrays):
    h = hashlib.sha256()
    for x in arrays:
        if x is not None:
            nan = np.isnan(x)  # whose payloads nobody promises
            h.update(np.where(nan, x.dtype.type(np.nan), x).tobytes())
    return h.hexdigest()[:16]


def _fingerprint(name, call):
    seen = {}
    for isa in selfattn.isas():
        _core.force_isa(isa)
        for num_threads in THREADS:
            seen[isa, num_threads] = _hash(call(num_threads=num_threads))
    _core.force_isa(selfattn.isas()[0])
    if len(set(seen.values())) > 1:
        raise SystemExit(f"{name}: the bits differ between sets or threads: {seen}")
    return seen[selfattn.isas()[0], 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", type=Path)
    parser.add_argument("--compare", type=Path)
    given = parser.parse_args()
    found = {name: _fingerprint(name, call) for name, call in calls()}
    print(f"{len(found)} calls, {len(selfattn.isas())} sets, {len(THREADS)} numbers of threads")
    print("all of them:", hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16])
    if given.save:
        given.save.write_text(json.dumps(found, indent=1))
    if given.compare:
        before = json.loads(given.compare.read_text())
        differ = [name for name in before | found if before.get(name) != found.get(name)]
        if differ:
            sys.exit(f"{len(differ)} differ: {differ[:10]}")
        print("as before")


if __name__ == "__main__":
    main()
