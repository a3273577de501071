"""Scenes with what the frozen tower says about them. Crops are seen one by one, so they can be put together anew."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPVisionModel

from vtc.models.tiny import labels, symbols, tower
from vtc.models.tiny.next import render, scenes
from vtc.models.tiny.next.scenes import CROPS, Scene, Thing
from vtc.models.tiny.scenes import GRID, SIZE
from vtc.models.tiny.scenes import Scene as Small

PER_VIEW = GRID * GRID
VIEWS = 1 + CROPS**2
_SIGNS = 0.95  # letters are learned last
_WHOLE = torch.arange(PER_VIEW)


@dataclass
class Seen:
    """A scene; features [5, 576, D] float16 of its thumbnail and crops; dense labels [5, 576, 4] of what is to be known
    there: large things in the thumbnail, small ones in the crops."""

    scene: Scene
    features: torch.Tensor
    labels: np.ndarray


class Pool:
    """`size` scenes; `refresh` replaces the oldest by new seeds."""

    def __init__(self, vision: CLIPVisionModel, size: int, first_seed: int):
        self.vision, self.size, self.next_seed = vision, size, first_seed
        self.seen: list[Seen] = []
        self._whole_crops: list[tuple[int, int]] = []  # (scene, crop) that no large thing reaches into
        self._at = 0

    def refresh(self, count: int) -> None:
        for _ in range(count):
            seen = look(self.vision, scenes.sample(self.next_seed, signs=_SIGNS))
            self._whole_crops = [(i, c) for i, c in self._whole_crops if i != self._at]
            self._whole_crops += [(self._at, c) for c in range(CROPS**2) if _is_whole(seen.scene, c)]
            self.seen[self._at : self._at + 1] = [seen]
            self.next_seed += 1
            self._at = (self._at + 1) % self.size

    def any(self, rng: random.Random) -> Seen:
        return rng.choice(self.seen)

    def mixed(self, rng: random.Random) -> Seen:
        """Four crops of different scenes; the thumbnail is empty."""
        picked = rng.sample(self._whole_crops, CROPS**2)
        things = [Thing(item, at) for at, (i, c) in enumerate(picked) for item in self.seen[i].scene.small(c)]
        views = [(self.seen[i].features[1 + c], self.seen[i].labels[1 + c]) for i, c in picked]
        features = torch.stack([torch.zeros_like(views[0][0]), *(f for f, _ in views)])
        empty = np.zeros_like(views[0][1])
        return Seen(Scene(0, "train", tuple(things)), features, np.stack([empty, *(dense for _, dense in views)]))


def _is_whole(scene: Scene, crop: int) -> bool:
    y, x = (SIZE * i for i in divmod(crop, CROPS))
    boxes = [thing.box for thing in scene.things if thing.crop is None]
    return not any(x0 < x + SIZE and x < x1 and y0 < y + SIZE and y < y1 for x0, y0, x1, y1 in boxes)


@torch.no_grad()
def look(vision: CLIPVisionModel, scene: Scene) -> Seen:
    """Draws a scene and shows its five views to the tower."""
    device = vision.device
    pixels = torch.from_numpy(render.views(render.draw(scene))).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        patches = tower.patches_of(pixels)
        states = tower.hidden_states(vision, patches, _WHOLE.to(device).expand(len(pixels), -1))
    return Seen(scene, states[-2][:, 1:].half().cpu(), dense(scene))


def dense(scene: Scene) -> np.ndarray:
    """[5, 576, 4] labels as `labels.dense` has them, the places guessed from the boxes."""
    rng = np.random.default_rng(scene.seed)
    views = [scene.large, *(scene.small(crop) for crop in range(CROPS**2))]
    parts = [Small(scene.seed, scene.split, items) for items in views]
    return np.stack([labels.dense(part, symbols.sketch(part, rng)).reshape(PER_VIEW, 4) for part in parts])
