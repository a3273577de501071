"""A pool of rendered pictures: drawing costs more than one training step of a small window, so each is used often."""

import numpy as np

from vtc.models.tiny import labels, render, scenes
from vtc.models.tiny.scenes import GRID, PATCH, SIZE


class Pool:
    """`size` pictures with scenes and dense labels; `refresh` replaces the oldest by new seeds."""

    def __init__(
        self, size: int, first_seed: int, split: str = "train", more_signs: bool = False, diverse: bool = False
    ):
        self.size, self.next_seed, self.split, self.more_signs = size, first_seed, split, more_signs
        self.diverse = diverse  # one scene in four
        self.pictures = np.zeros((size, SIZE, SIZE, 3), dtype=np.uint8)
        self.owners = np.zeros((size, GRID, GRID), dtype=np.int8)
        self.labels = np.zeros((size, GRID, GRID, 4), dtype=np.int16)
        self.scenes: list[scenes.Scene] = [scenes.Scene(0, split)] * size
        self.filled = 0
        self._at = 0

    def refresh(self, count: int) -> None:
        for _ in range(count):
            scene = scenes.sample(self.next_seed, self.split, self.more_signs, self.diverse and self.next_seed % 4 == 0)
            self.pictures[self._at], self.owners[self._at] = render.draw(scene)
            self.labels[self._at] = labels.dense(scene, self.owners[self._at])
            self.scenes[self._at] = scene
            self.next_seed += 1
            self._at = (self._at + 1) % self.size
            self.filled = min(self.size, self.filled + 1)

    def windows(self, rng: np.random.Generator, count: int, side: int) -> dict[str, np.ndarray]:
        """`count` side x side (in patches) windows around random objects: pixels, labels, CLS targets, offsets."""
        picked = rng.integers(0, self.filled, count)
        tops, lefts = np.array([self._around(rng, self.scenes[i], side) for i in picked]).T
        pixels, dense, present, asked = [], [], [], []
        for i, top, left in zip(picked, tops, lefts, strict=True):
            pixels.append(self.pictures[i, top * PATCH : (top + side) * PATCH, left * PATCH : (left + side) * PATCH])
            part = labels.window(self.scenes[i], self.owners[i], self.labels[i], int(top), int(left), side)
            for into, what in zip((dense, present, asked), part, strict=True):
                into.append(what)
        return {
            "pixels": np.stack(pixels),
            "labels": np.stack(dense).reshape(count, side * side, 4),
            "present": np.stack(present),
            "asked": np.stack(asked),
            "tops": tops,
            "lefts": lefts,
        }

    @staticmethod
    def _around(rng: np.random.Generator, scene: scenes.Scene, side: int) -> tuple[int, int]:
        """(top, left) of a window that holds a random object of the scene, whole if it fits."""
        x0, y0, x1, y1 = scene.items[rng.integers(len(scene.items))].box
        corner = []
        for low, high in ((y0, y1), (x0, x1)):
            first, last = max(0, -(-high // PATCH) - side), min(GRID - side, low // PATCH)
            corner.append(int(rng.integers(min(first, last), max(first, last) + 1)))
        return corner[0], corner[1]
