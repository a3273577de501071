"""How a run of the vision tower travels: as an item of its output, beside the features; or, where a family makes an
output of its own of that, with the memory of the tower's last hidden states, which it hands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vtc.models.family import Adapter, TowerCall

ITEM = "vtc"  # the item of a tower's output that holds its TowerCall
ROWS_ITEM = "vtc_rows"  # that says what has become of each patch inside of it
PIXEL_ITEM = "vtc_pixels"  # that holds the grids of pictures that were made smaller before it ran


def pack(call: TowerCall) -> dict[str, Any]:
    """A TowerCall as plain containers of tensors and numbers."""
    signals = {f"{name} {layer}": value for (name, layer), value in call.signals.items()}
    return {**vars(call), "signals": signals}


def note(output: Any, name: str, item: dict[str, Any], adapter: Adapter) -> None:
    """Have `item` travel with a tower's output. With a family that makes an output of its own of that and hands on
    nothing but hidden states (`Adapter.rebuilds`) it travels with these, too: on the tensors, and with the memory of
    the last of them."""
    output[name] = item
    if not adapter.rebuilds:
        return
    for state in getattr(output, "hidden_states", None) or ():
        if isinstance(state, Tensor):
            setattr(state, name, item)
    setattr(output.last_hidden_state.untyped_storage(), name, item)


def noted(output: Any, name: str) -> dict[str, Any] | None:
    """What `note` has left, None if there is nothing of that name."""
    if not isinstance(output, Mapping):
        states, last = (), getattr(output, "last_hidden_state", None)
    else:
        if name in output:
            return output[name]
        states, last = output.get("hidden_states") or (), output.get("last_hidden_state")
    memories = [last.untyped_storage()] if isinstance(last, Tensor) else []
    return next((getattr(x, name) for x in (*states, *memories) if hasattr(x, name)), None)


def unpack(output: Any) -> TowerCall | None:
    """The TowerCall that travels with a tower's output, None if there is none."""
    item = noted(output, ITEM)
    if item is None:
        return None
    signals = {(name.rsplit(" ", 1)[0], int(name.rsplit(" ", 1)[1])): value for name, value in item["signals"].items()}
    return TowerCall(**{**item, "signals": signals})
