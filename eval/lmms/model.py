"""The model that lmms-eval drives: greedy or sampled answers and likelihoods of a vtc-wrapped VLM, in batches."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

import vtc
from vtc.eval.lmms import FAMILIES, INSTALL, rows
from vtc.eval.lmms.arguments import check_model, parse
from vtc.media.prompts import visual_ids
from vtc.models import adapter_for

try:
    from accelerate import Accelerator
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.models.model_utils.gen_metrics import log_metrics
    from lmms_eval.utils import simple_parse_args_string
    from loguru import logger
except ImportError as error:
    raise ImportError(INSTALL.format(error)) from error

_PLAIN = ("num_beams", "min_new_tokens", "repetition_penalty", "length_penalty", "no_repeat_ngram_size")
_SAMPLED = ("temperature", "top_p", "top_k")
_READ = {*_PLAIN, *_SAMPLED, "max_new_tokens", "max_gen_toks", "do_sample", "until"}
_BLANK_LINE = "\n\n"


class VTCModel(lmms):
    """A VLM of one family, wrapped by `vtc.wrap` unless method=none; `arguments` are those of `arguments.Settings`.

    A question whose picture or video cannot be read is answered with nothing, logged and counted; lmms-eval's response
    cache does not keep empty answers, so that the next run asks it again. If none can be read, that is an error.
    """

    name: ClassVar[str] = ""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.settings = parse(arguments)
        source = check_model(self.name, self.settings)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        device = self.settings.device
        if self._world_size > 1 and device in (None, "cuda", "auto"):
            device = str(self.accelerator.device)
        s = self.settings
        self._model, self.processor = vtc.load(source, device, s.dtype, attn_implementation=s.attn_implementation)
        if s.methods:
            vtc.wrap(self._model, list(s.methods), processor=self.processor)
        self._load_clip = partial(rows.sample_clip, frames=s.max_frames, fps=s.fps)
        self._seen: Any = Counter()  # what went through the model in one call of lmms-eval
        self._ignored: set[str] = set()

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> VTCModel:
        """`--model_args` win over `--batch_size` and `--device`."""
        return cls(**{**(additional_config or {}), **simple_parse_args_string(arg_string)})

    @property
    def device(self) -> torch.device:
        return self._model.device

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """One answer per request, in their order."""
        return self._run(requests, self._generate, GenerationResult(""))

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """(mean negative log-likelihood of the continuation, whether greedy decoding gives it) per request.

        A loss, although lmms-eval speaks of a likelihood: its multiple choice takes the smallest (Task.process_results
        of 0.7), and its own models return this loss.
        """
        return [GenerationResult(_Likelihood(scored)) for scored in self._run(requests, self._score, None)]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        raise NotImplementedError("tasks of several rounds (generate_until_multi_round) are not supported by vtc.")

    def _run(self, requests: list[Any], work: Callable[[list[rows.Row], list[Any]], list[Any]], nothing: Any) -> list:
        results, self._seen = [nothing] * len(requests), Counter()
        progress = tqdm(total=len(requests), disable=self.rank != 0, desc=self.name)
        for numbers in self._batches(requests):
            alike: dict[tuple[int, ...], list[tuple[int, rows.Row]]] = {}  # processors stack clips of equal length
            for number in numbers:
                row = self._row(requests[number])
                if row is not None:
                    alike.setdefault(tuple(map(len, row.clips)), []).append((number, row))
            for group in alike.values():
                done = work([row for _, row in group], [requests[number] for number, _ in group])
                for (number, _), result in zip(group, done, strict=True):
                    results[number] = result
            progress.update(len(numbers))
        progress.close()
        if requests and self._seen["unread"] == len(requests):
            raise ValueError(f"none of the {len(requests)} requests could be read; the reasons stand in the log above.")
        self._report(len(requests))
        return results

    def _batches(self, requests: list[Any]) -> Iterator[list[int]]:
        """Numbers of requests that share their generation arguments; long prompts first."""
        groups: dict[str, list[int]] = {}
        for number in sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0])):
            groups.setdefault(json.dumps(_generation(requests[number]), default=str, sort_keys=True), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.settings.batch_size):
                yield numbers[start : start + self.settings.batch_size]

    def _row(self, request: Any) -> rows.Row | None:
        text, args = request.args[0], request.args
        doc = self.task_dict[args[-2]][args[-1]][args[-3]] if len(args) == 6 else None
        try:
            if request.request_type == "generate_until" and not self.is_simple:
                messages = args[1](doc)
            else:
                visuals = args[2](doc) if len(args) == 6 and callable(args[2]) else None
                messages = rows.user_turn(text, visuals)
            return rows.read(messages, self.processor, self._load_clip)
        except (OSError, ValueError) as error:
            if request.request_type == "loglikelihood":
                raise  # nothing is no answer to how likely something is
            logger.error(f"{request.task_name}, document {request.doc_id}, is answered with nothing: {error}")
            self._seen["unread"] += 1
            return None

    @torch.inference_mode()
    def _generate(self, batch: list[rows.Row], requests: list[Any]) -> list[Any]:
        asked = _generation(requests[0])
        until = asked.get("until") or []
        # lmms-eval fills in a blank line wherever a task names no stop; its own models ignore that, too
        stops = [s for s in ([until] if isinstance(until, str) else until) if s and s != _BLANK_LINE]
        if ignored := asked.keys() - _READ - self._ignored:
            self._ignored |= ignored
            logger.warning(f"generation arguments that mean nothing to {self.name}: {', '.join(sorted(ignored))}")
        new = self._forward(batch, stops, **_decoding(asked))
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        lengths = (new != self._pad).sum(dim=1).tolist()
        self._seen["generated"] += sum(lengths)
        results = []
        for row, text, length in zip(batch, texts, lengths, strict=True):
            for stop in stops:
                text = text.split(stop)[0]
            self.cache_hook.add_partial("generate_until", (row.text, asked), text)
            results.append(GenerationResult(text, TokenCounts(output_tokens=length)))
        return results

    @torch.inference_mode()
    def _score(self, batch: list[rows.Row], requests: list[Any]) -> list[tuple[float, bool]]:
        tokenizer, wanted = self.processor.tokenizer, []
        for row, request in zip(batch, requests, strict=True):
            said, args = request.args[1], request.args
            said = said(self.task_dict[args[-2]][args[-1]][args[-3]]) if callable(said) else said
            before = len(tokenizer(row.text)["input_ids"])
            wanted.append(tokenizer(row.text + said)["input_ids"][before:])
        forced = _Forced(wanted, self._pad)
        plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0}  # likelihoods as the model gives them
        self._forward(batch, max_new_tokens=max(1, *map(len, wanted)), logits_processor=[forced], **plain)
        for row, result in zip(batch, forced.results(), strict=True):
            self.cache_hook.add_partial("loglikelihood", (row.text,), result)
        return forced.results()

    def _forward(self, batch: list[rows.Row], stops: Sequence[str] = (), **options: Any) -> Tensor:
        """New tokens of a batch, [B, T]; a row ends once it has said one of `stops`."""
        inputs = rows.batch(batch, self.processor).to(self._model.device, self._model.dtype)
        begin = inputs["input_ids"].shape[1]
        if stops:
            options["stopping_criteria"] = [partial(self._stopped, stops=stops, begin=begin)]
        start = time.perf_counter()
        out = self._model.generate(**inputs, pad_token_id=self._pad, **options)
        new = out[:, begin:].cpu()  # waits for the device
        self._seen["seconds"] += time.perf_counter() - start
        self._count(batch, inputs)
        return new

    def _count(self, batch: Sequence[rows.Row], inputs: Mapping[str, Any]) -> None:
        """Add up pictures and videos, their tokens before and after compression, and the mean over decoder layers."""
        if self.settings.methods:
            report = vtc.report(self._model)
            visuals, *tokens = len(report.spans), report.tokens_in, report.tokens_out, report.tokens_average
        else:
            ids, memory = inputs["input_ids"], adapter_for(self._model).memory(self._model, inputs)
            visual = torch.tensor(visual_ids(self.processor), device=ids.device)
            visuals = sum(len(row.pictures) + len(row.clips) for row in batch)
            found = torch.isin(ids, visual).sum() if memory is None else memory.visual.sum()
            tokens = [int(found)] * 3
        self._seen.update(dict(zip(("visuals", "in", "out", "mean"), (visuals, *tokens), strict=True)))

    def _stopped(self, ids: Tensor, scores: Tensor, stops: Sequence[str], begin: int) -> Tensor:
        """Which rows of ids [B, S] end in a stop; transformers' own criterion fails on tokenizers of whole words."""
        tail = ids[:, max(begin, ids.shape[1] - 8 - max(map(len, stops))) :]
        said = self.processor.batch_decode(tail, skip_special_tokens=True)
        return torch.tensor([any(stop in text for stop in stops) for text in said], device=ids.device)

    @property
    def _pad(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _report(self, requests: int) -> None:
        """The run's means go to the log and, under "throughput", to the results of lmms-eval."""
        seen, each = self._seen, max(1, self._seen["visuals"])
        log_metrics(
            total_elapsed_time=seen["seconds"],
            total_gen_tokens=seen["generated"],
            avg_speed=seen["generated"] / seen["seconds"] if seen["seconds"] else 0.0,
            additional_metrics={
                "total_requests": requests,
                "requests_unread": seen["unread"],
                "visual_tokens_in": seen["in"] / each,
                "visual_tokens_out": seen["out"] / each,
                "visual_tokens_mean_over_layers": seen["mean"] / each,
            },
        )


class _Likelihood(tuple):
    """(loss, greedy) in the one form that lmms-eval 0.7 does not turn into a string: the text of a GenerationResult.

    Its response cache would give back a list, which it then turns into a string, but it keeps no blank texts.
    """

    def strip(self) -> str:
        return ""


class _Forced:
    """A logits processor that makes `generate` say given tokens and notes how likely they were.

    So the continuation is read as an answer would be: after the prompt was compressed, from the compressed cache.
    """

    def __init__(self, wanted: Sequence[Sequence[int]], pad: int) -> None:
        self.wanted, self.pad, self.step = wanted, pad, 0
        self.losses = [0.0] * len(wanted)
        self.greedy = [True] * len(wanted)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        likely = scores.float().log_softmax(dim=-1)  # [B, V]
        best, forced = likely.argmax(dim=-1).tolist(), torch.full_like(scores, -torch.inf)
        for row, tokens in enumerate(self.wanted):
            token = tokens[self.step] if self.step < len(tokens) else self.pad
            forced[row, token] = 0
            if self.step < len(tokens):
                self.losses[row] -= float(likely[row, token])
                self.greedy[row] &= best[row] == token
        self.step += 1
        return forced

    def results(self) -> list[tuple[float, bool]]:
        return [(s / max(1, len(w)), g) for s, w, g in zip(self.losses, self.wanted, self.greedy, strict=True)]


def _generation(request: Any) -> dict[str, Any]:
    """A request's generation arguments; lmms-eval's response cache relies on their staying as they are."""
    return next((dict(arg) for arg in request.args if isinstance(arg, dict)), {})


def _decoding(asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `generate`: greedy unless a temperature above 0, or do_sample without one, asks for sampling."""
    warm = asked.get("temperature")
    sample = bool(asked.get("do_sample", (warm or 0) > 0)) and (warm is None or warm > 0)
    options = {name: asked[name] for name in _PLAIN if asked.get(name) is not None}
    options |= {name: asked.get(name) if sample else None for name in _SAMPLED}
    length = asked.get("max_new_tokens") or asked.get("max_gen_toks") or 1024
    return {"num_beams": 1, **options, "max_new_tokens": int(length), "do_sample": sample}


for _name in FAMILIES:
    for _class, _simple in ((_name, False), (f"{_name}_simple", True)):
        globals()[_class] = type(_class, (VTCModel,), {"name": _name, "is_simple": _simple, "__module__": __name__})
