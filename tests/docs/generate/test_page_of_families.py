"""The page of families names every family, tower and language model that is known, with what holds for it."""

from __future__ import annotations

import re

import pytest

from docs.generate import families, methods
from vtc.methods.base.index import shipped
from vtc.models.decoder import known_decoders
from vtc.models.families import SHIPPED
from vtc.models.registry import list_families
from vtc.models.tower import known_towers


@pytest.fixture(scope="module")
def page() -> str:
    return families.pages()["families.md"]


def section(page: str, title: str) -> str:
    return re.split(r"^## ", page.partition(f"## {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def test_everything_that_is_known_is_named(page):
    own = [name for name in list_families() if name in SHIPPED]
    assert [one.model_type for one in families.facts()] == own == list(SHIPPED)
    for name in own:
        assert section(page, "Families").count(f"`{name}`") >= 2
        assert SHIPPED[name].title in page
    for name in known_towers():
        assert f"| `{name}` | " in section(page, "Vision towers")
    for name in known_decoders():
        assert f"`{name}`" in section(page, "Language models")


def test_the_facts_are_those_of_a_model():
    """Of a model of each family with random weights, as the tests of the engine build them."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from tests.families import EVERY

    for one in families.facts():
        config = EVERY[one.model_type].config()
        assert config.model_type == one.model_type
        assert type(AutoConfig.for_model(one.model_type)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        assert config.text_config.model_type == one.decoder
        assert (getattr(config, "vision_config", None) or config.vq_config).model_type == one.tower


def test_who_reads_what(page):
    """By hand: LLaVA-1.5 reads no videos, Qwen's towers take any size and have no CLS token."""
    rows = {
        cells[1].strip("` "): cells for line in page.splitlines() if (cells := line.split("|"))[0] == "" and cells[1:]
    }
    assert [cell.strip() for cell in rows["llava"][3:7]] == [
        "pictures", "one square crop", "yes, and passes it on", "before the processor"
    ]  # fmt: skip
    assert [cell.strip() for cell in rows["qwen2_5_vl"][3:7]] == [
        "pictures, videos", "a grid of its own size", "no: received attention stands in", "in the wrapped model"
    ]  # fmt: skip
    assert rows["internvl"][5].strip() == "yes"


def test_methods_run_on_what_they_are_for():
    resized = methods.runs_on(shipped()["downsample"])
    assert {name for name in resized if "qwen" in name} == {
        "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe_thinker"
    }  # fmt: skip
    assert {"glm4v", "glm_ocr", "hyperclovax_vision_v2", "llava"} & {*resized} == {"glm4v"}
    assert "glm4v" in methods.runs_on(shipped()["vtc-cls"])
    assert "glm4v" not in methods.runs_on(shipped()["framededupe"])
    assert "emu3" not in methods.runs_on(shipped()["vtc-cls"])
    assert "aria" not in methods.runs_on(shipped()["pool"])
    assert "llava" not in methods.runs_on(shipped()["evs"])
    assert methods.runs_on(shipped()["fastv"]) == list(SHIPPED)
    assert methods.model_for(shipped()["evs"]) == methods.model_for(shipped()["downsample"]) == "tiny-qwen"


def test_methods_before_and_inside_the_tower(page):
    """By hand: Qwen's towers pack pictures into a row, where two methods merge, by an option."""
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| [`")}
    assert set(rows) == {
        info.name for info in shipped().values() if {"pixels", "encoder"} & {*info.places}
    }  # fmt: skip
    packed = rows["tome"].partition("; with `order=raster` also ")[2]
    assert all(f"`{name}`" in packed for name in ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"))
    assert not any(f"`{name}`" in packed for name in ("llava", "glm_ocr", "kimi_k25", "hunyuan_vl"))
    assert "`llava`" in rows["pitome"].partition("; with `mode=protected`")[0]
    for name in ("zerotprune", "vtc-cls", "random"):
        assert "qwen" not in rows[name]
    assert "`llava`" in rows["pixelprune"]
    assert "`llava`" not in rows["framededupe"]
