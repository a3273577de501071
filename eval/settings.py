"""What an evaluation is asked to do: from the command line, from a TOML or YAML file, or from Python."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import vtc
from vtc.hints import did_you_mean

BUDGETS = ("final", "average")
KEEPS = (0.5, 0.25, 0.1)
FULL, BLIND, RANDOM = "full", "blind", "random"


@dataclass(frozen=True)
class Spec:
    """One thing to measure: a model, uncompressed ("full"), shown grey pictures ("blind"), or under a method."""

    model: str
    method: str
    keep: int | float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.model, self.label, self.keep))

    @property
    def compressed(self) -> bool:
        return self.keep is not None

    @property
    def label(self) -> str:
        """The method and its options: "todre(mode=kcenter)", "fastv(average)"."""
        own = sorted(self.options.items())
        inside = ",".join(name if value is True else f"{name}={value}" for name, value in own)
        return f"{self.method}({inside})" if inside else self.method

    @property
    def folder(self) -> Path:
        """Where its results lie, below the output folder."""
        name = self.label if self.keep is None else f"{self.label}@{self.keep}"
        return Path(_safe(Path(self.model).name or self.model), _safe(name))


def _safe(name: str) -> str:
    return re.sub(r"[^\w.,=@()+-]", "_", name)


@dataclass(frozen=True)
class Settings:
    """The settings of `vtc eval`; see its `--help`. `methods`: names, or tables with `name`, `keep`, options."""

    data: str = "tiny"
    models: tuple[str, ...] = ("tiny-llava",)
    methods: tuple[str | Mapping[str, Any], ...] = ()
    keep: tuple[int | float, ...] = KEEPS
    budget: str = "final"
    blind: bool = False
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    metric: str | Mapping[str, str] | None = None
    instruction: str = ""
    max_new_tokens: int | None = None
    frames: int | None = None
    fps: float | None = None
    batch_size: int = 64
    timing: int = 5
    device: str | None = None
    dtype: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, in one sentence."""
        for name in ("models", "methods", "keep", "tasks"):  # one may stand for a list of one
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        for name in ("data", "budget", "instruction"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        for name in ("device", "dtype", "out"):
            _require(isinstance(getattr(self, name), str | None), name, getattr(self, name), "text")
        for name in ("limit", "max_new_tokens", "frames", "batch_size"):
            value = getattr(self, name)
            _require(value is None or (_whole(value) and value >= 1), name, value, "a whole number of 1 or more")
        _require(self.batch_size is not None, "batch_size", None, "a whole number of 1 or more")
        _require(_whole(self.timing) and self.timing >= 0, "timing", self.timing, "a whole number of 0 or more")
        fps = self.fps
        _require(fps is None or (isinstance(fps, int | float) and 0 < fps < 1000), "fps", fps, "a rate in (0, 1000)")
        _require(isinstance(self.blind, bool), "blind", self.blind, "true or false")
        metric = self.metric
        named = isinstance(metric, Mapping) and all(isinstance(x, str) for pair in metric.items() for x in pair)
        _require(metric is None or isinstance(metric, str) or named, "metric", metric, "a name, or names by task")
        _require(self.budget in BUDGETS, "budget", self.budget, f"one of {', '.join(BUDGETS)}")
        _require(all(isinstance(model, str) for model in self.models), "models", self.models, "names or paths")
        _require(bool(self.models), "models", self.models, "at least one")
        _require(all(isinstance(task, str) for task in self.tasks), "tasks", self.tasks, "names")
        if self.frames is not None and self.fps is not None:
            raise ValueError("give frames or fps, not both")
        for keep in self.keep:
            _check_keep(keep)
        for entry in self.methods:
            if not isinstance(entry, str | Mapping) or (isinstance(entry, Mapping) and "name" not in entry):
                raise ValueError(f"methods: {entry!r} is neither a name nor a table with a name")

    def specs(self, kinds: Sequence[str]) -> list[Spec]:
        """Every combination, model by model: uncompressed, blind if asked for, then per budget `random` first.

        Args:
            kinds: of media in the data set; the methods used by default act on some of them, before the language model.
        Raises:
            ValueError: an unknown method, a setting of one that it does not have, or the same thing twice.
        """
        infos = {info.name: info for info in vtc.list_methods()}
        entries = [dict(name=e) if isinstance(e, str) else dict(e) for e in self.methods]
        if not entries:
            fitting = [i.name for i in infos.values() if i.stage.startswith("input") and {*kinds} & {*i.modality}]
            entries = [dict(name=name) for name in fitting]
        wanted: list[tuple[str, dict[str, Any], tuple[int | float, ...]]] = []
        for entry in entries:
            name, own = entry.pop("name"), entry.pop("keep", self.keep)
            keeps = tuple(own) if isinstance(own, list | tuple) else (own,)
            _known(name, infos, "method")
            for keep in keeps:
                _check_keep(keep)
            for option in entry:
                _known(option, infos[name].options, f"option of {name}")
            if "average" in infos[name].options:
                if self.budget == "average":
                    entry.setdefault("average", True)
                elif infos[name].defaults["average"]:  # where the paper counts so, too
                    entry.setdefault("average", False)
            wanted.append((name, entry, keeps))
        every = dict.fromkeys(keep for _, _, keeps in wanted for keep in keeps)
        if 1 in every and len({type(keep) for _, _, keeps in wanted for keep in keeps if keep == 1}) > 1:
            raise ValueError("keep is both 1 (one token) and 1.0 (all of them): ask for them in two runs")
        wanted = [(RANDOM, {}, tuple(every)), *(w for w in wanted if w[:2] != (RANDOM, {}))]
        plain = [FULL, *([BLIND] if self.blind else [])]
        specs = [
            spec
            for model in self.models
            for spec in (
                *(Spec(model, name) for name in plain),
                *(
                    Spec(model, name, keep, options)
                    for keep in every
                    for name, options, keeps in wanted
                    if keep in keeps
                ),
            )
        ]
        folders = [spec.folder for spec in specs]
        if twice := {str(folder) for folder in folders if folders.count(folder) > 1}:
            raise ValueError(f"the same thing is asked for twice: {', '.join(sorted(twice))}")
        return specs

    def folder(self, digest: str) -> Path:
        """`out`, or runs/<data>-<...>, the same whenever the same is asked of the same questions (`digest`)."""
        if self.out is not None:
            return Path(self.out)
        asked = {name: value for name, value in asdict(self).items() if name in _SHARED}
        mark = hashlib.sha256(json.dumps([asked, digest], sort_keys=True, default=str).encode()).hexdigest()[:6]
        return Path("runs", f"{_safe(Path(self.data).stem)}-{mark}")


# What all results in one folder have in common.
_SHARED = ("tasks", "limit", "metric", "instruction", "max_new_tokens", "frames", "fps", "dtype")


def from_file(path: str | Path, **changes: Any) -> Settings:
    """Settings from a TOML or YAML file; `changes` that are not None replace what it says.

    Raises:
        FileNotFoundError, ValueError, ImportError: with one sentence that names the file and what is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no settings file at {file}: check the path")
    text = file.read_text(encoding="utf-8")
    try:
        if file.suffix.lower() in (".yaml", ".yml"):
            try:
                yaml: Any = import_module("yaml")
            except ImportError:
                raise ImportError("reading YAML needs pyyaml: pip install pyyaml, or write TOML") from None
            try:
                found = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(f"malformed YAML: {error}") from None
        else:
            found = tomllib.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it does not name settings: expected lines such as keep = [64, 0.1]")
        if "model" in found:
            found["models"] = found.pop("model")
        for name in found:
            _known(name, [f.name for f in fields(Settings)], "setting")
        return replace(Settings(**found), **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _known(name: Any, names: Any, what: str) -> None:
    if name not in names:
        hint = did_you_mean(str(name), names) or f" There are: {', '.join(names) or 'none'}."
        raise ValueError(f"there is no {what} {name!r}.{hint}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_keep(value: Any) -> None:
    fits = value >= 1 if _whole(value) else isinstance(value, float) and 0 < value <= 1
    _require(fits, "keep", value, "a count of 1 or more, or a fraction in (0, 1]")


def _require(fits: bool, name: str, value: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r}: expected {expected}")
