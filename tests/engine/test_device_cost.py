"""What a wrapped prefill costs a GPU beside its arithmetic: waits and launches, counted on a pretended device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vtc
from tests.engine.counting import Counter, OnDevice, pretended, put
from tests.families import FAMILIES, batch, model_of
from tests.sweep import CACHE, INPUT, LAYER, only_videos

Made = Callable[[], Any]
PICTURES = [name for name in FAMILIES if name != "llava_next_video"]
TWO, FOUR = [[1], [2]], [[1], [2], [3], [0]]
#: methods whose counts follow from `keep` alone
EXACT = ("random", "divprune", "vtc-cls")


@cache
def on_device(family: str, layers: int = 3) -> Any:
    """The family's tiny model on the pretended device, with so many decoder layers."""
    if layers == 3:
        return put(copy.deepcopy(model_of(family)))
    config = FAMILIES[family].config()
    config.text_config.num_hidden_layers = layers
    return put(AutoModelForImageTextToText.from_config(config).eval())


def prefill(family: str, method: Any, rows: list[list[int]], layers: int = 3) -> Counter:
    """What one prefill comes to."""
    with pretended(), torch.no_grad():
        model = on_device(family, layers)
        inputs = {name: OnDevice(x) for name, x in batch(family, rows).items()}
        with vtc.wrapped(model, method), Counter() as counter:
            model(**inputs, use_cache=True)
    return counter


def ours(counter: Counter) -> dict[str, int]:
    """Waits in vtc's own lines; transformers itself waits when it makes a mask or looks for placeholders."""
    return {line: n for line, n in counter.waits.items() if line != "other" and "versions.py" not in line}


def test_the_counter_is_alive() -> None:
    with pretended(), Counter() as counter:
        x = OnDevice(torch.tensor([3, 0, 5]))
        assert x.device.type == "cuda"
        x.nonzero()
        int(x.sum())
        x.cpu()
        x[x > 2]
        torch.tensor([1, 2], device=x.device)
        assert sum(counter.waits.values()) == 5
        before = sum(counter.launches.values())
        y = torch.arange(3, device=x.device) + x
        y.view(1, 3).transpose(0, 1)
        torch.tensor([1]).pin_memory().to(x.device, non_blocking=True)
        assert sum(counter.launches.values()) == before + 3
        assert sum(counter.waits.values()) == 5


@pytest.mark.parametrize("family", PICTURES)
@pytest.mark.parametrize("method", EXACT)
def test_the_input_stage_never_waits_where_counts_follow_from_keep(family: str, method: str) -> None:
    """Ids and grids come to main memory once each, before the tower starts; any-resolution families look for their
    separators once behind it."""
    waits = ours(prefill(family, INPUT[method](), TWO))
    looks = family in ("llava_next", "llava_onevision")
    towers = int(family.startswith("qwen"))  # its grid
    picture = method == "random"  # it draws by the picture
    assert sum(waits.values()) <= 1 + looks + towers + picture, waits


@pytest.mark.parametrize("method", [name for name in INPUT if not only_videos(name)])
def test_the_input_stage_waits_for_little(method: str) -> None:
    """Merging does not wait either; k-means asks after every iteration whether it is done, prunesid's decomposition
    whether it has found one, for each picture, and what comes of it is read once for all."""
    waits = ours(prefill("llava", INPUT[method](), TWO))
    loops = sum(n for line, n in waits.items() if "kmeans" in line)
    assert sum(waits.values()) - loops <= {"vqtoken": 5, "prunesid": 4}.get(method, 2), waits


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("method", ["hired", "globalcom2"])
def test_what_the_thumbnails_ask_for_is_waited_for_once(family: str, method: str) -> None:
    """Beside the ids and the look for separators: the numbers of all pictures together."""
    waits = ours(prefill(family, INPUT[method](), FOUR))
    assert sum(waits.values()) <= 3, waits


@pytest.mark.parametrize("method", [name for name in LAYER if not only_videos(name)])
def test_a_layer_step_waits_for_nothing(method: str) -> None:
    """But for ToDRE's, whose question is whether anything stays, for each picture, and that of its first stage."""
    waits = sum(ours(prefill("llava", LAYER[method](), TWO)).values())
    assert waits <= (5 if method == "todre" else 1)  # the ids


@pytest.mark.parametrize("method", CACHE)
def test_the_cache_stage_does_not_wait_layer_by_layer(method: str) -> None:
    if only_videos(method):
        return
    few, many = (ours(prefill("llava", CACHE[method](), TWO, layers)) for layers in (3, 6))
    if method != "mustdrop":  # its filters inside wait for how much they drop, at up to four layers, for each picture
        assert sum(many.values()) <= 3, many
    evicting = [{line: n for line, n in w.items() if "stages/evict" in line or "kv_" in line} for w in (few, many)]
    assert evicting[0] == evicting[1]


@pytest.mark.parametrize(
    ("stage", "method"),
    [(INPUT, "divprune"), (INPUT, "vtc-cls"), (LAYER, "fastv"), (LAYER, "pyramiddrop"), (CACHE, "h2o"),
     (CACHE, "scissorhands"), (CACHE, "streaming")],
)  # fmt: skip
def test_nothing_is_launched_row_by_row(stage: dict[str, Made], method: str) -> None:
    """Four pictures in four rows take as many launches as two in two."""
    two, four = (prefill("llava", stage[method](), rows).launches for rows in (TWO, FOUR))
    assert {line: (two[line], four[line]) for line in two | four if two[line] != four[line]} == {}


def test_nothing_is_launched_for_every_64_queries() -> None:
    """Of 36 visual tokens in a row, and of 144 (and as many queries)."""
    few, many = (prefill("llava", CACHE["h2o"](), [row]).launches for row in ([1, 2], [1, 2, 3, 0]))
    assert {line: (few[line], many[line]) for line in few | many if few[line] != many[line]} == {}


@pytest.mark.parametrize("stage", [INPUT, LAYER, CACHE])
def test_every_method_runs_on_a_device(stage: dict[str, Made]) -> None:
    """No operation mixes what is in main memory with what is on the device."""
    for name, made in stage.items():
        if not only_videos(name):
            prefill("llava", made(), TWO)


def test_a_method_may_choose_in_main_memory() -> None:
    """What it returns is brought to where the tokens are, also before another method goes on from there."""

    class Here(vtc.Method):
        def select(self, tokens: vtc.VisualTokens) -> vtc.Selection:
            return vtc.Selection.prune(torch.arange(0, len(tokens.features), 2), len(tokens.features))

    class There(vtc.LayerMethod):
        select = Here.select

    prefill("llava", [Here(), vtc.DivPrune(keep=9), There(layers=(1,))], TWO)
