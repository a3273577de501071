"""The page of model families: from the registries, and transformers' own defaults of what a family is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from vtc.models.families import SHIPPED


@dataclass(frozen=True)
class Facts:
    """What decides which methods a family's models can be wrapped with.

    Attributes:
        tower, decoder: `config.model_type` of the vision tower and of the language model that come with it.
        cls: whether the tower has a CLS token. packed: whether it takes pictures of any size, packed into a row.
        projects: whether the CLS token can be passed on to the language model.
    """

    model_type: str
    tower: str
    decoder: str
    cls: bool
    packed: bool
    projects: bool


@cache
def facts() -> list[Facts]:
    """One per family that ships, by model type."""
    from transformers import AutoConfig

    from vtc.models.registry import adapter_of, list_families
    from vtc.models.tower import facts_of

    found = []
    for model_type in [name for name in list_families() if name in SHIPPED]:
        config = AutoConfig.for_model(model_type)
        tower = facts_of(config.vision_config.model_type)
        found.append(
            Facts(
                model_type,
                config.vision_config.model_type,
                config.text_config.model_type,
                tower.has_cls,
                tower.takes == "packed",
                adapter_of(model_type).projects_cls and tower.has_cls,
            )
        )
    return found


def pages() -> dict[str, str]:
    return {}
