"""Values that decide something: frozen, checked when they are made, as plain values in files.

A setting says once what it is by default, what it may be, and what it does; checks and the inputs of nodes
are made from that.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from .errors import InputError, shown

_KEY = "setting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Say what a setting may be, and what it does.

    Attributes:
        help: what a user reads about it.
        least, most: its range; with `above`, `least` itself is out of it.
        choices: where it is one of some; anything that can be iterated over.
        step: how far an input goes at once.
        digits: how many decimals an input keeps; None for as many as `step` has.
        label: what an input is called; None for its name.
    """

    help: str = ""
    least: float = 0.0
    most: float = math.inf
    above: bool = False
    choices: Iterable[str] | None = None
    step: float | None = None
    digits: int | None = None
    label: str | None = None

    def check(self, name: str, value: object, default: object) -> None:
        """Raise InputError unless a value may be that of the setting, which is of the kind of its default."""
        if self.choices is not None:
            check_choice(name, value, self.choices)
        elif isinstance(default, str):
            if not isinstance(value, str):
                raise InputError(f"Expected {name} to be a text, got {shown(value)}. Change {name}.")
        else:
            check_number(
                name,
                value,
                least=self.least,
                most=self.most,
                above=self.above,
                whole=isinstance(default, int),
            )


def setting(default: Any, help: str = "", **options: Any) -> Any:
    """Return the field of a setting; options are those of `Setting`."""
    return dataclasses.field(default=default, metadata={_KEY: Setting(help=help, **options)})


def settings_of(kind: type[Settings]) -> dict[str, tuple[Setting, Any]]:
    """Return what is said of each setting of a class, with its default."""
    return {f.name: (f.metadata[_KEY], f.default) for f in fields(kind) if _KEY in f.metadata}  # type: ignore[arg-type]


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise InputError unless value is one of choices."""
    choices = tuple(choices)
    if value not in choices:
        raise InputError(
            f"Expected {name} to be one of {', '.join(map(str, choices))}, got {shown(value)}. Choose one."
        )


def check_number(
    name: str,
    value: Any,
    *,
    least: float,
    whole: bool = False,
    above: bool = False,
    most: float = math.inf,
) -> None:
    """Raise InputError unless value is a finite number of at least `least` (more than it if `above`)."""
    right_type = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if (
        not right_type
        or not math.isfinite(value)
        or value < least
        or value > most
        or (above and value == least)
    ):
        kind = "a whole number" if whole else "a finite number"
        bound = f"more than {least:g}" if above else f"at least {least:g}"
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise InputError(f"Expected {name} to be {kind}, {bound}{limit}, got {shown(value)}. Change {name}.")


class Settings:
    """Be checked by what is said of each setting, turn into plain values and back; no key is passed over."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, (said, default) in settings_of(type(self)).items():
            said.check(name, getattr(self, name), default)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the settings that `to_dict` described.

        Raises:
            InputError: a key is unknown or a value cannot work.
        """
        check_keys(values, {f.name for f in fields(cls)})  # type: ignore[arg-type]
        return cls(**values)


def check_keys(values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise InputError where a key is none of those that are known."""
    known = sorted(known)
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"Expected a plan with the keys {known}, got also {unknown!r}. Remove them.")
