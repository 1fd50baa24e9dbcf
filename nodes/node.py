"""What all nodes of the pack share: inputs are checked before they run, and warnings are shown on them."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable
from typing import Any

from comfy_api.v0_0_2 import io

from ..domaingallery_core.errors import InputError
from .progress import node_id, showing_warnings

#: Texts of a widget are at most so long; those that only name something are much shorter in any case.
LONGEST_TEXT = 10_000
_MARK = "_checks_its_inputs"


class Node(io.ComfyNode):
    """Be a node whose `execute` is given only what its schema allows."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        execute = cls.__dict__.get("execute")
        # The host makes copies of the class; these have the wrapped one already.
        if isinstance(execute, classmethod) and not hasattr(execute.__func__, _MARK):
            cls.execute = _checked(execute.__func__)  # type: ignore[method-assign]


def _checked(execute: Callable[..., Any]) -> Any:
    @functools.wraps(execute)
    def checked(cls: type[Node], *args: Any, **values: Any) -> Any:
        with showing_warnings(node_id(cls)):
            check_inputs(cls, values)
            return execute(cls, *args, **values)

    setattr(checked, _MARK, True)
    return classmethod(checked)


def check_inputs(cls: type[Node], values: dict[str, Any]) -> None:
    """Check the values of widgets against the schema; of a node that takes lists, each of a list.

    The host checks what a client sends, but NaN passes its bounds, and all that comes through a link.

    Raises:
        InputError: a value is of another kind or out of its range.
    """
    schema = cls.define_schema()  # GET_SCHEMA keeps it in the class, which the host locks
    for part in schema.inputs:
        if part.id not in values or values[part.id] is None:
            continue
        value = values[part.id]
        given = value if schema.is_input_list and isinstance(value, list) else [value]
        for each in given:
            check_value(part, each)


def check_value(part: io.Input, value: Any) -> None:
    """Check a value against an input of a schema.

    Raises:
        InputError: it is of another kind or out of its range.
    """
    if isinstance(part, io.Float.Input | io.Int.Input):
        _check_number(part, value)
    elif isinstance(part, io.Boolean.Input):
        if not isinstance(value, bool):
            raise InputError(f"Expected {part.id} to be yes or no, got {shown(value)}. Change {part.id}.")
    elif isinstance(part, io.String.Input):
        check_text(part.id, value)
    elif isinstance(part, io.Combo.Input):
        check_text(part.id, value)
        # Lists of files are read anew by the host, so one that is gone is the loader's to name.
        if part.options and all(isinstance(option, str) for option in part.options):
            options = [str(option) for option in part.options]
            if value not in options and len(options) <= 50:
                raise InputError(
                    f"Expected {part.id} to be one of {', '.join(options)}, got {shown(value)}. Choose one."
                )


def _check_number(part: Any, value: Any) -> None:
    whole = isinstance(part, io.Int.Input)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    least, most = (-math.inf if part.min is None else part.min), (math.inf if part.max is None else part.max)
    if not right or not (whole or math.isfinite(value)) or not least <= value <= most:
        kind = "a whole number" if whole else "a finite number"
        raise InputError(
            f"Expected {part.id} to be {kind} from {least:g} to {most:g}, got {shown(value)}. "
            f"Change {part.id}."
        )


def check_text(name: str, value: Any) -> None:
    """Check that a value is a text that can be shown, encoded and be part of a file's name.

    Raises:
        InputError: it is none, too long, or holds what no keyboard types.
    """
    if not isinstance(value, str):
        raise InputError(f"Expected {name} to be a text, got {shown(value)}. Change {name}.")
    if len(value) > LONGEST_TEXT:
        raise InputError(
            f"Expected {name} to have at most {LONGEST_TEXT} characters, got {len(value)}. Shorten {name}."
        )
    # Control characters, halves of surrogate pairs.
    odd = [sign for sign in value if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\r\t"]
    if odd:
        raise InputError(
            f"Expected {name} to be plain text, got the character U+{ord(odd[0]):04X} in it. Take it out."
        )


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and without what cannot be shown."""
    if not isinstance(value, str | bool | int | float):
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) > 10**30:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
