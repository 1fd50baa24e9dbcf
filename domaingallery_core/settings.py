"""Values that decide something: frozen, checked when they are made, as plain values in files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Self

from .errors import InputError, shown


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
    """Turn settings into plain values and back; an unknown key is an error."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as values that JSON can hold."""
        return asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the settings that `to_dict` described.

        Raises:
            InputError: a key is unknown or a value cannot work.
        """
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise InputError(
                f"Expected a plan with the keys {sorted(known)}, got also {unknown!r}. Remove them."
            )
        return cls(**values)
