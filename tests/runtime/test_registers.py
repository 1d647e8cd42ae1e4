"""Every call leaves the upper parts of the vectors' registers clear.

While something is in them, code that uses only the lower parts, of the loops, Python or NumPy, may
run at a fraction of its speed (Intel's optimization manual, on mixing AVX code with SSE code).
"""

import ctypes
import mmap
from pathlib import Path

import numpy as np
import pytest

import selfattn
from selfattn import _core, nn
from support.arrays import normal

CPUINFO = Path("/proc/cpuinfo")
if not CPUINFO.exists() or not {"avx", "xgetbv1"} <= set(CPUINFO.read_text().split()):
    pytest.skip("asks the processor by xgetbv", allow_module_level=True)

# mov ecx, 1; xgetbv; vzeroupper; ret: the parts of the state that are in use, of which bit 2 is the
# upper halves of ymm registers and bit 6 those of zmm registers.
PROBE = bytes.fromhex("b901000000 0f01d0 c5f877 c3")
UPPER_PARTS = 1 << 2 | 1 << 6

x, y = normal(2, 100, 40), normal(2, 100, 40)
few = x[:, :3].copy()
mask = normal(100, 100)
matrix = normal(50, 40)
columns = np.asfortranarray(matrix)
sinks = normal(2)


def backward(q, **options):
    out, lse = selfattn.scaled_dot_product_attention(q, x, y, return_lse=True, **options)
    return lambda: selfattn.scaled_dot_product_attention_backward(out, q, x, y, out, lse, **options)


long = normal(2, 1500, 40)
attend = selfattn.scaled_dot_product_attention
CALLS = {
    "forward": lambda: attend(x, x, y),
    "few rows": lambda: attend(few, x, y),
    "lse": lambda: attend(x, x, y, return_lse=True),
    "causal": lambda: attend(x, x, y, is_causal=True),
    "mask": lambda: attend(x, x, y, attn_mask=mask),
    "softcap": lambda: attend(x, x, y, softcap=2.0),
    "dropout": lambda: attend(x, x, y, dropout_p=0.5),
    "splits": lambda: attend(x, long, long),
    "splits of few rows": lambda: attend(few, long, long),
    "float64": lambda: attend(*[a.astype("f8") for a in (x, x, y)]),
    "backward": backward(x),
    "backward of few rows": backward(few),
    "backward with sinks": backward(x, sinks=sinks),
    "backward with dropout": backward(x, dropout_p=0.5),
    "scores": lambda: selfattn.scaled_dot_product(x, x),
    "weights": lambda: selfattn.attention_weights(x, x),
    "weights with dropout": lambda: selfattn.attention_weights(x, x, dropout_p=0.5),
    "weighted sum": lambda: selfattn.weighted_sum(mask, x[0]),
    "softmax": lambda: selfattn.softmax(mask),
    "softmax in parts": lambda: selfattn.softmax(long.reshape(-1)),
    "merge": lambda: selfattn.merge_states(x, mask[:2], y, mask[2:4]),
    "merge of many": lambda: selfattn.merge_states_many(x, mask[:2]),
    "gradients of a merge": lambda: selfattn.merge_states_backward(x[0], None, x, mask[:2]),
    "rope": lambda: nn.rope(x),
    "rope by tables": lambda: nn.rope(x, cos=mask[:, :40], sin=mask[:, 40:80]),
    "projection": lambda: selfattn.project(x, matrix),
    "projection by columns": lambda: selfattn.project(x, columns),
    "projection of few rows": lambda: selfattn.project(x[0, :2], matrix),
    "projection of few rows by columns": lambda: selfattn.project(x[0, :2], columns),
    "gradient of x": lambda: _core.project_backward(
        x[..., :30], x, matrix[:30], np.empty_like(x), None, None, 1
    ),
    "gradient of few rows": lambda: _core.project_backward(
        x[0, :2, :30], x[0, :2], matrix[:30], np.empty_like(x[0, :2]), None, None, 1
    ),
    "gradient of the weight": lambda: _core.project_backward(
        x[..., :30], y, matrix[:30], None, np.empty_like(matrix[:30]), None, 1
    ),
    "gradient of the bias": lambda: _core.project_backward(
        x[..., :30], y, matrix[:30], None, None, np.empty_like(matrix[:30, 0]), 1
    ),
    "exponential": lambda: _core.apply("exp", x),
    "peak": lambda: _core.time_peak(False, 1, 10),
}


@pytest.fixture(scope="module")
def upper_parts():
    """A function that tells which of them are in use, and clears them."""
    try:
        page = mmap.mmap(-1, len(PROBE), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        pytest.skip("no memory may be both written and run")
    page.write(PROBE)
    at = ctypes.c_char.from_buffer(page)
    probe = ctypes.CFUNCTYPE(ctypes.c_uint32)(ctypes.addressof(at))
    yield lambda: probe() & UPPER_PARTS
    del at  # until here, it keeps the page


@pytest.mark.parametrize("name", CALLS)
def test_upper_parts_are_clear(isa, upper_parts, name):
    with selfattn.threads(1):
        upper_parts()
        CALLS[name]()
        assert upper_parts() == 0
