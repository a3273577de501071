"""Stages 3 and 4: the merger learns to speak the words' embeddings, then all learn on drawn clips and pictures."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.models.tiny import common, packing
from vtc.models.tiny.qwen import asking, film, vision
from vtc.models.tiny.qwen.clips import GRID
from vtc.models.tiny.qwen.pool import Pool
from vtc.models.tiny.qwen.stage_language import PICTURES, TASK_WEIGHTS, Answers, Past, imagined
from vtc.models.tiny.qwen.stage_tower import lesson, pools
from vtc.models.tiny.qwen.symbols import Symbols, subset


@dataclass(frozen=True)
class Part:
    """One part of the last stage."""

    name: str
    shown: int  # visual tokens of a clip that the language model sees
    batch: int
    questions: int  # per clip
    steps: int
    lr: float
    tower_lr: float = 0.0


# name, steps of clips in a batch, as many pictures, side of windows in visual tokens, training steps, learning rates
ALIGN = ("align", 8, 16, 8, 250, 2e-3, 5e-4)
PARTS = (
    Part("joint-part", 320, 4, 14, 120, 6e-4),
    Part("joint-all", 1152, 3, 20, 80, 3e-4, 1e-4),
    Part("joint-last", 1152, 3, 20, 300, 3e-4, 1.5e-4),
)
# Harder on frames than on symbols: what has gone, how often something blinked, digits.
JOINT_WEIGHTS = TASK_WEIGHTS | {"blink": 3.0, "change": 3.0, "reading": 2.0, "direction": 0.8}


def alignment(projected: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """Relative squared error of visual tokens [B, N, D] against symbols: background at a fifth, digits fourfold."""
    kind = labels[..., film.KIND]
    weight = torch.where(kind > 0, 1.0, 0.2) * (kind != film.IGNORE)
    weight = torch.where(labels[..., film.SLOT] > 0, 4.0, weight)
    error = (projected.float() - wanted.float()).square().mean(-1) / wanted.float().var()
    return (error * weight).sum() / weight.sum().clamp_min(1)


def body_of(visual: nn.Module, heads: vision.Heads) -> list[Any]:
    """All of the tower but the merger's projection."""
    tower: Any = visual
    return [tower.patch_embed, tower.blocks, tower.merger.ln_q, heads]


def align(run: common.Run, model: Qwen2_5_VLForConditionalGeneration, heads: vision.Heads, symbols: Symbols) -> None:
    """The merger's projection learns to say the words' embeddings, the tower to make that easy."""
    name, batch, stills, side, full, lr, tower_lr = ALIGN
    visual, table = model.model.visual, model.get_input_embeddings().weight.detach()
    optimizers = common.optimizers([visual.merger.mlp], lr, weight_decay=0.0)
    optimizers += common.optimizers(body_of(visual, heads), tower_lr)
    steps = run.steps(full)
    checkpoint = common.Checkpoint(run, name, {"tower": visual, "heads": heads}, optimizers)
    first, done = checkpoint.load()
    if done:
        return
    films, pictures = pools(run, 10, first)
    for step in range(first, steps):
        rng = np.random.default_rng([run.seed, 200, step])
        common.schedule(optimizers, step, steps)
        frames, labels = lesson(run, rng, films, batch, pictures, stills, side)
        with torch.autocast(run.device, torch.bfloat16):
            tokens, normed = vision.states(visual, frames)
            with torch.no_grad():
                wanted = symbols(table, labels)
            loss = alignment(tokens, wanted, labels)
            taught, _ = vision.loss_of(heads(normed), labels)
        (loss + 0.3 * taught).backward()
        common.step_all(optimizers, [visual, heads])
        films.refresh(1)
        pictures.refresh(8)
        if step % 50 == 0 or step + 1 == steps:
            run.log(stage=name, step=step, loss=float(loss.detach()), seconds=round(checkpoint.elapsed()))
    checkpoint.save(steps, done=True)


def train(
    run: common.Run,
    model: Qwen2_5_VLForConditionalGeneration,
    heads: vision.Heads,
    symbols: Symbols,
    past: Past,
    packer: packing.Packer,
) -> None:
    """Answers about drawn clips and pictures; alignment and symbolic questions go on beside them."""
    core, visual = model.model.language_model, model.model.visual
    core.set_attn_implementation("eager")
    symbols.requires_grad_(False)
    answers = Answers(core, past, packer)
    for number, part in enumerate(PARTS):
        steps = run.steps(part.steps)
        visual.requires_grad_(part.tower_lr > 0)
        visual.merger.mlp.requires_grad_(True)
        optimizers = common.optimizers([core, visual.merger.mlp, past], part.lr)
        if part.tower_lr:
            optimizers += common.optimizers(body_of(visual, heads), part.tower_lr)
        modules = {"language": core, "tower": visual, "heads": heads, "past": past}
        checkpoint = common.Checkpoint(run, part.name, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        seed = (run.seed * 100 + 20 + 2 * number) * 10_000_000
        pools = [Pool(4 if run.quick else 300, seed + first * 3), Pool(4 if run.quick else 300, seed + 10_000_000, 1)]
        for pool in pools:
            pool.refresh(4 if run.quick else 120)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, 300 + number, step])
            common.schedule(optimizers, step, steps)
            still = rng.random() < PICTURES
            frames, labels, index, packed = _batch(rng, run, part, pools[still], packer, 4 if still else 1)
            with torch.autocast(run.device, torch.bfloat16):
                with torch.set_grad_enabled(part.tower_lr > 0):
                    normed = vision.states(visual, frames)[1]
                tokens = visual.merger.mlp(normed).view(len(labels), -1, visual.config.out_hidden_size)
                table = core.get_input_embeddings().weight
                with torch.no_grad():
                    wanted = symbols(table, labels)
                total = 0.2 * alignment(tokens, wanted, labels)
                seen = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
                known = labels.gather(1, index[..., None].expand(-1, -1, labels.shape[-1]))
                loss, shown = answers(seen, known, index, packed)
                dense, at, practice = imagined(rng, packer, run.batch(8), 96, 12)
                dense, at, practice = dense.to(run.device), at.to(run.device), practice.to(run.device)
                total = total + loss + 0.5 * answers(symbols(table, dense), dense, at, practice)[0]
                if part.tower_lr:  # keep teaching what the tower's own stage taught
                    total = total + 0.3 * vision.loss_of(heads(normed), labels.view(len(frames), GRID * GRID, -1))[0]
            total.backward()
            common.step_all(optimizers, [core, visual, heads, past])
            pools[0].refresh(2)
            pools[1].refresh(step % 2)
            if step % 25 == 0 or step + 1 == steps:
                numbers = {"loss": float(loss.detach()), **shown, "seconds": round(checkpoint.elapsed())}
                run.log(stage=part.name, step=step, **numbers)
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)
    core.set_attn_implementation("sdpa")


def _batch(
    rng: np.random.Generator, run: common.Run, part: Part, pool: Pool, packer: packing.Packer, more: int
) -> tuple[Tensor, Tensor, Tensor, packing.Packed]:
    """Frames [S, 2, 192, 192, 3], labels [B, N, 7], indices [B, n] of the tokens to be shown, questions."""
    picked = pool.pick(rng, run.batch(part.batch * more))
    ask = random.Random(int(rng.integers(1 << 40)))
    packed = packer.pack([asking.ask_many(pool.clips[i], ask, part.questions, JOINT_WEIGHTS) for i in picked])
    frames = torch.from_numpy(pool.frames[picked]).flatten(0, 1)
    labels = torch.from_numpy(pool.labels[picked]).long().flatten(1, 2)
    shown = min(part.shown, labels.shape[1])
    index = np.stack([subset(pool.labels[i], shown, rng) for i in picked])
    return frames.to(run.device), labels.to(run.device), torch.from_numpy(index).to(run.device), packed.to(run.device)
