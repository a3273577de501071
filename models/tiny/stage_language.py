"""Stage 3: the language model learns to answer from symbolic visual tokens. No picture is drawn and no tower is run."""

import random

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from vtc.models.tiny import build, common, labels, packing, questions, scenes
from vtc.models.tiny.symbols import Symbols, sketch, spoil, subset

# name, visual tokens, pictures per step, questions per picture, steps, learning rate
STAGES = [
    ("language", 64, 16, 14, 3200, 2e-3),
]
TASK_WEIGHTS = {
    "color": 2.5,
    "object": 1.2,
    "existence": 2.0,
    "count": 1.5,
    "position": 3.0,
    "reading": 0.6,
    "caption": 0.4,
}
_SEED_OFFSET = 1_000_000_000  # scenes of this stage; the tower's pools start at multiples of 10 million below it


def start_looking(model: LlavaForConditionalGeneration) -> None:
    """Queries equal to keys: before any training a word attends to tokens that carry the same word. Embeddings twice as
    large as usual, so that the words are not drowned by what untrained layers add to them."""
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.copy_(layer.self_attn.k_proj.weight)


def batch_of(
    rng: np.random.Generator,
    packer: packing.Packer,
    pictures: int,
    visual: int,
    per_picture: int,
    weights: dict[str, float] = TASK_WEIGHTS,
) -> tuple[torch.Tensor, torch.Tensor, packing.Packed]:
    """(dense labels [B, N, 4], patch indices [B, N], questions) of fresh scenes."""
    ask = random.Random(int(rng.integers(1 << 40)))
    dense, places, asked = [], [], []
    while len(dense) < pictures:
        scene = scenes.sample(_SEED_OFFSET + ask.randrange(1 << 40), "train", diverse=ask.random() < 0.5)
        found = questions.ask_many(scene, ask, per_picture, weights)
        if not found:
            continue
        grid = labels.dense(scene, sketch(scene, rng))
        kept = subset(grid, visual, rng)
        dense.append(spoil(grid, rng).reshape(-1, 4)[kept])
        places.append(kept)
        asked.append(found)
    return torch.from_numpy(np.stack(dense)).long(), torch.from_numpy(np.stack(places)), packer.pack(asked)


def train(run: common.Run, model: LlavaForConditionalGeneration, symbols: Symbols) -> None:
    language = model.model.language_model
    language.set_attn_implementation("eager")
    packer = packing.Packer(build.processor().tokenizer)
    for number, (stage, visual, pictures, per_picture, full_steps, lr) in enumerate(STAGES):
        steps = run.steps(full_steps)
        modules = {"language": language, "symbols": symbols}
        optimizers = common.optimizers(list(modules.values()), lr)
        checkpoint = common.Checkpoint(run, stage, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        if number == 0 and first == 0:
            start_looking(model)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, 100 + number, step])
            common.schedule(optimizers, step, steps)
            dense, places, packed = batch_of(rng, packer, run.batch(pictures), visual, per_picture)
            dense, places, packed = dense.to(run.device), places.to(run.device), packed.to(run.device)
            # pruned pictures may keep the positions of their tokens or be numbered anew: both occur
            numbered = torch.arange(visual, device=run.device).expand_as(places) if step % 3 == 2 else places
            with torch.autocast(run.device, torch.bfloat16):
                tokens = symbols(language.get_input_embeddings().weight, dense, places)
                tokens = tokens + 0.1 * tokens.detach().std() * torch.randn_like(tokens)
                loss, correct = packing.forward(language, packer.prefix, tokens, numbered, packed)
            loss.backward()
            common.step_all(optimizers, list(modules.values()))
            if step % 50 == 0 or step + 1 == steps:
                shown = packing.accuracy(correct.cpu(), packed)
                run.log(stage=stage, step=step, loss=float(loss.detach()), **shown, seconds=round(checkpoint.elapsed()))
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)
    language.set_attn_implementation("sdpa")
