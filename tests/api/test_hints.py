"""What errors add where the mistake is a common one; and lists, which are none.

That the errors are raised at all, and name the argument, is tested in test_errors.py and in
test_errors_options.py.
"""

import re

import numpy as np
import pytest

from selfattn import (
    attention_weights,
    nn,
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
    varlen_attention,
    weighted_sum,
)
from support.arrays import normal, qkv
from support.errors import PACKED, varlen_raises

SWAPPED = r"of \(\.\.\., positions, heads, head_dim\) give x\.swapaxes\(-3, -2\)\)$"
# (batch, positions, heads, head_dim): as they are, 10 heads of 4 positions.
POSITIONS_FIRST = qkv((2, 10, 4, 8))
HEADS_FIRST = [x.swapaxes(1, 2) for x in POSITIONS_FIRST]
BESIDE = {
    "square mask": ({"attn_mask": np.ones((10, 10), bool)}, True),
    "mask of each entry": ({"attn_mask": normal(2, 1, 10, 10)}, True),
    "mask of keys": ({"attn_mask": np.ones((2, 1, 1, 10), bool)}, True),
    "lengths": ({"kv_lengths": np.array([10, 7])}, True),
    "slopes": ({"alibi_slopes": normal(4)}, True),
    "sinks": ({"sinks": normal(4)}, True),
    "ids": ({"segment_ids": np.zeros((2, 10), int)}, True),
    "another mask": ({"attn_mask": np.ones((3, 3), bool)}, False),
    "another length": ({"kv_lengths": np.array([11, 7])}, False),
    "other slopes": ({"alibi_slopes": normal(3)}, False),
}


@pytest.mark.parametrize("what", BESIDE)
def test_positions_before_heads(what):
    """What comes beside the arrays betrays them, and goes with them once they are swapped."""
    options, is_betrayed = BESIDE[what]
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name}: expected ") as error:
        scaled_dot_product_attention(*POSITIONS_FIRST, **options)
    assert bool(re.search(SWAPPED, str(error.value))) == is_betrayed
    if is_betrayed:
        scaled_dot_product_attention(*HEADS_FIRST, **options)


def test_more_keys_than_queries_with_positions_before_heads():
    query, key, value = qkv((2, 10, 4, 8), seqlen_k=4)
    key, value = (np.repeat(x, 2, axis=1)[:, :15] for x in (key, value))
    for gqa in ({}, {"enable_gqa": True}):
        with pytest.raises(ValueError, match=f"^key: expected .*{SWAPPED}"):
            scaled_dot_product_attention(query, key, value, **gqa)
    with pytest.raises(ValueError, match=r"^key: expected .*got 3 \(enable_gqa[^(]*\)$"):
        attention_weights(query, normal(2, 3, 5, 8))  # nothing speaks for a layout swapped
    with pytest.raises(ValueError, match=r"^value: expected .*values\)$"):
        weighted_sum(normal(2, 10, 4, 4), normal(2, 3, 4, 8))


def test_packed_arrays_have_another_layout():
    """Heads are where they are, and no hint is given."""
    for options in ({"alibi_slopes": normal(9)}, {"kv_lengths": np.array([4, 4, 4])}):
        varlen_raises(ValueError, r"^(?!.*swapaxes)", **options)


PADDING = np.arange(10) < np.array([[7], [10]])  # (batch, keys)


def test_masks_in_others_forms():
    """The hint says what to give, and that works."""
    want = scaled_dot_product_attention(*HEADS_FIRST, kv_lengths=[7, 10])
    for wrong, message, right in (
        (
            PADDING.astype(np.int64)[:, None, None],
            r"^attn_mask: expected bool.*got dtype\('int64'\) .*give mask\.astype\(bool\)\)$",
            lambda mask: mask.astype(bool),
        ),
        (
            PADDING,
            r"^attn_mask: .*got \(2, 10\) .*mask\[:, None, None, :\], or kv_lengths\)$",
            lambda mask: mask[:, None, None, :],
        ),
        (
            np.repeat(PADDING[:, None], 10, axis=1),
            r"^attn_mask: .*got \(2, 10, 10\) .*give mask\[:, None\]\)$",
            lambda mask: mask[:, None],
        ),
        (
            np.where(PADDING, 0, -np.inf)[:, None, None],
            r"^attn_mask: .*got dtype\('float64'\) \(give mask\.astype\(np\.float32\)\)$",
            lambda mask: mask.astype(np.float32),
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            scaled_dot_product_attention(*HEADS_FIRST, wrong)
        got = scaled_dot_product_attention(*HEADS_FIRST, right(wrong))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_ints(kind):
    """Of lengths, offsets and the starts of packed sequences, as whoever counts them has them."""
    for name, numbers in (("kv_lengths", [7, 3]), ("query_offset", [0, -2])):
        options = {name: np.array(numbers), "is_causal": True, "return_lse": True}
        want, lse = scaled_dot_product_attention(*HEADS_FIRST, **options)
        options[name] = kind(numbers)
        got, _ = scaled_dot_product_attention(*HEADS_FIRST, **options)
        assert np.array_equal(got, want)
        options.pop("return_lse")
        given = want, *HEADS_FIRST, want, lse
        gradients = scaled_dot_product_attention_backward(*given, **options)
        options[name] = np.array(numbers)
        of_arrays = scaled_dot_product_attention_backward(*given, **options)
        assert np.array_equal(gradients.key, of_arrays.key)
    starts = {n: kind(x.tolist()) for n, x in PACKED.items() if n.startswith("cu_seqlens")}
    got = varlen_attention(**(PACKED | starts), kv_lengths=kind([5, 1, 6]))
    want = varlen_attention(**PACKED, kv_lengths=np.array([5, 1, 6]))
    assert np.array_equal(got, want)
    empty = normal(0, 4, 10, 8)
    assert scaled_dot_product_attention(empty, empty, empty, kv_lengths=kind([])).size == 0


@pytest.mark.parametrize(
    ("wrong", "error", "came"),
    [
        ([1.0, 2.0], TypeError, "a list of dtype('float64')"),
        ((True, False), TypeError, "a tuple of dtype('bool')"),
        (["1", "2"], TypeError, "a list of dtype('<U1')"),
        ([1, None], TypeError, "a list of dtype('O')"),
        ([2**70, 1], TypeError, "a list of dtype('O')"),
        ([[1], [1, 2]], ValueError, "a list that is no array"),
        ([1, 2, 3], ValueError, "(3,)"),
        ([11, 2], ValueError, "11"),
    ],
)
def test_lists_of_others(wrong, error, came):
    with pytest.raises(error, match=rf"^kv_lengths: expected .*got {re.escape(came)}"):
        scaled_dot_product_attention(*HEADS_FIRST, kv_lengths=wrong)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("key_padding_mask", r"kv_lengths, or attn_mask=~key_padding_mask\[:, None, None, :\]"),
        ("need_weights", r"attention_weights\(\)"),
        ("dropout", "dropout_p"),
        ("no_such_thing", None),
    ],
)
def test_keywords_of_torchs_layer(name, instead):
    layer = nn.MultiheadAttention(8, 2, seed=0)
    for call in (layer.forward, layer.attention_weights):
        with pytest.raises(TypeError, match=f"^attention_options: .*, got '{name}'") as error:
            call(normal(2, 10, 8), **{name: None})
        ending = "$" if instead is None else rf" \(in its place: .*{instead}"
        assert re.search(f"got '{name}'{ending}", str(error.value))
