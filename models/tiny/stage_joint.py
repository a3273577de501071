"""Stages 4 to 6: the projector learns to speak the language model's words, then both learn on drawn pictures.

Align: projected tower features regress on the symbolic tokens of the same patches. Joint: loss on the answers, with the
alignment loss kept at a small weight. "joint-part" shows the language model a random part of each picture's tokens,
which is four times cheaper; "joint-336px" shows all 576, so that the finished model has not been tuned to missing
tokens at full resolution; "joint-all" goes on with the tower trained too, at a smaller rate.
"""

import random

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from vtc.models.tiny import build, common, labels, packing, questions, tower
from vtc.models.tiny.pool import Pool
from vtc.models.tiny.scenes import GRID
from vtc.models.tiny.stage_language import batch_of
from vtc.models.tiny.stage_tower import dense_loss
from vtc.models.tiny.symbols import Symbols, subset

ALIGN = ("align", 24, 6, 250, 2e-3)  # name, window side, windows per step, steps, learning rate
# name, visual tokens shown, pictures per step, questions per picture, steps, learning rate, tower's learning rate
STAGES = [
    ("joint-part", 144, 10, 18, 300, 6e-4, 0.0),
    ("joint-336px", 576, 6, 28, 600, 6e-4, 0.0),
    ("joint-all", 576, 6, 22, 600, 3e-4, 2e-4),
    ("joint-last", 576, 6, 22, 400, 2e-4, 1.5e-4),
]
# Harder on pictures than on symbols: counting middles that the tower is unsure of, and letters.
TASK_WEIGHTS = {
    "color": 1.0,
    "object": 1.2,
    "existence": 1.0,
    "count": 4.0,
    "position": 1.5,
    "reading": 2.5,
    "caption": 0.6,
}
_WHOLE = torch.arange(GRID * GRID)


def alignment(projected: Tensor, wanted: Tensor, dense: Tensor) -> Tensor:
    """Relative squared error of projected features [B, N, D] against symbolic tokens: background at a fifth, the rare
    letters and digits fourfold."""
    kind = dense[..., labels.KIND]
    weight = torch.where(kind > 0, 1.0, 0.2) * (kind != labels.IGNORE)
    weight = torch.where(dense[..., labels.SLOT] > 0, 4.0, weight)
    error = (projected.float() - wanted.float()).square().mean(-1) / wanted.float().var()
    return (error * weight).sum() / weight.sum().clamp_min(1)


def align(run: common.Run, model: LlavaForConditionalGeneration, symbols: Symbols) -> None:
    stage, side, batch, full_steps, lr = ALIGN
    steps = run.steps(full_steps)
    projector = model.model.multi_modal_projector
    optimizers = common.optimizers([projector], lr, weight_decay=0.0)
    checkpoint = common.Checkpoint(run, stage, {"projector": projector}, optimizers)
    first, done = checkpoint.load()
    if done:
        return
    pool = Pool(8 if run.quick else 1000, first_seed=(run.seed * 10 + 3) * 10_000_000 + first * 4)
    pool.refresh(pool.size if run.quick else 300)
    table = model.get_input_embeddings().weight.detach()
    for step in range(first, steps):
        rng = np.random.default_rng([run.seed, 200, step])
        common.schedule(optimizers, step, steps)
        windows = {k: torch.from_numpy(v).to(run.device) for k, v in pool.windows(rng, run.batch(batch), side).items()}
        dense = windows["labels"].long()
        positions = tower.positions_of(windows["tops"], windows["lefts"], side)
        with torch.no_grad(), torch.autocast(run.device, torch.bfloat16):
            states = tower.hidden_states(model.model.vision_tower, tower.patches_of(windows["pixels"]), positions)
            features = states[-2][:, 1:]  # what LLaVA uses: output of the last layer but one, CLS dropped
            wanted = symbols(table, dense, positions)
        with torch.autocast(run.device, torch.bfloat16):
            loss = alignment(projector(features), wanted, dense)
        loss.backward()
        common.step_all(optimizers, [projector])
        pool.refresh(4)
        if step % 50 == 0 or step + 1 == steps:
            run.log(stage=stage, step=step, loss=float(loss.detach()), seconds=round(checkpoint.elapsed()))
        if (step + 1) % checkpoint.every == 0:
            checkpoint.save(step + 1)
    checkpoint.save(steps, done=True)


def train(run: common.Run, model: LlavaForConditionalGeneration, heads: tower.Heads, symbols: Symbols) -> None:
    language, vision, projector = (
        model.model.language_model,
        model.model.vision_tower,
        model.model.multi_modal_projector,
    )
    symbols.requires_grad_(False)
    packer = packing.Packer(build.processor().tokenizer)
    for number, (stage, shown, batch, per_picture, full_steps, lr, tower_lr) in enumerate(STAGES):
        steps = run.steps(full_steps)
        vision.requires_grad_(tower_lr > 0)
        modules = {"language": language, "projector": projector, "tower": vision, "heads": heads}
        optimizers = common.optimizers([language, projector], lr)
        if tower_lr:
            optimizers += common.optimizers([vision, heads], tower_lr)
        checkpoint = common.Checkpoint(run, stage, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        pool = Pool(
            8 if run.quick else 1500, first_seed=(run.seed * 10 + 4 + number) * 10_000_000 + first * 4, diverse=True
        )
        pool.refresh(pool.size if run.quick else 400)
        lessons = Pool(8 if run.quick else 1500, pool.next_seed + 5_000_000, more_signs=True)
        lessons.refresh(8 if run.quick or not tower_lr else 500)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, 300 + number, step])
            common.schedule(optimizers, step, steps)
            pixels, dense, places, named, packed = _batch(rng, pool, packer, run.batch(batch), shown, per_picture)
            pixels, dense, places = pixels.to(run.device), dense.to(run.device), places.to(run.device)
            packed = packed.to(run.device)
            everywhere = _WHOLE.to(run.device).expand(len(pixels), -1)
            with torch.autocast(run.device, torch.bfloat16):
                with torch.set_grad_enabled(tower_lr > 0):
                    states = tower.hidden_states(vision, tower.patches_of(pixels), everywhere)
                features = states[-2][:, 1:].gather(1, places[..., None].expand(-1, -1, states[-2].shape[-1]))
                tokens = projector(features)
                with torch.no_grad():
                    wanted = symbols(language.get_input_embeddings().weight, dense, places)
                numbered = torch.arange(shown, device=run.device).expand_as(places) if step % 3 == 2 else places
                loss, correct = packing.forward(language, packer.prefix, tokens, numbered, packed)
                total = loss + 0.2 * alignment(tokens, wanted, dense)
                # cheap symbolic questions beside the drawn ones: most of the language model's practice at comparing
                seen, at, practice = batch_of(rng, packer, run.batch(8), 64, 14, TASK_WEIGHTS)
                seen, at, practice = seen.to(run.device), at.to(run.device), practice.to(run.device)
                imagined = symbols(language.get_input_embeddings().weight, seen, at)
                total = total + 0.5 * packing.forward(language, packer.prefix, imagined, at, practice)[0]
                if tower_lr:  # keep teaching what the first stages taught, the CLS token included
                    named = named.to(run.device)
                    taught, _ = tower.loss_of(*heads(states), dense, named, torch.ones_like(named), everywhere)
                    total = total + 0.3 * taught
            if tower_lr:
                total = total + 0.3 * dense_loss(run, vision, heads, lessons.windows(rng, run.batch(12), 12), 12)[0]
            total.backward()
            common.step_all(optimizers, [language, projector, vision, heads])
            pool.refresh(4)
            lessons.refresh(2 if tower_lr else 0)
            if step % 25 == 0 or step + 1 == steps:
                right = packing.accuracy(correct.cpu(), packed)
                run.log(stage=stage, step=step, loss=float(loss.detach()), **right, seconds=round(checkpoint.elapsed()))
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)


def _batch(
    rng: np.random.Generator, pool: Pool, packer: packing.Packer, pictures: int, shown: int, per_picture: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, packing.Packed]:
    """pixels [B, 336, 336, 3]; labels [B, N, 4] and places [B, N] of the tokens shown; CLS targets; questions."""
    ask = random.Random(int(rng.integers(1 << 40)))
    picked = [int(i) for i in rng.integers(0, pool.filled, pictures)]
    dense = pool.labels[picked].reshape(pictures, -1, 4)
    places = np.stack([subset(d, shown, rng) for d in dense])
    asked = [questions.ask_many(pool.scenes[i], ask, per_picture, TASK_WEIGHTS) for i in picked]
    return (
        torch.from_numpy(pool.pictures[picked]),
        torch.from_numpy(np.take_along_axis(dense, places[..., None], 1)).long(),
        torch.from_numpy(places),
        torch.from_numpy(np.stack([labels.named(pool.scenes[i]) for i in picked])),
        packer.pack(asked),
    )
