"""Work: what a calibration offers to a method — the model, the pairs, how alike answers begin, and a search."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from vtc.api import wrapped
from vtc.calibration.pairs import Pair
from vtc.calibration.search import Box, check_search, proposed
from vtc.calibration.trials import Trial, Trials
from vtc.engine.encoding import Remeasured
from vtc.methods.base.calibrated import CalibratedMethod
from vtc.methods.base.method import Method
from vtc.models import adapter_for

Progress = Callable[[str, int, int], None]


@dataclass(eq=False)
class Ready:
    """A pair as the model takes it: the prompt, what its tower makes of the picture, and the state without compression.

    Attributes:
        words: input_ids and what else has their shape. seen: None where memory did not reach: it is looked at anew.
        whole: [D], what the last layer makes of the prompt's last token, with all visual tokens.
    """

    words: dict[str, Any]
    seen: Remeasured | None
    whole: Tensor


class Work:
    """One calibration in progress.

    Args:
        trials: what has been measured before. count: how many trials there are to be.
        room: bytes for what the vision tower makes of the pictures; those beyond it are encoded anew in each trial.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        method: CalibratedMethod,
        pairs: tuple[Pair, ...],
        trials: Trials,
        count: int,
        seed: int,
        progress: Progress,
        frames: int | None = None,
        fps: float | None = None,
        room: float = 4e9,
    ) -> None:
        self.model, self.processor, self.method, self.pairs = model, processor, method, pairs
        self.trials, self.count, self.seed, self.progress = trials, count, seed, progress
        self.frames, self.fps, self._room = frames, fps, room
        self._ready: list[Ready] = []

    # -- pairs -------------------------------------------------------------------------------------------------

    def ready(self) -> list[Ready]:
        """All pairs, looked at once."""
        for number in range(len(self._ready), len(self.pairs)):
            self.progress("pairs", number, len(self.pairs))
            words, seen = self._look(self.pairs[number])
            whole = self._state({**words, **seen.of(self.method.measuring()).take([0])})
            self._room -= seen.size
            if self._room < 0:
                self._room, seen = self._room + seen.size, None
            self._ready.append(Ready(words, seen, whole))
        self.progress("pairs", len(self.pairs), len(self.pairs))
        return self._ready

    def _look(self, pair: Pair) -> tuple[dict[str, Any], Remeasured]:
        inputs = pair.inputs(self.processor, self.frames, self.fps)
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        inputs = inputs.to(next(self.model.parameters()).device, dtype)
        shape = inputs["input_ids"].shape
        words = {name: value for name, value in inputs.items() if value.shape == shape}
        return words, Remeasured(self.model, self.method.measuring(), dict(inputs))

    def _state(self, inputs: dict[str, Any]) -> Tensor:
        """[D] in fp32: the last layer's hidden state, normed, of the last token of a prompt."""
        caught: list[Tensor] = []
        base = adapter_for(self.model).base(self.model)
        handle = base.register_forward_hook(lambda module, args, output: caught.append(output[0][0, -1].float()))
        more = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}
        try:
            self.model(**inputs, use_cache=False, **more)
        finally:
            handle.remove()
        return caught[-1]

    def twice(self) -> Iterator[dict[str, Any]]:
        """What the model takes of each pair with its picture twice, one behind the other."""
        device, dtype = next(self.model.parameters()).device, next(p.dtype for p in self.model.parameters())
        for number, pair in enumerate(self.pairs):
            self.progress("pairs", number, len(self.pairs))
            yield dict(pair.inputs(self.processor, self.frames, self.fps, twice=True).to(device, dtype))
        self.progress("pairs", len(self.pairs), len(self.pairs))

    # -- what it comes to ----------------------------------------------------------------------------------------

    def likeness(self, method: Method) -> float:
        """Mean over the pairs of the cosine between what the last layer makes of a prompt's last token with `method`
        and with all visual tokens (what VFlowOpt, arXiv 2508.05211, optimises)."""
        cosines: list[float] = []
        pairs = self.ready()
        with wrapped(self.model, method):
            for pair, one in zip(self.pairs, pairs, strict=True):
                seen = one.seen or self._look(pair)[1]
                state = self._state({**one.words, **seen.of(method).take([0])})
                cosines.append(float(F.cosine_similarity(state, one.whole, dim=0)))
        return sum(cosines) / len(cosines)

    def search(
        self, box: Box, start: Mapping[str, float], objective: Callable[[dict[str, float]], float]
    ) -> dict[str, float]:
        """The point of a box with the largest objective of those that are tried, the first of which is `start`."""
        done = self.trials.done
        if len(done) <= self.count:
            check_search()
            self.ready()
        while len(done) <= self.count:
            self.progress("trials", len(done), self.count + 1)
            point = dict(start)
            if done:
                points, values = zip(*done, strict=True)
                point = proposed(box, points, values, self.count, self.seed)
            self.trials.add(Trial(point, objective(point)))
        self.progress("trials", self.count + 1, self.count + 1)
        return self.trials.best().values
