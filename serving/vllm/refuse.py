"""What the plug-in refuses of vLLM's own settings and of requests, and the line that it logs at start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtc.serving.vllm.contract import Spec

#: versions of vLLM that the plug-in is tested with, the first and the last, patch releases included
TESTED = ("0.32", "0.32")
_OURS = ("vtc", "method", "keep")


def check_version(version: str) -> str:
    """A warning, in one sentence, where this version of vLLM is outside the tested range; "" where it is within."""
    from packaging.version import Version

    numbers = Version(version).release
    first, last = (Version(end).release for end in TESTED)
    if numbers >= first and numbers[: len(last)] <= last:
        return ""
    tested = TESTED[0] if TESTED[0] == TESTED[1] else f"{TESTED[0]} to {TESTED[1]}"
    return f"vtc's plug-in is tested with vLLM {tested}, and {version} is installed: outcomes may differ."


def check_engine(spec: Spec, config: Any) -> None:
    """Raise ValueError with one sentence if the engine is set so that pruning would fail or be wrong.

    Args:
        config: the engine's VllmConfig.
    """
    said = next((said for there, said in _settings(spec, config) if there), None)
    if said is not None:
        raise ValueError(said)


def _settings(spec: Spec, config: Any) -> list[tuple[bool, str]]:
    """(whether it is so, what is then said)."""
    parallel, media = config.parallel_config, config.model_config.multimodal_config
    compiled = config.compilation_config
    reads = f"{spec.name} reads the vision tower ({', '.join(spec.reads)})"
    other = "take a method that reads the features alone, such as divprune"
    moved = f"{spec.family.model_type} with original positions does not go with"
    within = f"{moved} {{}}, in which positions of kept tokens would get lost: leave it out.".format
    original = spec.family.positions == "original"
    return [
        (
            bool(getattr(media, "video_pruning_rate", None)),
            "--video-pruning-rate is vLLM's own pruning and does not go with vtc's: leave one of them out.",
        ),
        (
            bool(getattr(media, "enable_mm_embeds", False)),
            "--enable-mm-embeds lets requests bring a picture's embeddings (image_embeds), which are all of them and "
            "cannot be pruned: leave it out.",
        ),
        (
            bool(getattr(compiled, "compile_mm_encoder", False)),
            "compile_mm_encoder compiles the vision tower past vtc's hooks: leave it out of --compilation-config.",
        ),
        (
            bool(getattr(compiled, "cudagraph_mm_encoder", False)),
            "cudagraph_mm_encoder replays the vision tower past vtc's pruning: leave it out of --compilation-config.",
        ),
        (
            bool(spec.reads) and parallel.tensor_parallel_size > 1,
            f"{reads}, whose heads tensor parallelism spreads over {parallel.tensor_parallel_size} devices: set "
            f"--tensor-parallel-size 1, or {other}.",
        ),
        (
            bool(spec.reads) and getattr(media, "mm_encoder_tp_mode", "weights") == "data",
            f"{reads}, and --mm-encoder-tp-mode data has other devices run other pictures: leave it out, or {other}.",
        ),
        (original and parallel.pipeline_parallel_size > 1, within("--pipeline-parallel-size above 1")),
        (original and getattr(parallel, "prefill_context_parallel_size", 1) > 1, within("prefill context parallelism")),
        (original and bool(getattr(parallel, "use_ubatching", False)), within("micro-batches (--enable-dbo)")),
        (original and getattr(config, "speculative_config", None) is not None, within("speculative decoding")),
    ]


def check_budget(spec: Spec, most: int) -> None:
    """Raise ValueError if the budget is a count above the `most` visual tokens that any picture of the model has."""
    if isinstance(spec.keep, int) and spec.keep > most:
        raise ValueError(
            f"keep={spec.keep} is more than the {most} visual tokens that a picture of this model has at most: keep "
            "fewer, or serve the model without vtc."
        )


def check_request(given: Mapping[str, Any]) -> None:
    """Raise ValueError if a request's `mm_processor_kwargs` ask for a budget or a method of its own."""
    own = next((name for name in _OURS if name in given), None)
    if own is not None:
        raise ValueError(
            f"mm_processor_kwargs of a request hold {own!r}, and an engine has one method and one budget, as pictures "
            "are cached: start another engine for another budget."
        )


def start_line(spec: Spec, most: int, fixed: bool) -> str:
    """What is logged when the engine starts: method, budget, tokens to expect.

    Args:
        most: visual tokens of the largest picture. fixed: whether all pictures have as many.
    """
    kept = f"{spec.count(most)} of {most} visual tokens of {'each' if fixed else 'the largest'} picture"
    return f"vtc {spec}: {kept} stay{'' if fixed else ', of smaller ones as many or fewer'}"
