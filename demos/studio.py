"""The studio: models, what their vision towers have seen, and answers. All of the demo but its page.

One model serves everybody. It is wrapped only for the length of one answer, and one answer is made at a time, so that
nobody sees another one's compression and times are those of an otherwise idle model.
"""

from __future__ import annotations

import logging
import queue
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import vtc
from vtc.demos.media import Media

_log = logging.getLogger("vtc")

MAX_NEW_TOKENS = 64
_QUICK = 0.25  # s; what takes less is measured three times
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_MISTAKES = (ValueError, TypeError, OSError, ImportError, NotImplementedError, RuntimeError)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Run:
    """One answer, so far.

    Attributes:
        method: name, or None for all visual tokens. keep: fraction of the visual tokens.
        state: "waiting", "running", "done" or "failed".
        text: the answer, or the sentence that says why there is none.
        seconds: to the first token, vision tower included.
        report: of `vtc.report`.
        shown: what the model was shown, if that was made smaller.
    """

    method: str | None
    keep: float
    state: str = "waiting"
    text: str = ""
    seconds: float | None = None
    report: vtc.Report | None = None
    shown: Media | None = None

    @property
    def resizes(self) -> bool:
        """Whether the picture is made smaller before the model sees it, and the model stays as it is."""
        return self.method == "downsample"

    @property
    def depth(self) -> int:
        """Decoder layers of the model."""
        return len(self.report.tokens_by_layer) if self.report else 0

    def tokens(self, layer: int) -> int:
        """Visual tokens that decoder layer `layer` holds."""
        assert self.report is not None
        return sum(span.tokens_out for span in self.report.at(layer))


@dataclass(eq=False)
class Loaded:
    """A model of `depth` decoder layers, its processor, and what its vision tower made of recent pictures."""

    model: Any
    processor: Any
    depth: int = 0
    encoded: Recent[tuple[Any, float]] = field(default_factory=lambda: Recent(16))

    @property
    def reads_clips(self) -> bool:
        return bool(getattr(self.processor, "video_token", "")) and hasattr(self.processor, "video_processor")


class Recent(OrderedDict[Hashable, Value]):
    """The `size` entries that were fetched or put last."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def fetch(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The entry of `key`, made if it is not there."""
        value = self[key] if key in self else make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: Value) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.size:
            self.popitem(last=False)


class Studio:
    """Answers questions about pictures and clips, for any number of visitors.

    Args:
        sources: checkpoints that visitors may choose from; two of them are held in memory.
        device, dtype: as for `vtc.load`.
    Attributes:
        names: what visitors call them: folders by their last part, so that no path of this machine is shown.
    """

    def __init__(self, sources: list[str], device: str | None = None, dtype: str | None = None) -> None:
        self._sources: dict[str, str] = {}
        for source in sources:  # of two with one name, the one that comes first: it was asked for
            self._sources.setdefault(Path(source).resolve().name if Path(source).is_dir() else source, source)
        self.names, self._device, self._dtype = list(self._sources), device, dtype
        self._turn = threading.Lock()  # held while a model is loaded, wrapped or run
        self._models: Recent[Loaded] = Recent(2)
        self._answers: Recent[Run] = Recent(256)

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

    def answer(self, name: str, media: Media, question: str, method: str | None, keep: float = 1.0) -> Iterator[Run]:
        """Answer greedily, a word at a time; an expected mistake ends as a Run in state "failed".

        Args:
            method: None = with all visual tokens. keep: fraction of the visual tokens.
        """
        known = self.recall(name, media, question, method, keep)
        if known is not None:
            yield known
            return
        key = _key(name, media, question, method, keep)
        news: queue.SimpleQueue[Run | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                loaded = self.load(name)
                with self._turn:
                    if not stop.is_set():
                        run = _answer(loaded, media, question, Run(method, keep, "running"), news.put, stop)
                        if not stop.is_set():
                            self._answers.put(key, run)
                        news.put(run)
            except _MISTAKES as error:
                news.put(Run(method, keep, "failed", _sentence(error)))
            except Exception as error:
                _log.exception("an answer failed")
                text = f"This is a mistake in the demo, not yours ({type(error).__name__}): the server's log has more."
                news.put(Run(method, keep, "failed", text))
            finally:
                news.put(None)

        yield Run(method, keep)
        threading.Thread(target=work, daemon=True, name="vtc-demo-answer").start()
        try:
            while (run := news.get()) is not None:
                yield run
        finally:
            stop.set()  # whoever listened has gone

    def _load(self, source: str) -> Loaded:
        model, processor = vtc.load(source, device=self._device, dtype=self._dtype)
        loaded = Loaded(model, processor)
        blank = Media("", "warm-up", Image.new("RGB", (224, 224), "gray"))
        for method in (None, "divprune"):  # first runs are slow, and would be shown as if the method were
            run = _answer(loaded, blank, "warm up", Run(method, 0.5), lambda run: None, threading.Event(), 1)
            loaded.depth = run.depth
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
    given, tower = _given(loaded, smaller or media, question, run, options)

    def generate(tokens: int, inputs: dict[str, Any], **more: Any) -> None:
        model.generate(**inputs, max_new_tokens=tokens, do_sample=False, num_beams=1, **more)

    def account(inputs: dict[str, Any]) -> vtc.Report:
        """The report of a method that keeps everything."""
        with vtc.wrapped(model, "random", 1.0):
            generate(1, inputs)
            return vtc.report(model)

    with torch.inference_mode():
        at_work = run.method is not None and not run.resizes
        with vtc.wrapped(model, run.method or "", run.keep) if at_work else nullcontext():
            stream = _Stream(processor, lambda text: news(replace(run, text=text)))
            start = time.perf_counter()
            generate(max_new_tokens, given, streamer=stream, stopping_criteria=[_Stopped(stop)])
            run = replace(run, text=stream.text or "(nothing)", report=vtc.report(model) if at_work else None)
            news(run)
            seconds = tower + _quick_median(lambda: generate(1, given), model.device, stream.first - start)
        if smaller is not None:
            whole, _ = _given(loaded, media, question, Run(None, 1.0), {})
            run = replace(run, report=account(given).made_smaller(account(whole), notes), shown=smaller)
        elif run.report is None:
            run = replace(run, report=account(given))
    return replace(run, state="done", seconds=seconds)


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


def _given(
    loaded: Loaded, media: Media, question: str, run: Run, options: dict[str, Any]
) -> tuple[dict[str, Any], float]:
    """What `generate` takes for one question, pictures encoded already, and the seconds that encoding took."""
    pictures = [media.picture] if media.picture is not None else []
    clips = [media.clip] if media.clip is not None else []
    inputs = vtc.prepare(loaded.processor, question, pictures, clips, **options)
    inputs = inputs.to(loaded.model.device, loaded.model.dtype)
    key = media.key, _needs(run.method), run.keep if run.resizes else None
    method = None if run.resizes else run.method
    encoded, tower = loaded.encoded.fetch(key, lambda: _encode(loaded.model, inputs, method))
    return {name: inputs[name] for name in _TEXT if name in inputs} | encoded.take([0]), tower


def _key(name: str, media: Media, question: str, method: str | None, keep: float) -> Hashable:
    return name, media.key, question.strip(), method, keep if method else None


def _needs(method: str | None) -> tuple[str, ...]:
    """Methods of equal needs share a run of the vision tower."""
    return next((info.needs for info in vtc.list_methods() if info.name == method), ())


def _encode(model: Any, inputs: Any, method: str | None) -> tuple[Any, float]:
    """What the vision tower makes of the inputs, with the signals that the method reads, and its seconds."""
    found: list[Any] = []
    seconds = _quick_median(lambda: found.append(vtc.encode(model, method or "random", **inputs)), model.device)
    return found[-1], seconds


def _quick_median(work: Callable[[], None], device: torch.device, first: float | None = None) -> float:
    """Seconds that `work` takes, of which `first` may have been measured: the median of three if it is quick."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    times = [once() if first is None else first]
    while times[0] < _QUICK and len(times) < 3:
        times.append(once())
    return statistics.median(times)


class _Stream(BaseStreamer):
    """Decodes an answer as it grows; notes when its first token came."""

    def __init__(self, processor: Any, tell: Callable[[str], None]) -> None:
        self.processor, self.tell = processor, tell
        self.ids: list[int] = []
        self.text, self.first, self.prompted = "", 0.0, False

    def put(self, value: torch.Tensor) -> None:
        if not self.prompted:  # the prompt comes first
            self.prompted = True
            return
        new = value.flatten().tolist()  # waits for the device
        if not self.ids:
            self.first = time.perf_counter()
        self.ids += new
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


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        text = "the device has no memory left for this: take a smaller picture, or keep fewer tokens"
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
