"""Every method of the KV cache on every family in whatever a cache goes through: the matrix that the guarantees name.

Each cell is compared with something that vtc does not compute: the oracle on the full-length model, or, where the way
to the answer differs and the answer must not (assistance, threads), the plain way.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

import vtc
from tests.engine.cells import crossed, prompts
from tests.engine.test_assistance import LATER, LOOKUP, counting, equal_with, prompt
from tests.engine.test_oracle import DECODERS
from tests.engine.test_oracle_inside import MIXED, equal_to_oracle, talk
from tests.engine.test_oracle_kv import METHODS as BY_HEAD
from tests.engine.test_threads import answer, assert_same, together
from tests.families import FAMILIES, batch, model_of
from tests.oracle import decisions, oracle

METHODS: dict[str, Any] = {
    "h2o, all heads alike": vtc.H2O(keep=0.4),
    "scissorhands, all heads alike": vtc.Scissorhands(keep=0.4, history=5),
    "streaming": vtc.Streaming(keep=0.4, sinks=2),
    **BY_HEAD,
}


def padding(family: str, method: Any) -> None:
    equal_to_oracle(family, method, MIXED)


def beams(family: str, method: Any) -> None:
    equal_to_oracle(family, method, ([[0], [1, 2], []], "left"), **{**DECODERS["beams"], "max_new_tokens": 6})


def turns(family: str, method: Any) -> None:
    model, inputs = model_of(family), batch(family, [[0], [1, 2]])
    with vtc.wrapped(model, method):
        ids = talk(model, inputs)
        told = decisions(model)
    with oracle(model, told, 2, False):
        assert ids.equal(talk(model, inputs))


def assistance(family: str, method: Any) -> None:
    """Candidates that come once the prompt has lost rows."""
    model, inputs = counting(family), prompt(family, [[0]], LATER)
    with vtc.wrapped(model, method):
        lengths = equal_with(model, inputs, LOOKUP)
    assert max(lengths[1:]) > 1


def threads(family: str, method: Any) -> None:
    """Three at a time, each with its own answer, report and cache."""
    model, asked = model_of(family), prompts(family, "", many=3)
    with vtc.wrapped(model, method):
        alone = [answer(model, inputs) for inputs in asked]
        for got, right in zip(together([partial(answer, model, x) for x in asked]), alone, strict=True):
            assert_same(got, right)


CONDITIONS = {check.__name__: check for check in (padding, beams, turns, assistance, threads)}


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize(("family", "method"), crossed(FAMILIES, METHODS))
def test_cache(family: str, method: str, condition: str) -> None:
    CONDITIONS[condition](family, METHODS[method])


def test_every_method_is_in_the_matrix() -> None:
    """But for minicache, which drops nothing: `test_oracle_kv.py::test_layers_that_share`; and late-step, which other
    models run: `test_denoising.py`."""
    names = {method.name for method in METHODS.values()} | {"minicache", "dycoke"}
    assert names == {info.name for info in vtc.list_methods() if info.stage == "cache" and not info.only} | {"dycoke"}
