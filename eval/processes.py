"""Several processes at one evaluation, as `accelerate launch` starts them; one process needs no accelerate."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any


class Processes:
    """This process among those that share the work.

    Attributes:
        rank: its number from 0. world: how many there are. device: its GPU, or None for what the user says.
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.world, self.device = 0, 1, device
        self._state: Any = None
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return
        try:
            import torch
            from accelerate import PartialState
        except ImportError as error:
            raise ImportError("several processes need accelerate: pip install 'vtc-vlm[eval]'") from error
        cpu = device == "cpu" or not torch.cuda.is_available()
        # One process may wait for another as long as that takes: the first one measures times at the end.
        self._state = PartialState(cpu=cpu, timeout=timedelta(days=7))
        self.rank, self.world = self._state.process_index, self._state.num_processes
        self.device = "cpu" if cpu else str(self._state.device)

    def wait(self) -> None:
        """Until all are here."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes, one after another, in each of them."""
        if self._state is None:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def leave(self) -> None:
        """Say good-bye to the others, so that none complains."""
        if self._state is not None:
            self._state.destroy_process_group()
