"""The further families in vLLM, with random weights: the first token's probabilities are those of vtc on transformers.

No step of the engine takes more than 32 tokens, so that prompts and pictures are cut where it falls. Run by `make
test-vllm`.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import vtc
from tests.serving.engines.served import Asked, Served
from tests.serving.small import PROMPTS, asked, picture, save
from vtc.media.video import Clip
from vtc.serving.vllm.families import FAMILIES

pytestmark = pytest.mark.vllm
KEEP = 5
OPTIONS: dict[str, Any] = {
    "max_logprobs": -1,
    "max_model_len": 1024,
    "max_num_batched_tokens": 32,
    "max_num_seqs": 8,
}
#: beside a method that reads features alone and one that reads attention: what a family has that others have not
MORE = {
    "qwen3_vl": ["tome"],  # DeepStack's columns merge, too
    "llava_next": ["divprune(scope=crop)"],
    "llava_onevision": ["hired"],
    "internvl": ["prumerge"],  # keys of patches that become one token
}


@pytest.fixture(scope="module", params=[name for name in FAMILIES if name not in ("llava", "qwen2_5_vl")])
def served(request, tmp_path_factory) -> Iterator[Served]:
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    most = {"image": 3, "video": 1} if "video" in FAMILIES[request.param].prunes else {"image": 3}
    engine = Served(str(folder), KEEP, options={**OPTIONS, "limit_mm_per_prompt": most})
    yield engine
    engine.close()


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


def test_clips_beside_pictures(served):
    """Clips of two and of three time steps, the second with a budget that does not come out even."""
    if "video" not in served.family.prunes:
        pytest.skip("reads no clips")
    first, second = clip(4), clip(6)
    many = [Asked("n o ?", clips=(first,)), Asked("w h o ?", (picture(0),), (second,)), Asked("a ?", (picture(2),))]
    model, processor = served.reference
    for method in ["vtc-cls", "divprune" if not served.family.framed else "divprune(scope=frame)"]:
        served.swap(method)
        answers = served.ask(many, tokens=8)
        with vtc.wrapped(model, method, KEEP, processor=processor, positions=served.family.positions):
            assert [answer.ids for answer in answers] == served.plain(many, tokens=8)


def test_clips_stay_whole_where_it_is_not_known_what_a_frame_keeps(served):
    if not served.family.framed or "video" not in served.family.prunes:
        pytest.skip("no words between frames, or no clips are pruned")
    served.swap("divprune")
    alone = [Asked("n o ?", clips=(clip(4),))]
    (answer,) = served.ask(alone, tokens=8)
    assert [answer.ids] == served.plain(alone, tokens=8)
    served.swap("divprune(scope=frame)")
    assert served.ask(alone, tokens=1)[0].prompt < answer.prompt


def clip(frames: int) -> Clip:
    """Noise, two frames per second."""
    noise = torch.randint(0, 256, (frames, 24, 16, 3), generator=torch.Generator().manual_seed(frames))
    times = [number / 2 for number in range(frames)]
    pixels = noise.to(torch.uint8).numpy()
    return Clip(pixels, times, [*range(frames)], frames, 2.0, frames / 2, "av")
