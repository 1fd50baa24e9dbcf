"""What tells a MODEL from every other: hashes of all that decides what it computes."""

from __future__ import annotations

import logging
import secrets
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...domaingallery_core.fingerprints import fingerprint, tensors_hash

log = logging.getLogger("domaingallery")

WEIGHTS = "weights"
#: How the hash begins of what cannot be told from anything else, and so counts as different.
UNKNOWN = "unknown "
#: Where the schedule is; the aspect of that name covers it, with what was patched over it.
SCHEDULE = "model_sampling"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def model_identity(model: ModelPatcher) -> dict[str, str]:
    """Return a hash for each aspect of a MODEL; it is the same whether the MODEL is loaded or not.

    Two MODELs compute the same if all are the same: family and structure, weights as they were loaded,
    prediction type and schedule, and every patch, option, wrapper and hook. What cannot be told by its
    content is warned of and gets a hash that no other has.
    """
    found = {WEIGHTS: tensors_hash(original_weights(model))}
    for name, value in aspects(model).items():
        try:
            found[name] = fingerprint(value, _stands_for)
        except TypeError as error:
            log.warning(
                "The %s of this MODEL cannot be told from others (%s): what is drawn or trained with it is "
                "not taken up again after a stop.", name, error,
            )  # fmt: skip
            found[name] = UNKNOWN + secrets.token_hex(16)
    return found


def is_told(identity: dict[str, str]) -> bool:
    """Tell whether a MODEL can be told from all others."""
    return not any(value.startswith(UNKNOWN) for value in identity.values())


def aspects(model: ModelPatcher) -> dict[str, Any]:
    """Return what decides what a MODEL computes besides its weights, by words that a user may read."""
    base = model.model
    config = getattr(base, "model_config", None)
    return {
        "family": [
            type(base),
            str(getattr(base, "model_type", None)),
            getattr(config, "unet_config", None),
            model.get_model_object("latent_format"),
            structure(model),
        ],
        "prediction and schedule": model.get_model_object(SCHEDULE),
        "patches": [model.patches, model.weight_wrapper_patches, model.force_cast_weights],
        "object patches": model.object_patches,
        "options": model.model_options,
        "wrappers and hooks": [
            model.wrappers, model.callbacks, model.injections, model.hook_patches, model.forced_hooks,
            model.attachments, model.additional_models,
        ],
    }  # fmt: skip


def original_weights(model: ModelPatcher) -> dict[str, Tensor]:
    """Return all weights and buffers of a MODEL but the schedule's, as they were before it was patched."""
    replaced = (SCHEDULE, *model.object_patches_backup)
    weights = {
        name: tensor
        for name, tensor in model.model.state_dict().items()
        if not any(name == path or name.startswith(f"{path}.") for path in replaced)
    }
    for path, original in model.object_patches_backup.items():
        if isinstance(original, nn.Module) and path != SCHEDULE:
            weights |= {f"{path}.{name}": tensor for name, tensor in original.state_dict().items()}
    weights |= {name: kept.weight for name, kept in model.backup.items()}
    return weights | dict(model.backup_buffers)


def structure(model: ModelPatcher) -> list[Any]:
    """Return the class of each module of the network, and what others have hooked into it."""
    originals = model.object_patches_backup
    found = []
    for name, module in model.model.diffusion_model.named_modules(prefix="diffusion_model"):
        if not any(name == path or name.startswith(f"{path}.") for path in originals):
            hooks = [vars(module)[key] for key in HOOKS if vars(module).get(key)]
            found.append([name, type(module), vars(module).get("forward"), hooks])
    return found


def _stands_for(value: Any) -> Any:
    """Return what is hashed for an object: of a MODEL that a patch holds, what tells it from others."""
    if isinstance(value, ModelPatcher):
        weights = {name: tensor for name, tensor in original_weights(value).items()}
        return [weights, {name: aspect for name, aspect in aspects(value).items()}]
    return value
