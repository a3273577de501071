"""What an evaluation is asked to do: from the command line, from a TOML, JSON or YAML file, or from Python."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import vtc
from vtc.budget import check_keep
from vtc.checks import check_number
from vtc.eval.fields import check_columns
from vtc.eval.files import TOO_DEEP
from vtc.hints import did_you_mean
from vtc.methods.base.index import MethodInfo
from vtc.methods.base.notation import read_methods, write_method
from vtc.models import tiny

BUDGETS = ("final", "average")
KEEPS = (0.5, 0.1)
ALL = "all"  # stands for every method before the language model
FEW = ("uniform-frames", "evs", "divprune", "visionzip", "pool")  # by default, those that fit the media
CLASSIFYING = ("tome", "pitome", "zerotprune", "pool")  # by default of classifiers, those that there are
FULL, BLIND, RANDOM, DOWNSAMPLE = "full", "blind", "random", "downsample"
_METRIC = "a name, or names by task"
BASELINES = (RANDOM, DOWNSAMPLE)  # stand beside every method, at its budgets


@dataclass(frozen=True)
class Spec:
    """One thing to measure: a model, uncompressed ("full"), shown grey pictures ("blind"), or under a method.

    `before`: the methods that act before that one, as `vtc.resolve` reads them, each with a budget of its own.
    """

    model: str
    method: str
    keep: int | float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    before: tuple[str, ...] = ()

    def __hash__(self) -> int:
        return hash((self.model, self.label, self.keep))

    @property
    def compressed(self) -> bool:
        return self.keep is not None

    @property
    def resizes(self) -> bool:
        """Whether pictures are made smaller before the processor sees them, and the model stays as it is."""
        return self.method == DOWNSAMPLE

    @property
    def wraps(self) -> bool:
        """Whether a method is wrapped around the model."""
        return self.compressed and not self.resizes

    @property
    def own_tower_run(self) -> bool:
        """Whether the vision tower runs for it alone: its method acts before the tower or between its blocks."""
        return self.wraps and any(method.changes_tower for method in self.methods())

    def methods(self) -> list[vtc.Method]:
        """What is wrapped around the model, the method itself last.

        Methods with thresholds keep exactly what is asked, as far as they can.
        """
        every = [*(read_methods(text)[0] for text in self.before), (self.method, {"keep": self.keep, **self.options})]
        infos = {info.name: info for info in vtc.list_methods()}
        exact = [{"exact": True} if "exact" in infos[name].options else {} for name, _ in every]
        return [vtc.resolve(name, **(more | options)) for (name, options), more in zip(every, exact, strict=True)]

    @property
    def within_tower(self) -> bool:
        """Whether the method acts between the blocks of a classifier."""
        able = any(info.name == self.method and within_tower(info) for info in vtc.list_methods())
        return able and not self.before and self.options.get("stage") != "input"

    @property
    def label(self) -> str:
        """As `vtc.wrap` reads it: "tome(keep=0.5) + todre(mode=kcenter)". The last one's budget stands beside."""
        return " + ".join([*self.before, write_method(self.method, self.options)])

    @property
    def folder(self) -> Path:
        """Where its results lie, below the output folder."""
        name = self.label if self.keep is None else f"{self.label}@{self.keep}"
        return Path(_safe(Path(self.model).name or self.model), _safe(name.replace(", ", ",").replace(" + ", "+")))


def within_tower(info: MethodInfo) -> bool:
    """Whether a method can act between the blocks of a vision tower."""
    return "encoder" in info.places


def fits_patches(info: MethodInfo) -> bool:
    """Whether a method can do with the patches of pictures, without attention, text or weights of its own."""
    plain = info.stage == "input" and {*info.needs} <= {"grid"} and not info.trained
    return "image" in info.modality and (plain or within_tower(info))


def _safe(name: str) -> str:
    return re.sub(r"[^\w.,=@()+-]", "_", name)


@dataclass(frozen=True)
class Settings:
    """The settings of `vtc eval`; see its `--help`.

    `models`: names or paths; none for the shipped one that reads the media. `methods`: names, with options or without
    ("todre(mode=kcenter)"), several that act together ("pixelprune(keep=0.6) + divprune"; `keep` is the last one's),
    "all", or tables with `name`, `keep`, options; none for a handful. `columns`: field -> what the data set calls it.
    """

    data: str = "tiny"
    columns: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] | None = None
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
            if value is None and name == "models":
                continue
            object.__setattr__(self, name, tuple(value) if isinstance(value, list | tuple) else (value,))
        for name in ("data", "budget", "instruction"):
            _require(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        for name in ("device", "dtype", "out"):
            _require(isinstance(getattr(self, name), str | None), name, getattr(self, name), "text")
        for name in ("limit", "max_new_tokens", "frames", "batch_size"):
            if getattr(self, name) is not None or name == "batch_size":
                check_number(getattr(self, name), name, 1, integer=True)
        check_number(self.timing, "timing", 0, integer=True)
        if self.fps is not None:
            check_number(self.fps, "fps", above=0, below=1000)
        named = isinstance(self.columns, Mapping) and all(isinstance(x, str) for p in self.columns.items() for x in p)
        _require(named, "columns", self.columns, "names of columns by field")
        check_columns(self.columns)
        _require(isinstance(self.blind, bool), "blind", self.blind, "true or false")
        metric = self.metric
        named = isinstance(metric, Mapping) and all(isinstance(x, str) for pair in metric.items() for x in pair)
        _require(bool(metric) if isinstance(metric, str) else metric is None or named, "metric", metric, _METRIC)
        _require(self.budget in BUDGETS, "budget", self.budget, f"one of {', '.join(BUDGETS)}")
        if self.models is not None:
            _require(all(isinstance(model, str) for model in self.models), "models", self.models, "names or paths")
            _require(bool(self.models), "models", self.models, "at least one")
            twice = [model for model in dict.fromkeys(self.models) if self.models.count(model) > 1]
            _require(not twice, "models", self.models, "each once")
        _require(all(isinstance(task, str) for task in self.tasks), "tasks", self.tasks, "names")
        if self.frames is not None and self.fps is not None:
            raise ValueError("give frames or fps, not both")
        _require(bool(self.keep), "keep", self.keep, "at least one budget")
        for keep in self.keep:
            check_keep(keep)
        for entry in self.methods:
            if not isinstance(entry, str | Mapping) or (isinstance(entry, Mapping) and "name" not in entry):
                raise ValueError(f"methods: {entry!r} is neither a name nor a table with a name")

    def specs(self, kinds: Sequence[str], model: str | None = None) -> list[Spec]:
        """Every combination, model by model: uncompressed, blind if asked for, then per budget the baselines first.

        Args:
            kinds: of media in the data set; by default the model and the methods, which act before the language
                model, are such as fit them.
            model: the one that is asked where `models` names none; by default, one that reads such media.
        Raises:
            ValueError: an unknown method, a setting of one that it does not have or that does nothing here, or the same
                thing twice.
        """
        infos = {info.name: info for info in vtc.list_methods()}
        entries = [_read_entry(entry) for entry in self.methods]
        early = [i.name for i in infos.values() if i.stage.startswith("input") and {*kinds} & {*i.modality}]
        models = self.models or (model or default_model(kinds),)
        if all(map(tiny.tells_classes, models)):
            early = [info.name for info in infos.values() if fits_patches(info)]
            entries = entries or [((), name, {}) for name in CLASSIFYING if name in early]
        if not entries:
            entries = [((), name, {}) for name in FEW if name in early]
        elif entries == [((), ALL, {})]:
            entries = [((), name, {}) for name in early]
        wanted: list[tuple[tuple[str, ...], str, dict[str, Any], tuple[int | float, ...]]] = []
        for before, name, options in entries:
            own = options.pop("keep", self.keep)
            keeps = tuple(own) if isinstance(own, list | tuple) else (own,)
            _check_options(name, options, infos)
            for keep in keeps:
                check_keep(keep)
            fixed = tuple(_fixed(part, name, infos) for part in before)
            if name == DOWNSAMPLE and (options or before):
                raise ValueError(
                    f"{DOWNSAMPLE} takes nothing but keep here, and {', '.join([*fixed, *options])} would change "
                    "nothing: the picture is made smaller before the processor sees it; leave it out"
                )
            if "average" in infos[name].options:
                if self.budget == "average":
                    options.setdefault("average", True)
                elif infos[name].defaults["average"]:  # where the paper counts so, too
                    options.setdefault("average", False)
            wanted.append((fixed, name, options, keeps))
        every = dict.fromkeys(keep for *_, keeps in wanted for keep in keeps)
        if 1 in every and len({type(keep) for *_, keeps in wanted for keep in keeps if keep == 1}) > 1:
            raise ValueError("keep is both 1 (one token) and 1.0 (all of them): ask for them in two runs")
        wanted = [w for w in wanted if not (w[1] in BASELINES and w[0] == () and w[2] == {})]
        wanted = [*(((), name, {}, tuple(every)) for name in BASELINES), *wanted]
        plain = [FULL, *([BLIND] if self.blind else [])]
        specs = [
            spec
            for model in models
            for spec in (
                *(Spec(model, name) for name in plain),
                *(
                    Spec(model, name, keep, options, before)
                    for keep in every
                    for before, name, options, keeps in wanted
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


def default_model(kinds: Sequence[str]) -> str:
    """The shipped model that reads such media."""
    return "tiny-qwen" if "video" in kinds else "tiny-llava"


# What all results in one folder have in common.
_SHARED = ("tasks", "limit", "metric", "instruction", "max_new_tokens", "frames", "fps", "dtype")


def from_file(path: str | Path, **changes: Any) -> Settings:
    """Settings from a TOML, JSON or YAML file; `changes` that are not None replace what it says.

    Raises:
        FileNotFoundError, ValueError, ImportError: with one sentence that names the file and what is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no settings file at {file}: check the path")
    if file.suffix.lower() not in _PARSERS:
        raise ValueError(f"{file}: settings are read from files whose names end in {', '.join(_PARSERS)}")
    try:
        found = _PARSERS[file.suffix.lower()](file.read_text(encoding="utf-8-sig"))
        if not isinstance(found, dict):
            raise ValueError("it does not name settings: expected lines such as keep = [64, 0.1]")
        if "model" in found:
            if "models" in found:
                raise ValueError("give model or models, not both")
            found["models"] = found.pop("model")
        for name in found:
            _known(name, [f.name for f in fields(Settings)], "setting")
        return replace(Settings(**found), **{name: value for name, value in changes.items() if value is not None})
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}): save it as UTF-8") from None
    except RecursionError:
        raise ValueError(f"{file}: {TOO_DEEP}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def _yaml(text: str) -> Any:
    try:
        yaml: Any = import_module("yaml")
    except ImportError:
        raise ImportError("reading YAML needs pyyaml: pip install pyyaml, or write TOML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"malformed YAML: {error}") from None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"malformed JSON: {error}") from None


def _toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"malformed TOML: {error}") from None


# by how a file's name ends
_PARSERS: dict[str, Callable[[str], Any]] = {".toml": _toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}


def _read_entry(entry: str | Mapping[str, Any]) -> tuple[tuple[tuple[str, dict[str, Any]], ...], str, dict[str, Any]]:
    """An entry of `methods`: those before the last, its name, its options.

    Both kinds of entries may bring options: {name = "fastv(layers=(2,))", keep = 64}.
    """
    table = {"name": entry} if isinstance(entry, str) else dict(entry)
    text = table.pop("name")
    *before, (name, options) = read_methods(text) if isinstance(text, str) else [(text, {})]
    return tuple(before), name, options | table


def _fixed(part: tuple[str, dict[str, Any]], last: str, infos: Mapping[str, MethodInfo]) -> str:
    """A method that stands before the last one, written out; ValueError if it cannot."""
    name, options = part
    _check_options(name, options, infos)
    if "keep" not in options:
        raise ValueError(f"{name} + {last}: {last} has the budgets; give {name} its own, as in {name}(keep=0.5)")
    check_keep(options["keep"])
    return write_method(name, options)


def _check_options(name: Any, options: Mapping[str, Any], infos: Mapping[str, MethodInfo]) -> None:
    _known(name, infos, "method")
    if infos[name].only:
        raise ValueError(f"{name} is for models of {' and '.join(infos[name].only)} alone, which are not measured here")
    for option in options:
        if option != "keep":
            _known(option, infos[name].options, f"option of {name}")


def _known(name: Any, names: Any, what: str) -> None:
    if name not in names:
        hint = did_you_mean(str(name), names) or f" There are: {', '.join(names) or 'none'}."
        raise ValueError(f"there is no {what} {name!r}.{hint}")


def _require(fits: bool, name: str, value: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f"{name} is {value!r}: expected {expected}")
