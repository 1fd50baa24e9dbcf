"""What all nodes of the pack share: inputs are checked before they run, and warnings are shown on them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from comfy_api.v0_0_2 import io

from .checks import check_value
from .host.progress import node_id, showing_warnings

_MARK = "_checks_its_inputs"
#: What looks at the graph for the nodes that look ahead, with what the one that runs is given.
looks: list[Callable[[type[io.ComfyNode], dict[str, Any]], None]] = []


class Node(io.ComfyNode):
    """Be a node whose `execute` is given only what its schema allows.

    Attributes:
        looks_ahead: whether what comes after it in the graph is looked at before it works.
    """

    looks_ahead: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        execute = cls.__dict__.get("execute")
        # The host makes copies of the class; these have the wrapped one already.
        if isinstance(execute, classmethod) and not hasattr(execute.__func__, _MARK):
            cls.execute = _checked(execute.__func__)  # type: ignore[method-assign]


def _checked(execute: Callable[..., Any]) -> Any:
    names = [*inspect.signature(execute).parameters][1:]

    @functools.wraps(execute)
    def checked(cls: type[Node], *args: Any, **values: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | values
        with showing_warnings(node_id(cls)):
            found = checked_inputs(cls, given)
            if cls.looks_ahead:
                for look in looks:
                    look(cls, found)
            return execute(cls, **found)

    setattr(checked, _MARK, True)
    return classmethod(checked)


def checked_inputs(cls: type[Node], values: dict[str, Any]) -> dict[str, Any]:
    """Return what a node is given, checked against its schema; of a node that takes lists, each of a list.

    The host checks what a client sends, but NaN passes its bounds, and all that comes through a link. An
    optional input that is given nothing is as one that is not connected.

    Raises:
        InputError: a value is absent, of another kind, out of its range, or damaged.
    """
    schema, found = cls.define_schema(), dict(values)  # GET_SCHEMA keeps it in the class, which is locked
    for part in schema.inputs:
        if part.id not in values:
            continue
        value = values[part.id]
        given = (value or [None]) if schema.is_input_list and isinstance(value, list) else [value]
        if part.optional and all(each is None for each in given):
            del found[part.id]
            continue
        for each in given:
            check_value(part, each)
    return found
