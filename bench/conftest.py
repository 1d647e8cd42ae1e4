"""The tables that end a run of test_suites.py."""

from __future__ import annotations

import pytest

TABLES = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[TABLES] = []


@pytest.fixture(scope="session")
def show(request):
    """A function that takes a table, to be printed after the bars."""
    return request.config.stash[TABLES].append


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[TABLES]:
        terminalreporter.section("of bursts in turns: medians, fractions of the limit, ratios")
        for table in config.stash[TABLES]:
            terminalreporter.write_line(table)
