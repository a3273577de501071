"""The index of the methods that ship says what their classes say, and serves in their stead."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

import vtc
from vtc.methods.base import document, index, registry, write_index


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


def test_docstrings_say_what_a_list_shows():
    """A line of at most 45 letters, so that name and stage fit beside it, and a word on every option."""
    for info in index.shipped().values():
        assert 0 < len(info.summary) <= 45, info.name
        assert info.about, info.name
        assert [name for name, said in info.help.items() if not said] == [], info.name
        assert list(info.types) == list(info.help) == ["keep", *info.options]


@pytest.mark.parametrize("info", [pytest.param(info, id=info.name) for info in index.shipped().values()])
def test_the_words_that_an_option_takes_are_all_documented(info):
    for name, kind in info.types.items():
        if kind not in ("str", "str | None") or name == "positions":
            continue
        with pytest.raises(ValueError, match=f"^{name}='no such word' is not one of ") as refusal:
            vtc.resolve(f"{info.name}({name}='no such word')")
        allowed = str(refusal.value).partition(" is not one of ")[2]
        for word in re.findall(r"\b(?!None\b)[\w-]+", allowed):
            assert f'"{word}"' in info.help[name], (name, word)


def test_an_entry_may_describe_two_options_and_a_class_its_own():
    class Base:
        """One.

        Args:
            one, two: things that
                belong together.
            three: of the base.
        """

    class Derived(Base):
        """Two lines
        long.

        And a paragraph: with a colon.

        Args:
            three: of the class.

        Returns:
            four: nothing.
        """

    assert document.option_help(Derived) == {
        "one": "things that belong together.", "two": "things that belong together.", "three": "of the class."
    }  # fmt: skip
    assert document.about(Derived) == "long.\nAnd a paragraph: with a colon."
    assert document.about(Base) == ""


def test_writing_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(index, "FILE", tmp_path / "index.json")
    write_index.main()
    assert (tmp_path / "index.json").read_text(encoding="utf-8") == write_index.current()
    assert str(tmp_path / "index.json") in capsys.readouterr().out
