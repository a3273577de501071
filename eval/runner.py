"""The evaluation loop: every picture goes through the vision tower once, however many methods and budgets are asked."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from PIL import Image

import vtc
from vtc.eval.datasets import Dataset, Question
from vtc.eval.metrics import normalise, score

KEEPS = (288, 192, 128, 64, 32, 16)
BUDGETS = ("final", "average")
_PICTURES_AT_ONCE = 64  # bounds the memory that encoded pictures take
_GREY = (127, 127, 127)
_SLACK = 4  # tokens an answer may run over the longest reference of its task


@dataclass
class Run:
    """One setting's answers: `method` is "full", "blind" or a method; `keep` is None for the first two."""

    method: str
    keep: int | float | None = None
    answers: list[str] = field(default_factory=list)  # in the order of the questions
    scores: list[float] = field(default_factory=list)
    tokens_in: int = 0  # visual tokens over all questions
    tokens_out: int = 0
    tokens_average: float = 0.0  # the same, mean over the decoder layers
    flops: tuple[int, int] = (0, 0)  # of the language model's prefill: uncompressed, compressed
    kv_bytes: tuple[int, int] = (0, 0)  # of the KV cache after the prefill
    seconds: float = 0.0  # of generation, the vision tower's share not included


@dataclass
class Result:
    """Everything an evaluation found; `vtc.eval.table` turns it into tables."""

    data: Dataset
    model: str
    runs: list[Run]
    seconds: float

    @property
    def full(self) -> Run:
        return self.runs[0]

    def loyalty(self, run: Run) -> list[float]:
        """Per question: 1 where the run's answer is that of the uncompressed model, after normalisation."""
        return [float(normalise(a) == normalise(b)) for a, b in zip(run.answers, self.full.answers, strict=True)]


def evaluate(
    model,
    processor,
    data: Dataset,
    methods: Sequence[str],
    keeps: Sequence[int | float] = KEEPS,
    *,
    blind: bool = False,
    budget: str = "final",
    batch_size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """Answer every question uncompressed, with each method at each budget, and greedily, so that runs repeat exactly.

    Args:
        model, processor: as `vtc.load` returns them; the model must not be wrapped.
        methods: names; "random" is added if it is not among them.
        keeps: visual tokens per picture, counts or fractions.
        budget: what `keeps` means for methods that drop tokens between decoder layers: "final" = left after the last
            of them, "average" = mean over the layers, where every method spends about the same FLOPs.
        blind: also answer with a grey picture of the same size in place of each picture.
        batch_size: questions per call of `generate`.
        progress: called with (answers so far, answers in all).
    Raises:
        ValueError: no questions, or whatever `vtc.wrap` refuses; before any question is answered.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget={budget!r} is not one of {', '.join(BUDGETS)}.")
    began = time.perf_counter()
    methods = list(dict.fromkeys(["random", *methods]))
    full, grey = Run("full"), Run("blind")
    compressed = [Run(method, keep) for keep in keeps for method in methods]
    for run in compressed:
        with _wrapped(model, run, budget):  # refuses here, and not after minutes of work, what the model cannot do
            pass
    for image in {question.image for question in data.questions}:
        vtc.load_picture(image)
    runs = [full, *([grey] if blind else []), *compressed]
    for run in runs:
        run.answers = [""] * len(data.questions)
    total, done = len(runs) * len(data.questions), 0
    limits = _answer_limits(processor, data)
    for chunk in _chunks(data):
        batches = list(_batches(processor, data, chunk, limits, batch_size))
        sights = _encode(model, processor, chunk, methods, blind=False)
        greys = _encode(model, processor, chunk, ["random"], blind=True) if blind else None
        for run in runs:
            start = time.perf_counter()
            with _wrapped(model, run, budget):
                for batch in batches:
                    _answer(model, processor, greys if run is grey else sights, batch, run)
                    done += len(batch.numbers)
                    progress(done, total)
            run.seconds += time.perf_counter() - start
    for run in runs:
        run.scores = [score(answer, question) for answer, question in zip(run.answers, data.questions, strict=True)]
    return Result(data, model.config.model_type, runs, time.perf_counter() - began)


def _wrapped(model, run: Run, budget: str):
    if run.keep is None:
        return nullcontext()
    options = next((info.options for info in vtc.methods() if info.name == run.method), ())
    counted: dict[str, bool] = {"exact": True} if "exact" in options else {}  # thresholds keep any number
    if "average" in options:
        counted["average"] = budget == "average"
    return vtc.wrapped(model, run.method, run.keep, **counted)


@dataclass
class _Batch:
    """Questions that are answered together: `pictures` are indices into the chunk's encoded pictures."""

    numbers: list[int]
    pictures: list[int]
    text: dict[str, torch.Tensor]
    limit: int


@dataclass
class _Chunk:
    pictures: list[Image.Image]
    questions: list[tuple[int, int]]  # (number in the data set, index into `pictures`)


def _chunks(data: Dataset) -> Iterator[_Chunk]:
    """Split the data set by pictures, so that each picture is encoded once."""
    by_image: dict[str, list[int]] = {}
    for number, question in enumerate(data.questions):
        by_image.setdefault(str(question.image), []).append(number)
    images = list(by_image)
    for start in range(0, len(images), _PICTURES_AT_ONCE):
        part = images[start : start + _PICTURES_AT_ONCE]
        questions = [(number, index) for index, image in enumerate(part) for number in by_image[image]]
        yield _Chunk([vtc.load_picture(image) for image in part], questions)


def _answer_limits(processor, data: Dataset) -> dict[str, int]:
    """Most tokens an answer may have, per task: short tasks need not wait for captions to end."""
    limits: dict[str, int] = {}
    for question in data.questions:
        longest = max(len(processor.tokenizer(answer)["input_ids"]) for answer in question.answers)
        limits[question.task] = max(limits.get(question.task, 0), longest + _SLACK)
    return limits


def _encode(model, processor, chunk: _Chunk, methods: Sequence[str], *, blind: bool):
    pictures = [Image.new("RGB", picture.size, _GREY) for picture in chunk.pictures] if blind else chunk.pictures
    inputs = processor(
        text=[vtc.prompt(processor, "?")] * len(pictures),
        images=[[p] for p in pictures],
        padding=True,
        return_tensors="pt",
    )
    return vtc.encode(model, methods, **inputs.to(model.device))


def _batches(processor, data: Dataset, chunk: _Chunk, limits: dict[str, int], size: int) -> Iterator[_Batch]:
    def effort(entry: tuple[int, int]) -> tuple[int, int]:
        question = data.questions[entry[0]]
        return limits[question.task], len(question.question)

    by_limit: dict[int, list[tuple[int, int]]] = {}
    for entry in sorted(chunk.questions, key=effort):
        by_limit.setdefault(effort(entry)[0], []).append(entry)
    for limit, entries in by_limit.items():
        for start in range(0, len(entries), size):
            numbers, pictures = zip(*entries[start : start + size], strict=True)
            questions = [data.questions[number] for number in numbers]
            text = _tokenise(processor, questions, [chunk.pictures[index] for index in pictures])
            yield _Batch(list(numbers), list(pictures), text, limit)


def _tokenise(processor, questions: list[Question], pictures: list[Image.Image]) -> dict[str, torch.Tensor]:
    """Row-aligned inputs of `generate`, [B, S] each, padded on the left. The pictures only set how many tokens."""
    texts = [vtc.prompt(processor, question.question) for question in questions]
    inputs = processor(
        text=texts, images=[[p] for p in pictures], padding=True, padding_side="left", return_tensors="pt"
    )
    return {name: value for name, value in inputs.items() if value.shape == inputs["input_ids"].shape}


@torch.inference_mode()
def _answer(model, processor, encoded, batch: _Batch, run: Run) -> None:
    text = {name: value.to(model.device) for name, value in batch.text.items()}
    out = model.generate(
        **text, **encoded.take(batch.pictures), max_new_tokens=batch.limit, do_sample=False, num_beams=1
    )
    said = processor.batch_decode(out[:, text["input_ids"].shape[1] :], skip_special_tokens=True)
    for number, answer in zip(batch.numbers, said, strict=True):
        run.answers[number] = answer.strip()
    visual = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    tokens = int((text["input_ids"] == visual).sum())
    run.tokens_in += tokens
    if run.keep is None:
        run.tokens_out, run.tokens_average = run.tokens_in, run.tokens_in
        return
    report = vtc.report(model)
    run.tokens_out += report.tokens_out
    run.tokens_average += report.tokens_average
    run.flops = (run.flops[0] + report.flops[0], run.flops[1] + report.flops[1])
    run.kv_bytes = (run.kv_bytes[0] + report.kv_bytes[0], run.kv_bytes[1] + report.kv_bytes[1])
