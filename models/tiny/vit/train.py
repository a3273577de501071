"""Trains tiny-vit from nothing: `python -m vtc.models.tiny.vit.train --out runs/tiny-vit`, or `make tiny-vit`.

Stages: a small convolutional teacher; the transformer at 7 × 7 patches of 8 px; then, its patch embedding and positions
resampled, at 14 × 14 patches of 4 px, four times from a high rate to a low one. The CLS token learns the labels and
the teacher's opinion in equal parts, and each patch what the teacher's features are at its place. A run that was killed
goes on where it stopped when started again with the same --out.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

import vtc
from vtc.eval import fashion, idx
from vtc.models.tiny import common
from vtc.models.tiny.vit import build, teacher
from vtc.models.tiny.vit.views import Views, shrunk

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_BATCH, _HELD = 64, 1000  # pictures per step, and of the train split that are held out to watch
_CLASSES = len(fashion.NAMES)


@dataclass(frozen=True)
class _Stage:
    """`grids`: patches on a side, of steps in turn; smaller ones than the model's own see smaller pictures.

    `shares`: of views that fill the canvas, and that are as large as the picture itself.
    """

    name: str
    patch: int  # pixels
    grids: tuple[int, ...]
    shares: tuple[float, float]
    steps: int
    rate: float
    seed: int


_COARSE = _Stage("vit-49", build.COARSE, (7,), (0.75, 0.15), 2400, 2.5e-3, 1)
_FINE = (
    _Stage("vit-196", build.PATCH, (14, 7, 14, 10), (0.5, 0.35), 600, 1.5e-3, 2),
    _Stage("vit-196-again", build.PATCH, (14, 14, 7), (0.6, 0.3), 600, 1.5e-3, 3),
    _Stage("vit-196-more", build.PATCH, (14, 14, 7), (0.75, 0.2), 1500, 1.2e-3, 4),
    _Stage("vit-196-last", build.PATCH, (14, 14, 7), (0.75, 0.2), 750, 8e-4, 5),
)


def train(run: common.Run, data: Path) -> Path:
    """All stages; returns the folder of the finished checkpoint."""
    pictures, labels = (torch.from_numpy(array.copy()) for array in idx.read(data, "train"))
    labels = labels.long()
    run.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    net = _teacher(run, pictures[_HELD:], labels[_HELD:])
    coarse, heads = build.model(_CLASSES, build.COARSE), nn.Linear(build.WIDTH, teacher.WIDTH)
    _learn(run, _COARSE, coarse, heads, net, pictures, labels)
    fine = build.refined(coarse, _CLASSES)
    for stage in _FINE:
        _learn(run, stage, fine, heads, net, pictures, labels)
    folder = run.out / "tiny-vit"
    build.save(fine.eval(), folder, list(fashion.NAMES))
    shutil.copyfile(run.out / "log.jsonl", folder / "training-log.jsonl")
    if fashion.is_fashion(data):
        measure(folder, data)
    print(f"saved {folder}; compare methods with: vtc eval --data {data} --model {folder}")
    return folder


@torch.inference_mode()
def measure(folder: Path, data: Path) -> None:
    """Write metrics.json: the accuracy of what was saved, on the test split's pictures and on them on the canvas."""
    model, prepare = vtc.load(folder, device="cpu")
    questions = fashion.questions(data)
    right: dict[str, list[bool]] = {task: [] for task in fashion.TASKS}
    for start in range(0, len(questions), _BATCH):
        own = questions[start : start + _BATCH]
        said = model(prepare([question.media.picture() for question in own])).argmax(-1)
        for question, answer in zip(own, said.tolist(), strict=True):
            right[question.task].append(prepare.names[answer] == question.answers[0])
    found = {task: {"accuracy": sum(own) / len(own), "pictures": len(own)} for task, own in right.items()}
    (folder / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"test split: {found}")


def _teacher(run: common.Run, pictures: torch.Tensor, labels: torch.Tensor) -> teacher.Teacher:
    net = teacher.Teacher(_CLASSES)
    checkpoint = common.Checkpoint(run, "teacher", {"teacher": net}, [], time.process_time)
    if not checkpoint.load()[1]:
        teacher.train(run, net, pictures, labels)
        checkpoint.save(1, done=True)
        run.log(stage="teacher", done=True, cpu_seconds=round(checkpoint.elapsed()))
    return net.eval()


def _learn(
    run: common.Run,
    stage: _Stage,
    model: VisionTransformer,
    head: nn.Linear,
    net: teacher.Teacher,
    pictures: torch.Tensor,
    labels: torch.Tensor,
) -> None:
    """One stage of the transformer, on all of `pictures` but the first, which are held out."""
    steps, batch = run.steps(stage.steps), run.batch(_BATCH)
    modules: dict[str, nn.Module] = {"model": model, "head": head}
    optimizers = common.optimizers(list(modules.values()), stage.rate, weight_decay=0.05)
    checkpoint = common.Checkpoint(run, stage.name, modules, optimizers, time.process_time)
    first, done = checkpoint.load()
    if done:
        return
    for step in range(first, steps):
        chance = torch.Generator().manual_seed((run.seed * 10 + stage.seed) * 10**6 + step)
        chosen = torch.randint(_HELD, len(pictures), (batch,), generator=chance)
        common.schedule(optimizers, step, steps)
        loss, told = _loss(model.train(), head, net, pictures[chosen], labels[chosen], stage, step, chance)
        (loss + told).backward()
        common.step_all(optimizers, list(modules.values()))
        if step % 50 == 0 or step + 1 == steps:
            said = {"loss": float(loss.detach()), "patches": float(told.detach())}
            if step % 300 == 0 or step + 1 == steps:
                said["held_out"] = _accuracy(model.eval(), pictures[: run.batch(_HELD)], labels[: run.batch(_HELD)])
            run.log(stage=stage.name, step=step, **said, cpu_seconds=round(checkpoint.elapsed()))
        if (step + 1) % checkpoint.every == 0:
            checkpoint.save(step + 1)
    checkpoint.save(steps, done=True)


def _loss(
    model: VisionTransformer,
    head: nn.Linear,
    net: teacher.Teacher,
    pictures: torch.Tensor,
    labels: torch.Tensor,
    stage: _Stage,
    step: int,
    chance: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the CLS token and of the patches, for random views of bytes [N, 28, 28]."""
    sure, features = net.tells(pictures)
    views = Views.random(len(pictures), stage.shares, chance)
    grid = stage.grids[step % len(stage.grids)]
    pixels = views.pixels(pictures)
    if grid * stage.patch < build.SIDE:
        pixels = shrunk(pixels, grid * stage.patch)
    states = model.forward_features(pixels)
    target = (sure + F.one_hot(labels, _CLASSES)) / 2
    wanted = views.of(features, grid).flatten(2).transpose(1, 2)  # [N, grid², 128]
    told = F.mse_loss(head(states[:, 1:]), wanted / features.std())
    return F.cross_entropy(model.forward_head(states), target), told


@torch.no_grad()
def _accuracy(model: VisionTransformer, pictures: torch.Tensor, labels: torch.Tensor) -> float:
    """Of pictures that fill the canvas."""
    middle = Views(torch.eye(2, 3).expand(len(pictures), 2, 3))
    said = torch.cat([model(pixels).argmax(-1) for pixels in middle.pixels(pictures).split(100)])
    return float((said == labels).float().mean())


def main() -> None:
    parser = common.parser(__doc__, "runs/tiny-vit")
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of Fashion-MNIST's IDX files")
    arguments = parser.parse_args()
    try:
        train(common.Run(arguments.out, arguments.seed, arguments.quick), arguments.data)
    except FileNotFoundError as error:
        parser.error(f"{error}: apt-get install dataset-fashion-mnist, or give --data")


if __name__ == "__main__":
    main()
