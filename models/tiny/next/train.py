"""Trains tiny-next from tiny-llava's weights: `python -m vtc.models.tiny.next.train --out runs/tiny-next`.

The tower stays as it is: a crop of 336 px is what it knows. What is to be learned is the language model's: 2,928
positions, rows of two crops that end in newlines, where a crop lies, and which things only the crops or only the
thumbnail can tell. It sees random parts of a picture's tokens first, each at its own position, and all of them last. A
killed run goes on where it stopped when started again with the same --out.
"""

import random
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtc.models.tiny import build as llava
from vtc.models.tiny import common, drawings, packing, symbols
from vtc.models.tiny.next import asking, attention, build
from vtc.models.tiny.next.pool import PER_VIEW, VIEWS, Pool, Seen
from vtc.models.tiny.next.scenes import CROPS, place
from vtc.models.tiny.scenes import GRID

ROWS = CROPS * GRID  # of the mosaic, and its columns
_PATCHES = VIEWS * PER_VIEW
_TOLD_AFTER = 1  # the layer of the language model whose output tells where each token of the mosaic is


@dataclass(frozen=True)
class Stage:
    name: str
    shown: int  # visual tokens of a picture, newlines not counted
    pictures: int  # per step
    questions: int  # per picture
    steps: int
    lr: float
    practice: int = 0  # pictures more per step, with as few tokens as the first stage shows


STAGES = [
    Stage("part", 240, 8, 16, 400, 1e-3),
    Stage("more", 960, 3, 24, 300, 8e-4),
    Stage("all", _PATCHES, 1, 48, 350, 6e-4),
    Stage("last", _PATCHES, 1, 48, 450, 6e-4, practice=6),
]
TASK_WEIGHTS = {"color": 1.2, "object": 2.5, "existence": 1.5, "count": 3.5, "position": 3.0, "reading": 1.5}
_COUNTS_FOR = 2.0  # an answer's loss, of the hardest task: counting
_POOL = 700
_FIRST = 200  # scenes drawn before the first step


def positions() -> Tensor:
    """[2880] place of each patch among the 2,928 tokens: the thumbnail, then rows of 48 and a newline."""
    inside = [place(crop, patch) for crop in range(CROPS**2) for patch in range(PER_VIEW)]
    mosaic = [PER_VIEW + row * (ROWS + 1) + column for row, column in inside]
    return torch.tensor([*range(PER_VIEW), *mosaic])


def newlines() -> Tensor:
    """[48] places of the newlines."""
    return PER_VIEW + torch.arange(ROWS) * (ROWS + 1) + ROWS


def regions() -> Tensor:
    """[2928, 2] ninth and quarter of the picture that each token of the mosaic lies in; -100 for all others."""
    row, column = torch.tensor([place(c, p) for c in range(CROPS**2) for p in range(PER_VIEW)]).T
    out = torch.full((_PATCHES + ROWS, 2), -100)
    ninth = row * 3 // ROWS * 3 + column * 3 // ROWS
    out[positions()[PER_VIEW:]] = torch.stack([ninth, row // GRID * CROPS + column // GRID], -1)
    return out


class Guide(nn.Module):
    """What is trained beside the layers: the newline row, and a head that is asked where tokens lie."""

    def __init__(self, newline: nn.Parameter):
        super().__init__()
        self.newline = newline
        self.norm = nn.LayerNorm(len(newline))
        self.head = nn.Linear(len(newline), 9 + CROPS**2)

    def loss(self, states: Tensor, wanted: Tensor) -> Tensor:
        """states [B, N, D] after an early layer; wanted [B, N, 2]."""
        told = self.head(self.norm(states.float()))
        ninth, quarter = told[..., :9].flatten(0, 1), told[..., 9:].flatten(0, 1)
        wanted = wanted.flatten(0, 1)  # -100, which is left out, for what is not in the mosaic
        return F.cross_entropy(ninth, wanted[:, 0]) + F.cross_entropy(quarter, wanted[:, 1])


@dataclass
class Batch:
    """features [B, n, D] of the patches shown; places [B, N] of all tokens shown, newlines included, in order; order
    [N of each row] gathers patches and newlines into it."""

    features: Tensor
    places: Tensor
    order: Tensor
    asked: list


def draw_batch(pool: Pool, stage: Stage, pictures: int, per_picture: int, seed: list[int]) -> Batch:
    """One picture in four is put together from crops of others and has no thumbnail; one step in ten shows thumbnails
    alone; three in ten leave out newlines, as pruning may."""
    rng = np.random.default_rng(seed)
    chance = random.Random(int(rng.integers(1 << 40)))
    part = stage.shown < _PATCHES
    thumbnails = chance.random() < 0.1
    kept = 0 if thumbnails else ROWS if not part or chance.random() < 0.7 else chance.randint(4, ROWS - 1)
    at, ends = positions(), newlines()
    features, places, orders, asked = [], [], [], []
    while len(features) < pictures:
        mixed = part and not thumbnails and chance.random() < 0.25
        seen = pool.mixed(chance) if mixed else pool.any(chance)
        questions = asking.ask_many(seen.scene, chance, per_picture, TASK_WEIGHTS)
        if not questions:
            continue
        first, last = (PER_VIEW if mixed else 0), (PER_VIEW if thumbnails else _PATCHES)
        count = min(stage.shown, PER_VIEW // (1 + part) if thumbnails else _PATCHES)
        chosen = torch.from_numpy(_choose(seen, first, last, count, rng))
        lines = ends[np.sort(rng.choice(ROWS, kept, replace=False))]
        unordered = torch.cat([at[chosen], lines])
        order = unordered.argsort()
        features.append(seen.features.flatten(0, 1)[chosen])
        places.append(unordered[order])
        orders.append(order)
        asked.append(questions)
    return Batch(torch.stack(features), torch.stack(places), torch.stack(orders), asked)


def _choose(seen: Seen, first: int, last: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the patches first..last: the middle of each thing and its letters, the rest at random."""
    dense = seen.labels.reshape(-1, 4)[first:last]
    return first + symbols.subset(dense, min(count, last - first), rng)


def train(run: common.Run) -> Path:
    """All stages; returns the folder of the finished checkpoint."""
    run.out.mkdir(parents=True, exist_ok=True)
    if run.quick:
        drawings.most_files = 12
    model: Any = build.model(run.seed)
    model.to(run.device).train()
    model.model.vision_tower.requires_grad_(False)
    language, projector = model.model.language_model, model.model.multi_modal_projector
    language.set_attn_implementation(attention.NAME)
    guide = Guide(model.model.image_newline).to(run.device)
    packer = packing.Packer(build.processor().tokenizer)
    pool = None
    for number, stage in enumerate(STAGES):
        steps = run.steps(stage.steps)
        modules = {"language": language, "projector": projector, "guide": guide}
        optimizers = common.optimizers([language, guide], stage.lr)
        optimizers += common.optimizers([projector], stage.lr / 3)
        checkpoint = common.Checkpoint(run, stage.name, modules, optimizers, clock=time.process_time)
        first, done = checkpoint.load()
        if done:
            continue
        if pool is None:
            pool = Pool(model.model.vision_tower, 12 if run.quick else _POOL, 10_000_000 * number + first)
            pool.refresh(12 if run.quick else _FIRST)
        said: dict[str, list[float]] = defaultdict(list)
        for step in range(first, steps):
            common.schedule(optimizers, step, steps, warmup=50)
            batch = draw_batch(pool, stage, run.batch(stage.pictures), stage.questions, [run.seed, number, step])
            loss, told, packed, correct = _losses(run, language, projector, guide, packer, batch)
            (loss + 0.3 * told).backward()
            if stage.practice:
                few, seed = STAGES[0], [run.seed, 100 + number, step]
                practice = draw_batch(pool, few, run.batch(stage.practice), few.questions, seed)
                other, told_there, *_ = _losses(run, language, projector, guide, packer, practice)
                (0.5 * other + 0.15 * told_there).backward()
            common.step_all(optimizers, list(modules.values()))
            for name, value in {
                **packing.accuracy(correct.cpu(), packed),
                "loss": loss.detach(),
                "places": told.detach(),
            }.items():
                said[name].append(float(value))
            if step % 25 == 0 or step + 1 == steps:
                means = {name: sum(v) / len(v) for name, v in sorted(said.items())}
                run.log(stage=stage.name, step=step, **means, cpu_seconds=round(checkpoint.elapsed()))
                said.clear()
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
            pool.refresh(1)
        checkpoint.save(steps, done=True)
    language.set_attn_implementation("sdpa")
    folder = run.out / "tiny-next"
    llava.save(model.cpu().eval(), folder, build.processor())
    shutil.copyfile(run.out / "log.jsonl", folder / "training-log.jsonl")
    print(f"saved {folder}; measure it with: python -m vtc.models.tiny.next.evaluate --model {folder}")
    return folder


def _losses(run: common.Run, language, projector, guide: Guide, packer: packing.Packer, batch: Batch):
    """(answer loss, loss of telling places, questions, what was answered right)."""
    packed = packer.pack(batch.asked)
    for spans, weights, tasks in zip(packed.spans, packed.weights, packed.tasks, strict=True):
        counting = torch.tensor([False, *(task == "count" for task in tasks)])
        weights[counting[spans]] *= _COUNTS_FOR
    packed = packed.to(run.device)
    places, order = batch.places.to(run.device), batch.order.to(run.device)
    early: list[Tensor] = []
    hook = language.layers[_TOLD_AFTER].register_forward_hook(
        lambda module, given, out: early.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.autocast(run.device, torch.bfloat16):
        patches = projector(batch.features.to(run.device).float())
        lines = guide.newline.expand(len(patches), order.shape[1] - patches.shape[1], -1)
        tokens = torch.cat([patches.float(), lines], 1)
        tokens = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[-1]))
        loss, correct = packing.forward(language, packer.prefix, tokens, places, packed)
    hook.remove()
    wanted = regions().to(run.device)[places]
    if not (wanted >= 0).any():
        return loss, loss.new_zeros(()), packed, correct
    start = len(packer.prefix)
    return loss, guide.loss(early[0][:, start : start + order.shape[1]], wanted), packed, correct


def main() -> None:
    train(common.Run.of(common.parser(__doc__, "runs/tiny-next").parse_args()))


if __name__ == "__main__":
    main()
