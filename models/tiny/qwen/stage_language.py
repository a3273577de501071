"""Stage 2: the language model learns to answer from symbolic tokens. No clip is drawn and no tower is run."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.models.tiny import common, packing
from vtc.models.tiny.qwen import asking, clips, film
from vtc.models.tiny.qwen.clips import GRID, STEPS
from vtc.models.tiny.qwen.symbols import Symbols, places_of, spoil, subset

STAGE = ("language", 96, 14, 12, 1300, 2e-3)  # name, visual tokens, clips, questions a clip, steps, learning rate
TASK_WEIGHTS = {
    "direction": 1.5,
    "order": 1.5,
    "change": 1.5,
    "blink": 1.5,
    "reading": 1.0,
    "ever": 1.3,
    "color": 0.7,
    "object": 0.7,
}
PICTURES = 0.15  # share of pictures among the clips
_SEEDS = 1_000_000_000  # clips of this stage; pools start at multiples of 10 million below it


class Past(nn.Module):
    """What a lower layer of the language model should know of every visual token: its step, and what happened so far.

    Questions alone teach that only after very long; the labels are at hand.
    """

    LAYER = 2

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(film.PASTS) + STEPS)

    def loss(self, states: Tensor, labels: Tensor, step: Tensor) -> tuple[Tensor, dict[str, float]]:
        """states [B, N, D] behind layer LAYER, labels [B, N, 7], step [B, N]."""
        event, since, was, tint, at = self.linear(self.norm(states)).float().split((*film.PASTS, STEPS), -1)
        kind, wanted, first = (labels[..., i].flatten() for i in (film.KIND, film.EVENT, film.SINCE))
        known = kind != film.IGNORE
        weight = torch.where((kind > 0) | (wanted > 0), 1.0, 0.1) * known
        each = F.cross_entropy(event.flatten(0, 1), wanted.clamp_min(0), reduction="none")
        total = (each * weight).sum() / weight.sum()
        happened, seen = (wanted > 0) & known, (kind > 0) & known
        total = total + 0.3 * F.cross_entropy(at.flatten(0, 1), step.flatten())
        if seen.any():
            total = total + 0.5 * F.cross_entropy(since.flatten(0, 1)[seen], first[seen])
        left = (wanted >= film.LEFT) & known
        if left.any():
            for guess, label in ((was, film.WAS_KIND), (tint, film.WAS_COLOR)):
                total = total + 0.5 * F.cross_entropy(guess.flatten(0, 1)[left], labels[..., label].flatten()[left])
        right = (event.flatten(0, 1).argmax(-1) == wanted)[happened].float()
        return total, {"event": float(right.mean()) if len(right) else 1.0}


class Answers:
    """The loss on answers about visual tokens, and on what a lower layer knows of their past."""

    def __init__(self, core: nn.Module, past: Past, packer: packing.Packer):
        self.core, self.past, self.packer = core, past, packer
        start, end = packer.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
        self.prefix, self.suffix = [*packer.prefix, start], [end]  # `<s> user : <|vision_start|>`

    def __call__(
        self, tokens: Tensor, labels: Tensor, index: Tensor, packed: packing.Packed
    ) -> tuple[Tensor, dict[str, float]]:
        """(loss, numbers to print). tokens [B, N, D] and labels [B, N, 7] of the clips' tokens at `index` [B, N]."""
        places, heard = places_of(index), []
        layers: Any = self.core.layers
        handle = layers[Past.LAYER].register_forward_hook(
            lambda module, args, output: heard.append(output[0] if isinstance(output, tuple) else output)
        )
        loss, correct = packing.forward(self.core, self.prefix, tokens, places, packed, self.suffix)
        handle.remove()
        states = heard[0][:, len(self.prefix) : len(self.prefix) + tokens.shape[1]]
        taught, shown = self.past.loss(states, labels, places[0])
        return loss + 0.5 * taught, packing.accuracy(correct.cpu(), packed) | shown


def imagined(
    rng: np.random.Generator, packer: packing.Packer, count: int, visual: int, questions: int
) -> tuple[Tensor, Tensor, packing.Packed]:
    """(labels [B, N, 7], token indices [B, N], questions) of fresh clips or pictures, none of them drawn."""
    ask = random.Random(int(rng.integers(1 << 40)))
    steps = 1 if ask.random() < PICTURES else STEPS
    dense, index, asked = [], [], []
    while len(dense) < count:
        clip = clips.sample(_SEEDS + ask.randrange(1 << 40), "train", steps)
        found = asking.ask_many(clip, ask, questions, TASK_WEIGHTS)
        if not found:
            continue
        labels = film.sketch(clip).reshape(steps, GRID * GRID, -1)
        kept = subset(labels, min(visual, steps * GRID * GRID), rng)
        dense.append(spoil(labels, rng).reshape(steps * GRID * GRID, -1)[kept])
        index.append(kept)
        asked.append(found)
    return torch.from_numpy(np.stack(dense)).long(), torch.from_numpy(np.stack(index)), packer.pack(asked)


def train(
    run: common.Run, model: Qwen2_5_VLForConditionalGeneration, symbols: Symbols, past: Past, packer: packing.Packer
) -> None:
    name, visual, batch, questions, full, lr = STAGE
    core = model.model.language_model
    core.set_attn_implementation("eager")  # on CPU, bf16 flash attention backward is several times slower
    answers = Answers(core, past, packer)
    optimizers = common.optimizers([core, symbols, past], lr)
    steps = run.steps(full)
    checkpoint = common.Checkpoint(run, name, {"language": core, "symbols": symbols, "past": past}, optimizers)
    first, done = checkpoint.load()
    for step in range(first, 0 if done else steps):
        rng = np.random.default_rng([run.seed, 100, step])
        common.schedule(optimizers, step, steps)
        labels, index, packed = imagined(rng, packer, run.batch(batch), visual, questions)
        labels, index, packed = labels.to(run.device), index.to(run.device), packed.to(run.device)
        with torch.autocast(run.device, torch.bfloat16):
            tokens = symbols(core.get_input_embeddings().weight, labels)
            tokens = tokens + 0.1 * tokens.detach().std() * torch.randn_like(tokens)
            loss, shown = answers(tokens, labels, index, packed)
        loss.backward()
        common.step_all(optimizers, [core, symbols, past])
        if step % 50 == 0 or step + 1 == steps:
            run.log(stage=name, step=step, loss=float(loss.detach()), **shown, seconds=round(checkpoint.elapsed()))
        if (step + 1) % checkpoint.every == 0:
            checkpoint.save(step + 1)
    if not done:
        checkpoint.save(steps, done=True)
    core.set_attn_implementation("sdpa")
