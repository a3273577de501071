"""`vtc.check`: is a model, wrapped with a method, right? It is compared with the model itself, on a prompt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtc.api import MethodLike, unwrap, wrapped
from vtc.engine.find_prompts import brought
from vtc.engine.versions import cache_name, cache_of
from vtc.engine.wrappers import look_through
from vtc.methods.base.cache import PairedMethod
from vtc.methods.base.method import Method
from vtc.methods.base.notation import split_outside
from vtc.methods.base.registry import resolve
from vtc.models.decoder import decoder_for
from vtc.models.family import Adapter
from vtc.models.registry import adapter_for
from vtc.proof import signals
from vtc.proof.hidden import Dropped, covered, eager, entering
from vtc.proof.results import Checked, Comparison

NEW_TOKENS, HALF = 8, 0.5
QUESTION = "What is in the picture?"


def check(
    model: nn.Module,
    method: MethodLike = "divprune",
    keep: int | float | None = None,
    *,
    processor: Any = None,
    inputs: Mapping[str, Any] | None = None,
    family: str | None = None,
    show: Callable[[str], Any] | None = print,
) -> Checked:
    """Compare a model that is wrapped with a method with the model itself, and print what was compared.

    * placeholders: what vtc takes for visual tokens are the places where the model puts the rows of its features;
    * everything kept: the logits of keep=1.0 are the plain model's;
    * some dropped: the logits are those of the full-length model that cannot see what was dropped, at its old place;
    * generation: and so are the tokens that are generated greedily;
    * decoder, tower: attention as vtc reads it is what the model's own attention weighs.

    Args:
        model: any model with images or videos of transformers', wrapped or not; it is left as it was. Best in float32:
            what is right to round-off is told from what is nearly right.
        method, keep, family: as for `vtc.wrap`; keep is 0.5 for a method named without one. Positions are compared as
            they were ("original").
        processor: the model's processor, with which a prompt about a picture is made; or
        inputs: a prompt as the model's `generate` takes it, with pixels and input_ids.
        show: what is called with each line; None = nothing is printed.

    Returns:
        Checked; `.ok` says whether everything that could be compared agrees, `.comparisons` what was.

    Raises:
        ValueError: in one sentence, if the model cannot be wrapped so, or neither processor nor inputs came.
    """
    from vtc.media.prompts import as_named
    from vtc.proof.memory import MemoryProof

    inner, _ = look_through(model)
    methods = [_placed(one) for one in _resolved(method, keep)]
    given = as_named(inputs if inputs is not None else _asked(inner, processor))
    adapter = adapter_for(inner, family)
    parts = adapter.tower(inner), adapter.language_model(inner)
    dtype = str(next(inner.parameters()).dtype).removeprefix("torch.")
    names = " + ".join(one.title for one in methods)
    tower = getattr(getattr(parts[0], "config", None), "model_type", type(parts[0]).__name__)
    title = f"{names} on {type(inner).__name__}: {tower}, {parts[1].config.model_type}, {dtype}"
    how = {"processor": processor, "family": family}
    found: list[Comparison] = []

    def add(one: Comparison) -> None:
        found.append(one)
        if show is not None:
            show(str(one))

    if show is not None:
        show(title)
    with torch.inference_mode(), _bare(model):
        kind = MemoryProof if adapter.placement == "memory" else Proof
        proof = kind(inner, methods, given, how, 1e-4 if dtype in ("float32", "float64") else 5e-2)
        with wrapped(inner, methods, **how):  # refuses, in its own words
            pass
        for name, compare in proof.comparisons.items():
            add(_heeding(name, compare))
        layers = decoder_for(parts[1]).layers(parts[1])
        add(signals.of_decoder(inner, parts[1], layers, given, proof.limit))
        add(signals.of_tower(inner, adapter, given, proof.limit))
    checked = Checked(title, tuple(found))
    if show is not None:
        show(str(checked).rpartition("\n")[2])
    return checked


class Proof:
    """The comparisons of one model, method and prompt; `limit` is relative to the largest logit."""

    def __init__(
        self, model: Any, methods: list[Method], given: dict[str, Any], how: dict[str, Any], limit: float
    ) -> None:
        self.model, self.methods, self.given, self.how, self.limit = model, methods, given, how, limit
        self.real = given.get("attention_mask", torch.ones_like(given["input_ids"])).bool().cpu()
        self.made: Dropped | None = None
        self.entered: dict[str, Any] = {}

    @property
    def comparisons(self) -> dict[str, Callable[[], Comparison]]:
        """By name, in the order in which they are made: the later ones need what the earlier ones find."""
        return {
            "placeholders": self.placeholders,
            "everything kept": self.identity,
            "some dropped": self.dropped,
            "generation": self.generation,
        }

    def placeholders(self) -> Comparison:
        """Rows of the features, at what vtc takes for visual tokens."""
        name, seen = "placeholders", list[dict[str, Any]]()
        with wrapped(self.model, resolve("random", 1.0), **self.how) as model, self._entering(seen):
            model(**self.given)
            trace = model._vtc_engine.trace
        adapter = adapter_for(self.model, self.how["family"])
        rows = features_of(self.model, self.given, adapter)
        if not trace.spans:
            return Comparison(name, f"no visual token was found, and there are {len(rows)} rows of features", False)
        where = torch.tensor([(span.row, place) for span in trace.spans for place in span.index.tolist()])
        if len(where) != len(rows):
            return Comparison(name, f"{len(where)} places were found for {len(rows)} rows of features", False)
        there = entering(adapter.companions, seen[0])[where[:, 0], where[:, 1]]
        error = _gap(there.sort(dim=0).values, rows.to(there).sort(dim=0).values)
        same = error <= self.limit
        kinds = [span.modality for span in trace.spans]
        told = " and ".join(f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}" for kind in sorted({*kinds}))
        said = f"{len(where)} places hold the model's features, of {told}"
        return Comparison(name, said if same else f"{len(where)} places do not hold the model's features", same, error)

    def identity(self) -> Comparison:
        name = "everything kept"
        plain = self.model(**self.given).logits
        whole = [_with_keep(one, 1.0) for one in self.methods]
        if any(one is None for one in whole):
            whole = [resolve("random", 1.0)]
        with wrapped(self.model, whole, **self.how) as model:  # type: ignore[arg-type]
            ours = model(**self.given).logits
        error = _gap(ours[self.real], plain[self.real])
        return _judged(name, "", error, self.limit)

    def dropped(self) -> Comparison:
        name = "some dropped"
        seen: list[dict[str, Any]] = []
        with wrapped(self.model, self.methods, **self.how) as model, self._entering(seen):
            ours = model(**self.given, **self._cache()).logits
            record = model._vtc_engine.trace
        if {part.stage for one in self.methods for part in one.parts()} & {"pixels", "encoder"}:
            self.entered = seen[0]  # what the tower made of fewer patches is not the language model's affair
        try:
            if record.whole is not None:
                raise ValueError("pictures were made smaller, which leaves no row to compare with")
            self.made = Dropped.of(record)
            with self._covered():
                theirs = self.model(**self.given, **self._cache()).logits
        except ValueError as error:
            return Comparison(name, f"not compared: {error}", None)
        there = self._left()
        error = _gap(ours[there], theirs[there])
        whole, lost = sum(len(x) for _, x in self.made.visual), sum(len(x) for *_, x in self.made.lost)
        what = f", {lost} cached rows hidden" if lost else f", {self.made.count} of {whole} tokens hidden"
        if not (self.made.count or self.made.lost or self.made.sums or self.entered):
            return Comparison(name, "not compared: nothing was dropped here", None)
        return _judged(name, what, error, self.limit)

    def _left(self) -> Tensor:
        """BoolTensor [B, L]: the tokens of the prompt whose logits are compared."""
        assert self.made is not None
        there = self.real.clone()
        for row, places in self.made.visual:
            there[row, places] = False
        for row, places in self.made.kept:
            there[row, places] = True
        return there

    def generation(self) -> Comparison:
        name, greedy = "generation", dict(max_new_tokens=NEW_TOKENS, do_sample=False)
        if self.made is None:
            return Comparison(name, "not compared, for the same reason", None)
        with wrapped(self.model, self.methods, **self.how) as model:
            ours = model.generate(**self.given, **greedy)
            record = model._vtc_engine.trace
        if record.decoded:
            return Comparison(name, "not compared: decode steps read a part of the cache that changes", None)
        shares = any(isinstance(one, PairedMethod) for one in self.methods)
        if shares or any(one.held.own_rows for event in record.evictions for one in event.held):
            return Comparison(name, "not compared: in the cache, heads or layers hold rows of their own making", None)
        self.made = Dropped.of(record)
        with self._covered():
            theirs = self.model.generate(**self.given, **greedy)
        start = self.given["input_ids"].shape[1] if ours.shape[1] > NEW_TOKENS else 0
        same = ours.shape == theirs.shape and bool(ours[:, start:].eq(theirs[:, start:]).all())
        said = f"{ours.shape[1] - start} greedy tokens are {'the same' if same else 'others'}"
        return Comparison(name, said, same)

    def _cache(self) -> dict[str, Any]:
        """A KV cache to fill, where there is one to shorten and the model makes none unless it generates."""
        if self._caches or not any(part.stage == "cache" for one in self.methods for part in one.parts()):
            return {}
        return {cache_name(): DynamicCache(config=self._lm().config)}

    @cached_property
    def _caches(self) -> bool:
        """Whether the model makes a KV cache in a forward that was given none."""
        return cache_of(self.model(**self.given)) is not None

    @contextmanager
    def _covered(self) -> Iterator[None]:
        assert self.made is not None
        lm = self._lm()
        beside = adapter_for(self.model, self.how["family"]).companions
        with eager(self.model), covered(self.model, lm, decoder_for(lm).layers(lm), self.made, beside, self.entered):
            yield

    def _lm(self) -> Any:
        """The language model as transformers finds it, or, where that finds none, as its adapter does."""
        found = self.model.get_decoder() if hasattr(self.model, "get_decoder") else self.model
        try:
            there = found is not self.model and len(decoder_for(found).layers(found)) > 0
        except AttributeError:  # a language model with its head
            there = False
        return found if there else adapter_for(self.model, self.how["family"]).language_model(self.model)

    @contextmanager
    def _entering(self, seen: list[dict[str, Any]]) -> Iterator[None]:
        """Notes what goes into the language model, before anything is left out of it."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            embeds = kwargs.get("inputs_embeds")
            seen.append({**kwargs, "inputs_embeds": None if embeds is None else embeds.clone()})

        handle = self._lm().register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        try:
            yield
        finally:
            handle.remove()


def _heeding(name: str, compare: Callable[[], Comparison]) -> Comparison:
    """A comparison that may break: a wrapped model that raises is not right, one that refuses says why."""
    try:
        return compare()
    except ValueError as error:
        return Comparison(name, f"refused: {str(error).removesuffix('.')}", False if name == "placeholders" else None)
    except Exception as error:
        return Comparison(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", False)


def features_of(model: Any, given: Mapping[str, Any], adapter: Adapter) -> Tensor:
    """[V, D]: what the model itself makes of the pictures and videos of a call, one after another, and lets in."""
    inner = getattr(model, "model", None)
    base: Any = inner if hasattr(inner, "get_image_features") else model
    found = []
    for modality in brought(given):
        make = getattr(base, f"get_{modality}_features", None) or base.get_image_features
        accepted = inspect.signature(make).parameters
        named = {name: value for name, value in given.items() if name in accepted}
        if make.__name__ == "get_image_features" and modality == "video":
            named["pixel_values"] = given["pixel_values_videos"]
        made = make(**named, return_dict=True)
        made = made if isinstance(made, list | tuple | Tensor) else adapter.features(model, made)
        parts = adapter.entering(model, made, given, modality)
        found += [part.flatten(0, -2) for part in (parts if isinstance(parts, list | tuple) else [parts])]
    return torch.cat(found)


def _judged(name: str, what: str, error: float, limit: float) -> Comparison:
    ok = error <= limit
    return Comparison(name, f"logits off by {error:.1e} (limit {limit:.0e}){what}", ok, error, limit)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest value; infinite where shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not ours.numel():
        return 0.0
    gap = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-12))
    return gap if gap == gap else float("inf")


@contextmanager
def _bare(model: nn.Module) -> Iterator[None]:
    """The model without its wrap, which it has again afterwards, and in evaluation mode."""
    inner, training = look_through(model)[0], [part for part in model.modules() if part.training]
    engine = inner.__dict__.get("_vtc_engine")
    unwrap(model)
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
        if engine is not None:
            engine.attach()
            inner._vtc_engine = engine


def _resolved(method: MethodLike, keep: int | float | None) -> list[Method]:
    given: Any = method if isinstance(method, list | tuple) else [method]
    parts = [part for one in given for part in (split_outside(one, "+") if isinstance(one, str) else [one])]
    if len(parts) > 1:
        return [resolve(part) for part in parts]
    (only,) = parts
    if keep is None and isinstance(only, str) and "keep=" not in only and _drops(resolve(only)):
        keep = HALF
    return [resolve(only, keep)]


def _drops(method: Method) -> bool:
    """Whether the method has a budget that may be less than everything."""
    return _has(method, "keep") and not isinstance(method, PairedMethod)


def _placed(method: Method) -> Method:
    """The method with the tokens' own positions, which the whole row has, too."""
    return replace(method, positions="original") if _has(method, "positions") else method


def _with_keep(method: Method, keep: float) -> Method | None:
    return replace(method, keep=keep) if _has(method, "keep") else None  # type: ignore[call-arg]


def _has(method: Method, option: str) -> bool:
    return any(one.name == option for one in fields(method))


def _asked(model: Any, processor: Any) -> dict[str, Any]:
    """A prompt about a picture with something in each corner, as the processor makes it."""
    if processor is None:
        raise ValueError("vtc.check needs something to ask: give processor=, or inputs= as a processor made them.")
    from vtc.media.prompts import prepare
    from vtc.proof.picture import picture

    return dict(prepare(processor, QUESTION, [picture()]).to(model.device, model.dtype))
