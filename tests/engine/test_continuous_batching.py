"""transformers' continuous batching on a wrapped model: plain text passes, pictures are refused by name.

Errors of its background thread end all requests of the batch: each comes back as failed, with the sentence in `error`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

import vtc
from tests.families import FAMILIES, IMAGE, VIDEO, model_of

HOW = GenerationConfig(max_new_tokens=4, do_sample=False, eos_token_id=-1, pad_token_id=0)
PAGE = "page_size" if "page_size" in {field.name for field in fields(ContinuousBatchingConfig)} else "block_size"
TEXTS = [[1, 10, 11, 30, 31], [1, 12, 33, 34, 35, 36, 37], [1, 14]]
METHODS = ["divprune", "fastv", "h2o"]
CELLS = [
    pytest.param(family, method, marks=[] if i == 4 * j else pytest.mark.full)  # a family of each kind
    for i, family in enumerate(FAMILIES)
    for j, method in enumerate(METHODS)
]


def answers(model: Any, prompts: list[list[int]]) -> list[Any]:
    """What comes back, in the order of the prompts."""
    sizes: dict[str, Any] = {"num_blocks": 16, "max_batch_tokens": 64, PAGE: 32}
    config = ContinuousBatchingConfig(**sizes)
    found = model.generate_batch(
        inputs=prompts, generation_config=HOW, continuous_batching_config=config, progress_bar=False
    )
    return list(found.values())


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_requests(family: str, method: str) -> None:
    model = model_of(family)
    expected = [one.generated_tokens for one in answers(model, TEXTS)]
    assert [len(tokens) for tokens in expected] == [4, 4, 4]
    with vtc.wrapped(model, method, keep=0.3):
        for placeholder in (IMAGE, VIDEO) if FAMILIES[family].videos else (IMAGE,):
            failed = answers(model, [TEXTS[0], [1, 10, *[placeholder] * 9, 31]])
            assert [one.generated_tokens for one in failed] == [[], []]
            for one in failed:
                assert one.error.startswith("continuous batching (generate_batch) hands the model token ids")
                assert "serve them with vLLM (docs/serve.md" in one.error
                assert one.error.endswith(".")
                assert "\n" not in one.error
        assert [one.generated_tokens for one in answers(model, TEXTS)] == expected
    assert model.generate(input_ids=torch.tensor(TEXTS[:1]), max_new_tokens=1).shape[1] == 6
