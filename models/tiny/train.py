"""Trains tiny-llava from nothing: `python -m vtc.models.tiny.train --out runs/tiny`.

Stages: the tower on dense labels (112, 168, 336 px), the language model on symbolic visual tokens, the projector
between them, then all on questions about pictures. Every stage writes a checkpoint every few minutes and one at its
end: a run that was killed goes on where it stopped when started again with the same --out.
"""

import shutil
from pathlib import Path

import torch

from vtc.models.tiny import build, common, drawings, stage_joint, stage_language, stage_tower
from vtc.models.tiny.symbols import Symbols
from vtc.models.tiny.tower import Heads


def train(run: common.Run) -> Path:
    """All stages; returns the folder of the finished checkpoint."""
    run.out.mkdir(parents=True, exist_ok=True)
    if run.quick:
        drawings.most_files = 12
    torch.manual_seed(run.seed)
    model = build.model(run.seed).to(run.device).train()
    vocab = build.processor().tokenizer.get_vocab()
    heads = Heads(model.config.vision_config.hidden_size).to(run.device)
    symbols = Symbols(vocab, model.config.text_config.hidden_size).to(run.device)
    stage_tower.train(run, model, heads)
    stage_language.train(run, model, symbols)
    stage_joint.align(run, model, symbols)
    stage_joint.train(run, model, heads, symbols)
    folder = run.out / "tiny-llava"
    build.save(model.cpu().eval(), folder, build.processor())
    shutil.copyfile(run.out / "log.jsonl", folder / "training-log.jsonl")
    print(f"saved {folder}; measure it with: python -m vtc.models.tiny.evaluate --model {folder}")
    return folder


def main() -> None:
    train(common.Run.of(common.parser(__doc__, "runs/tiny").parse_args()))


if __name__ == "__main__":
    main()
