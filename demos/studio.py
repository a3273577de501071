"""The studio: models, what their vision towers have seen, and answers. All of the demo but its page.

One model serves everybody. It is wrapped only for the length of one answer, and one answer is made at a time, so that
nobody sees another one's compression and times are those of an otherwise idle model.
"""

from __future__ import annotations

import logging
import math
import queue
import statistics
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import vtc
from vtc.demos.media import Media
from vtc.demos.presence import PRESENCE
from vtc.demos.sentences import presentable
from vtc.engine.encoding import signals_of
from vtc.models import adapter_for
from vtc.speedup import SpeedUp, first_token, in_turns, speed_up

_log = logging.getLogger("vtc")

MAX_NEW_TOKENS = 64
_PATIENCE = 4.0  # s of measuring, after which no more rounds begin
_MOST_SHOWN = 2**28  # bytes of smaller pictures and clips that are kept with answers
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
MISTAKES = (ValueError, TypeError, OSError, ImportError, NotImplementedError, RuntimeError, MemoryError)
_NO_MEMORY = "the device has no memory left for this: take a smaller picture, or keep fewer tokens"
_CPU_SAYS = ("can't allocate memory", "not enough memory")  # torch, on a CPU

Value = TypeVar("Value")


@dataclass(frozen=True)
class Run:
    """One answer, so far.

    Attributes:
        method: name, or None for all visual tokens. keep: fraction of the visual tokens.
        state: "waiting", "running", "answered" (and not timed yet), "done" or "failed".
        text: the answer, or the sentence that says why there is none.
        seconds: to the first token, vision tower included. whole_seconds: the same with all tokens, in the same rounds.
        speed: how much sooner it comes than with all tokens.
        report: of `vtc.report`.
        shown: what the model was shown, if that was made smaller.
    """

    method: str | None
    keep: float
    state: str = "waiting"
    text: str = ""
    seconds: float | None = None
    speed: SpeedUp | None = None
    report: vtc.Report | None = None
    whole_seconds: float | None = None
    shown: Media | None = None

    @property
    def busy(self) -> bool:
        """Whether more of it is to come."""
        return self.state in ("waiting", "running", "answered")

    @property
    def resizes(self) -> bool:
        """Whether the picture is made smaller before the model sees it, and the model stays as it is."""
        return (self.method or "").partition("(")[0] == "downsample"

    @property
    def own_tower_run(self) -> bool:
        """Whether patches leave or merge before the vision tower or inside it, which then runs for this answer."""
        return self.method is not None and not self.resizes and vtc.resolve(self.method).changes_tower

    @property
    def depth(self) -> int:
        """Decoder layers of the model."""
        return len(self.report.tokens_by_layer) if self.report else 0

    def tokens(self, layer: int) -> int:
        """Visual tokens that decoder layer `layer` holds."""
        assert self.report is not None
        return sum(span.tokens_out for span in self.report.at(layer))

    def share(self) -> float:
        """Visual tokens that a decoder layer holds on average, as a fraction of all."""
        assert self.report is not None
        held = sum(self.tokens(layer) for layer in range(self.depth))
        return held / max(1, self.depth * self.report.tokens_in)


@dataclass(eq=False)
class Loaded:
    """A model of `depth` decoder layers, its processor, and what its vision tower made of recent pictures."""

    model: Any
    processor: Any
    depth: int = 0
    encoded: Recent[Any] = field(default_factory=lambda: Recent(16))

    @property
    def reads_clips(self) -> bool:
        return bool(getattr(self.processor, "video_token", "")) and hasattr(self.processor, "video_processor")


class Recent(OrderedDict[Hashable, Value]):
    """The `size` entries that were fetched or put last, or fewer: no more than weigh `most` together, but one."""

    def __init__(self, size: int, most: int = 0, weigh: Callable[[Value], int] = lambda value: 0) -> None:
        super().__init__()
        self.size, self.most, self.weigh = size, most, weigh

    def fetch(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The entry of `key`, made if it is not there."""
        value = self[key] if key in self else make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.size or (len(self) > 1 and sum(map(self.weigh, self.values())) > self.most):
            self.popitem(last=False)


def _shown_bytes(run: Run) -> int:
    """Of the smaller picture or clip that a model was shown, which its answer keeps."""
    if run.shown is None:
        return 0
    return run.shown.clip.frames.nbytes if run.shown.clip else 3 * math.prod(run.shown.still.size)


class Studio:
    """Answers questions about pictures and clips, for any number of visitors.

    Args:
        sources: checkpoints that visitors may choose from; two of them are held in memory.
        device, dtype: as for `vtc.load`.
        methods: with options ("todre(mode=kcenter)"), to be offered beside those that are registered.
    Attributes:
        names: what visitors call them: folders by their last part, so that no path of this machine is shown.
    """

    def __init__(
        self,
        sources: list[str],
        device: str | None = None,
        dtype: str | None = None,
        methods: Sequence[str] = (),
    ) -> None:
        self.methods = tuple(methods)
        self._sources: dict[str, str] = {}
        for source in sources:  # of two with one name, the one that comes first: it was asked for
            self._sources.setdefault(Path(source).resolve().name if Path(source).is_dir() else source, source)
        self.names, self._device, self._dtype = list(self._sources), device, dtype
        self._turn = threading.Lock()  # held while a model is loaded, wrapped or run
        self._models: Recent[Loaded] = Recent(2)
        self._answers: Recent[Run] = Recent(256, _MOST_SHOWN, _shown_bytes)

    def load(self, name: str) -> Loaded:
        """A model of `names`; loads it if it is not in memory."""
        if name not in self.names:
            raise ValueError(f"there is no model {name!r} here; there are: {', '.join(self.names)}.")
        held = self._models.get(name)
        if held is not None:
            return held  # without waiting for anybody's answer
        with self._turn:
            return self._models.fetch(name, lambda: self._load(self._sources[name]))

    def recall(self, name: str, media: Media, question: str, method: str | None, keep: float = 1.0) -> Run | None:
        """The answer, if it has been given before."""
        return self._answers.get(_key(name, media, question, method, keep))

    def answer(
        self, name: str, media: Media, question: str, method: str | None, keep: float = 1.0, timed: bool = True
    ) -> Iterator[Run]:
        """Answer greedily, a word at a time; an expected mistake ends as a Run in state "failed".

        Args:
            method: None = with all visual tokens. keep: fraction of the visual tokens.
            timed: whether to measure how long it takes, too; else the last Run is in state "answered".
        """
        known = self.recall(name, media, question, method, keep)
        if known is not None and (known.state == "done" or not timed):
            yield known
            return
        key = _key(name, media, question, method, keep)
        news: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        stop = PRESENCE.stop_event()

        def work() -> None:
            try:
                loaded = self.load(name)
                with self._turn:
                    run = known
                    if run is None and not stop.is_set():
                        run = _answer(loaded, media, question, Run(method, keep, "running"), news.put, stop)
                        self._remember(key, run, stop)
                    if run is not None and timed and not stop.is_set():
                        run = _timed(loaded, media, question, run, stop)
                        self._remember(key, run, stop)
                    news.put(run)
            except MISTAKES as error:
                if _no_memory(error):
                    self._free()
                news.put(Run(method, keep, "failed", sentence(error)))
            except Exception as error:
                _log.exception("an answer failed")
                text = f"This is a mistake in the demo, not yours ({type(error).__name__}): the server's log has more."
                news.put(Run(method, keep, "failed", text))
            finally:
                news.put(None)

        yield known or Run(method, keep)
        threading.Thread(target=work, daemon=True, name="vtc-demo-answer").start()
        try:
            while (run := news.get()) is not None:
                yield run
        finally:
            stop.set()  # whoever listened has gone

    def _remember(self, key: Hashable, run: Run, stop: threading.Event) -> None:
        if not stop.is_set():  # else it is half of one
            self._answers.put(key, run)

    def _free(self) -> None:
        """Give back what is held for later alone."""
        for loaded in self._models.values():
            loaded.encoded.clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _load(self, source: str) -> Loaded:
        model, processor = vtc.load(source, device=self._device, dtype=self._dtype)
        loaded = Loaded(model, processor)
        blank, stop = Media("", "blank", Image.new("RGB", (224, 224), "gray")), threading.Event()
        stop.set()  # it is asked for its depth alone
        loaded.depth = _answer(loaded, blank, "?", Run(None, 1.0), lambda run: None, stop, 1).depth
        loaded.encoded.clear()
        return loaded


def _answer(
    loaded: Loaded,
    media: Media,
    question: str,
    run: Run,
    news: Callable[[Run], None],
    stop: threading.Event,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Run:
    """Answer with the model to oneself; hands every word to `news`."""
    model, processor = loaded.model, loaded.processor
    smaller, options, notes = _made_smaller(loaded, media, run)
    inputs = _inputs(loaded, smaller or media, question, options)
    encodes = adapter_for(model).apart and not run.own_tower_run
    given = _encoded(loaded, smaller or media, inputs, run) if encodes else dict(inputs)
    at_work = run.method is not None and not run.resizes
    with torch.inference_mode(), _wrapped(loaded, run)():
        stream = _Stream(processor, lambda text: news(replace(run, text=text)))
        more: Any = {"streamer": stream, "stopping_criteria": [_Stopped(stop)]}
        model.generate(**given, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **more)
        run = replace(run, text=stream.text or "(nothing)", report=vtc.report(model) if at_work else None)
    if smaller is not None:
        whole = _account(model, _inputs(loaded, media, question, {}))
        run = replace(run, report=_account(model, inputs).made_smaller(whole, notes), shown=smaller)
    elif run.report is None:
        run = replace(run, report=_account(model, inputs))
    return replace(run, state="answered")


def _timed(loaded: Loaded, media: Media, question: str, run: Run, stop: threading.Event) -> Run:
    """The same answer, with how long its first token takes, in turns with that of all visual tokens."""
    smaller, options, _ = _made_smaller(loaded, media, run)
    inputs = _inputs(loaded, smaller or media, question, options)
    all_tokens = inputs if smaller is None else _inputs(loaded, media, question, {})
    works = [
        partial(first_token, loaded.model, all_tokens),
        partial(first_token, loaded.model, inputs, _wrapped(loaded, run)),
    ]
    times = in_turns(works if run.method else works[1:], least=1, seconds=_PATIENCE, go_on=lambda: not stop.is_set())
    if not run.method:
        return replace(run, state="done", seconds=statistics.median(times[0]))
    whole, own = times
    run = replace(run, whole_seconds=statistics.median(whole), seconds=statistics.median(own))
    return replace(run, state="done", speed=speed_up(whole, own))


def _wrapped(loaded: Loaded, run: Run) -> Callable[[], Any]:
    """Opens what the answer is made in: the model at work with the method, or as it is."""
    if run.method is None or run.resizes:
        return nullcontext
    return partial(vtc.wrapped, loaded.model, run.method, run.keep)


def _account(model: Any, inputs: Any) -> vtc.Report:
    """The report of a method that keeps everything."""
    with torch.inference_mode(), vtc.wrapped(model, "random", 1.0):
        model.generate(**inputs, max_new_tokens=1, do_sample=False, num_beams=1)
        return vtc.report(model)


def _made_smaller(loaded: Loaded, media: Media, run: Run) -> tuple[Media | None, dict[str, Any], list[str]]:
    """What the model is shown instead, if the method makes it smaller; options of the processor; sentences about it."""
    if not run.resizes:
        return None, {}, []
    whole = media.clip or media.picture
    assert whole is not None
    small = vtc.downsample(whole, loaded.processor, run.keep)
    if isinstance(small.media, Image.Image):
        return replace(media, picture=small.media), small.options, [small.note]
    return replace(media, clip=small.media), small.options, [small.note]


def _inputs(loaded: Loaded, media: Media, question: str, options: dict[str, Any]) -> Any:
    """What the processor makes of one question."""
    pictures = [media.picture] if media.picture is not None else []
    clips = [media.clip] if media.clip is not None else []
    made = vtc.prepare(loaded.processor, question, pictures, clips, **options)
    return made.to(loaded.model.device, loaded.model.dtype)


def _encoded(loaded: Loaded, media: Media, inputs: Any, run: Run) -> dict[str, Any]:
    """The same with what the vision tower makes of it, with the signals that the method reads."""
    method = vtc.resolve(run.method, run.keep) if run.method and not run.resizes else vtc.resolve("random")
    key = media.key, signals_of(loaded.model, [method]), run.keep if run.resizes else None
    encoded = loaded.encoded.fetch(key, lambda: vtc.encode(loaded.model, method, **inputs))
    return {name: inputs[name] for name in _TEXT if name in inputs} | encoded.take([0])


def _key(name: str, media: Media, question: str, method: str | None, keep: float) -> Hashable:
    return name, media.key, question.strip(), method, keep if method else None


class _Stream(BaseStreamer):
    """Decodes an answer as it grows."""

    def __init__(self, processor: Any, tell: Callable[[str], None]) -> None:
        self.processor, self.tell = processor, tell
        self.ids: list[int] = []
        self.text, self.prompted = "", False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompted:  # the prompt comes first
            self.prompted = True
            return
        self.ids += value.flatten().tolist()
        self.text = self.processor.batch_decode([self.ids], skip_special_tokens=True)[0].strip()
        self.tell(self.text)

    def end(self) -> None:
        pass


class _Stopped(StoppingCriteria):
    """Ends an answer that nobody waits for."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.stop.is_set(), device=input_ids.device, dtype=torch.bool)


def sentence(error: BaseException) -> str:
    """What to tell a visitor about a mistake."""
    text = " ".join(presentable(str(error)).split()) or type(error).__name__
    text = _NO_MEMORY if _no_memory(error) else text
    if "." not in text.split()[0]:  # names of files stay as they are
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."


def _no_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(said in str(error) for said in _CPU_SAYS)
