"""Print what each option of attention costs: its time over that of the same call without it.

    python bench/options.py [--options bool-random,alibi] [--dtype float32|float64] [--threads N]
                            [--repeats N] [--json FILE]

    cost = median time with the option / median time of the bare call

on one row of long sequences; all calls take turns in one race (harness.py). An option that masks
whole blocks of keys removes work too: its cost is also given per visible score (cost / visible),
and where nothing else limits it, it is to cost the visible share.
Softcap is to cost one tanh a score, which is timed alone. Beside it stands what the same masks cost
in PyTorch, over PyTorch's bare call. Run by whoever changes masks or the softmax; the options
themselves are in suites/options.py.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import partial

import command
import numpy as np
from suites.options import BARE, BASE, OPTIONS, SOFTCAP, visible_share

import selfattn
from selfattn import _core, reference
from selfattn.bench import contest, harness

# Numbers in a call of tanh alone: few enough to stay in the cache, as a tile's scores do.
TANH_LENGTH = 1 << 14
PYTORCH_HAS = {"attn_mask", "is_causal"}
PER_BATCH = {"attn_mask", "kv_lengths", "segment_ids"}
PER_HEAD = {"alibi_slopes", "sinks"}


def selfattn_call(arrays, arguments, num_threads):
    """A call as users make it: the output is allocated by each."""
    return partial(
        selfattn.scaled_dot_product_attention, *arrays, **arguments, num_threads=num_threads
    )


def torch_call(arrays, arguments, num_threads):
    """PyTorch's, on tensors that share the arrays."""
    import torch

    torch.set_num_threads(num_threads)
    tensors = {
        name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        for name, x in arguments.items()
    }
    return partial(
        torch.nn.functional.scaled_dot_product_attention, *map(torch.from_numpy, arrays), **tensors
    )


def check(name, row, arrays, arguments, result):
    """Raise unless the first and the last head of the first and the last batch entry are right."""
    result = np.asarray(result)
    for b in {0, row.batch - 1}:
        for h in {0, row.num_heads_q - 1}:
            entry, head = slice(b, b + 1), slice(h, h + 1)
            part = {
                name: x[entry] if name in PER_BATCH else x[head] if name in PER_HEAD else x
                for name, x in arguments.items()
            }
            want = reference.scaled_dot_product_attention(*(x[entry, head] for x in arrays), **part)
            error = np.abs(result[entry, head] - want).max()
            if not error <= contest.TOLERANCE[row.dtype]:
                raise RuntimeError(f"{name}: off by {error:.1e} on {row}")


def tanh_calls(row):
    """The kernels' tanh of softcap's numbers, and the copy that is made for it to write to."""
    x = np.random.default_rng(0).standard_normal(TANH_LENGTH, dtype=row.dtype)
    x /= SOFTCAP
    return {"tanh": partial(_core.apply, "tanh", x), "copy": x.copy}


def measure(row, options, num_threads, repeats):
    """The cost of each option on the row, after the bare call.

    A dict of plain values; and the Outcomes that they are of, by library and option.
    """
    arrays = row.arrays()
    libraries = {"selfattn": selfattn_call}
    if importlib.util.find_spec("torch"):
        libraries["torch"] = torch_call
    shares, runs = {}, {}
    for option in (BARE, *options):
        arguments = option.arguments(row)
        shares[option.name] = visible_share(row, arguments) if option.empties else None
        for library, call in libraries.items():
            if library == "selfattn" or arguments.keys() <= PYTORCH_HAS:
                run = call(arrays, arguments, num_threads)
                check(f"{library}, {option.name}", row, arrays, arguments, run())
                runs[library, option.name] = run
    if "softcap" in shares:
        runs |= {("function", name): run for name, run in tanh_calls(row).items()}

    loop = contest.limit(row, num_threads)
    turns = {key: harness.Burst(run) for key, run in runs.items()}
    limit, outcomes = harness.race(turns, repeats, loop)
    bare = {library: outcomes[library, BARE.name].seconds for library in libraries}
    tanh = _seconds_of_tanh(row, outcomes, num_threads)

    def entry(option):
        outcome, share = outcomes["selfattn", option.name], shares[option.name]
        cost = outcome.seconds / bare["selfattn"]
        needs_tanh = option.name == "softcap" and tanh is not None
        theirs = outcomes.get(("torch", option.name))
        return {
            "name": option.name,
            "what": option.what,
            "seconds": outcome.seconds,
            "cost": cost,
            "visible": share,
            "cost_per_visible": share and cost / share,
            "limit": 1 + tanh / bare["selfattn"] if needs_tanh else option.limit,
            "torch_cost": theirs and theirs.seconds / bare["torch"],
            "samples": len(outcome.kept),
            "discarded": outcome.discarded,
        }

    result = {
        "row": str(row),
        "repeats": repeats,
        "fma_peak": loop.rate(limit.seconds),
        "rate": row.amount / bare["selfattn"] / 1e9,
        "torch_seconds": bare.get("torch"),
        "tanh_seconds": tanh,
        "options": [entry(option) for option in (BARE, *options)],
    }
    return result, outcomes


def _seconds_of_tanh(row, outcomes, num_threads):
    """A tanh for each score of the row, the threads sharing them; None where it was not timed."""
    if ("function", "tanh") not in outcomes:
        return None
    call = outcomes["function", "tanh"].seconds - outcomes["function", "copy"].seconds
    return call / TANH_LENGTH * row.num_scores / num_threads


def table(result):
    """The result, to be read."""
    lines = [
        f"{result['row']}    bare call: {result['rate']:.1f} GF, "
        f"{result['rate'] / result['fma_peak']:.3f} of the FMA peak",
        f"  {'':36}{'time':>11}{'cost':>8}{'limit':>8}{'visible':>9}{'cost/visible':>14}"
        f"{'torch':>8}{'samples':>9}{'discarded':>11}",
    ]
    for entry in result["options"]:
        limit = _number(entry["limit"])
        if entry["limit"] is None and entry["visible"]:
            limit = f"≈{entry['visible']:.3f}"
        lines.append(
            f"  {entry['what']:36}{entry['seconds'] * 1e3:8.2f} ms{entry['cost']:8.3f}"
            f"{limit:>8}{_number(entry['visible']):>9}"
            f"{_number(entry['cost_per_visible']):>14}{_number(entry['torch_cost']):>8}"
            f"{entry['samples']:9}{entry['discarded']:11}"
            + ("   over" if entry["limit"] and entry["cost"] > entry["limit"] else "")
        )
    if result["tanh_seconds"] is not None:
        lines.append(f"  one tanh a score, alone: {result['tanh_seconds'] * 1e3:.2f} ms")
    if result["torch_seconds"] is not None:
        lines.append(f"  torch's bare call: {result['torch_seconds'] * 1e3:.2f} ms")
    if any(entry["samples"] < result["repeats"] for entry in result["options"]):
        lines.append("  The machine was busy: fewer samples count than were asked for.")
    return "\n".join(lines)


def _number(x):
    return "-" if x is None else f"{x:.3f}"


def main():
    known = {option.name: option for option in OPTIONS}
    parser = command.parser(__doc__, repeats=15)
    parser.add_argument("--options", type=command.names, help=", ".join(known))
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    arguments = command.parse(parser)
    names = arguments.options or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no option {', '.join(unknown)}: {', '.join(known)}")
    about = command.announce(arguments.threads)
    row = replace(BASE, dtype=arguments.dtype)
    chosen = [known[name] for name in names]
    result, _ = measure(row, chosen, arguments.threads, arguments.repeats)
    print(f"\n{table(result)}", flush=True)
    command.write_json(arguments.json, about, **result)


if __name__ == "__main__":
    main()
