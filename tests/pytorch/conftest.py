"""What tests of `selfattn.torch` must leave as it was: PyTorch's own functions and settings."""

import pytest


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
