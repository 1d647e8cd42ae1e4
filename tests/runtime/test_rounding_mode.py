"""A first call under another rounding mode than the usual leaves nothing of it for later ones.

Fault 51. NumPy before 2.4 computes `np.finfo` when it is first asked and keeps it for the process,
and so do selfattn's tables; either would have the bits of that moment's mode.
"""

import platform
import sys

import pytest

from support import subprocesses

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="the modes have other numbers there",
)
MODES = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x800000, 0x400000, 0xC00000)}

SETUP = """
import ctypes
import numpy as np, selfattn
from selfattn import nn
libm = ctypes.CDLL("libm.so.6")
x = np.random.default_rng(0).standard_normal((2, 2, 5, 8)).astype("f4")
mask = np.zeros((5, 5), "f4")

def calls(x):
    call = selfattn.scaled_dot_product_attention
    options = dict(scale=0.5, softcap=2.0, dropout_p=0.25, kv_lengths=np.array([3, 5]))
    options |= dict(alibi_slopes=np.ones(2, "f4"), sinks=np.ones(2, "f4"))
    out, lse = call(x, x, x, mask, return_lse=True, **options)
    back = selfattn.scaled_dot_product_attention_backward
    back(out, x, x, x, out, lse, mask, **options, mask_grad=True, sinks_grad=True)
    rows = memoryview(x[0, 0])  # no NumPy array: another way through the checks
    call(rows, rows, rows, scale=0.5)
    selfattn.scaled_dot_product(x, x, scale=0.5)
    selfattn.attention_weights(x, x, scale=0.5)
    selfattn.softmax(x)
    selfattn.merge_states(out, lse, out, lse)
    selfattn.merge_states_backward(out[0], lse[0], out, lse)
    nn.rope(x[..., :5, :], cos=mask[:, :4].astype("f8"), sin=mask[:, 1:].astype("f8"))
    layer = nn.MultiheadAttention(8, 2, dtype=x.dtype, seed=0)
    layer.load_state_dict(layer.state_dict())
    layer.backward(layer.forward(x[0], rope={}, scale=0.5))

def under(mode, f):
    libm.fesetround(mode)
    try:
        f()
    finally:
        libm.fesetround(0)
"""


@pytest.mark.parametrize("mode", range(3), ids=["down", "up", "toward zero"])
def test_limits_of_numpy(mode):
    """They are right afterwards, and whatever the version of NumPy, no call has asked for them."""
    code = f"""
    asked = []
    real, np.finfo = np.finfo, lambda *dtype: asked.append(dtype)
    for dtype in ("f4", "f8"):
        mask = mask.astype(dtype)
        under({MODES[platform.machine()][mode]}, lambda: calls(x.astype(dtype)))
    assert asked == [], asked
    import sys
    assert "numpy.ma" not in sys.modules  # which asks for them where it is imported
    info = real("f4")
    assert (info.max, info.tiny) == (np.float32(3.4028235e38), np.float32(1.1754944e-38))
    info = real("f8")
    assert (info.max, info.eps) == (sys.float_info.max, sys.float_info.epsilon)
    """
    subprocesses.run(SETUP, code)


@pytest.mark.parametrize("mode", range(3), ids=["down", "up", "toward zero"])
@pytest.mark.parametrize("theta", [10000.0, 1e5])
def test_rotary_tables(mode, theta):
    """Kept from call to call: those that were made under the mode are the usual ones."""
    rotate = f"rotate = lambda: print([nn.rope(y, 7, theta={theta}).tobytes() for y in arrays])"
    code = f"arrays = x, x.astype('f8')\n{rotate}\n"
    usual = subprocesses.run(SETUP, code + "rotate()")
    under = f"under({MODES[platform.machine()][mode]}, rotate)"
    assert subprocesses.run(SETUP, f"{code}{under}\nrotate()") == 2 * usual
