"""A pool of drawn clips: drawing one costs as much as training on a few frames, so each is used several times."""

import numpy as np

from vtc.models.tiny.qwen import clips, film
from vtc.models.tiny.qwen.clips import GRID, SIDE


class Pool:
    """`size` clips (or pictures) with frames and labels; `refresh` replaces the oldest by new seeds."""

    def __init__(self, size: int, first_seed: int, steps: int = clips.STEPS, split: str = "train"):
        self.size, self.next_seed, self.steps, self.split = size, first_seed, steps, split
        self.frames = np.zeros((size, steps, 2, SIDE, SIDE, 3), dtype=np.uint8)
        self.labels = np.zeros((size, steps, GRID * GRID, film.LABELS), dtype=np.int8)
        self.clips: list[clips.Clip] = [clips.Clip(0, split, steps, ())] * size
        self.filled = 0
        self._at = 0

    def refresh(self, count: int) -> None:
        for _ in range(count):
            clip = clips.sample(self.next_seed, self.split, self.steps)
            frames, labels = film.draw(clip)
            self.frames[self._at] = frames.reshape(self.steps, 2, SIDE, SIDE, 3)
            self.labels[self._at] = labels.reshape(self.steps, GRID * GRID, -1)
            self.clips[self._at] = clip
            self.next_seed += 1
            self._at = (self._at + 1) % self.size
            self.filled = min(self.size, self.filled + 1)

    def pick(self, rng: np.random.Generator, count: int) -> list[int]:
        return [int(i) for i in rng.integers(0, self.filled, count)]
