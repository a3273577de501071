"""Stages 1 and 2: the vision tower learns to say what every patch shows, first in windows, then in whole pictures."""

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration

from vtc.models.tiny import common, tower
from vtc.models.tiny.pool import Pool

# name, (window side in patches, windows per step) taken in turn, steps, learning rate
STAGES = [
    ("tower-112px", [(8, 48)], 3300, 2e-3),
    ("tower-168px", [(12, 24)], 2400, 1.5e-3),
    ("tower-336px", [(24, 6)], 900, 6e-4),
    ("tower-mixed", [(12, 24), (12, 24), (12, 24), (24, 4)], 1700, 1e-3),
]


def train(run: common.Run, model: LlavaForConditionalGeneration, heads: tower.Heads) -> None:
    vision = model.model.vision_tower
    vision.set_attn_implementation("eager")  # on CPU, bf16 flash attention backward is several times slower
    for number, (stage, sizes, full_steps, lr) in enumerate(STAGES):
        steps = run.steps(full_steps)
        modules = {"tower": vision, "heads": heads}
        optimizers = common.optimizers(list(modules.values()), lr)
        checkpoint = common.Checkpoint(run, stage, modules, optimizers)
        first, done = checkpoint.load()
        if done:
            continue
        pool = Pool(
            8 if run.quick else 4000, first_seed=(run.seed * 10 + number) * 10_000_000 + first * 3, more_signs=True
        )
        pool.refresh(pool.size if run.quick else 1500)
        for step in range(first, steps):
            rng = np.random.default_rng([run.seed, number, step])
            common.schedule(optimizers, step, steps)
            side, batch = sizes[step % len(sizes)]
            loss, shown = dense_loss(run, vision, heads, pool.windows(rng, run.batch(batch), side), side)
            loss.backward()
            common.step_all(optimizers, list(modules.values()))
            pool.refresh(3)
            if step % 50 == 0 or step + 1 == steps:
                run.log(stage=stage, step=step, loss=float(loss.detach()), **shown, seconds=round(checkpoint.elapsed()))
            if (step + 1) % checkpoint.every == 0:
                checkpoint.save(step + 1)
        checkpoint.save(steps, done=True)
    vision.set_attn_implementation("sdpa")


def dense_loss(
    run: common.Run, vision, heads: tower.Heads, windows: dict, side: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """Teaching loss of a batch of windows, and numbers to print."""
    on = {k: torch.from_numpy(v).to(run.device) for k, v in windows.items()}
    positions = tower.positions_of(on["tops"], on["lefts"], side)
    with torch.autocast(run.device, torch.bfloat16):
        dense, cls = heads(tower.hidden_states(vision, tower.patches_of(on["pixels"]), positions))
    return tower.loss_of(dense, cls, on["labels"].long(), on["present"], on["asked"], positions)
