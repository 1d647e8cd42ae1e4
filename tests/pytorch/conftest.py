"""The dtypes that tests of `selfattn.torch` run in, and what they must leave as it was: PyTorch's
own functions and settings."""

import numpy as np
import pytest


@pytest.fixture(params=["float32", "float64", "float16", "bfloat16"])
def dtype(request):
    """NumPy's, and ml_dtypes'; elsewhere half types have tests of their own."""
    if request.param == "bfloat16":
        return pytest.importorskip("ml_dtypes").bfloat16
    return getattr(np, request.param)


@pytest.fixture(autouse=True)
def torchs_own_functions_stay():
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    def settings():
        return (
            functional.scaled_dot_product_attention,
            functional.linear,
            torch.nn.attention.current_flash_attention_impl(),
            torch.backends.mha.get_fastpath_enabled(),
        )

    before = settings()
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    assert settings() == before
