"""Training of tiny-qwen in four stages, as tiny-llava's: tower, language model, alignment, both on drawn clips."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.models.tiny import common, packing
from vtc.models.tiny.qwen import asking, clips, film, vision
from vtc.models.tiny.qwen.clips import CELL, GRID, STEPS
from vtc.models.tiny.qwen.pool import Pool
from vtc.models.tiny.qwen.symbols import Symbols, places_of, spoil, subset

TASK_WEIGHTS = {
    "direction": 1.5,
    "order": 2.0,
    "change": 1.5,
    "blink": 1.5,
    "reading": 1.0,
    "ever": 1.5,
    "color": 0.7,
    "object": 0.7,
}
_PICTURES = 0.15  # share of pictures among the clips
_SEEDS = 1_000_000_000  # clips of the language stage; pools start at multiples of 10 million below it


@dataclass(frozen=True)
class Joint:
    """One part of the last stage."""

    name: str
    shown: int  # visual tokens of a clip that the language model sees
    batch: int
    questions: int  # per clip
    steps: int
    lr: float
    tower_lr: float = 0.0


# name, steps of clips in a batch, their side in visual tokens (8: windows of 128 px), training steps, learning rate
TOWER = (("tower-128px", 24, 8, 1500, 2e-3), ("tower-192px", 14, 12, 250, 5e-4))
LANGUAGE = ("language", 80, 14, 12, 1400, 2e-3)  # name, visual tokens, clips, questions a clip, steps, learning rate
ALIGN = ("align", 16, 200, 2e-3)
JOINT = (
    Joint("joint-part", 256, 6, 16, 300, 6e-4),
    Joint("joint-all", 1152, 3, 24, 500, 4e-4, 2e-4),
)


def tower(run: common.Run, model: Qwen2_5_VLForConditionalGeneration, heads: vision.Heads) -> None:
    """Every visual token says what it shows."""
    visual = model.model.visual
    for number, (name, batch, side, full, lr) in enumerate(TOWER):
        optimizers = common.optimizers([visual, heads], lr)
        steps = run.steps(full)
        checkpoint = common.Checkpoint(run, name, {"tower": visual, "heads": heads}, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        pool = Pool(4 if run.quick else 400, (run.seed * 10 + number) * 10_000_000 + first * 2)
        pool.refresh(4 if run.quick else 150)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, number, step])
            common.schedule(optimizers, step, steps)
            frames, labels = lesson(run, rng, pool, batch, side)
            with torch.autocast(run.device, torch.bfloat16):
                logits = heads(vision.states(visual, frames)[1])
            loss, shown = vision.loss_of(logits, labels)
            loss.backward()
            common.step_all(optimizers, [visual, heads])
            pool.refresh(1)
            if step % 50 == 0 or step + 1 == steps:
                run.log(stage=name, step=step, loss=float(loss.detach()), **shown, seconds=round(checkpoint.elapsed()))
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)


def lesson(
    run: common.Run, rng: np.random.Generator, pool: Pool, count: int, side: int = GRID
) -> tuple[Tensor, Tensor]:
    """Frames [S, 2, 16 * side, 16 * side, 3] and labels [S, side * side, 3] of single steps out of clips, often those
    with a number, cut to a window of `side` visual tokens around something."""
    frames, labels = [], []
    for i in pool.pick(rng, run.batch(count)):
        signs = (pool.labels[i, ..., film.SLOT] > 0).any(-1).nonzero()[0]
        at = rng.choice(signs) if len(signs) and rng.random() < 0.7 else rng.integers(pool.steps)
        grid = pool.labels[i, at].reshape(GRID, GRID, 3)
        center = rng.permutation(np.argwhere(grid[..., film.SLOT if at in signs else film.KIND] > 0))[:1]
        low = np.maximum(0, center - side + 1).min(0, initial=GRID - side)
        high = np.minimum(GRID - side, center).max(0, initial=0)
        top, left = (int(rng.integers(min(a, b), max(a, b) + 1)) for a, b in zip(low, high, strict=True))
        labels.append(grid[top : top + side, left : left + side].reshape(-1, 3))
        top, left, size = top * CELL, left * CELL, side * CELL
        frames.append(pool.frames[i, at, :, top : top + size, left : left + size])
    return torch.from_numpy(np.stack(frames)).to(run.device), torch.from_numpy(np.stack(labels)).long().to(run.device)


def prefix_of(packer: packing.Packer) -> tuple[list[int], list[int]]:
    """Tokens before and behind the visual ones: `<s> user : <|vision_start|>` and `<|vision_end|>`."""
    start, end = packer.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    return [*packer.prefix, start], [end]


def imagined(
    rng: np.random.Generator, packer: packing.Packer, count: int, visual: int, questions: int
) -> tuple[Tensor, Tensor, packing.Packed]:
    """(labels [B, N, 3], token indices [B, N], questions) of fresh clips or pictures, none of them drawn."""
    ask = random.Random(int(rng.integers(1 << 40)))
    steps = 1 if ask.random() < _PICTURES else STEPS
    dense, index, asked = [], [], []
    while len(dense) < count:
        clip = clips.sample(_SEEDS + ask.randrange(1 << 40), "train", steps)
        found = asking.ask_many(clip, ask, questions, TASK_WEIGHTS)
        if not found:
            continue
        labels = film.sketch(clip).reshape(steps, GRID * GRID, 3)
        kept = subset(labels, min(visual, steps * GRID * GRID), rng)
        dense.append(spoil(labels, rng).reshape(-1, 3)[kept])
        index.append(kept)
        asked.append(found)
    return torch.from_numpy(np.stack(dense)).long(), torch.from_numpy(np.stack(index)), packer.pack(asked)


def language(run: common.Run, model: Qwen2_5_VLForConditionalGeneration, symbols: Symbols, packer: packing.Packer):
    """The language model learns to answer from symbolic tokens."""
    name, visual, batch, questions, full, lr = LANGUAGE
    core = model.model.language_model
    core.set_attn_implementation("eager")  # on CPU, bf16 flash attention backward is several times slower
    optimizers = common.optimizers([core, symbols], lr)
    steps = run.steps(full)
    checkpoint = common.Checkpoint(run, name, {"language": core, "symbols": symbols}, optimizers)
    first, done = checkpoint.load()
    prefix, suffix = prefix_of(packer)
    for step in range(first, 0 if done else steps):
        rng = np.random.default_rng([run.seed, 100, step])
        common.schedule(optimizers, step, steps)
        dense, index, packed = imagined(rng, packer, run.batch(batch), visual, questions)
        dense, index, packed = dense.to(run.device), index.to(run.device), packed.to(run.device)
        with torch.autocast(run.device, torch.bfloat16):
            tokens = symbols(core.get_input_embeddings().weight, dense)
            tokens = tokens + 0.1 * tokens.detach().std() * torch.randn_like(tokens)
            loss, correct = packing.forward(core, prefix, tokens, places_of(index), packed, suffix)
        loss.backward()
        common.step_all(optimizers, [core, symbols])
        if step % 50 == 0 or step + 1 == steps:
            right = packing.accuracy(correct.cpu(), packed)
            run.log(stage=name, step=step, loss=float(loss.detach()), **right, seconds=round(checkpoint.elapsed()))
        if (step + 1) % checkpoint.every == 0:
            checkpoint.save(step + 1)
    if not done:
        checkpoint.save(steps, done=True)
    core.set_attn_implementation("sdpa")


def alignment(projected: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
    """Relative squared error of visual tokens [B, N, D] against symbols: background at a fifth, digits fourfold."""
    kind = labels[..., film.KIND]
    weight = torch.where(kind > 0, 1.0, 0.2) * (kind != film.IGNORE)
    weight = torch.where(labels[..., film.SLOT] > 0, 4.0, weight)
    error = (projected.float() - wanted.float()).square().mean(-1) / wanted.float().var()
    return (error * weight).sum() / weight.sum().clamp_min(1)


def align(run: common.Run, model: Qwen2_5_VLForConditionalGeneration, symbols: Symbols) -> None:
    """The merger's projection learns to say the words' embeddings."""
    name, batch, full, lr = ALIGN
    visual, table = model.model.visual, model.get_input_embeddings().weight.detach()
    optimizers = common.optimizers([visual.merger.mlp], lr, weight_decay=0.0)
    steps = run.steps(full)
    checkpoint = common.Checkpoint(run, name, {"merger": visual.merger}, optimizers)
    first, done = checkpoint.load()
    if done:
        return
    pool = Pool(4 if run.quick else 300, (run.seed * 10 + 3) * 10_000_000 + first * 2)
    pool.refresh(4 if run.quick else 100)
    for step in range(first, steps):
        rng = np.random.default_rng([run.seed, 200, step])
        common.schedule(optimizers, step, steps)
        frames, labels = lesson(run, rng, pool, batch)
        with torch.autocast(run.device, torch.bfloat16):
            with torch.no_grad():
                normed = vision.states(visual, frames)[1]
                wanted = symbols(table, labels)
            loss = alignment(visual.merger.mlp(normed), wanted, labels)
        loss.backward()
        common.step_all(optimizers, [visual.merger.mlp])
        if step % 2 == 0:
            pool.refresh(1)
        if step % 50 == 0 or step + 1 == steps:
            run.log(stage=name, step=step, loss=float(loss.detach()), seconds=round(checkpoint.elapsed()))
    checkpoint.save(steps, done=True)


def joint(
    run: common.Run,
    model: Qwen2_5_VLForConditionalGeneration,
    heads: vision.Heads,
    symbols: Symbols,
    packer: packing.Packer,
) -> None:
    """Answers about drawn clips and pictures; alignment and symbolic questions go on beside them."""
    core, visual = model.model.language_model, model.model.visual
    core.set_attn_implementation("eager")
    symbols.requires_grad_(False)
    prefix, suffix = prefix_of(packer)
    for number, part in enumerate(JOINT):
        steps = run.steps(part.steps)
        visual.requires_grad_(part.tower_lr > 0)
        visual.merger.mlp.requires_grad_(True)
        optimizers = common.optimizers([core, visual.merger.mlp], part.lr)
        if part.tower_lr:
            optimizers += common.optimizers(
                [visual.patch_embed, visual.blocks, visual.merger.ln_q, heads], part.tower_lr
            )
        modules = {"language": core, "tower": visual, "heads": heads}
        checkpoint = common.Checkpoint(run, part.name, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        seed = (run.seed * 10 + 4 + 2 * number) * 10_000_000
        films = Pool(4 if run.quick else 300, seed + first * 3)
        films.refresh(4 if run.quick else 120)
        pictures = Pool(4 if run.quick else 300, seed + 10_000_000 + first, steps=1)
        pictures.refresh(4 if run.quick else 120)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, 300 + number, step])
            common.schedule(optimizers, step, steps)
            still = rng.random() < _PICTURES
            pool = pictures if still else films
            count = run.batch(part.batch * (4 if still else 1))
            picked = pool.pick(rng, count)
            ask = random.Random(int(rng.integers(1 << 40)))
            packed = packer.pack([asking.ask_many(pool.clips[i], ask, part.questions, TASK_WEIGHTS) for i in picked])
            packed = packed.to(run.device)
            frames = torch.from_numpy(pool.frames[picked]).flatten(0, 1).to(run.device)
            labels = torch.from_numpy(pool.labels[picked].reshape(count, -1, 3)).long().to(run.device)
            shown = min(part.shown, labels.shape[1])
            index = torch.stack([torch.randperm(labels.shape[1])[:shown].sort().values for _ in picked]).to(run.device)
            with torch.autocast(run.device, torch.bfloat16):
                with torch.set_grad_enabled(part.tower_lr > 0):
                    normed = vision.states(visual, frames)[1]
                tokens = visual.merger.mlp(normed).view(count, -1, visual.config.out_hidden_size)
                with torch.no_grad():
                    wanted = symbols(core.get_input_embeddings().weight, labels)
                total = 0.2 * alignment(tokens, wanted, labels)
                seen = tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
                loss, correct = packing.forward(core, prefix, seen, places_of(index), packed, suffix)
                total = total + loss
                dense, at, practice = imagined(rng, packer, run.batch(8), 96, 14)
                dreamt = symbols(core.get_input_embeddings().weight, dense.to(run.device))
                practice = practice.to(run.device)
                total = (
                    total
                    + 0.5 * packing.forward(core, prefix, dreamt, places_of(at.to(run.device)), practice, suffix)[0]
                )
                if part.tower_lr:  # keep teaching what the tower's own stage taught
                    total = total + 0.3 * vision.loss_of(heads(normed), labels.view(len(frames), -1, 3))[0]
            total.backward()
            common.step_all(optimizers, [core, visual, heads])
            films.refresh(2)
            pictures.refresh(step % 2)
            if step % 25 == 0 or step + 1 == steps:
                right = packing.accuracy(correct.cpu(), packed)
                run.log(
                    stage=part.name, step=step, loss=float(loss.detach()), **right, seconds=round(checkpoint.elapsed())
                )
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)
    core.set_attn_implementation("sdpa")
