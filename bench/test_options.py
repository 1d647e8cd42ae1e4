"""What each option costs: one group, a bar per option, the bare call first.

    pytest bench/test_options.py
    pytest bench/test_options.py -k "bare or alibi"

Times are printed, never asserted; the limits stand in `extra_info`, and options.py, which takes the
calls in turn, holds against them. Run by whoever changes masks or the softmax.
"""

from __future__ import annotations

import machine
import pytest
from option_rows import BARE, BASE, OPTIONS
from options import check, selfattn_call


@pytest.fixture(scope="module")
def arrays():
    return BASE.arrays()


@pytest.mark.benchmark(group=str(BASE), disable_gc=True, max_time=0.7)
@pytest.mark.parametrize("option", [BARE, *OPTIONS], ids=lambda option: option.name)
def test_option(benchmark, arrays, option):
    arguments = option.arguments(BASE)
    run = selfattn_call(arrays, arguments, machine.available_threads())
    check(option.name, BASE, arrays, arguments, run())
    benchmark.extra_info.update({"what": option.what, "limit": option.limit})
    benchmark(run)
