"""vtc.train: the parameters of a trained method, learned from questions and answers; the model stays as it is."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.api import ATTRIBUTE, wrapped
from vtc.checks import check_number
from vtc.methods.base.method import Method
from vtc.methods.base.registry import resolve, untrained
from vtc.methods.base.trained import CARD, TrainedMethod, save_module
from vtc.models import adapter_for
from vtc.training.batches import IGNORED, Batches
from vtc.training.checkpoint import Checkpoint
from vtc.training.samples import Sample, read_samples

Batch = dict[str, Any]
Data = str | Path | Sequence[Sample] | Callable[[int], Batch]


@dataclass(frozen=True)
class Trained:
    """A finished training: the folder that `weights=` takes, and the loss of every step."""

    path: Path
    losses: list[float]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast: AdamW, linear warm-up over the share `warmup` of all steps, then cosine to 0."""

    steps: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    clip_norm: float
    seed: int

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 1 if field.name in ("steps", "batch_size") else 0
            check_number(getattr(self, field.name), field.name, least, integer=field.type == "int")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a share of its peak."""
        rise = round(self.warmup * self.steps)
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


def train(
    model: nn.Module,
    method: str | Method,
    dataset: Data,
    *,
    out: str | Path,
    processor: Any = None,
    keep: int | float | None = None,
    steps: int = 1000,
    batch_size: int = 16,
    lr: float = 1e-3,
    warmup: float = 0.05,
    weight_decay: float = 0.01,
    clip_norm: float = 1.0,
    seed: int = 0,
    frames: int | None = None,
    fps: float | None = None,
    cache_bytes: float = 2e9,
    checkpoint_every: int = 200,
    log_every: int = 50,
    log: Callable[[str], None] | None = print,
    **options: Any,
) -> Trained:
    """Train the module of a method on the cross-entropy of a model's answers, and save it.

    Only the method's own parameters change: the model is frozen, in eval mode, and afterwards exactly what it was. (The
    VQToken paper trains vision tower and language model along.) A run is a function of its arguments alone. With the
    same arguments and `out`, one that was stopped goes on from its last checkpoint, to the result it would have had.

    Args:
        method: the name of a method with parameters, or a `vtc.TrainedMethod`; its `weights`, if any, are the start.
        dataset: a `.jsonl` file of samples (see `vtc.training.samples`), a list of `vtc.Sample`, or a function from
            the step to a batch: inputs of the model with `labels` [B, L], -100 where nothing is to be predicted.
        out: folder for `module.safetensors` and `module.json`, for the losses (`log.jsonl`) and the checkpoint.
        processor: of the model; needed for samples.
        keep, options: of the method, as in `vtc.wrap`.
        lr, warmup: peak of the learning rate, and the share of all steps in which it is reached; then cosine to 0.
        frames, fps: of videos, as in `vtc.load_clip`.
        cache_bytes: memory for the features of pictures and clips, which are encoded once as far as it goes.
        log: gets a line every `log_every` steps; None = silent.

    Raises:
        ImportError: accelerate is not installed.
        ValueError, TypeError, FileNotFoundError: with one sentence, before any compute.
    """
    if find_spec("accelerate") is None:
        raise ImportError("training needs the package accelerate: pip install 'vtc-vlm[train]'.")
    chosen = _trainable(method, keep, options)
    recipe = Recipe(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        seed=seed,
    )
    check_number(log_every, "log_every", 1, integer=True, what="a number of steps")
    adapter, config = adapter_for(model), _config(model)
    width = adapter.language_model(model).config.hidden_size
    chosen.check_model(config.model_type, width)
    samples = read_samples(dataset) if isinstance(dataset, str | Path) else dataset
    if callable(samples):
        batches: Callable[[int], Batch] = samples
    elif processor is None:
        raise ValueError("samples are read with the model's processor: pass processor=.")
    elif not samples:
        raise ValueError("the dataset is empty: there is nothing to train on.")
    elif bare := [sample for sample in samples if not (sample.image or sample.video)]:
        raise ValueError(f"the sample {bare[0].question!r} is about nothing: give it an image or a video.")
    else:
        batches = Batches(model, processor, chosen, samples, batch_size, seed, frames, fps, cache_bytes)
    out = Path(out).expanduser()
    settings = vars(recipe) | {
        "data": "function" if callable(samples) else f"{len(samples)} samples",
        "method": str(chosen),
        "frames": frames,
        "fps": fps,
        "model": f"{config.model_type} of width {width}",
    }
    if not callable(samples):
        known = [(sample.question, sample.answer, Path(sample.image or sample.video or "").name) for sample in samples]
        settings["digest"] = hashlib.sha256(repr(known).encode()).hexdigest()[:16]
    checkpoint = Checkpoint(out, settings, checkpoint_every)
    if (out / CARD).exists() and not checkpoint.exists:
        raise ValueError(f"{out} holds finished weights: give another folder, or delete it to train anew.")
    with frozen(model), torch.enable_grad():
        module = chosen.initial(width, seed).float().train().requires_grad_(True)
        module, losses, seen = _run(model, chosen, module, batches, recipe, checkpoint, log_every, log)
    facts = {"tokens": seen, "training": settings | {"loss": sum(losses[-20:]) / len(losses[-20:])}}
    save_module(out, chosen, module, config.model_type, width, facts)
    lines = [json.dumps({"step": i, "loss": loss}) for i, loss in enumerate(losses, 1)]
    (out / "log.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Trained(out, losses)


def _run(
    model: nn.Module,
    method: TrainedMethod,
    module: nn.Module,
    batches: Callable[[int], Batch],
    recipe: Recipe,
    checkpoint: Checkpoint,
    log_every: int,
    log: Callable[[str], None] | None,
) -> tuple[nn.Module, list[float], list[int]]:
    """The loop: the trained module, the loss of each step, and the fewest and most tokens it was asked for."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate)
    module, optimizer = accelerator.prepare(module, optimizer)
    accelerator.register_for_checkpointing(schedule)
    losses, seen = checkpoint.restore(accelerator)
    began, first = time.perf_counter(), len(losses)
    with wrapped(model, method.training(module)):
        for step in range(first, recipe.steps):
            loss = answer_loss(model, batches(step))
            if not loss.requires_grad:
                raise ValueError(
                    f"nothing to train: no picture of batch {step} has more tokens than {method.title} keeps; lower "
                    "keep."
                )
            if not loss.isfinite():
                raise ValueError(f"the loss of step {step} is {float(loss)}: lower lr, or clip_norm.")
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(module.parameters(), recipe.clip_norm)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            kept = [one.tokens_out for one in model.__dict__[ATTRIBUTE].trace.selections]
            seen = [min([*seen, *kept]), max([*seen, *kept])]
            done = step + 1
            if log is not None and (done % log_every == 0 or done == recipe.steps):
                recent = losses[-log_every:]
                mean, rate = sum(recent) / len(recent), recipe.lr * recipe.rate(step)
                pace = (time.perf_counter() - began) / (done - first)
                log(f"step {done}/{recipe.steps}  loss {mean:.4f}  lr {rate:.1e}  {pace:.2f} s/step")
            if checkpoint.due(done) or done == recipe.steps:
                checkpoint.save(accelerator, losses, seen)
    return accelerator.unwrap_model(module), losses, seen


def answer_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """Mean cross-entropy of what a batch's `labels` [B, L] ask for; a wrapped model takes no labels itself."""
    inputs = dict(batch)
    labels: Tensor = inputs.pop("labels")
    length = labels.shape[1]
    asked = (labels[:, 1:] != IGNORED).any(dim=0).nonzero()
    if not len(asked):
        raise ValueError("the labels of a batch ask for nothing: all are -100.")
    kept = length - int(asked[0])  # logits before each asked token, and the last ones
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = kept
    logits = model(**inputs, use_cache=False).logits[:, -kept:-1]
    return F.cross_entropy(logits.float().flatten(0, 1), labels[:, 1 - kept :].flatten(), ignore_index=IGNORED)


def _trainable(method: str | Method, keep: int | float | None, options: dict[str, Any]) -> TrainedMethod:
    chosen = resolve(method, keep, **options)
    if not isinstance(chosen, TrainedMethod) or type(chosen).module is TrainedMethod.module:
        raise untrained(chosen.title)
    return chosen


def _config(model: nn.Module) -> Any:
    return model.config


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """The model without gradients and in eval mode; afterwards as it was."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.requires_grad_(False).eval()
        yield
    finally:
        for parameter, want in wanted:
            parameter.requires_grad_(want)
        for part, mode in modes:
            part.training = mode
