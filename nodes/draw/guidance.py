"""Attribute enhancement (paper Eq. 6) as a patch of a MODEL, for every guider and sampler of the host.

The patch is one wrapper around a sampling run. For the length of the run it adds the base conditionings to
those of the guider, has them evaluated in the batch in which the positive is, and adds the last summand of
Eq. 6 to whatever guidance came out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...domaingallery_core import guidance
from ...domaingallery_core.errors import InputError
from ..host.progress import say
from ..sockets import Conditioning, DomainPrompts
from .conditionings import Cond, base_for, coverage, lacks_lora, register_hooks, same

KEY = "domaingallery"
NONE, V_UNCOND, VN_N = MODES = list(guidance.MODES)
# What a mode compares the base with, by its name in a guider.
COUNTERPARTS = {V_UNCOND: "negative", VN_N: "positive"}
NO_LORA = "This model has no LoRA: unless the domain is in its checkpoint, this is plain prompting."
NOTHING_ADDED = (
    "{mode} adds nothing: its base is the same as the {name}. Does the prompt hold the identifier, and is it "
    "short enough for the text encoder?"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Enhancement:
    """Hold one enhancement: what to add, how much of it, and when.

    Attributes:
        base: the prompt "[V]" for the mode V-uncond, "a [N]" for VN-N.
        strength: lambda_2.
        start, end: the part of the schedule in which it acts, 0..1.
        rescale: how far to bring the contrast back to that of the positive's prediction, 0..1.
        node: the id of the node that shows what there is to say.
    """

    mode: str
    strength: float
    base: Conditioning
    start: float
    end: float
    rescale: float
    node: str | None


def make_enhancement(
    mode: str,
    strength: float,
    prompts: DomainPrompts | None,
    base: Conditioning | None,
    *,
    start: float,
    end: float,
    rescale: float,
    node: str | None,
) -> Enhancement | None:
    """Return an enhancement, or None where it is off.

    Raises:
        InputError: it would end before it starts, or no base is given.
    """
    if start > end:
        raise InputError(
            f"Expected start_percent up to end_percent, got {start:g} and {end:g}. "
            "Lower the first or raise the second."
        )
    if mode == NONE or strength == 0:
        return None
    if base is None:
        if prompts is None:
            raise InputError(
                f"Expected prompts or base for the mode {mode}, got neither. Connect Domain Prompts, or an "
                'encoded prompt: the identifier alone for V-uncond, "a [category]" for VN-N.'
            )
        base = prompts.first.bare if mode == V_UNCOND else prompts.first.source
    return Enhancement(
        mode=mode, strength=strength, base=base, start=start, end=end, rescale=rescale, node=node
    )


def enhance_model(model: ModelPatcher, enhancement: Enhancement | None) -> ModelPatcher:
    """Return the MODEL with an enhancement on top of those that it carries; the MODEL itself for None."""
    if enhancement is None:
        return model
    if model.is_dynamic() and comfy.sampler_helpers.cond_has_hooks(enhancement.base):
        patched = model.get_non_dynamic_delegate()  # as guiders do it for conditionings with hooks
    else:
        patched = model.clone()
    wrappers = patched.model_options["transformer_options"].setdefault("wrappers", {})
    kind = wrappers.setdefault(WrappersMP.OUTER_SAMPLE, {})
    before = kind[KEY][0].enhancements if KEY in kind else ()
    kind[KEY] = [EnhancedSampling((*before, enhancement))]
    return patched


def knows_two_rows(model: ModelPatcher, options: dict[str, Any]) -> bool:
    """Tell whether something on a MODEL may know the rows positive and negative alone.

    That is whatever has a hand in attention: its patches and replacements, and layers with another forward.
    """
    given = options.get("transformer_options", {})
    patches = [name for name, each in given.get("patches", {}).items() if each and name.startswith("attn")]
    replaced = [name for name, each in given.get("patches_replace", {}).items() if each]
    layers = [
        name for name in model.object_patches if re.fullmatch(r"diffusion_model\..*\._?forward\w*", name)
    ]
    return bool(patches or replaced or layers)


class EnhancedSampling:
    """Wrap the sampling runs of a MODEL in enhancements."""

    def __init__(self, enhancements: tuple[Enhancement, ...]) -> None:
        self.enhancements = enhancements

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        _Run(executor.class_obj, self.enhancements).begin()
        return executor(*args, **kwargs)


class _Run:
    """The enhancements during one run of a guider."""

    def __init__(self, guider: comfy.samplers.CFGGuider, enhancements: tuple[Enhancement, ...]) -> None:
        self.guider = guider
        self.bases = {f"{KEY} {i}": enhancement for i, enhancement in enumerate(enhancements)}
        self.apart = False  # whether each base is evaluated alone
        self.rows: dict[str, Cond] = {}  # by name; equal ones are one object
        self.active: dict[str, float | Tensor] = {}  # strength by name of the base, at the current step
        self.predictions: dict[int, Tensor] | None = None  # by id of the row
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self.intervals = {
            name: (sampling.percent_to_sigma(e.start), sampling.percent_to_sigma(e.end))
            for name, e in self.bases.items()
            if (e.start, e.end) != (0.0, 1.0)
        }
        self.conds = {
            name: base_for(guider.conds, COUNTERPARTS[e.mode], e.base) for name, e in self.bases.items()
        }
        self.own = {name: {cond["uuid"] for cond in base} for name, base in self.conds.items()}

    def begin(self) -> None:
        """Give the guider the bases, and hook into its predictions for this run."""
        if lacks_lora(self.guider.model_patcher, (self.guider.conds | self.conds).values()):
            for enhancement in self.bases.values():
                say(enhancement.node, NO_LORA)
        register_hooks(self.guider, self.conds)
        self.guider.conds.update(self.conds)
        options = self.guider.model_options  # a copy that the run alone uses
        self.apart = knows_two_rows(self.guider.model_patcher, options)
        for kind, wrapper in (
            (WrappersMP.PREDICT_NOISE, self.predict_noise),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
        ):
            comfy.patcher_extension.add_wrapper_with_key(kind, KEY, wrapper, options, is_model_options=True)
        # First, so that patches of other nodes work on what is enhanced.
        options["sampler_post_cfg_function"] = [self.post_cfg, *options.get("sampler_post_cfg_function", [])]

    def predict_noise(
        self, executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, *args: Any
    ) -> Tensor:
        """Begin a prediction: find what acts at this noise level."""
        if not self.rows:
            self._share_rows()
        self.predictions = None
        self.active = {}
        for name, enhancement in self.bases.items():
            start, end = self.intervals.get(name, (math.inf, -math.inf))
            if end <= float(timestep.max()) <= start:
                own = [cond for cond in self.guider.conds[name] if cond["uuid"] in self.own[name]]
                where = coverage(own, x, timestep)
                if where is not None:
                    self.active[name] = enhancement.strength * where
        return executor(x, timestep, *args)

    def _share_rows(self) -> None:
        """Let conditionings that are the same be one row, and drop enhancements that would add nothing."""
        conds = self.guider.conds
        for name, cond in conds.items():  # the host gives each conditioning the areas of all others
            foreign = {uuid for other, own in self.own.items() if other != name for uuid in own}
            conds[name] = [each for each in cond if each["uuid"] not in foreign]
        for name in ("positive", "negative", *self.bases):
            cond = conds.get(name)
            if cond is not None:
                others = [row for other, row in self.rows.items() if self._marked_alike(name, other)]
                self.rows[name] = next((row for row in others if same(row, cond)), cond)
        for name, enhancement in list(self.bases.items()):
            counterpart = COUNTERPARTS[enhancement.mode]
            if self.rows[name] is self.rows[counterpart]:
                del self.bases[name]
                say(enhancement.node, NOTHING_ADDED.format(mode=enhancement.mode, name=counterpart))

    def _mark(self, name: str) -> str:
        """Return how a row is marked: as positive or negative; a base as what it is compared with."""
        return COUNTERPARTS[self.bases[name].mode] if name in self.bases else name

    def _marked_alike(self, name: str, other: str) -> bool:
        return not self.apart or self._mark(name) == self._mark(other)

    def _alone(self, row: Cond) -> list[Cond | None]:
        """Return the conditionings of an evaluation of one row; the host marks them by their place in it."""
        marks = {self._mark(name) for name, each in self.rows.items() if each is row}
        return [row] if "positive" in marks else [None, row]

    def _wanted(self) -> list[Cond]:
        names = [*self.active, *(COUNTERPARTS[self.bases[name].mode] for name in self.active)]
        if any(self.bases[name].rescale for name in self.active):
            names.append("positive")
        return list({id(self.rows[name]): self.rows[name] for name in names}.values())

    def calc_cond_batch(
        self, executor: Callable[..., list[Tensor]], model: Any, conds: list[Cond | None], *args: Any
    ) -> list[Tensor]:
        """Evaluate what is missing along with the positive, and hand back what was asked for."""
        asked = any(cond is self.rows["positive"] for cond in conds)
        if not self.active or self.predictions is not None or not asked:
            return executor(model, conds, *args)
        more = [row for row in self._wanted() if not any(row is cond for cond in conds)]
        together, apart = ([], more) if self.apart else (more, [])
        out = executor(model, [*conds, *together], *args)
        found = zip([*conds, *together], out, strict=True)
        # Hooks of other nodes get those that were asked for, and some write into them.
        self.predictions = {id(row): x0.clone() for row, x0 in found if row is not None}
        for row in apart:
            self.predictions[id(row)] = executor(model, self._alone(row), *args)[-1]
        return out[: len(conds)]

    def post_cfg(self, args: dict[str, Any]) -> Tensor:
        """Add the last summand of Eq. 6 to what guidance gave."""
        denoised = args["denoised"]
        if not self.active:
            return denoised
        predictions = dict(self.predictions or {})
        self.predictions = predictions
        missing = [row for row in self._wanted() if id(row) not in predictions]
        if missing:  # something else than the host's own sampling function evaluates the rows
            for rows in map(self._alone, missing) if self.apart else [missing]:
                out = comfy.samplers.calc_cond_batch(
                    args["model"], rows, args["input"], args["sigma"], args["model_options"]
                )
                found = zip(rows, out, strict=True)
                predictions.update({id(row): x0 for row, x0 in found if row is not None})
        # Sampling functions of other packs may not tell the scale.
        scale = args.get("cond_scale", getattr(self.guider, "cfg", 1.0))
        known = {name: predictions.get(id(row)) for name, row in self.rows.items()}
        for name, strength in self.active.items():
            enhancement = self.bases[name]
            term = guidance.direction(
                known.get("negative"), known.get("positive"), known[name], mode=enhancement.mode
            )
            denoised = guidance.add_enhancement(denoised, term, guidance_scale=scale, enhancement=strength)
            if enhancement.rescale:
                denoised = guidance.rescale(denoised, known["positive"], amount=enhancement.rescale)
        return denoised
