"""Stage 1: every visual token says what it shows; nothing of a clip's course is needed for that."""

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.models.tiny import common
from vtc.models.tiny.qwen import film, vision
from vtc.models.tiny.qwen.clips import CELL, GRID
from vtc.models.tiny.qwen.pool import Pool

# name, steps of clips in a batch, their side in visual tokens (8: windows of 128 px), training steps, learning rate
STAGES = (("tower-128px", 24, 8, 1500, 2e-3), ("tower-192px", 14, 12, 250, 5e-4))


def train(run: common.Run, model: Qwen2_5_VLForConditionalGeneration, heads: vision.Heads) -> None:
    """Every visual token says what it shows."""
    visual = model.model.visual
    for number, (name, batch, side, full, lr) in enumerate(STAGES):
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
    """Frames [S, 2, 16 * side, 16 * side, 3] and labels [S, side * side, 7] of single steps out of clips, often those
    with a number, cut to a window of `side` visual tokens around something."""
    frames, labels = [], []
    for i in pool.pick(rng, run.batch(count)):
        signs = (pool.labels[i, ..., film.SLOT] > 0).any(-1).nonzero()[0]
        at = rng.choice(signs) if len(signs) and rng.random() < 0.7 else rng.integers(pool.steps)
        grid = pool.labels[i, at].reshape(GRID, GRID, -1)
        center = rng.permutation(np.argwhere(grid[..., film.SLOT if at in signs else film.KIND] > 0))[:1]
        low = np.maximum(0, center - side + 1).min(0, initial=GRID - side)
        high = np.minimum(GRID - side, center).max(0, initial=0)
        top, left = (int(rng.integers(min(a, b), max(a, b) + 1)) for a, b in zip(low, high, strict=True))
        labels.append(grid[top : top + side, left : left + side].reshape(side * side, -1))
        top, left, size = top * CELL, left * CELL, side * CELL
        frames.append(pool.frames[i, at, :, top : top + size, left : left + size])
    return torch.from_numpy(np.stack(frames)).to(run.device), torch.from_numpy(np.stack(labels)).long().to(run.device)
