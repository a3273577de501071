"""Frame scorers: how much each frame of a video has to do with a question, for methods that share tokens by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vtc.methods.quota import relative
from vtc.signals import VisualTokens


class OpenClipScorer:
    """Cosine of a CLIP model's embeddings of frames and question; needs the extra `encoders` (open_clip).

    Args:
        model, preprocess, tokenizer: as `open_clip.create_model_and_transforms` and `open_clip.get_tokenizer` give
            them, or any that work alike.
        batch: frames encoded at once.
    """

    def __init__(
        self, model: Any, preprocess: Callable[[Image.Image], Tensor], tokenizer: Callable[..., Tensor], batch: int = 32
    ) -> None:
        self.model, self.preprocess, self.tokenizer, self.batch = model.eval(), preprocess, tokenizer, batch

    @classmethod
    def load(cls, name: str = "ViT-B-32", pretrained: str | None = None, device: str = "cpu") -> OpenClipScorer:
        """A model of open_clip by its names there, for example ("ViT-B-32", "laion2b_s34b_b79k").

        `pretrained` may be a file of weights; None means random ones.
        """
        if find_spec("open_clip") is None:
            raise ImportError("OpenClipScorer needs open_clip: pip install 'vtc-vlm[encoders]'.")
        import open_clip

        model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
        return cls(model, preprocess, open_clip.get_tokenizer(name))  # type: ignore[arg-type]

    @torch.no_grad()
    def cosines(self, frames: Sequence[Image.Image], question: str) -> Tensor:
        """Cosine between each frame and the question, [T] in fp32."""
        if not len(frames):
            raise ValueError("a video without frames cannot be scored; pass the frames that the model is shown.")
        where = next(self.model.parameters())
        words = self.model.encode_text(self.tokenizer([question]).to(where.device))
        seen = []
        for start in range(0, len(frames), self.batch):
            pixels = torch.stack([self.preprocess(frame) for frame in frames[start : start + self.batch]])
            seen.append(self.model.encode_image(pixels.to(where)))
        return torch.cosine_similarity(torch.cat(seen).float(), words.float(), dim=-1)

    def about(
        self, videos: Sequence[Sequence[Image.Image]], questions: str | Sequence[str]
    ) -> Callable[[VisualTokens], Tensor]:
        """A scorer for `vtc.QuoTA(scorer=...)`: it scores every video once, when it is first asked.

        Args:
            videos: the frames of each video of the batch, in reading order.
            questions: what is asked about each of them, or one question about all.
        """
        asked = [questions] * len(videos) if isinstance(questions, str) else list(questions)
        if len(asked) != len(videos):
            raise ValueError(
                f"{len(videos)} videos, {len(asked)} questions: give one question per video, or one string."
            )
        known: dict[int, Tensor] = {}

        def score(tokens: VisualTokens) -> Tensor:
            number = tokens.span.picture
            if number >= len(videos):
                raise ValueError(f"the batch has a video number {number}; the scorer knows {len(videos)}, from 0 on.")
            if number not in known:
                known[number] = relative(self.cosines(videos[number], asked[number]))
            return known[number]

        return score
