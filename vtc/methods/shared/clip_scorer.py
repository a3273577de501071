"""How much each frame of a video, or each token of a picture, has to do with a question, as a CLIP model sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vtc.layout import VisualSpan
from vtc.methods.quota import relative
from vtc.signals import VisualTokens


class OpenClipScorer:
    """Cosine of a CLIP model's embeddings of frames (or patches) and question; needs the extra `encoders` (open_clip).

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
        asked = _Asked("video", len(videos), questions)
        known: dict[int, Tensor] = {}

        def score(tokens: VisualTokens) -> Tensor:
            number = asked.number(tokens.span)
            if number not in known:
                known[number] = relative(self.cosines(videos[number], asked.questions[number]))
            return known[number]

        return score

    @torch.no_grad()
    def patch_cosines(self, picture: Image.Image, question: str) -> Tensor:
        """Cosine between each patch of a picture and the question, [h, w] of the CLIP model's patches, in fp32.

        The picture is squeezed into the model's square, so that all of it is seen. A patch is what the last layer makes
        of it, behind the final norm and the projection of CLIP's own pooled token.
        """
        visual = self.model.visual
        if getattr(visual, "proj", None) is None or not hasattr(visual, "forward_intermediates"):
            raise TypeError(
                f"{type(visual).__name__} projects no patches to where the text is; load a vision transformer of "
                "open_clip's own, such as ViT-B-32."
            )
        where, (height, width) = next(self.model.parameters()), visual.image_size
        pixels = self.preprocess(picture.convert("RGB").resize((width, height)))[None].to(where)
        seen = visual.forward_intermediates(
            pixels, indices=1, normalize_intermediates=True, intermediates_only=True, output_fmt="NCHW"
        )["image_intermediates"][-1][0]  # [C, h, w]
        words = self.model.encode_text(self.tokenizer([question]).to(where.device))
        return torch.cosine_similarity((seen.permute(1, 2, 0) @ visual.proj).float(), words[0].float(), dim=-1)

    def tokens_about(
        self, pictures: Sequence[Image.Image], questions: str | Sequence[str]
    ) -> Callable[[VisualTokens], Tensor]:
        """A scorer for `vtc.Recoverable(scorer=...)`: `patch_cosines`, interpolated to where each token lies.

        Args:
            pictures: those of the batch, in reading order, framed as the model is shown them: where its processor cuts
                a square out of the middle (LLaVA-1.5's does), that square. Each is scored once, when it is first asked
                about.
            questions: what is asked about each of them, or one question about all. A picture of `vtc.encode` that
                several rows ask about has one question, too.
        """
        asked = _Asked("picture", len(pictures), questions)
        known: dict[int, Tensor] = {}

        def score(tokens: VisualTokens) -> Tensor:
            if tokens.span.modality != "image":
                raise ValueError(
                    "tokens_about scores pictures; the batch holds a video, whose frames it does not know."
                )
            number = asked.number(tokens.span)
            if number not in known:
                known[number] = self.patch_cosines(pictures[number], asked.questions[number]).cpu()
            boxes = tokens.span.boxes()[tokens.index.cpu()]
            if bool((boxes.isnan().any(dim=-1) & ~tokens.separators.cpu()).any()):
                raise ValueError(
                    "tokens_about cannot tell where the tokens of a crop lie, as this model is not told how the crops "
                    "of a picture are arranged (InternVL's is not): let the picture be one tile, or leave scorer= out."
                )
            return _at_places(known[number], boxes)

        return score


class _Asked:
    """Which of the user's pictures or videos a span shows, and what is asked about each.

    Args:
        what: "picture" or "video". count: how many there are.
    """

    def __init__(self, what: str, count: int, questions: str | Sequence[str]) -> None:
        self.what, self.count = what, count
        self.questions = [questions] * count if isinstance(questions, str) else list(questions)
        if len(self.questions) != count:
            given = len(self.questions)
            raise ValueError(f"{count} {what}s, {given} questions: give one question per {what}, or one string.")

    def number(self, span: VisualSpan) -> int:
        """Of a span; ValueError if it is unknown."""
        number = span.picture
        if number >= self.count:
            raise ValueError(f"the batch has a {self.what} number {number}; the scorer knows {self.count}, from 0 on.")
        return number


def _at_places(values: Tensor, boxes: Tensor) -> Tensor:
    """[N]: a map of a picture [h, w], bilinearly interpolated at the middles of boxes [N, 4] in [0, 1]; a box that is
    nowhere (a newline's) gets the least of its values."""
    middle = boxes.view(-1, 2, 2).mean(dim=1)  # [N, 2], (x, y)
    there = middle.isfinite().all(dim=-1)
    grid = torch.where(there[:, None], middle * 2 - 1, 0.0)[None, None]
    found = F.grid_sample(values[None, None], grid, padding_mode="border", align_corners=False)[0, 0, 0]
    return torch.where(there, found, values.min())
