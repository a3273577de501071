"""A small convolutional network that learns Fashion-MNIST in a minute, and then tells the transformer what it sees."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from vtc.models.tiny import common
from vtc.models.tiny.vit.views import normalised

WIDTH, SIDE = 128, 7  # of its last features
_EPOCHS, _BATCH, _RATE = 2, 128, 4e-3
_MOVE = 2  # pixels


class Teacher(nn.Module):
    """Bytes [N, 28, 28] -> logits [N, classes] and features [N, 128, 7, 7]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU()]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(64, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(WIDTH * SIDE * SIDE, classes))
        self.to(memory_format=torch.channels_last)  # about twice as fast on a CPU

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.body(normalised(pictures))
        return self.head(seen), seen

    @torch.no_grad()
    def tells(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [N, classes], and features [N, 128, 7, 7]."""
        logits, seen = self(pictures)
        return logits.softmax(-1), seen


def train(run: common.Run, net: Teacher, pictures: torch.Tensor, labels: torch.Tensor) -> None:
    """On bytes [N, 28, 28], mirrored half of the time and moved by up to two pixels."""
    batch = run.batch(_BATCH)
    each = run.steps(len(pictures) // batch)
    optimizer = torch.optim.AdamW(net.train().parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=each * _EPOCHS)
    order = torch.empty(0, dtype=torch.long)
    for step in range(each * _EPOCHS):
        if step % each == 0:
            order = torch.randperm(len(pictures))
        chosen = order[step % each * batch :][:batch]
        loss = F.cross_entropy(net(_moved(pictures[chosen]))[0], labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step + 1 == each * _EPOCHS:
            run.log(stage="teacher", step=step, loss=float(loss.detach()))


def _moved(pictures: torch.Tensor) -> torch.Tensor:
    """One move for a whole batch, which is enough over many batches."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(-1)
    down, right = (int(way) for way in torch.randint(0, 2 * _MOVE + 1, (2,)))
    side = pictures.shape[-1]
    return F.pad(pictures, (_MOVE,) * 4)[..., down : down + side, right : right + side]
