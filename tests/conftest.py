"""Shared test settings. One thread: models this small only lose time to handing work around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def _kinds(nodeid: str, params: Mapping[str, Any], marks: Sequence[pytest.Mark]) -> tuple[bool, bool]:
    """(whether a cell is core, whether it is full), by its parameters and its marks, nearest first.

    `core_cells(name=[values])` makes core those cells of a matrix whose parameters are among the values; `sampled`
    makes full those of listed families that are not drawn (`sampling.py`), and of the other families' those outside
    the share `most` that are no core cells.
    """
    names = {mark.name for mark in marks}
    if "sampled" in names and params.get("family") in LISTED:
        return False, "full" in names or not drawn(nodeid)
    cells = [mark.kwargs for mark in marks if mark.name == "core_cells"]
    core = "core" in names or any(all(params[name] in values for name, values in one.items()) for one in cells)
    most = next((mark.kwargs.get("most", 1.0) for mark in marks if mark.name == "sampled"), 1.0)
    return core, "full" in names or (bool(params) and not core and not drawn(nodeid, most))


@pytest.hookimpl(wrapper=True)
def pytest_generate_tests(metafunc: Any) -> Any:
    """Of a matrix, cells that would be deselected are not even made, but for one where none is left: there are many
    times more of them than of the others."""
    result = yield
    if "not full" in metafunc.config.option.markexpr and metafunc._calls:
        of_all, name = [*metafunc.definition.iter_markers()], metafunc.definition.nodeid
        made = [
            call
            for call in metafunc._calls
            if not _kinds(f"{name}[{call.id}]", call.params, [*map(_mark, call.marks), *of_all])[1]
        ]
        metafunc._calls[:] = made or metafunc._calls[:1]
    return result


def _mark(given: Any) -> pytest.Mark:
    return getattr(given, "mark", given)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[Any]) -> None:
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        core, full = _kinds(item.nodeid, params, [*item.iter_markers()])
        if _is_sampled(item):
            item.own_markers = [mark for mark in item.own_markers if not mark.name.startswith("core")]
        if core:
            item.add_marker("core")
        if full:
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
