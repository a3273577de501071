"""Shared test settings. One thread: models this small only lose time to handing work around."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.listed import LISTED
from tests.sampling import SEED, UNKNOWN, drawn

torch.set_num_threads(1)

#: part of a cell's name -> what is printed of how many passed
MATRICES = {
    "test_oracle": "oracle matrix: {} cells equal the masked full-length model",
    "test_matrix_kv.py::test_cache": "cache matrix: {} cells of families × methods × "
    "{{padding, beams, turns, assistance, threads}} passed",
}
PASSED: dict[str, set[str]] = {name: set() for name in MATRICES}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[Any]) -> None:
    """`core_cells(name=[values])` marks as core those cells of a matrix whose parameters are among the values;
    `sampled` marks as full those of listed families that are not drawn (`sampling.py`), and of the other families'
    those outside the share `most` and no core cells."""
    for item in items:
        if _is_sampled(item):
            item.own_markers = [mark for mark in item.own_markers if not mark.name.startswith("core")]
            if not drawn(item.nodeid):
                item.add_marker("full")
            continue
        for mark in item.iter_markers("core_cells"):
            if all(item.callspec.params[name] in values for name, values in mark.kwargs.items()):
                item.add_marker("core")
        sampled = item.get_closest_marker("sampled")
        share = 1.0 if sampled is None else sampled.kwargs.get("most", 1.0)
        if hasattr(item, "callspec") and not item.get_closest_marker("core") and not drawn(item.nodeid, share):
            item.add_marker("full")


def _is_sampled(item: Any) -> bool:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    return params.get("family") in LISTED and item.get_closest_marker("sampled") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    try:
        return (yield)
    except ValueError as error:
        if _is_sampled(item) and UNKNOWN.search(str(error)):
            pytest.skip(f"refused: {error}")
        raise


def pytest_report_header() -> str:
    return f"large matrices: cells drawn with VTC_TEST_SEED={SEED}"


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" and report.passed:
        for name in MATRICES:
            if name in report.nodeid:
                PASSED[name].add(report.nodeid)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if terminalreporter.stats.get("failed"):
        terminalreporter.write_line(f"large matrices: cells drawn with VTC_TEST_SEED={SEED}")
    for name, text in MATRICES.items():
        if PASSED[name]:
            terminalreporter.write_line(text.format(len(PASSED[name])))
