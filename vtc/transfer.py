"""Between main memory and a device, without waiting where that can be helped, and once where it cannot.

A device works through its queue while Python runs ahead. A plain copy in either direction waits until the queue is
empty; a copy from pinned memory to the device is queued like any other work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of main memory on `device`; on a GPU nothing waits for it."""
    if x.device == device:
        return x
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def upload_all(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """LongTensors of main memory on `device`, in one copy."""
    if device.type == "cpu":
        return list(tensors)
    packed = upload(torch.cat([x.reshape(-1) for x in tensors]), device)
    parts = packed.split([x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]


def download_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Integer or Boolean tensors in main memory, in one copy from each device: it is waited for once."""
    found, elsewhere = list(tensors), {x.device for x in tensors if x.device.type != "cpu"}
    for device in elsewhere:
        own = [i for i, x in enumerate(tensors) if x.device == device]
        packed = torch.cat([tensors[i].reshape(-1).long() for i in own]).cpu()
        for i, part in zip(own, packed.split([tensors[i].numel() for i in own]), strict=True):
            found[i] = part.view(tensors[i].shape).to(tensors[i].dtype)
    return found
