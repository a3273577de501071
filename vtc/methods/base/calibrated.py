"""Methods with numbers of their own for each model: where these come from, and which model they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vtc.methods.base.method import Method

if TYPE_CHECKING:
    from vtc.calibration.work import Work

FORMAT = 1
_NAMES = ("format", "method", "keep", "options", "model")


@dataclass(frozen=True, kw_only=True)
class CalibratedMethod(Method):
    """A method some of whose options are found for a model by `vtc.calibrate`, which writes them into a small file.

    A subclass names these options in `tuned`, gives each the default None, reads them with `option(name)`, and says in
    `calibrated` how they are found.

    Args:
        calibration: a file that `vtc.calibrate` wrote for this model and this `keep`; None = none.
    """

    calibration: str | Path | None = None

    files = ("calibration",)
    #: whether what is found is for one `keep`
    for_one_budget: ClassVar[bool] = True
    #: options that a calibration finds, and what None stands for where there is none
    tuned: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration is None:
            return
        if not isinstance(self.calibration, str | Path):
            raise TypeError(f"calibration={self.calibration!r} is not a file that vtc.calibrate wrote.")
        object.__setattr__(self, "calibration", str(self.calibration))
        card = read_calibration(self.calibration, self.title)
        if self.for_one_budget and card["keep"] != self.keep:
            raise ValueError(
                f"keep={self.keep!r}, but {self.calibration} was found for keep={card['keep']!r}: give that, or "
                "calibrate for another."
            )
        for name, found in card["options"].items():
            if name not in self.tuned:
                raise ValueError(f"{self.calibration} says {name!r}, which {self.title} does not calibrate.")
            if getattr(self, name) not in (None, _plain(found)):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}, but {self.calibration} says {name}={found!r}: leave one of them "
                    "out."
                )

    @classmethod
    def completed(cls, options: dict[str, Any]) -> dict[str, Any]:
        """With the budget of the calibration, where none is given."""
        file = options.get("calibration")
        if cls.for_one_budget and isinstance(file, str | Path) and "keep" not in options:
            return {**options, "keep": read_calibration(file, cls.name)["keep"]}
        return options

    def option(self, name: str) -> Any:
        """One of the options in `tuned`: as given, else as the calibration has it, else what None stands for."""
        given = getattr(self, name)
        if given is None and self.calibration is not None:
            given = _plain(read_calibration(self.calibration, self.title)["options"].get(name))
        return self.tuned[name] if given is None else given

    def tried(self, **values: Any) -> Self:
        """This method with other values of its tuned options, and no file."""
        return replace(self, calibration=None, **values)

    def measuring(self) -> Self:
        """This method with values of its tuned options for which it reads every signal that it may read with others."""
        return self

    def check_checkpoint(self, model_type: str, fingerprint: Callable[[], str]) -> None:
        if self.calibration is None:
            return
        known, own = read_calibration(self.calibration, self.title)["model"], fingerprint()
        if known["fingerprint"] != own:
            raise ValueError(
                f"{self.calibration} is of another model ({known['type']} {known['fingerprint']}; this one "
                f"is {model_type} {own}): run vtc.calibrate on this one."
            )

    def check_calibration(self) -> None:
        """Raise ValueError with one sentence if there is nothing to calibrate; asked before any compute."""

    def calibrated(self, work: Work) -> Mapping[str, Any]:
        """Find the options in `tuned`: their values, by name.

        Args:
            work: the model and the pairs; `work.search(...)` searches a box of numbers for those that serve best.
        """
        raise TypeError(f"{type(self).__name__} does not define calibrated(work).")


def read_calibration(file: str | Path, method: str) -> dict[str, Any]:
    """What a calibration of `method` says; FileNotFoundError or ValueError with one sentence if it will not do."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no calibration at {path}: vtc.calibrate writes one.")
    card = _card(path, path.stat().st_mtime_ns)
    if card["format"] != FORMAT or card["method"] != method:
        raise ValueError(
            f"{path} is a calibration of {card['method']} in format {card['format']}; expected {method} in format "
            f"{FORMAT}."
        )
    return card


@lru_cache(maxsize=32)
def _card(path: Path, written: int) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        known = {name: card[name] for name in _NAMES}
        if not isinstance(known["options"], dict) or not {"type", "fingerprint"} <= known["model"].keys():
            raise TypeError("its options or its model are no table")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no calibration ({error!r}): run vtc.calibrate anew.") from None
    return card


def _plain(value: Any) -> Any:
    """Tuples for JSON's lists."""
    return tuple(map(_plain, value)) if isinstance(value, list) else value
