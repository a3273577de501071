"""Plug-in of vLLM: pictures are pruned between vision tower and language model, while the server does all it does.

vLLM finds it through the entry-point group `vllm.general_plugins`, in each of its processes, whether or not anybody
wants to prune: `register` names the architectures and imports none of them.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import logging

_LOG = logging.getLogger("vllm.vtc")  # vLLM's own handlers print what is logged below "vllm"


def register() -> None:
    """Make the plug-in's architectures known to vLLM; may be called again, and never raises."""
    try:
        from vtc.serving.vllm.families import FAMILIES

        _adjust(_enter([(family.architecture, family.place) for family in FAMILIES.values()]))
    except Exception as error:
        _LOG.warning("vtc's plug-in could not register its architectures (%s): vLLM works without it.", error)


def _enter(places: list[tuple[str, str]]) -> list[str]:
    """Enter (architecture, "module:class") rows, and return the names that are ours now; one that another plug-in has
    taken stays that one's."""
    from vllm import ModelRegistry

    ours = []
    for architecture, place in places:
        there = ModelRegistry.models.get(architecture)
        if there is not None and place != (taken := _place_of(there)):
            _LOG.warning(
                "%s stands for %s of another plug-in, and vtc leaves it alone: choose by VLLM_PLUGINS which is loaded.",
                architecture,
                taken,
            )
            continue
        if there is None:
            ModelRegistry.register_model(architecture, place)
        ours.append(architecture)
    return ours


def _adjust(architectures: list[str]) -> None:
    """Have vLLM's settings adjusted where it serves one of these."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vtc.serving.vllm.settings import PrunedSettings

    for architecture in architectures:
        MODELS_CONFIG_MAP[architecture] = PrunedSettings


def _place_of(registered: object) -> str:
    """ "module:class" of what vLLM's registry holds, a class or the place of one."""
    cls = getattr(registered, "model_cls", None)
    if cls is not None:
        return f"{cls.__module__}:{cls.__qualname__}"
    return f"{getattr(registered, 'module_name', '')}:{getattr(registered, 'class_name', '')}"
