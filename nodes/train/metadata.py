"""What a file of a LoRA says about itself: ModelSpec, fields of kohya's scripts, and all that decided it.

github.com/Stability-AI/ModelSpec, github.com/kohya-ss/sd-scripts. Nothing is a time: equal trainings give
equal files.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from PIL import Image

from ...domaingallery_core.data.parts import Role
from ...domaingallery_core.fingerprints import fingerprint
from ...domaingallery_core.run.plan import TrainingPlan
from ...domaingallery_core.trainables.kinds import KINDS
from ..host.families import family_of
from ..host.few_steps import file_of
from ..host.identity import WEIGHTS
from ..host.model import process_of
from ..sockets import DomainPrompts
from .data import Pair

SPEC = "1.0.1"
#: The longer side of the preview in a file, and its quality as a JPEG.
THUMBNAIL, QUALITY = 256, 85


def metadata(
    prompts: DomainPrompts,
    plan: TrainingPlan,
    identity: Mapping[str, Any],
    step: int,
    subject: DomainPrompts | None = None,
) -> dict[str, str]:
    """Return what the plan of a training and its prompts say."""
    first, optimizer = prompts.first, plan.optimizer
    trigger = ", ".join(part.target_text for part in prompts.categories)
    if subject is not None:
        word, category = subject.first.identifier, subject.first.category
        words = [first.identifier, word] if word != first.identifier else [word]
        trigger = " ".join(["a", *words, category])
    return {
        "format": "pt",
        "modelspec.sai_model_spec": SPEC,
        "modelspec.title": f"{first.identifier} {first.category}",
        "modelspec.trigger_phrase": trigger,
        **of_kind(plan),
        "ss_steps": str(step),
        "ss_max_train_steps": str(optimizer.steps),
        "ss_learning_rate": f"{optimizer.learning_rate:g}",
        "ss_unet_lr": f"{optimizer.learning_rate:g}",
        "ss_lr_scheduler": optimizer.schedule,
        "ss_lr_warmup_steps": str(optimizer.warmup_steps),
        "ss_gradient_accumulation_steps": str(optimizer.accumulation),
        "ss_optimizer": optimizer.optimizer,
        "ss_max_grad_norm": f"{optimizer.max_grad_norm:g}",
        "ss_seed": str(plan.seed),
        "domaingallery.base_model_hash": identity[f"base model {WEIGHTS}"],
        "domaingallery.identity": fingerprint(identity),
        "domaingallery.plan": json.dumps(plan.to_dict()),
        "domaingallery.prompts": json.dumps(
            {
                "identifier": first.identifier,
                "category": first.category,
                "categories": prompts.words,
                "target": first.target_text,
                "source": first.source_text,
            }
        ),
    }


def of_kind(plan: TrainingPlan) -> dict[str, str]:
    """Return what there is to say of what was trained, in kohya's words."""
    if plan.adapter is not None:
        return {
            **KINDS[plan.adapter.kind].metadata(),
            "ss_network_dim": str(plan.adapter.rank),
            "ss_network_alpha": f"{plan.adapter.alpha:g}",
            "ss_network_dropout": f"{plan.adapter.dropout:g}",
        }
    if plan.weights is not None:
        return {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "full"})}
    return {}


def of_model(model: ModelPatcher) -> dict[str, str]:
    """Return what there is to say of the model: its architecture, what it predicts, and its file if known."""
    found = family_of(model).architecture(model.model)
    kind = process_of(model).kind
    if kind != "flow":  # for which the standard has no word
        found["modelspec.prediction_type"] = kind
    if file := file_of(model):
        found["ss_sd_model_name"] = file
    return found


def of_data(model: ModelPatcher, pairs: Mapping[Role, Sequence[Pair]], plan: TrainingPlan) -> dict[str, str]:
    """Return what there is to say of the images that a plan reads: numbers, size, and words with how many."""
    scale = model.get_model_object("latent_format").spacial_downscale_ratio
    height, width = (side * scale for side in pairs["domain"][0][1].source.latents.shape[-2:])
    words: dict[str, dict[str, int]] = {}
    learned = kept = 0
    for role, prompts, part in [(role, *pair) for role, some in pairs.items() for pair in some]:
        target, source = (
            len(images) if images is not None and plan.method.reads(kind, role) else 0
            for kind, images in (("target", part.target), ("source", part.source))
        )
        learned, kept = learned + target, kept + source
        counts = words.setdefault(f"{prompts.identifier} {prompts.category}", {})
        counts[prompts.target_text] = counts.get(prompts.target_text, 0) + (target or source)
    return {
        "modelspec.resolution": f"{width}x{height}",
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": str(learned),
        "ss_num_reg_images": str(kept),
        "ss_tag_frequency": json.dumps(words),
    }


def thumbnail(columns: Mapping[int, Sequence[Image.Image]]) -> dict[str, str]:
    """Return the last preview as a small picture, if there is one."""
    if not columns or not columns[max(columns)]:
        return {}
    picture, file = columns[max(columns)][0].convert("RGB"), io.BytesIO()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=QUALITY)
    return {"modelspec.thumbnail": f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"}
