"""Under torch.compile, which reads our Python as it runs, tensors are taken as they are without it.

Fault 50. What it cannot read it leaves, so that the kernels run as ever: the same bits.
"""

import numpy as np
import pytest

import selfattn
from selfattn import nn
from support.arrays import same_bits

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the compiler about its own

ATTEND = selfattn.scaled_dot_product_attention
LAYER = nn.MultiheadAttention(8, 2, seed=0)


def backward(x, key, **options):
    out, lse = ATTEND(x, key, key, return_lse=True, **options)
    gradients = selfattn.scaled_dot_product_attention_backward(
        out, x, key, key, out, lse, **options
    )
    return tuple(gradients)


def options():
    return {
        "query_offset": torch.tensor([2, -1]),
        "kv_lengths": torch.tensor([3, 7]),
        "window_size": (4, 1),
        "softcap": 2.0,
        "alibi_slopes": torch.ones(4),
        "sinks": torch.ones(4),
        "segment_ids": (torch.zeros(5, dtype=torch.int64), torch.arange(7) // 6),
        "dropout_p": 0.25,
    }


CALLS = {
    "attention": lambda x, key: ATTEND(x, key, key),
    "with lse": lambda x, key: ATTEND(x, key, key, return_lse=True),
    "causal groups": lambda x, key: ATTEND(
        x, key[:, :2], key[:, :2], is_causal=True, enable_gqa=True, scale=0.3
    ),
    "a mask": lambda x, key: ATTEND(x, key, key, torch.ones(5, 7, dtype=torch.bool).tril()),
    "broadcast": lambda x, key: ATTEND(x[:, None], key, key),
    "options": lambda x, key: ATTEND(x, key, key, **options()),
    "of others' results": lambda x, key: torch.from_numpy(ATTEND(2 * x, key + 1, key)) * 2,
    "arrays": lambda x, key: torch.from_numpy(ATTEND(x.numpy(), key.numpy(), key.numpy())),
    "gradients": backward,
    "gradients with options": lambda x, key: backward(x, key, **options()),
    "scores": lambda x, key: selfattn.scaled_dot_product(x, key),
    "weights": lambda x, key: selfattn.attention_weights(x, key),
    "softmax": lambda x, key: selfattn.softmax(x, 1),
    "weighted sum": lambda x, key: selfattn.weighted_sum(x @ key.mT, key),
    "merge": lambda x, key: selfattn.merge_states(x, x[..., 0], x + 1, x[..., 1]),
    "merge of many": lambda x, key: selfattn.merge_states_many([x, x + 1], [x[..., 0], x[..., 1]]),
    "gradients of a merge": lambda x, key: tuple(
        selfattn.merge_states_backward(x[0], x[0, ..., 0], x, x[..., 1])
    ),
    "packed": lambda x, key: selfattn.varlen_attention(
        *[x[:, 0]] * 3, torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2])
    ),
    "rope": lambda x, key: nn.rope(x, 3),
    "rope at positions": lambda x, key: nn.rope(x, positions=torch.arange(5) * 2),
    "rope by tables": lambda x, key: nn.rope(x, cos=key[0, 0], sin=key[0, 1]),
    "rope of offsets": lambda x, key: nn.rope_backward(x, torch.tensor([4, 7])),
    "project": lambda x, key: selfattn.project(x, key[0, 0], torch.ones(7)),
    "gradients of project": lambda x, key: tuple(
        selfattn.project_backward(x @ key[0, 0].T, x, key[0, 0], torch.ones(7))
    ),
    "layer": lambda x, key: LAYER.forward(x, key, rope={}, is_causal=True),
    "layer's gradients": lambda x, key: (LAYER.forward(x), LAYER.backward(x))[1],
}


def arrays(results):
    results = results if isinstance(results, tuple) else (results,)
    return tuple(np.asarray(x) for x in results if x is not None)


@pytest.fixture
def results():
    """A function that gives a call's results without the compiler, and with it."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 8, generator=generator)
    key = torch.randn(2, 4, 7, 8, generator=generator)

    def both(call):
        torch._dynamo.reset()
        return arrays(call(x, key)), arrays(torch.compile(call, backend="eager")(x, key))

    yield both
    torch._dynamo.reset()


@pytest.mark.parametrize("what", CALLS)
def test_bits(results, what):
    want, got = results(CALLS[what])
    assert same_bits(got, want)


def test_errors(results):
    """They name the argument there too."""
    for call, message in (
        (lambda x, key: ATTEND(x, key[..., :3], key), "key: expected head_dim 8"),
        (lambda x, key: ATTEND(x, key[:1, :3], key), "key: expected 4 heads|value: expected"),
        (lambda x, key: ATTEND(x, key, key[:, :, :2]), "value: expected 7 rows"),
    ):
        with pytest.raises(ValueError, match=f"^({message})"):
            results(lambda x, key, call=call: arrays(call(x, key)))
