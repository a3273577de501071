"""Methods that read the tower's last blocks, which vLLM leaves out where no features come from there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.engines.methods import alike, qualifying, reads_behind
from tests.serving.engines.served import Asked, Served
from vtc.eval import datasets

pytestmark = pytest.mark.vllm
BEHIND = [name for name in qualifying("llava") if reads_behind(name)]


@pytest.fixture(scope="module")
def llava() -> Iterator[Served]:
    served = Served("tiny-llava", 64, method=BEHIND[0])
    yield served
    served.close()


@pytest.mark.parametrize("method", [*BEHIND, "vtc-cls"])
def test_every_method_answers_as_on_transformers(llava, method):
    asked = [Asked(one.question, (one.media.picture(),)) for one in datasets.load("tiny").questions[:20]]
    llava.swap(method)
    assert alike(method, [answer.ids for answer in llava.ask(asked)], llava.expected(asked, method))
    assert len(llava.served.vision_tower.vision_model.encoder.layers) == 6
