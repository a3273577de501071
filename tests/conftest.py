"""Shared test settings. One thread: models this small only lose time to handing work around."""

from __future__ import annotations

from typing import Any

import pytest
import torch

torch.set_num_threads(1)

ORACLE_CELLS: set[str] = set()


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """`core_cells(name=[values])` marks as core those cells of a matrix whose parameters are among the values."""
    for item in items:
        for mark in item.iter_markers("core_cells"):
            if all(item.callspec.params[name] in values for name, values in mark.kwargs.items()):
                item.add_marker("core")


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" and report.passed and "test_oracle" in report.nodeid:
        ORACLE_CELLS.add(report.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if ORACLE_CELLS:
        terminalreporter.write_line(f"oracle matrix: {len(ORACLE_CELLS)} cells equal the masked full-length model")
