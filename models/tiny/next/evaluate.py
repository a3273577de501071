"""Scores tiny-next on its held-out set: with all 2,928 tokens, with its thumbnail's 576 alone, and blind (grey).

python -m vtc.models.tiny.next.evaluate --json models/tiny/tiny-next/metrics.json
"""

import inspect
import time
from collections import defaultdict
from copy import deepcopy
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaModel

from vtc.engine.versions import cache_of
from vtc.models.tiny import build, evaluate, questions, source
from vtc.models.tiny.evaluate import GREY, summary
from vtc.models.tiny.next.heldout import DATA

THUMBNAIL = 576
_CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"


@torch.inference_mode()
def tokens_of(model, processor, picture: Image.Image) -> Tensor:
    """[N, D] the visual tokens of one picture, as the model itself makes them: thumbnail, then rows and newlines."""
    given = processor.image_processor(images=[picture], return_tensors="pt")
    found = model.get_image_features(given["pixel_values"].to(model.dtype), given["image_sizes"], return_dict=True)
    return found.pooler_output[0]


@torch.inference_mode()
def answer(model, processor, tokens: Tensor, asked: list[str], longest: int = 8) -> list[str]:
    """Greedy answers to questions about one picture, of which the model is shown the visual tokens [N, D].

    What `generate` says to each question alone, but the picture is read once: its keys and values are kept.
    """
    language, tokenizer = model.model.language_model, processor.tokenizer
    head, tail = build.prompt("{}").split("<image>")
    first = language.embed_tokens(tokenizer(head, return_tensors="pt")["input_ids"])[0]
    seen = torch.cat([first, tokens])
    picture = cache_of(language(inputs_embeds=seen[None], use_cache=True))
    said = []
    for question in asked:
        cache = deepcopy(picture)
        given = tokenizer(tail.format(question), add_special_tokens=False, return_tensors="pt")["input_ids"]
        words: list[int] = []
        while len(words) < longest:
            state = language(input_ids=given, **{_CACHE: cache}).last_hidden_state[:, -1]
            words.append(int(model.lm_head(state).argmax()))
            if words[-1] == tokenizer.eos_token_id:
                break
            given = torch.tensor([words[-1:]])
        said.append(tokenizer.decode(words, skip_special_tokens=True).strip())
    return said


def run(model, processor, data: Path, lines: list[dict]) -> tuple[list[dict], list[dict]]:
    """Every line with what the model said and its score: seeing all tokens, and the thumbnail's alone."""
    by_picture: dict[str, list[dict]] = defaultdict(list)
    for line in lines:
        by_picture[line["image"]].append(line)
    seen, thumbnail = [], []
    for name, part in by_picture.items():
        tokens = tokens_of(model, processor, Image.open(data / name).convert("RGB"))
        asked = [x["question"] for x in part]
        for done, shown in ((seen, tokens), (thumbnail, tokens[:THUMBNAIL])):
            done += _scored(part, answer(model, processor, shown, asked))
    return seen, thumbnail


def run_blind(model, processor, data: Path, lines: list[dict]) -> list[dict]:
    """The same of grey pictures; they are alike, so that each question is asked once."""
    size = Image.open(data / lines[0]["image"]).size
    tokens = tokens_of(model, processor, Image.new("RGB", size, (GREY,) * 3))
    asked = sorted({x["question"] for x in lines})
    known = dict(zip(asked, answer(model, processor, tokens, asked), strict=True))
    return _scored(lines, [known[x["question"]] for x in lines])


def _scored(lines: list[dict], said: list[str]) -> list[dict]:
    return [{**x, "said": s, "score": questions.score(s, x)} for x, s in zip(lines, said, strict=True)]


def main() -> None:
    arguments = evaluate.parser_of(__doc__, "tiny-next", DATA).parse_args()
    folder = Path(source(arguments.model))
    model, processor = evaluate.load(folder)
    lines = evaluate.read(arguments.data)[: arguments.limit]
    started = time.process_time()
    seen, thumbnail = run(model, processor, arguments.data, lines)
    metrics = evaluate.begun(folder, seen)
    metrics["thumbnail"] = summary(thumbnail)
    metrics["blind"] = summary(run_blind(model, processor, arguments.data, lines))
    metrics["cpu_seconds"] = round(time.process_time() - started)
    evaluate.report(arguments, metrics, seen)


if __name__ == "__main__":
    main()
