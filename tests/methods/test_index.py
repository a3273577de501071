"""The index of the methods that ship says what their classes say, and serves in their stead."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

import vtc
from vtc.methods.base import index, registry, write_index


def test_the_index_is_that_of_the_classes():
    stored = index.FILE.read_text(encoding="utf-8")
    assert stored == write_index.current(), "write it anew: python -m vtc.methods.base.write_index"


def test_what_is_read_is_what_the_classes_say():
    classes = {name: cls for name, cls in registry.discover().items() if cls.__module__.startswith("vtc.methods.")}
    assert list(index.shipped()) == list(classes)
    for name, info in index.shipped().items():
        assert info == registry.describe(classes[name])
        assert registry.find(name) is classes[name]
        assert hash(info) == hash(registry.describe(classes[name]))


def test_defaults_are_those_of_an_instance():
    (info,) = [info for info in vtc.list_methods() if info.name == "fastv"]
    method = vtc.FastV()
    assert info.default_keep == method.keep
    assert info.options == tuple(info.defaults)
    assert {name: getattr(method, name) for name in info.options} == {
        **info.defaults, "positions": info.positions, "scope": "clip"
    }  # fmt: skip


@pytest.mark.parametrize("registered", [True, False])
def test_a_name_that_ships_is_taken(monkeypatch, registered):
    """Also where nobody has imported its method yet."""
    monkeypatch.setattr(registry, "_METHODS", {"divprune": vtc.DivPrune} if registered else {})
    with pytest.raises(ValueError, match=r"'divprune' is taken by vtc\.methods\.divprune\.DivPrune; choose another"):

        class Mine(vtc.Method):
            name = "divprune"

    assert "Mine" not in {info.class_name for info in vtc.list_methods()}


def test_a_method_of_a_users_own_is_listed_in_its_place(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {})

    @dataclass(frozen=True, kw_only=True)
    class Every(vtc.Method):
        """Every so many tokens."""

        name = "every"
        step: int = 2

        def score(self, tokens):
            return -(tokens.index % self.step).float()

    names = [info.name for info in vtc.list_methods()]
    assert names == sorted([*index.shipped(), "every"])
    (info,) = [info for info in vtc.list_methods() if info.name == "every"]
    assert (info.module, info.defaults["step"], info.summary) == (__name__, 2, "Every so many tokens.")
    assert vtc.resolve("every", step=3) == Every(step=3)
    with pytest.raises(ValueError, match="Did you mean 'every'"):
        vtc.resolve("evry")


def test_methods_are_found_whatever_has_been_registered(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {})
    assert registry.find("tome") is vtc.ToMe
    assert registry.discover()["pitome"] is vtc.PiToMe


def test_writing_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(index, "FILE", tmp_path / "index.json")
    write_index.main()
    assert (tmp_path / "index.json").read_text(encoding="utf-8") == write_index.current()
    assert str(tmp_path / "index.json") in capsys.readouterr().out
