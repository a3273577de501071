"""Methods as data: every option of every method through JSON and through the string form, and what is refused."""

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vtc
from vtc.methods.base import registry
from vtc.methods.base.cache import PairedMethod
from vtc.methods.mustdrop import DualFilter

NAMES = sorted(registry.discover())
WORDS = (
    *("compact", "original", "frame", "clip", "all"),
    *("selection", "kcenter", "random", "released", "mean", "hash", "uniform"),
    *("mae", "coded"),
    *("encoder", "geometric", "bipartite", "cls"),
    *("count", "strips", "cosine"),
    *("max", "average", "none"),
)
TRIED: tuple[Any, ...] = (
    *(True, False, 3, 1, 2, 0.35, 0.2),
    ((0, 1), (2, 0)),
    *((0.3,), (0.2, 0.4, 0.7), (0.7, 0.4, 0.2), (0.2, 0.4, 0.6, 0.8), (12, 32), (2, 3, 4)),
)
WEIGHTS = Path(__file__).resolve().parents[3] / "models" / "tiny" / "tiny-qwen-vqtoken"


def read_back(method):
    """Through the string, and through JSON."""
    written = json.loads(json.dumps(method.as_dict()))
    assert set(written) == {"format", "name", "options"}
    assert set(written["options"]) == {field.name for field in fields(method)}
    return vtc.resolve(str(method)), vtc.Method.from_dict(written)


def variants(name):
    """The method with one option after the other at other values than its own."""
    plain = vtc.resolve(name)
    for field in fields(plain):
        for value in (*TRIED, *WORDS):
            option: dict[str, Any] = {field.name: value}
            try:
                method = vtc.resolve(name, **option)
            except (TypeError, ValueError, FileNotFoundError):
                continue
            if repr(method) != repr(plain):
                yield field.name, method


@pytest.mark.parametrize("name", NAMES)
def test_every_option_comes_back(name):
    plain = vtc.resolve(name)
    assert str(plain) == name
    assert [repr(one) for one in read_back(plain)] == [repr(plain)] * 2
    tried = set()
    for option, method in variants(name):
        changed = [f.name for f in fields(plain) if repr(getattr(method, f.name)) != repr(getattr(plain, f.name))]
        assert str(method).count("=") == len(changed)  # and nothing else: the others are as they were
        assert all(f"{other}=" in str(method) for other in changed)
        assert changed == [option] or option == "version"  # which has positions of its own
        assert [repr(one) for one in read_back(method)] == [repr(method)] * 2
        tried.add(option)
    folder = {"weights"} if name != "d2o" else set()
    free = (
        {field.name for field in fields(plain)}
        - folder
        - {
            "scorer",
            "words",
            "calibration",
        }
    )  # folders and functions: below
    fixed = {"scope"} if len(plain.scopes) == 1 else set()
    fixed |= {"positions"} if plain.stage in ("pixels", "cache") else set()
    fixed |= {"r3"} if name == "vflowopt" else set()  # which stands beside r1 and r2: see its definition
    fixed |= {"keep", "every"} if isinstance(plain, PairedMethod) else set()
    fixed |= {"per_head"} if name == "adakv" else set()  # which is about heads
    fixed |= {"every", "first"} if name == "late-step" else set()  # which chooses once in each block
    fixed |= {"stage"} if plain.stage == "encoder" else set()
    assert tried == free - fixed


def test_several_options_and_a_count_that_equals_a_fraction():
    method = vtc.PyramidDrop(keep=1, layers=(2, 0.5), keeps=(300, 0.25), positions="original")
    assert str(method) == "pyramiddrop(keep=1, keeps=(300, 0.25), layers=(2, 0.5), positions=original)"
    assert [repr(one) for one in read_back(method)] == [repr(method)] * 2


@pytest.mark.parametrize("weights", [WEIGHTS, str(WEIGHTS)])
def test_a_folder_of_weights_comes_back(weights):
    method = vtc.VQToken(weights=weights, keep=8)
    assert read_back(method) == (method, method)
    assert str(method) == f"vqtoken(keep=8, weights={WEIGHTS})"


def test_a_pipeline_is_a_list():
    methods = [vtc.VTCCLS(keep=192), vtc.FastV(keep=0.2), vtc.H2O(keep=32)]
    written = json.loads(json.dumps([method.as_dict() for method in methods]))
    assert [vtc.Method.from_dict(one) for one in written] == methods


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("fastv", "'fastv' is no method: expected a table"),
        ({"name": "fastv"}, 'expected a table with "format", "name" and "options"'),
        ({"format": 2, "name": "fastv"}, "a method in format 2 cannot be read: this vtc knows format 1"),
        ({"format": 1, "name": "fastw"}, "unknown method 'fastw'. Did you mean 'fastv'"),
        ({"format": 1, "name": ["fastv"]}, "its name is no text"),
        ({"format": 1, "name": "fastv", "options": [1]}, "its options no table"),
        ({"format": 1, "name": "fastv", "keep": 1}, "it has 'keep', too"),
        ({"format": 1, "name": "fastv(keep=3)"}, "brings options: they belong into"),
        ({"format": 1, "name": "fastv", "options": {"kep": 1}}, "fastv has no option 'kep'"),
        ({"format": 1, "name": "fastv", "options": {"keep": 0}}, "keep=0 is not a whole number"),
    ],
)
def test_what_is_not_read(written, said):
    with pytest.raises((ValueError, TypeError), match=r"^[^\n]*$") as caught:
        vtc.Method.from_dict(written)
    assert said in str(caught.value)


def test_a_class_reads_its_own_only():
    written = vtc.FastV(keep=3).as_dict()
    assert vtc.FastV.from_dict(written) == vtc.LayerMethod.from_dict(written) == vtc.FastV(keep=3)
    with pytest.raises(TypeError, match=r"^'fastv' is no ToDRE: read it with vtc\.Method\.from_dict\.$"):
        vtc.ToDRE.from_dict(written)


def test_what_has_no_name_is_not_written():
    class Nameless(vtc.FastV):  # a subclass is not what its parent's name stands for
        pass

    for method in (DualFilter(), Nameless()):
        with pytest.raises(TypeError, match=r"^(DualFilter|Nameless) has no registered name to be found by again"):
            method.as_dict()
        assert str(method) == repr(method)


def test_live_objects_are_not_written():
    for method, option, kind in (
        (vtc.VQToken(weights=nn.Linear(2, 2)), "weights", "Linear"),
        (vtc.QuoTA(scorer=lambda tokens: torch.ones(1)), "scorer", "function"),
    ):
        with pytest.raises(TypeError, match=rf"cannot be written down: {option}= holds a {kind}, and only [^\n]*$"):
            method.as_dict()
        assert str(method) == repr(method)


def test_a_users_method(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    @dataclass(frozen=True, kw_only=True)
    class Own(vtc.Method):
        name = "my-own_2"
        keep: int | float = 1.0
        word: str = "x y"
        pair: tuple[int, ...] = ()

        def score(self, tokens):
            return tokens.features[:, 0]

    for method in (Own(), Own(keep=1), Own(word="1", pair=(1, 2)), Own(pair=(3,))):
        assert [repr(one) for one in read_back(method)] == [repr(method)] * 2


# -- keys of caches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_its_part_in_the_key(name):
    plain = vtc.resolve(name)
    keys = {plain.cache_key(), *(method.cache_key() for _, method in variants(name))}
    assert len(keys) == 1 + len({repr(method) for _, method in variants(name)})
    assert plain.cache_key() == vtc.resolve(name).cache_key()
    assert plain.cache_key().startswith(f"vtc {vtc.__version__} {name}(")
    assert all(f"{field.name}=" in plain.cache_key() for field in fields(plain))


def test_files_count_by_what_they_hold(tmp_path):
    """Elsewhere the same weights have the same key, and other weights in the same place have another."""
    copy = tmp_path / "weights"
    shutil.copytree(WEIGHTS, copy)
    shipped, own = vtc.VQToken(weights=WEIGHTS), vtc.VQToken(weights=copy)
    key = own.cache_key()
    assert key == shipped.cache_key() != vtc.VQToken().cache_key()
    (copy / "more").write_text("other weights")
    assert own.cache_key() != key


def test_what_has_no_key():
    with pytest.raises(TypeError, match=r"cannot be written down: scorer= holds a function, and only [^\n]*$"):
        vtc.CDPruner(judge="clip", scorer=lambda tokens: torch.ones(1)).cache_key()
    with pytest.raises(TypeError, match=r"^DualFilter has no registered name"):
        DualFilter().cache_key()


# -- doors ---------------------------------------------------------------------------------------------------------


def test_resolve_reads_it_and_is_overridden():
    assert vtc.resolve("fastv(keep=0.2, layers=(2,))") == vtc.FastV(keep=0.2, layers=(2,))
    assert vtc.resolve("fastv(keep=0.2, layers=(2,))", 0.5) == vtc.FastV(keep=0.5, layers=(2,))
    assert vtc.resolve("fastv(layers=(2,))", layers=(3,)) == vtc.FastV(layers=(3,))
    with pytest.raises(TypeError, match=r"^fastv has no option 'layer'[^\n]* Did you mean 'layers'\?$"):
        vtc.resolve("fastv(layer=2)")
    with pytest.raises(ValueError, match=r"^vtc-cls \+ fastv are several methods, where one is expected"):
        vtc.resolve("vtc-cls + fastv")


def test_select_reads_it():
    x = torch.randn(30, 4)
    assert torch.equal(
        vtc.select("divprune(keep=7, order=selection)", x).anchor,
        vtc.select(vtc.DivPrune(keep=7, order="selection"), x).anchor,
    )
