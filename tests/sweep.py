"""Every registered method as tiny models can run it, cells of families x methods, and the shape of a refusal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import vtc
from tests.families import FAMILIES

Made = Callable[[], Any]

INPUT: dict[str, Made] = {
    "random": lambda: vtc.Random(keep=0.3),
    "divprune": lambda: vtc.DivPrune(keep=0.3),
    "vtc-cls": lambda: vtc.VTCCLS(keep=0.3),
    "visionzip": lambda: vtc.VisionZip(keep=0.3),
    "recoverable": lambda: vtc.Recoverable(keep=0.3),
    "hired": lambda: vtc.HiRED(keep=0.3),
    "globalcom2": lambda: vtc.GlobalCom2(keep=0.3),
    "cdpruner": lambda: vtc.CDPruner(keep=0.3),
    "scope": lambda: vtc.SCOPE(keep=0.3),
    "vispruner": lambda: vtc.VisPruner(keep=0.3),
    "holov": lambda: vtc.HoloV(keep=0.3),
    "hiprune": lambda: vtc.HiPrune(keep=0.3),
    "prunesid": lambda: vtc.PruneSID(keep=0.3),
    "mmtok": lambda: vtc.MMTok(keep=0.3),
    "prumerge": lambda: vtc.PruMerge(keep=0.3),
    "pool": lambda: vtc.Pool(keep=0.3),
    "tome": lambda: vtc.ToMe(keep=0.3),
    "pitome": lambda: vtc.PiToMe(keep=0.3),
    "vqtoken": lambda: vtc.VQToken(keep=0.3),
    "evs": lambda: vtc.EVS(keep=0.3),
    "uniform-frames": lambda: vtc.UniformFrames(keep=0.5),
    "dycoke, first stage": lambda: vtc.DyCoke(keep=0.5, p=None),
    "holitom": lambda: vtc.HoliTom(keep=0.3, tau=0.1, context=0.4),
    "quota": lambda: vtc.QuoTA(keep=0.3),
    "vidcom2": lambda: vtc.VidCom2(keep=0.3),
    "fastvid": lambda: vtc.FastVID(keep=0.4, segments=1, tau=-1.0, step=2),
    "flashvid": lambda: vtc.FlashVID(keep=0.3, alpha=0.5, tau=0.1, segments=1, scene=-1.0),
}
LAYER: dict[str, Made] = {
    "fastv": lambda: vtc.FastV(keep=0.4, layers=(1,)),
    "pyramiddrop": lambda: vtc.PyramidDrop(keep=0.2, layers=(1, 2)),
    "transprune": lambda: vtc.TransPrune(keep=0.2, layers=(1, 2)),
    "dart": lambda: vtc.DART(keep=0.4),
    "sparsevlm": lambda: vtc.SparseVLM(keep=0.3, layers=(1, 2), recycle=1.0),
    "visiondrop": lambda: vtc.VisionDrop(keep=0.4),
    "vscan": lambda: vtc.VScan(keep=0.4),
    "todre": lambda: vtc.ToDRE(keep=0.4, tau=1.0),
    "framefusion": lambda: vtc.FrameFusion(keep=0.3, similar=0.2),
    "vflowopt": lambda: vtc.VFlowOpt(keep=0.4, threshold=1.0, cell=2.0),
}
CACHE: dict[str, Made] = {
    "mustdrop": lambda: vtc.MustDrop(share=0.5, peak=0.5, similar=0.5),
    "prunevid": lambda: vtc.PruneVid(keep=0.3, tau=0.1),
    "h2o": lambda: vtc.H2O(keep=0.4),
    "h2o, all": lambda: vtc.H2O(keep=0.4, scope="all"),
    "scissorhands": lambda: vtc.Scissorhands(keep=0.4, history=5),
    "scissorhands, all": lambda: vtc.Scissorhands(keep=0.4, history=5, scope="all"),
    "streaming": lambda: vtc.Streaming(keep=0.4, sinks=2),
    "streaming, all": lambda: vtc.Streaming(keep=0.4, sinks=2, scope="all"),
}
#: by KV head or by layer, or merging
HELD: dict[str, Made] = {
    "random-rows": lambda: vtc.RandomRows(keep=0.4),
    "snapkv": lambda: vtc.SnapKV(keep=0.4, window="text"),
    "pyramidkv": lambda: vtc.PyramidKV(keep=0.4, window=6),
    "adakv": lambda: vtc.AdaKV(keep=0.4, window=6),
    "vl-cache": lambda: vtc.VLCache(keep=0.4),
    "knorm": lambda: vtc.KNorm(keep=0.4),
    "keydiff": lambda: vtc.KeyDiff(keep=0.4),
    "lookm": lambda: vtc.LookM(keep=0.4),
    "d2o": lambda: vtc.D2O(keep=0.4),
    "ems": lambda: vtc.EMS(keep=0.4),
    "razor": lambda: vtc.Razor(keep=0.4, heads=((0, 1), (2, 0))),
    "minicache": lambda: vtc.MiniCache(),
}
READ: dict[str, Made] = {"dycoke": lambda: vtc.DyCoke(keep=0.6)}
EVERY = INPUT | LAYER | CACHE | HELD | READ
VIDEOS = [name for name, family in FAMILIES.items() if family.videos is not None]


def only_videos(method: str) -> bool:
    """Whether the method named before any comma leaves pictures alone."""
    return vtc.resolve(method.split(",")[0]).modality == ("video",)


def rows_for(method: str) -> list[list[int | str]]:
    """One row with something for `method` to compress."""
    return [["v0"]] if only_videos(method) else [[0]]


def cells(methods: Iterable[str], families: Iterable[str] = FAMILIES, each: int = 1) -> list[Any]:
    """(family, method) for every pair that goes together. By default a subset runs that has every family and every
    method in it, families `each` times; the others are marked `full`."""
    families, methods = list(families), list(methods)
    pairs = [(f, m) for m in methods for f in families if f in VIDEOS or not only_videos(m)]
    spanning, seen = set[tuple[str, str]](), dict.fromkeys(families, 0)
    for method in methods:  # each with the family that was there least often
        own = [f for f, m in pairs if m == method]
        if own:
            family = min(own, key=lambda f: seen[f])
            seen[family] += 1
            spanning.add((family, method))
    for family in families:
        for method in [m for f, m in pairs if f == family and (f, m) not in spanning][: max(0, each - seen[family])]:
            spanning.add((family, method))
    return [pytest.param(*pair, marks=[] if pair in spanning else pytest.mark.full) for pair in pairs]


@contextmanager
def refused(model: Any, match: str, generate: bool = False) -> Iterator[None]:
    """Expects a ValueError of one sentence, raised before the tower or a decoder layer of `model` has run; only before
    a layer under `generate`, in which transformers runs the tower before anything else."""
    ran: list[str] = []
    places = {"layer 0": model.get_decoder().layers[0]}
    if not generate:
        tower = getattr(model.model, "vision_tower", None)
        places["tower"] = model.model.visual if tower is None else tower
    handles = [place.register_forward_pre_hook(lambda *_, n=name: ran.append(n)) for name, place in places.items()]
    try:
        with pytest.raises(ValueError, match=match) as caught:
            yield
    finally:
        for handle in handles:
            handle.remove()
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert not ran
