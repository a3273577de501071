"""What a method must be to prune pictures in vLLM: checked before the engine has loaded anything.

vLLM fills its caches by the hash of a picture alone, counts a prompt's tokens before the vision tower has run, and has
one row of tokens for all decoder layers. So the plug-in takes methods that

* act once, between vision tower and language model (one stage, "input"),
* do not read the question: else the second question about a picture would get the tokens chosen for the first,
* keep a number of tokens that is known beforehand (`exact_count`),
* do not ask what else the prompt holds (`heeds_others`),
* read no signals but those of the vision tower that the plug-in measures.

All of these are asked of the instance: `todre` qualifies with tau=None. Nothing here imports vLLM or transformers, and
torch only where a method has to be made.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from vtc.budget import check_keep, token_count
from vtc.hints import did_you_mean
from vtc.methods.base.index import MethodInfo, shipped
from vtc.methods.base.notation import plain, read_methods, write_method
from vtc.methods.base.registry import check_options, list_methods, resolve
from vtc.serving.vllm.families import FAMILIES, Family

if TYPE_CHECKING:
    from vtc.methods.base.method import Method

#: the environment variable that stands in for "vtc" of --hf-overrides
VARIABLE = "VTC_VLLM"
#: signals of the vision tower that the plug-in measures, and what the layout itself knows
SIGNALS = (
    *("cls_attention", "cls_logits", "received_attention", "keys"),
    *("joined_cls_attention", "joined_keys", "tower_features", "grid"),
)
_EXAMPLE = '{"method": "divprune", "keep": 64}'
_INSTEAD = "choose another method, such as divprune"
_PLACES = {
    "pixels": "before the vision tower, where pictures are vLLM's own to prepare: send smaller ones, or",
    "encoder": "inside the vision tower, which is vLLM's own and has no room for it: leave stage= out, or",
    "layer": "between the language model's layers, all of which vLLM gives the same tokens:",
    "cache": "in the language model's KV cache, which is vLLM's own to manage:",
}


@dataclass(frozen=True)
class Spec:
    """A method that has passed, its budget, and the family that it is for.

    Attributes:
        name: of the method. keep: as for `vtc.wrap`. options: all others that were given, and `positions`.
        reads: the signals of the vision tower that it asks for. prunes: of which modalities tokens leave.
    """

    family: Family
    name: str
    keep: int | float
    options: Mapping[str, Any]
    reads: tuple[str, ...] = ()
    prunes: tuple[str, ...] = ("image",)

    def __str__(self) -> str:
        return write_method(self.name, {"keep": self.keep, **self.options})

    @property
    def method(self) -> Method:
        """The method itself; imports torch."""
        return resolve(self.name, self.keep, **self.options)

    def count(self, total: int) -> int:
        """How many of a picture's `total` visual tokens stay: a fraction's share, or the count, `total` at most.

        Example: keep=64 of 576 are 64, and of 40 all 40; keep=0.2 of 144 are 29.
        """
        return token_count(self.keep, total)

    def tower_tokens(self, bound: int, most: int) -> int:
        """Kept tokens that the tower may hand over in a step, so that it takes as many pictures as it would unpruned.

        Args:
            bound: the same of whole pictures. most: visual tokens of the largest picture, before pruning.

        Example: 3 of 576 tokens each fit into 2048, and 3 of 64 into 2048 * 64 // 576 = 227.
        """
        return max(1, bound * self.count(most) // most)

    def flag(self) -> list[str]:
        """The one flag of vLLM's command line, in two words; JSON without blanks."""
        options = {name: value for name, value in self.options.items() if name != "positions"}
        asked = {
            "architectures": [self.family.architecture],
            "vtc": {"method": self.name, "keep": self.keep, **options},
        }
        return ["--hf-overrides", json.dumps(asked, separators=(",", ":"))]


class _Facts(NamedTuple):
    """What the contract asks of a method."""

    stages: tuple[str, ...]
    query_aware: bool
    exact: bool
    heeds_others: bool
    modality: tuple[str, ...]
    reads: tuple[str, ...]
    scope: str | None = None


# -- what was asked for ------------------------------------------------------------------------------------------------


def spec_of(config: Any) -> Spec:
    """The specification in a model's configuration: of `config.vtc`, which --hf-overrides put there, or VTC_VLLM.

    Args:
        config: `hf_config`, with `model_type`, `vision_config.model_type` and `text_config.hidden_size`.

    Raises:
        ValueError, TypeError, FileNotFoundError: with one sentence, whatever is wrong.
    """
    family = family_of(getattr(config, "model_type", None))
    check_tower(family, getattr(getattr(config, "vision_config", None), "model_type", None))
    width = getattr(getattr(config, "text_config", config), "hidden_size", None)
    return read_spec(asked_for(getattr(config, "vtc", None)), family, width)


def family_of(model_type: object) -> Family:
    """The family of a model; ValueError if the plug-in has none for it."""
    if model_type not in FAMILIES:
        hint = did_you_mean(model_type, FAMILIES) if isinstance(model_type, str) else ""
        every = ", ".join(FAMILIES)
        raise ValueError(f"vtc's plug-in for vLLM serves no {model_type!r}: it serves {every}.{hint}")
    return FAMILIES[str(model_type)]


def check_tower(family: Family, tower: object) -> None:
    """Refuse a vision tower that the plug-in knows nothing of."""
    if tower is None:
        raise ValueError(
            f"the configuration of this {family.model_type} names no vision tower: use a checkpoint in transformers' "
            "format, whose name ends in -hf or -HF."
        )
    if tower not in family.towers:
        raise ValueError(
            f"the vision tower of this {family.model_type} is a {tower!r}, of which vtc's plug-in for vLLM has no "
            f"facts: it has of {', '.join(family.towers)}."
        )


def asked_for(given: object) -> object:
    """What was asked for: `given` if it is there, else what VTC_VLLM holds, JSON or a method's string form."""
    if given is not None:
        return given
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        raise ValueError(
            f'vtc\'s plug-in for vLLM was given no method: pass --hf-overrides with "vtc": {_EXAMPLE}, which `vtc '
            f"serve-args MODEL --method divprune --keep 64` prints, or set {VARIABLE}."
        )
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={shlex.quote(text)} is not JSON ({error}): expected {_EXAMPLE}.") from None


def read_spec(given: object, family: Family, width: int | None = None) -> Spec:
    """Check `given`, {"method": ..., "keep": ..., option: value} or a method's string form, against the contract.

    Args:
        width: of the language model's embeddings, which trained weights are for; None = not known.

    Raises:
        ValueError, TypeError, FileNotFoundError: with one sentence.
    """
    name, options = _named(given)
    known = {info.name: info for info in list_methods()}
    if name not in known:
        hint = did_you_mean(name, known) or f" There are: {', '.join(known)}."
        raise ValueError(f"there is no method {name!r}.{hint}")
    check_options(name, options, ["keep", *known[name].options])
    keep = check_keep(options.pop("keep", known[name].default_keep))
    _check_positions(options.get("positions"), family)
    options.pop("positions", None)
    facts = _facts(known[name], keep, options, family)
    prunes = tuple(kind for kind in _pruned(facts, family) if kind in facts.modality)
    _check_contract(name, facts, family, prunes)
    spec = Spec(
        family,
        name,
        keep,
        {**options, "positions": family.positions},
        reads=tuple(signal for signal in facts.reads if signal != "grid"),
        prunes=prunes,
    )
    if width is not None and options:
        spec.method.check_model(family.model_type, width)
    return spec


def _named(given: object) -> tuple[str, dict[str, Any]]:
    """Name and options, of which those beside "method" win over those in its string form."""
    if isinstance(given, str):
        given = {"method": given}
    if not isinstance(given, Mapping):
        raise TypeError(f'"vtc" of --hf-overrides is {given!r}: expected {_EXAMPLE}.')
    beside = {str(key): _value(key, value) for key, value in given.items()}
    text = beside.pop("method", None)
    if not isinstance(text, str) or not text.strip():
        near = next((key for key in beside if did_you_mean(key, ["method"])), None)
        hint = f" Did you mean 'method' by {near!r}?" if near else ""
        raise ValueError(f'"vtc" of --hf-overrides names no method: expected {_EXAMPLE}.{hint}')
    (name, inside), *more = read_methods(text)
    if more:
        raise ValueError(f"{text!r} are several methods, and in vLLM one acts: give one of them.")
    return name, inside | beside


def _value(key: object, value: object) -> Any:
    """An option's value out of JSON, with tuples for its lists."""
    try:
        return plain(value)
    except TypeError:
        expected = "expected a number, text, true, false, null or a list of these"
        raise TypeError(f'{key}={value!r} in "vtc" of --hf-overrides is no value: {expected}.') from None


# -- the contract ------------------------------------------------------------------------------------------------------


def _check_positions(given: object, family: Family) -> None:
    """Positions are the language model's; the other choice would be another model's answer."""
    if given in (None, family.positions):
        return
    if given not in ("original", "compact"):
        raise ValueError(f'positions={given!r} is not one of "original", "compact".')
    why = {
        "compact": "vLLM numbers its tokens one after another",
        "original": "what is kept has the (t, h, w) of its place in the picture",
    }[family.positions]
    raise ValueError(
        f'positions="{given}" cannot be had for {family.model_type} in vLLM: {why}, which is '
        f'positions="{family.positions}"; leave it out.'
    )


def _facts(info: MethodInfo, keep: int | float, options: Mapping[str, Any], family: Family) -> _Facts:
    """Of the index, where no option was given that could change them, or none could make it act at "input"; else, and
    where it is asked what it chooses among, of the instance."""
    places = tuple(info.stage.split("+"))
    known = info.name in shipped() and not options and not family.framed
    if known or "input" not in (*places, *info.places):
        return _Facts(places, info.query_aware, info.exact_count, False, info.modality, info.needs)
    method = resolve(info.name, keep, **options)
    parts = method.parts()
    return _Facts(
        tuple(dict.fromkeys(part.stage or "input" for part in parts)),
        method.query_aware,
        method.exact_count and method.keeps_all(),
        any(part.heeds_others for part in parts),
        method.modality,
        tuple(dict.fromkeys(signal for part in parts for signal in part.requires())),
        method.scope,
    )


def _pruned(facts: _Facts, family: Family) -> tuple[str, ...]:
    """Of which modalities a method with such a scope can prune."""
    by_frame = facts.scope in ("frame", "crop")  # the crops of a video are its frames
    return tuple(kind for kind in family.prunes if kind == "image" or not family.framed or by_frame)


def _check_contract(name: str, facts: _Facts, family: Family, prunes: tuple[str, ...]) -> None:
    """Raise ValueError with one sentence if a method with these facts cannot be served."""
    elsewhere = [stage for stage in facts.stages if stage != "input"]
    foreign = [signal for signal in facts.reads if signal not in SIGNALS]
    if elsewhere:
        also = "also " if "input" in facts.stages else ""
        said = f"{name} {also}acts {_PLACES.get(elsewhere[0], f'at the stage {elsewhere[0]!r}:')}"
    elif facts.query_aware:
        said = f"{name} reads the question, and vLLM hands a picture's tokens on to the next question about it:"
    elif not facts.exact:
        said = f"how many tokens {name} keeps is for the picture to say, and vLLM counts a prompt's tokens beforehand:"
    elif facts.heeds_others:
        said = f"{name} asks whether a picture is alone in its prompt, and vLLM hands its tokens on to other prompts:"
    elif not prunes:
        kinds = {"image": "pictures", "video": "videos with scope=frame" if family.framed else "videos"}
        acts, pruned = (" and ".join(kinds[kind] for kind in both) for both in (facts.modality, family.prunes))
        acts = acts.removesuffix(" with scope=frame")
        said = f"{name} acts on {acts}, and vtc's plug-in for vLLM prunes {pruned} of {family.model_type}:"
    elif foreign:
        said = f"{name} reads {foreign[0]!r}, which vtc's plug-in for vLLM does not measure:"
    else:
        return
    raise ValueError(f"{said} {_INSTEAD}.")
