"""Gradients beside PyTorch's own kernels, on inputs that make the softmax nearly one-hot.

Fault 57. They are drawn as PyTorch's own tests draw them: uniform within 9 of 0, few keys, short
rows. A weight is then nearly 1, and what is left of dP - D is small beside either of them. The
promise of docs/numerics.md: the largest error of each gradient, the median over draws, is at most
1.1 times PyTorch's. Longer calls are test_backward_torch.py's.
"""

import statistics

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from selfattn import torch as ours  # noqa: E402

DRAWS = 60
# The shapes of query, and of key and value.
SHAPES = [
    ((4, 4, 3, 8), (4, 4, 6, 8)),
    ((4, 3, 8), (4, 6, 8)),
    ((4, 3, 8), (4, 4, 6, 8)),
    ((4, 4, 6, 16), (4, 4, 3, 16)),
    ((2, 2, 12, 8), (2, 2, 12, 8)),
    ((2, 2, 16, 16), (2, 2, 16, 16)),
]


@pytest.fixture(autouse=True)
def one_thread_of_torchs():
    """On a busy machine its threads wait for one another longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradients(attend, inputs, grad_out, dtype=torch.float32, **options):
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
    attend(*leaves, **options).backward(grad_out.to(dtype))
    return [x.grad.double() for x in leaves]


@pytest.mark.parametrize("size", [9, 3])
@pytest.mark.parametrize("is_causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_few_keys_with_large_scores(shapes, is_causal, size):
    errors = {"ours": ([], [], []), "torch": ([], [], []), "torch's formulas": ([], [], [])}
    generator = torch.Generator().manual_seed(7)
    for _ in range(DRAWS):
        inputs = [
            size * (2 * torch.rand(shape, generator=generator) - 1)
            for shape in (shapes[0], shapes[1], shapes[1])
        ]
        shape = torch.broadcast_shapes(shapes[0][:-2], shapes[1][:-2]) + shapes[0][-2:]
        drawn = inputs, torch.randn(shape, generator=generator)
        options = {"is_causal": is_causal}
        want = gradients(F.scaled_dot_product_attention, *drawn, torch.float64, **options)
        found = {
            "ours": gradients(ours.scaled_dot_product_attention, *drawn, **options),
            "torch": gradients(F.scaled_dot_product_attention, *drawn, **options),
        }
        with sdpa_kernel(SDPBackend.MATH):
            found["torch's formulas"] = gradients(F.scaled_dot_product_attention, *drawn, **options)
        for name, of in found.items():
            for i, (x, y) in enumerate(zip(of, want, strict=True)):
                errors[name][i].append(float((x - y).abs().max()))
    medians = {name: [statistics.median(x) for x in of] for name, of in errors.items()}
    for name in ("torch", "torch's formulas"):
        ratios = [x / y for x, y in zip(medians["ours"], medians[name], strict=True)]
        assert max(ratios) <= 1.1, (name, ratios)
