"""A problem of attention given piece by piece: its keys, and what options say of them, cut."""

import numpy as np

import selfattn

# Options of update; the others are of the state.
OF_PIECES = ("attn_mask", "attn_bias", "kv_starts", "kv_lengths", "segment_ids")


def piece_of(options, begin, end, seqlen_k):
    """What the options of a whole problem say of keys [begin, end)."""
    cut = {}
    for name in ("attn_mask", "attn_bias"):
        if options.get(name) is not None:
            mask = options[name]
            is_one = seqlen_k == 1 or mask.shape[-1:] in ((), (1,))
            cut[name] = mask if is_one else mask[..., begin:end]
    for name in ("kv_starts", "kv_lengths"):
        if options.get(name) is not None:
            cut[name] = np.clip(np.asarray(options[name]) - begin, 0, end - begin)
    if options.get("segment_ids") is not None:
        ids = options["segment_ids"]
        of_keys = ids[1] if isinstance(ids, (tuple, list)) else ids
        cut["segment_ids"] = of_keys[..., begin:end]
    return cut


def state_of(query, options, **more):
    """An AttentionState of the problem's query and options."""
    given = {name: x for name, x in options.items() if name not in OF_PIECES}
    ids = options.get("segment_ids")
    if ids is not None:
        given["segment_ids"] = ids[0] if isinstance(ids, (tuple, list)) else ids
    return selfattn.AttentionState(query, **given, **more)


def in_pieces(query, key, value, options, ends, **more):
    """out and lse of the problem by an AttentionState, whose pieces end at `ends`."""
    state = state_of(query, options, **more)
    begin, seqlen_k = 0, key.shape[-2]
    for end in (*ends, seqlen_k):
        state.update(
            key[..., begin:end, :],
            value[..., begin:end, :],
            **piece_of(options, begin, end, seqlen_k),
        )
        begin = end
    assert state.num_keys == seqlen_k
    return state.result(return_lse=True)
