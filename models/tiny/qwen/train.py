"""Trains tiny-qwen: `python -m vtc.models.tiny.qwen.train --out runs/tiny-qwen`.

Its language model starts from the shipped tiny-llava's. Stages: the tower on labels of every visual token, the language
model on symbolic tokens, the merger between them, then all on questions about clips and pictures. A run that was killed
goes on where it stopped when started again with the same --out. The first two stages need nothing of each other:
`--only tower` and `--only language` may run side by side, each on cores of its own, before the whole.
"""

import shutil
from pathlib import Path

import torch

from vtc.models.tiny import common, packing
from vtc.models.tiny.qwen import build, stage_joint, stage_language, stage_tower
from vtc.models.tiny.qwen.symbols import Symbols
from vtc.models.tiny.qwen.vision import Heads


def train(run: common.Run, only: str | None = None) -> Path | None:
    """All stages, or one; returns the folder of the finished checkpoint."""
    run.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    model = build.model(run.seed, build.tiny_llava()).to(run.device).train()
    tokenizer = build.processor().tokenizer
    packer = packing.Packer(tokenizer)
    heads = Heads(model.config.vision_config.hidden_size).to(run.device)
    symbols = Symbols(tokenizer.get_vocab(), model.config.text_config.hidden_size).to(run.device)
    past = stage_language.Past(model.config.text_config.hidden_size).to(run.device)
    if only != "language":
        stage_tower.train(run, model, heads)
    if only != "tower":
        stage_language.train(run, model, symbols, past, packer)
    if only:
        return None
    stage_joint.align(run, model, heads, symbols)
    stage_joint.train(run, model, heads, symbols, past, packer)
    folder = run.out / "tiny-qwen"
    build.save(model.cpu().eval(), folder)
    shutil.copyfile(run.out / "log.jsonl", folder / "training-log.jsonl")
    print(f"saved {folder}; measure it with: python -m vtc.models.tiny.evaluate --model {folder}")
    return folder


def main() -> None:
    parser = common.parser(__doc__, "runs/tiny-qwen")
    parser.add_argument("--only", choices=["tower", "language"], help="this stage and no other")
    arguments = parser.parse_args()
    train(common.Run.of(arguments), arguments.only)


if __name__ == "__main__":
    main()
