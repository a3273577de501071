"""Many questions about one picture in one sequence: each sees the picture and itself, never its neighbours.

Layout of a row: `<s> user :` | N visual tokens | question 1 `assistant :` answer 1 `</s>` | question 2 ... Position ids
restart after the picture for every question, so that each looks exactly as it does alone at inference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from vtc.models.tiny.questions import Question


@dataclass
class Packed:
    """Text part of a batch. ids, spans, positions, weights: [B, T]; spans 0 is padding, 1.. the question's number."""

    ids: Tensor
    spans: Tensor
    positions: Tensor  # counted from the end of the picture
    weights: Tensor  # of predicting this token: 0 outside answers
    tasks: list[list[str]]  # task of each question, by row

    def to(self, device: str) -> "Packed":
        moved = (t.to(device) for t in (self.ids, self.spans, self.positions, self.weights))
        return Packed(*moved, self.tasks)


class Packer:
    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.prefix = tokenizer("USER:").input_ids  # <s> user :
        self._known: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            if len(self._known) > 200_000:
                self._known.clear()
            self._known[text] = ids
        return self._known[text]

    def pack(self, batch: list[list[Question]]) -> Packed:
        rows, tasks = [], []
        for asked in batch:
            ids, spans, positions, weights = [], [], [], []
            for number, q in enumerate(asked, start=1):
                head = self._ids(q.question + " ASSISTANT:")
                tail = [*self._ids(q.answer), self.tokenizer.eos_token_id]
                ids += head + tail
                spans += [number] * (len(head) + len(tail))
                positions += range(len(head) + len(tail))
                # a caption is thirty tokens long: it should not drown the one-word answers
                weights += [0.0] * len(head) + [0.35 if q.task == "caption" else 1.0] * len(tail)
            rows.append((ids, spans, positions, weights))
            tasks.append([q.task for q in asked])
        longest = max(len(r[0]) for r in rows)
        columns = []
        for i in range(4):
            fill = self.tokenizer.pad_token_id if i == 0 else 0
            columns.append(torch.tensor([r[i] + [fill] * (longest - len(r[i])) for r in rows]))
        return Packed(*columns, tasks)


def forward(
    language: nn.Module, prefix: list[int], visual: Tensor, places: Tensor, packed: Packed, suffix: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """(weighted mean answer loss, correct [B, T] with -1 where no answer token).

    visual [B, N, D]; places [B, N] or, for M-RoPE, [3, B, N]: the position of each visual token within the picture;
    `suffix` and the questions go on after the largest.
    """
    b, d = visual.shape[0], visual.shape[-1]
    table = language.get_input_embeddings().weight
    head, tail = (torch.tensor(t, dtype=torch.long, device=visual.device).expand(b, -1) for t in (prefix, suffix))
    visual = torch.cat([visual, table[tail].view(b, -1, d)], 1)
    x = torch.cat([table[head], visual, table[packed.ids]], 1)
    p, n = len(prefix), visual.shape[1]
    start = places.movedim(-2, 0).flatten(1).amax(1, keepdim=True) + 1 + p  # [B, 1]
    before, behind = (
        torch.arange(len(t), device=visual.device).expand(*places.shape[:-1], -1) for t in (prefix, suffix)
    )
    after = (packed.positions + start + len(suffix)).expand(*places.shape[:-1], -1)
    positions = torch.cat([before, places + p, behind + start, after], -1)
    spans = torch.cat([torch.zeros(b, p + n, dtype=torch.long, device=head.device), packed.spans], 1)
    length = spans.shape[1]
    order = torch.arange(length, device=head.device)
    is_text = order >= p + n
    sees_picture = ~is_text[None, None, :].expand(b, length, length)
    same = (spans[:, :, None] == spans[:, None, :]) & is_text[None, None, :]
    allowed = (sees_picture | same) & (order[None, :, None] >= order[None, None, :])
    if torch.is_autocast_enabled(x.device.type):  # the cost is memory traffic, and a residual stream in bf16 halves it
        x = x.to(torch.bfloat16)
    mask = torch.zeros(b, 1, length, length, dtype=x.dtype, device=x.device).masked_fill_(~allowed[:, None], -1e4)
    hidden = language(inputs_embeds=x, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    wanted = packed.weights > 0  # the token before each answer token predicts it
    logits = F.linear(hidden[:, p + n - 1 : -1][wanted], table).float()
    target, weight = packed.ids[wanted], packed.weights[wanted]
    loss = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
    correct = torch.full_like(packed.ids, -1)
    correct[wanted] = (logits.argmax(-1) == target).long()
    return loss, correct


def accuracy(correct: Tensor, packed: Packed) -> dict[str, float]:
    """Share of questions of each task whose answer tokens are all right (given the right tokens before)."""
    right: dict[str, list[bool]] = {}
    for row, tasks in enumerate(packed.tasks):
        for number, task in enumerate(tasks, start=1):
            marks = correct[row][packed.spans[row] == number]
            right.setdefault(task, []).append(bool((marks != 0).all()))
    return {task: sum(v) / len(v) for task, v in sorted(right.items())}
