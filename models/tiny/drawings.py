"""Public-domain drawings of Debian's openclipart-png: which file shows what, and who is a twin of whom.

Train and test never share a drawing. Openclipart holds many variants of one drawing (recoloured, black and white,
redrawn at another size), so files are first joined into groups of look-alikes and whole groups go to one side.
"""

import functools
import random
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path("/usr/share/openclipart/png")
SIDE = 128  # longest side of a cached drawing, px
TEST_SHARE = 0.25
most_files: int | None = None  # per category; set before the first load by quick runs, whose splits mean nothing

# category -> (globs, file names left out: several objects, backgrounds of their own, or not what the folder says)
CATALOGUE: dict[str, tuple[list[str], str]] = {
    "smiley": (["people/smilies/smiley*.png", "people/smilies/base.png"], r"$^"),
    "person": (["people/stickmen/*.png"], r"runner"),
    "tree": (
        [
            "plants/trees/*.png",
            "plants/trees/evergreen/*.png",
            "plants/albero*.png",
            "signs_and_symbols/map_symbols/tree*",
        ],
        r"saw|pruner|balls|leaf|scene|fern|/tree_01|tree_01\.png$|palmtree|elements_1[12]",
    ),
    "cone": (["food/desserts/cone*.png"], r"$^"),  # ice-cream cones
    "note": (
        ["recreation/music/*note*.png", "recreation/music/*croche*.png", "recreation/music/quaver*.png"],
        r"treble",
    ),
    "puzzle": (["shapes/jigsaw/jigsaw*.png"], r"$^"),
    "flag": (
        [f"signs_and_symbols/flags/{p}/*.png" for p in ("europe", "asia", "africa", "america")],
        r"green_map|canada_|route|66",
    ),
    "card": ([f"recreation/games/cards/{p}/*.png" for p in ("white", "simple", "ornamental", "bordered")], r"_jk_"),
}


def _load(file: Path) -> np.ndarray | None:
    """RGBA uint8, cropped to what is visible, longest side SIDE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(file) as picture:
            if picture.width * picture.height > 20_000_000:  # a few are posters that take seconds to decode
                return None
            rgba = picture.convert("RGBA")
    visible = rgba.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
    if visible is None or min(visible[2] - visible[0], visible[3] - visible[1]) < 24:
        return None
    rgba = rgba.crop(visible)
    rgba.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(rgba)


def _fingerprint(rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Silhouette and grey picture on a 24x24 grid, aspect ratio removed."""
    small = np.asarray(Image.fromarray(rgba).resize((24, 24), Image.Resampling.BOX), dtype=np.float32) / 255
    alpha = small[..., 3]
    grey = small[..., :3].mean(-1) * alpha + (1 - alpha)
    return alpha, grey


def _twins(category: str, a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> bool:
    silhouette = float(np.abs(a[0] - b[0]).mean())
    grey = float(np.abs(a[1] - b[1]).mean())
    if category in ("flag", "card", "smiley"):  # all share one outline: only the inside tells them apart
        return silhouette < 0.05 and grey < 0.012
    return min(silhouette, float(np.abs(a[0] - b[0][:, ::-1]).mean())) < 0.05 or (silhouette < 0.1 and grey < 0.03)


def _stem(file: Path) -> str:
    """File name without series number, colour mark and author's tail."""
    if "/cards/" in str(file):
        return "_".join(file.stem.split("_")[1:])  # the same card exists in four frames
    return re.sub(r"(_bw|_red|_blue|_\d+|_[a-z]?\.?)+$", "", re.sub(r"_bw_", "_", file.stem))


@functools.cache
def load() -> dict[str, dict[str, list[tuple[str, np.ndarray]]]]:
    """split -> category -> [(file name under ROOT, RGBA uint8 [h, w, 4])]."""
    if not ROOT.is_dir():
        raise SystemExit("The drawings are missing: install the Debian packages openclipart-png and fonts-dejavu.")
    splits: dict[str, dict[str, list[tuple[str, np.ndarray]]]] = {"train": {}, "test": {}}
    for category, (globs, left_out) in CATALOGUE.items():
        files = sorted({f for g in globs for f in ROOT.glob(g) if not re.search(left_out, f.name)})
        loaded = [(f, rgba) for f in files[:most_files] if (rgba := _load(f)) is not None]
        if category == "flag":  # the flag folders also hold maps and coats of arms: keep full rectangles
            loaded = [
                (f, rgba) for f, rgba in loaded if (rgba[..., 3] > 200).mean() > 0.97 and rgba.shape[1] > rgba.shape[0]
            ]
        for split, members in zip(("test", "train"), _split(category, loaded), strict=True):
            splits[split][category] = [(str(f.relative_to(ROOT)), rgba) for f, rgba in members]
    return splits


def groups_of(category: str, loaded: list[tuple[Path, np.ndarray]]) -> list[list[int]]:
    """Indices joined into groups of look-alikes (same name stem, or same look), largest first."""
    parent = list(range(len(loaded)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    prints = [_fingerprint(rgba) for _, rgba in loaded]
    numbered = category in (
        "person",
        "tree",
        "smiley",
        "clock",
        "puzzle",
    )  # there a number names a drawing, not a variant
    for i in range(len(loaded)):
        for j in range(i):
            same_name = not numbered and _stem(loaded[i][0]) == _stem(loaded[j][0])
            if same_name or loaded[i][0].name == loaded[j][0].name or _twins(category, prints[i], prints[j]):
                parent[root(i)] = root(j)
    groups: dict[int, list[int]] = {}
    for i in range(len(loaded)):
        groups.setdefault(root(i), []).append(i)
    return sorted(groups.values(), key=lambda g: (-len(g), g))


def _split(category: str, loaded: list[tuple[Path, np.ndarray]]) -> tuple[list, list]:
    groups = groups_of(category, loaded)
    random.Random(f"split {category}").shuffle(groups)
    test: list[int] = []
    for group in groups:
        if len(test) + len(group) <= max(3, TEST_SHARE * len(loaded)):
            test += group
    train = sorted(set(range(len(loaded))) - set(test))
    return [loaded[i] for i in sorted(test)], [loaded[i] for i in train]
