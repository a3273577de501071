"""An engine of vLLM in this process, whose method tests swap, beside its model on transformers, wrapped by vtc."""

# pyright: reportMissingImports=false
from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import vtc
from vtc.models.tiny import find
from vtc.serving.vllm.contract import family_of, read_spec, spec_of
from vtc.serving.vllm.families import FAMILIES

#: in one process and on one thread, with little memory and no word to anybody
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Asked:
    """A prompt and what goes with it: pictures, clips."""

    question: str
    pictures: tuple[Any, ...] = ()
    clips: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Token ids, how many tokens the prompt had, and how many of them came from the cache of prefixes."""

    ids: list[int]
    prompt: int
    cached: int


@dataclass
class Served:
    """An engine of vLLM that prunes, and its model on transformers.

    Args:
        model: a shipped one, or a folder. keep: the budget of all methods that are swapped in.
        method: that the engine is started with.
    """

    model: str
    keep: int | float
    method: str = "divprune"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        os.environ.update(ENVIRONMENT)
        from transformers import AutoConfig
        from vllm import LLM

        place = str(find(self.model))
        self.family = FAMILIES[AutoConfig.from_pretrained(place).model_type]
        asked = {"architectures": [self.family.architecture], "vtc": {"method": self.method, "keep": self.keep}}
        self.llm: Any = LLM(
            place,
            hf_overrides=asked,
            **{
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": 2048,
                "max_num_seqs": 32,
                "block_size": 32,
                "enable_prefix_caching": True,
                **self.options,
            },
        )

    def close(self) -> None:
        """Let go of the engine, so that another may start in this process."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm = None
        cleanup_dist_env_and_memory()
        gc.collect()

    @property
    def core(self) -> Any:
        """The engine's core: scheduler and model."""
        return self.llm.llm_engine.engine_core.engine_core

    @property
    def served(self) -> Any:
        """The plug-in's model."""
        return self.core.model_executor.driver_worker.worker.model_runner.model

    @cached_property
    def reference(self) -> tuple[Any, Any]:
        """The model on transformers, and its processor."""
        return vtc.load(self.model, "cpu", "float32")

    def swap(self, method: str, keep: int | float | None = None, forget: bool = True) -> None:
        """Prune by another method from now on.

        Args:
            forget: whether what is cached of the one before goes.
        """
        given = {"method": method, "keep": self.keep if keep is None else keep}
        self.llm.llm_engine.model_config.hf_config.vtc = given
        self.served.prune_with(read_spec(given, family_of(self.family.model_type)))
        assert str(spec_of(self.served.config)) == str(self.served.vtc.spec)  # one configuration for both ends
        self._make_room()
        if forget:
            self.forget()

    def _make_room(self) -> None:
        """Let the vision tower hand over as much as in an engine that is started with this budget."""
        from vllm.multimodal import MULTIMODAL_REGISTRY

        engine, scheduler = self.llm.llm_engine, self.core.scheduler
        spec, whole = self.served.vtc.spec, scheduler.scheduler_config.max_num_batched_tokens
        most = MULTIMODAL_REGISTRY.get_processing_info(engine.model_config).most_tokens()
        room = max(spec.count(most), spec.tower_tokens(whole, most))
        if room > scheduler.max_num_encoder_input_tokens:
            scheduler.max_num_encoder_input_tokens = room
            scheduler.encoder_cache_manager.cache_size = room
            engine.input_processor.mm_encoder_cache_size = room

    def forget(self) -> None:
        """Empty all caches."""
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()
        assert self.llm.reset_prefix_cache()

    def prompt(self, asked: Asked) -> dict[str, Any]:
        """What vLLM takes."""
        processor = self.reference[1]
        text = vtc.prompt(processor, asked.question, len(asked.pictures), len(asked.clips))
        media: dict[str, Any] = {}
        if asked.pictures:
            media["image"] = list(asked.pictures)
        if asked.clips:
            media["video"] = [
                (clip.frames, clip.metadata() | {"do_sample_frames": False, "video_backend": "opencv"})
                for clip in asked.clips
            ]
        return {"prompt": text, "multi_modal_data": media} if media else {"prompt": text}

    def ask(self, many: Sequence[Asked], together: bool = True, tokens: int = 24) -> list[Answer]:
        """The engine's answers, to all prompts at once or one after another."""
        from vllm import SamplingParams

        greedy = SamplingParams(temperature=0, max_tokens=tokens)
        prompts = [self.prompt(asked) for asked in many]
        batches = [prompts] if together else [[prompt] for prompt in prompts]
        outputs = [out for batch in batches for out in self.llm.generate(batch, greedy, use_tqdm=False)]
        return [
            Answer(list(out.outputs[0].token_ids), len(out.prompt_token_ids), out.num_cached_tokens or 0)
            for out in outputs
        ]

    def expected(self, many: Sequence[Asked], method: str, tokens: int = 24) -> list[list[int]]:
        """Token ids of the same model on transformers, wrapped with the same method and budget."""
        with vtc.wrapped(self.reference[0], method, self.keep, positions=self.family.positions):
            return self.plain(many, tokens)

    def check_signals(self, asked: Asked, method: str, monkeypatch: Any) -> None:
        """Hold what the tower's taps measure for `method` against vtc's measurements on transformers.

        Prompts are answered with the same words where scores are the same to round-off.
        """
        import torch

        self.swap(method)
        heard: list[Any] = []
        taps = self.served.vtc.taps
        of_pictures = taps.of_pictures
        monkeypatch.setattr(taps, "of_pictures", lambda run, sizes: heard.append(run) or of_pictures(run, sizes))
        self.ask([asked], tokens=1)
        model, processor = self.reference
        inputs = vtc.prepare(processor, asked.question, asked.pictures, asked.clips)
        vision = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        vision.pop("mm_token_type_ids", None)
        expected = vtc.encode(model, vtc.resolve(method), **vision)._call.signals
        (found,) = [run.measured for run in heard]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            close = 1e-5 * float(value.abs().max())
            torch.testing.assert_close(found[key].reshape(value.shape), value, rtol=1e-4, atol=close)

    def plain(self, many: Sequence[Asked], tokens: int = 24) -> list[list[int]]:
        """Token ids of the model on transformers, as it is."""
        model, processor = self.reference
        found = []
        for asked in many:
            inputs = vtc.prepare(processor, asked.question, asked.pictures, asked.clips)
            out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            found.append(out[0, inputs["input_ids"].shape[1] :].tolist())
        return found
