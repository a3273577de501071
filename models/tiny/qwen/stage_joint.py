"""Stages 3 and 4: the merger learns to speak the words' embeddings, then all learn on drawn clips and pictures."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from vtc.models.tiny import common, packing
from vtc.models.tiny.qwen import asking, film, vision
from vtc.models.tiny.qwen.clips import GRID
from vtc.models.tiny.qwen.pool import Pool
from vtc.models.tiny.qwen.stage_language import PICTURES, TASK_WEIGHTS, Answers, Past, imagined
from vtc.models.tiny.qwen.stage_tower import lesson
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


ALIGN = ("align", 16, 200, 2e-3)  # name, steps of clips in a batch, training steps, learning rate
PARTS = (
    Part("joint-part", 256, 6, 14, 150, 6e-4),
    Part("joint-all", 1152, 3, 20, 400, 4e-4, 2e-4),
)


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
            body = [visual.patch_embed, visual.blocks, visual.merger.ln_q, heads]
            optimizers += common.optimizers(body, part.tower_lr)
        modules = {"language": core, "tower": visual, "heads": heads, "past": past}
        checkpoint = common.Checkpoint(run, part.name, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        seed = (run.seed * 10 + 4 + 2 * number) * 10_000_000
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
    packed = packer.pack([asking.ask_many(pool.clips[i], ask, part.questions, TASK_WEIGHTS) for i in picked])
    frames = torch.from_numpy(pool.frames[picked]).flatten(0, 1)
    labels = torch.from_numpy(pool.labels[picked]).long().flatten(1, 2)
    shown = min(part.shown, labels.shape[1])
    index = np.stack([subset(pool.labels[i], shown, rng) for i in picked])
    return frames.to(run.device), labels.to(run.device), torch.from_numpy(index).to(run.device), packed.to(run.device)
