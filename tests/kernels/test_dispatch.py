"""The dispatcher: which implementation runs, and what is said when the wanted one cannot."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vtc import ops

pytestmark = pytest.mark.core


def test_cpu_tensors_use_the_reference():
    assert ops.provider("segment_sum", torch.zeros(1)) == "reference"


def test_a_forced_kernel_that_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=r"VTC_KERNELS=triton, but segment_sum cannot run.* cpu"):
        ops.segment_sum(torch.zeros(1, 1), torch.zeros(1, dtype=torch.long), torch.ones(1), 1)


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "cuda")
    with pytest.raises(ValueError, match=r"'cuda' is not one of auto, reference, triton"):
        ops.provider("segment_sum", torch.zeros(1))


def test_reference_can_be_forced(monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "reference")
    assert ops.provider("greedy_diversity", torch.zeros(1)) == "reference"


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Triton itself asks for the current device only."""
    on = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            on.append(self.device)

        def __exit__(self, *_):
            on.pop()

    def kernel(x):
        return list(on)

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(ops, "provider", lambda op, tensor: "triton")
    monkeypatch.setattr(ops, "_load", lambda op, kind: SimpleNamespace(anything=kernel))
    elsewhere: Any = SimpleNamespace(is_cuda=True, device=torch.device("cuda:1"))
    assert ops._run("anything", elsewhere) == [torch.device("cuda:1")]
    assert ops._run("anything", torch.zeros(1)) == []
    assert on == []
