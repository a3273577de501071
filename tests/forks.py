"""A process of its own that need not import anything: a fork of this one."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


def fork(log: Path, run: Callable[[], int | None], **environment: str) -> BaseProcess:
    """Start a process that ends with the status that `run` returns; what it says goes to the file `log`.

    It has gradients, and what else a new process has that the tests' own switch off; and it may be killed.
    """
    process = multiprocessing.get_context("fork").Process(target=_work, args=(log, run, environment))
    process.start()
    return process


def _work(log: Path, run: Callable[[], int | None], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    with torch.enable_grad():
        sys.exit(run())
