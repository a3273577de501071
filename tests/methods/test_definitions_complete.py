"""Every method and every option of one has a test that states its definition: see tests/methods/definitions.py."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.methods.claims import claims
from tests.methods.definitions import BASES, definer, defines, options_of, shipped

#: options that choose no tokens, and why they need no definition
EXEMPT = {
    ("TrainedMethod", "weights"): "a file that is loaded; what its module computes is vqtoken's own definition",
    ("CalibratedMethod", "calibration"): "a file that is loaded, tests/calibration; its options have definitions",
}
#: fields that the base alone answers for, tested on all methods at once in test_all.py, and with models in tests/engine
SHARED = ("keep", "positions")


def named(source: str) -> set[str]:
    """Options that a module sets or reads: its keywords, attributes and strings, those of `@defines` left out."""
    words, left_out = set(), set()
    for node in ast.walk(ast.parse(source)):  # breadth first: a call comes before its arguments
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "defines":
            left_out |= set(node.args)
        elif isinstance(node, ast.keyword):
            words.add(node.arg)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.Constant) and node not in left_out:
            words.add(node.value)
    return words


MODULES = {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))}
DEFINED: dict[str, set[str]] = defaultdict(set)
for _source in MODULES.values():
    for _name, _options in claims(_source):
        DEFINED[_name] |= {_name, *_options}


@pytest.mark.parametrize("module", [name for name, source in MODULES.items() if claims(source)])
def test_a_definition_sets_the_options_that_it_claims(module):
    words = named(MODULES[module])
    for name, options in claims(MODULES[module]):
        assert set(options) <= set(options_of(name))
        assert set(options) <= words, f"{module} claims options of {name} that it never sets"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_method_and_option_is_defined(name):
    assert DEFINED[name], f"no test in tests/methods/ has @defines({name!r}, ...)"
    own = [option for option in options_of(name) if definer(shipped()[name], option) == name]
    missing = [option for option in own if option not in DEFINED[name] and (name, option) not in EXEMPT]
    assert not missing, f"no test has @defines({name!r}, ...) with these options: {missing}"


@pytest.mark.parametrize("base", [base.__name__ for base in BASES])
def test_every_shared_option_is_defined(base):
    asked = {
        option for cls in shipped().values() for option in options_of(cls.name) if definer(cls, option) == base
    } - {*SHARED, *(option for name, option in EXEMPT if name == base)}
    assert asked <= DEFINED[base], f"no test has @defines({base!r}, ...) with these options"


def test_exemptions_are_of_options_without_a_definition():
    for name, option in EXEMPT:
        assert option in options_of(name)
        assert option not in DEFINED[name]


def test_what_cannot_be_a_definition_is_refused():
    with pytest.raises(
        ValueError, match="'divprun' is no method and no base; there are: adakv, cdpruner, d2o, dart, divprune,"
    ):
        defines("divprun")
    with pytest.raises(
        ValueError, match="divprune has no option 'ordre'; it has: keep, positions, scope, blocks, order"
    ):
        defines("divprune", "ordre")
    test = "@defines('divprune', 'order')\n{}def test_it(): ..."
    assert claims(test.format("")) == [("divprune", ["order"])]
    assert claims(test.format("").replace("test_it", "helper")) == []
    assert "order" not in named(test.format(""))
    assert "order" in named(test.format("") + "\nDivPrune(order='raster')")
    with pytest.raises(AssertionError, match="test_it does not run in every test run"):
        claims(test.format("@pytest.mark.full\n"))
