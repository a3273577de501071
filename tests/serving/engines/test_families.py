"""The further families in vLLM, with random weights: the first token's probabilities are those of vtc on transformers.

No step of the engine takes more than 32 tokens, so that prompts and pictures are cut where it falls. Run by `make
test-vllm`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import vtc
from tests.serving.engines.served import Asked, Served
from tests.serving.small import PROMPTS, asked, picture, save
from vtc.media.video import Clip
from vtc.methods.base import registry
from vtc.serving.vllm.families import FAMILIES

pytestmark = pytest.mark.vllm
KEEP = 5
OPTIONS: dict[str, Any] = {
    "max_logprobs": -1,
    "max_model_len": 1024,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 3, "video": 1},
}
#: beside a method that reads features alone and one that reads attention: what a family has that others have not
MORE = {
    "qwen3_vl": ["tome"],  # DeepStack's columns merge, too
    "llava_next": ["divprune(scope=crop)"],
    "llava_onevision": ["hired"],
    "internvl": ["prumerge"],  # keys of patches that become one token
}
VIDEOS = {"qwen2_vl", "qwen3_vl", "llava_onevision"}


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name not in ("llava", "qwen2_5_vl")])
def served(request, tmp_path_factory) -> Iterator[Served]:
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    engine = Served(str(folder), KEEP, options=OPTIONS if request.param in VIDEOS else OPTIONS | _no_videos())
    yield engine
    engine.close()


def _no_videos() -> dict[str, Any]:
    return {"limit_mm_per_prompt": {"image": 3}}


def first_tokens(served: Served, prompts: Sequence[Any]) -> torch.Tensor:
    """[prompts, vocabulary]: log-probabilities of the first token."""
    from vllm import SamplingParams

    every = SamplingParams(temperature=0, max_tokens=1, logprobs=-1)
    found = [out.outputs[0].logprobs[0] for out in served.llm.generate(prompts, every, use_tqdm=False)]
    return torch.tensor([[own[token].logprob for token in range(len(own))] for own in found])


def test_first_tokens_are_those_of_transformers(served):
    family = served.family.model_type
    model, processor = served.reference
    questions = [asked(family, number) for number in range(len(PROMPTS))]
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": pictures}} if pictures else {"prompt": text}
        for text, pictures in questions
    ]
    for method in ["divprune", "vtc-cls", *MORE.get(family, [])]:
        served.swap(method)
        found = first_tokens(served, prompts)
        with vtc.wrapped(model, method, KEEP, positions=served.family.positions), torch.no_grad():
            for number, (text, pictures) in enumerate(questions):
                inputs = processor(text=text, images=pictures or None, return_tensors="pt")
                expected = model(**inputs).logits[0, -1].log_softmax(-1)
                torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=0, msg=f"{method} {text}")


class Lengths(vtc.Method):
    """The longest features, of pictures alone."""

    modality = ("image",)

    def score(self, tokens: vtc.VisualTokens) -> torch.Tensor:
        return tokens.features.norm(dim=-1)


def test_a_clip_beside_a_picture(served, monkeypatch):
    """Clips are pruned where the family's row of tokens has no words in them, and stay whole elsewhere."""
    if served.family.model_type not in VIDEOS:
        pytest.skip("is not asked about clips here")
    pruned = "video" in served.family.prunes
    lengths = type("PicturesOnly", (Lengths,), {})
    monkeypatch.setitem(registry._METHODS, "lengths", lengths)
    lengths.name = "lengths"
    method = "vtc-cls" if pruned else "lengths"
    frames = torch.randint(0, 256, (4, 24, 16, 3), generator=torch.Generator().manual_seed(7)).to(torch.uint8).numpy()
    clip = Clip(frames, [0.0, 0.5, 1.0, 1.5], [0, 1, 2, 3], 4, 2.0, 2.0, "av")
    many = [Asked("n o ?", clips=(clip,)), Asked("w h o ?", (picture(0),), (clip,)), Asked("a ?", (picture(2),))]
    served.swap(method)
    answers = served.ask(many, tokens=8)
    assert [answer.ids for answer in answers] == served.expected(many, method, tokens=8)
    assert (answers[1].prompt - answers[2].prompt < 12) is pruned
