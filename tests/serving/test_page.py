"""The page "Serve" names every family and every method that is served, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from tests.serving.engines.methods import qualifying
from vtc.serving.vllm.families import FAMILIES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")


def test_families_are_those_that_register():
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \| (\w+)", PAGE, re.MULTILINE)
    kinds = {("image",): "pictures", ("image", "video"): "pictures, videos"}
    assert {(name, prunes.strip(), positions) for name, prunes, positions in rows} == {
        (family.architecture, kinds[family.prunes], family.positions) for family in FAMILIES.values()
    }


def test_methods_are_those_that_the_contract_lets_pass():
    (pictures, clips) = re.findall(r"These are (.+?), on videos also\s(.+?)\. Others", PAGE, re.DOTALL)[0]
    assert sorted(re.findall(r"`(.+?)`", pictures)) == sorted(qualifying("llava"))
    both = {*qualifying("llava"), *re.findall(r"`(.+?)`", clips)}
    assert both == set(qualifying("qwen2_5_vl"))
