"""The provider is on where it should be, in nested blocks, errors and threads; and off after."""

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from selfattn import torch as ours  # noqa: E402
from support import subprocesses  # noqa: E402
from support.tensors import (  # noqa: E402
    ATTENTION,
    LINEAR,
)


def bits():
    """What the two functions give, to be told apart from selfattn's own."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 65, 64, generator=generator) for _ in range(3))
    attended = F.scaled_dot_product_attention(query, key, value)
    projected = F.linear(query, key[0, 0])
    mine = ours.scaled_dot_product_attention(query, key, value), ours.linear(query, key[0, 0])
    return torch.equal(attended, mine[0]), torch.equal(projected, mine[1]), attended, projected


@pytest.fixture
def before():
    """torch's own bits, which must be others, or the tests below could not fail."""
    is_ours, is_ours_too, *results = bits()
    assert not is_ours
    assert not is_ours_too
    return results


def assert_torchs(before):
    *_, attended, projected = bits()
    assert torch.equal(attended, before[0])
    assert torch.equal(projected, before[1])


def test_restored(before):
    with ours.enabled():
        assert bits()[:2] == (True, False)
    assert_torchs(before)
    with ours.enabled(linear=True):
        assert bits()[:2] == (True, True)
    assert_torchs(before)
    with pytest.raises(NotImplementedError):
        torch.ops.aten._flash_attention_forward(
            *[torch.randn(3, 1, 8)] * 3, *[torch.tensor([0, 3])] * 2, 3, 3, 0.0, False, False
        )


def test_restored_after_an_exception(before):
    with pytest.raises(ZeroDivisionError), ours.enabled(linear=True):
        raise ZeroDivisionError
    assert_torchs(before)


def test_nested(before):
    with ours.enabled():
        with ours.enabled(linear=True):
            assert bits()[:2] == (True, True)
            with ours.enabled():
                assert bits()[:2] == (True, True)
        assert bits()[:2] == (True, False)
    assert_torchs(before)


def test_activated(before):
    ours.activate()
    try:
        assert bits()[:2] == (True, False)
        ours.activate(linear=True)
        assert bits()[:2] == (True, True)
        with ours.enabled():
            assert bits()[:2] == (True, True)
        assert bits()[:2] == (True, True)
        ours.activate()
        assert bits()[:2] == (True, False)
    finally:
        ours.restore()
    assert_torchs(before)
    ours.restore()
    assert_torchs(before)


def test_restore_inside_a_block(before):
    with ours.enabled():
        ours.activate(linear=True)
        ours.restore()
        assert bits()[:2] == (True, False)
    assert_torchs(before)


def test_two_threads(before):
    """Blocks that overlap and are left in the order of entering: on until the last is left."""
    import threading

    entered, leave = threading.Event(), threading.Event()
    seen = []

    def other():
        with ours.enabled(linear=True):
            entered.set()
            assert leave.wait(subprocesses.LIMIT)
        seen.append(bits()[:2])

    thread = threading.Thread(target=other)
    with ours.enabled():
        thread.start()
        assert entered.wait(subprocesses.LIMIT)
        assert bits()[:2] == (True, True)
        leave.set()
        thread.join()
        assert seen == [(True, False)]
        assert bits()[:2] == (True, False)
    assert_torchs(before)


def test_many_threads_come_and_go(before):
    from concurrent.futures import ThreadPoolExecutor

    def work(i):
        with ours.enabled(linear=i % 2 == 0):
            return bits()[0]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(40)))
    assert_torchs(before)


def test_a_function_that_somebody_kept(before):
    with ours.enabled(linear=True):
        kept, kept_linear = F.scaled_dot_product_attention, F.linear
    query, key, value = (torch.randn(2, 4, 65, 64) for _ in range(3))
    assert torch.equal(kept(query, key, value), ATTENTION(query, key, value))
    assert torch.equal(kept_linear(query, key[0, 0]), LINEAR(query, key[0, 0]))


def test_beside_another_patch(before, monkeypatch):
    """Somebody else's patch, made before, is called for what is not ours, and is there after."""
    seen = []

    def theirs(*arguments, **options):
        seen.append(arguments)
        return ATTENTION(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", theirs)
        with ours.enabled():
            half = torch.randn(1, 1, 2, 8, dtype=torch.float16)
            F.scaled_dot_product_attention(*[half[0].to("meta")] * 3)
            assert len(seen) == 1
        assert F.scaled_dot_product_attention is theirs


def test_an_error_while_switching_on(before, monkeypatch):
    def failing():
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ours.provider.dispatched, "Handle", failing)
        with pytest.raises(MemoryError), ours.enabled(linear=True):
            pass
        with pytest.raises(MemoryError):
            ours.activate()
    assert_torchs(before)
    with ours.enabled():
        assert bits()[:2] == (True, False)
    assert_torchs(before)


def test_by_torchs_own_registry(before):
    """`register` and torch's own `activate_flash_attention_impl` take the dispatcher's door."""
    ours.register()
    torch.nn.attention.activate_flash_attention_impl("selfattn")
    try:
        assert torch.nn.attention.current_flash_attention_impl() == "selfattn"
        assert F.scaled_dot_product_attention is ATTENTION
        assert bits()[:2] == (True, False)
    finally:
        torch.nn.attention.restore_flash_attention_impl()
    assert_torchs(before)


def test_another_implementation_that_was_active(before):
    """It is active again afterwards."""
    made = []

    class Handle:
        def remove(self):
            made.append("removed")

    torch.nn.attention.register_flash_attention_impl(
        "another", register_fn=lambda: made.append("made") or Handle()
    )
    torch.nn.attention.activate_flash_attention_impl("another")
    try:
        with ours.enabled():
            assert torch.nn.attention.current_flash_attention_impl() == "selfattn"
        assert torch.nn.attention.current_flash_attention_impl() == "another"
        assert made == ["made", "removed", "made"]
    finally:
        torch.nn.attention.restore_flash_attention_impl()
        from torch.nn.attention import _registry

        del _registry._FLASH_ATTENTION_IMPLS["another"]
