"""How a run of the vision tower travels: as an item of its output, beside the features; or, where a family makes an
output of its own of that, with the memory of the tower's last hidden states, which it hands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vtc.models.family import TowerCall

ITEM = "vtc"  # the item of a tower's output that holds its TowerCall
ROWS_ITEM = "vtc_rows"  # that says what has become of each patch inside of it
PIXEL_ITEM = "vtc_pixels"  # that holds the grids of pictures that were made smaller before it ran


def pack(call: TowerCall) -> dict[str, Any]:
    """A TowerCall as plain containers of tensors and numbers."""
    signals = {f"{name} {layer}": value for (name, layer), value in call.signals.items()}
    return {**vars(call), "signals": signals}


def lend(output: Any) -> None:
    """Let the item of a tower's output travel with the memory of its last hidden states, too."""
    setattr(output.last_hidden_state.untyped_storage(), ITEM, output[ITEM])


def unpack(output: Any) -> TowerCall | None:
    """The TowerCall that travels with a tower's output, None if there is none."""
    item = output.get(ITEM) if isinstance(output, Mapping) else None
    states = getattr(output, "last_hidden_state", None)
    if item is None and isinstance(states, Tensor):
        item = getattr(states.untyped_storage(), ITEM, None)
    if item is None:
        return None
    signals = {(name.rsplit(" ", 1)[0], int(name.rsplit(" ", 1)[1])): value for name, value in item["signals"].items()}
    return TowerCall(**{**item, "signals": signals})
