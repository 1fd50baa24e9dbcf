"""What an input may be: a value of a widget by its schema, what comes through a socket by its type."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from torch import Tensor

from ..domaingallery_core.errors import InputError, shown
from .sockets import (
    Dataset,
    DomainPrompts,
    Embedding,
    LatentDataset,
    Options,
    Prompts,
    Run,
    RunOptions,
    Source,
    SourceLatents,
    TrainedEmbedding,
    TrainingOptions,
)

#: Texts of a widget are at most so long; those that only name something are much shorter in any case.
LONGEST_TEXT = 10_000
#: Lists with more options than this are those of files; the host reads them anew.
MOST_OPTIONS = 50


def check_value(part: io.Input, value: Any) -> None:
    """Check a value against an input of a schema.

    Raises:
        InputError: it is of another kind, out of its range, or damaged.
    """
    if isinstance(part, io.Float.Input | io.Int.Input):
        _check_number(part, value)
    elif isinstance(part, io.Boolean.Input):
        if not isinstance(value, bool):
            raise InputError(f"Expected {part.id} to be yes or no, got {shown(value)}. Change {part.id}.")
    elif isinstance(part, io.String.Input):
        check_text(part.id, value)
    elif isinstance(part, io.DynamicCombo.Input):
        _check_options(part, value)
    elif isinstance(part, io.Autogrow.Input):
        _check_growing(part, value)
    elif isinstance(part, io.Combo.Input):
        _check_choice(part, value)
    else:
        kinds = [KINDS[kind] for kind in part.get_io_type().split(",") if kind in KINDS]
        if kinds and not any(fits(value) for fits, _, _ in kinds):
            wanted = " or ".join(name for _, name, _ in kinds)
            told = ABSENT.get(part.get_io_type()) if value is None else None
            raise InputError(
                f"Expected {part.id} to be {wanted}, got {shown(value)}. {told or f'Connect {part.id} anew.'}"
            )
        for fits, _, check in kinds:
            if check is not None and fits(value):
                check(part.id, value)


def _check_number(part: Any, value: Any) -> None:
    whole = isinstance(part, io.Int.Input)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    least, most = (-math.inf if part.min is None else part.min), (math.inf if part.max is None else part.max)
    finite = right and (isinstance(value, int) or math.isfinite(value))
    if not finite or not least <= value <= most:
        kind = "a whole number" if whole else "a finite number"
        raise InputError(
            f"Expected {part.id} to be {kind} from {least:g} to {most:g}, got {shown(value)}. "
            f"Change {part.id}."
        )


def _check_choice(part: io.Combo.Input, value: Any) -> None:
    check_text(part.id, value)
    options = part.options or []
    if not options or len(options) > MOST_OPTIONS or not all(isinstance(option, str) for option in options):
        return
    if value not in [str(option) for option in options]:
        wanted = ", ".join(map(str, options))
        raise InputError(f"Expected {part.id} to be one of {wanted}, got {shown(value)}. Choose one.")


def _check_options(part: io.DynamicCombo.Input, value: Any) -> None:
    """Check a choice, and the inputs that belong to it."""
    given = value if isinstance(value, dict) else {part.id: value}
    chosen = given.get(part.id)
    option = next((option for option in part.options if option.key == chosen), None)
    if option is None:
        wanted = ", ".join(option.key for option in part.options)
        raise InputError(f"Expected {part.id} to be one of {wanted}, got {shown(chosen)}. Choose one.")
    for nested in option.inputs:
        if not nested.optional or given.get(nested.id) is not None:
            check_value(nested, given.get(nested.id))


def _check_growing(part: io.Autogrow.Input, value: Any) -> None:
    """Check what is connected to an input that grows."""
    if not isinstance(value, dict):
        raise InputError(f"Expected {part.id} to be connected, got {shown(value)}. Connect {part.id} anew.")
    for each in value.values():
        check_value(part.template.input, each)


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


def check_conditioning(name: str, value: Any, *, least: int = 0) -> None:
    """Check that a CONDITIONING is encoded text as the host's own nodes make it, without NaN.

    Args:
        least: so many entries it has at least.

    Raises:
        InputError: it is not.
    """
    if len(value) < least:
        raise InputError(f"Expected {name} to be encoded text, got none. Use the text encoder of the model.")
    for entry in value:
        paired = isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[1], dict)
        # The host allows none, for models that read something else in place of text.
        if not paired or not (entry[0] is None or _numbers(entry[0], least=3)):
            raise InputError(
                f"Expected {name} to be encoded text, got {shown(entry)} in it. Connect a text encoder."
            )
        pooled = entry[1].get("pooled_output")
        if pooled is not None and not _numbers(pooled, least=1):
            raise InputError(
                f"Expected {name} with a pooled embedding as a tensor, got {shown(pooled)}. "
                "Connect a text encoder."
            )
        for tensor in (entry[0], pooled):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise InputError(
                    f"Expected {name} of plain numbers, got some that are not finite. "
                    "Load the text encoder in float32 or bfloat16."
                )


def check_latent(name: str, value: Any) -> None:
    """Check that a LATENT has samples (B C ...) without NaN, and what belongs to them.

    Raises:
        InputError: it has not.
    """
    samples = value.get("samples")
    nested = getattr(samples, "is_nested", False)  # several in one, of the host's own kind
    if not nested and not _numbers(samples, least=3):
        raise InputError(
            f"Expected {name} to hold latents (B C ...), got {shown(samples)}. Connect Empty Latent Image or "
            "VAE Encode."
        )
    if not nested and not bool(torch.isfinite(samples).all()):
        raise InputError(f"Expected {name} of plain numbers, got some that are not finite. Make it anew.")
    mask, numbers = value.get("noise_mask"), value.get("batch_index")
    if mask is not None and not _numbers(mask, least=2):
        raise InputError(f"Expected {name} with a mask (B H W), got {shown(mask)}. Make the mask anew.")
    if numbers is not None and not (
        isinstance(numbers, list | tuple) and numbers and all(isinstance(number, int) for number in numbers)
    ):
        raise InputError(
            f"Expected {name} with a batch_index of whole numbers, got {shown(numbers)}. Make it anew."
        )


def check_lora(name: str, value: Any) -> None:
    """Check that a LORA_MODEL has tensors by names, without NaN.

    Raises:
        InputError: it has not.
    """
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise InputError(
                f"Expected {name} to hold tensors by names, got {shown(tensor)} by {shown(key)}. "
                "Connect the LoRA of a training node, or of Load LoRA Model."
            )
        check_text(f"each name in {name}", key)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"Expected {name} of plain numbers, got some that are not finite in {shown(key)}. "
                "Train it again with a lower learning rate."
            )


def _numbers(value: Any, *, least: int) -> bool:
    """Tell whether a value is a floating-point tensor with elements and at least so many dimensions."""
    return (
        isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= least and value.numel() > 0
    )


def _has(*names: str) -> Callable[[Any], bool]:
    return lambda value: all(callable(getattr(value, name, None)) for name in names)


def _is(kind: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


#: What to do about what a checkpoint may not have.
ABSENT = {
    "CLIP": "If it is from a checkpoint, that has none: load the text encoder of the model by itself.",
    "VAE": "If it is from a checkpoint, that has none: load the VAE of the model by itself.",
}
Kind = tuple[Callable[[Any], bool], str, Callable[[str, Any], None] | None]
#: What comes through a socket: whether a value is of its type, what that is, and what to look at in it.
KINDS: dict[str, Kind] = {
    "MODEL": (_is(ModelPatcher), "a model", None),
    "VAE": (_has("encode", "decode"), "a VAE", None),
    "CLIP": (_has("tokenize", "encode_from_tokens_scheduled"), "a text encoder", None),
    "CONDITIONING": (_is(list), "encoded text", check_conditioning),
    "LATENT": (_is(dict), "latents", check_latent),
    "IMAGE": (_is(Tensor), "images", None),
    "MASK": (_is(Tensor), "masks", None),
    "LORA_MODEL": (_is(dict), "a LoRA", check_lora),
    Prompts.io_type: (_is(DomainPrompts), "prompts of Domain Prompts", None),
    Dataset.io_type: (_is(LatentDataset), "a dataset of Domain Dataset", None),
    Source.io_type: (_is(SourceLatents), "source images of Domain Source Images", None),
    Options.io_type: (_is(TrainingOptions), "options of Domain Training Options", None),
    Run.io_type: (_is(RunOptions), "options of Domain Run Options", None),
    Embedding.io_type: (_is(TrainedEmbedding), "an embedding of Train Baseline", None),
}
