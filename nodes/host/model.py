"""The host as the core sees it: a MODEL as a Denoiser that can be trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, EPS, V_PREDICTION, ModelSamplingDiscrete, StableCascadeSampling
from torch import Tensor, nn

from ...domaingallery_core.errors import InputError
from ...domaingallery_core.model.denoiser import Condition
from ...domaingallery_core.model.process import Process
from ...domaingallery_core.trainables.adapters import ordinary_weights
from ..sockets import Conditioning
from .families import family_of
from .network.autograd import differentiable, differentiable_attention
from .pixels.latents import with_frames, without_frames
from .text import check_text_encoder

# Where the core's name of a condition differs from the host's.
CORE_NAMES = {"c_crossattn": "context"}
HOST_NAMES = {core: host for host, core in CORE_NAMES.items()}


class HostDenoiser:
    """Be the core's Denoiser for a host MODEL of any family."""

    def __init__(self, model: ModelPatcher) -> None:
        self.model = model
        self.process = process_of(model)
        self.family = family_of(model)
        self._options = _transformer_options(model)

    def conditions(self, conditionings: Sequence[Conditioning], latents: Tensor) -> list[Condition]:
        """Convert CONDITIONINGs through the host, as its samplers do, for latents of a shape (N C H W).

        Raises:
            InputError: a conditioning is of a kind that cannot be trained with.
        """
        return [self._condition(conditioning, latents) for conditioning in conditionings]

    def _condition(self, conditioning: Conditioning, latents: Tensor) -> Condition:
        tensors: dict[str, Tensor] = {}
        constants: dict[str, Any] = {}
        for name, cond in self._model_conds(conditioning, with_frames(self.model, latents[:1])).items():
            if isinstance(cond, comfy.conds.CONDConstant):
                constants[name] = cond.cond
            elif isinstance(cond, comfy.conds.CONDRegular) and isinstance(cond.cond, Tensor):
                # A copy outside of inference mode is an ordinary tensor, and keeps a gradient.
                tensors[CORE_NAMES.get(name, name)] = cond.cond.clone().to(latents.device)
            else:
                raise InputError(
                    f"Expected a model that is conditioned on plain tensors, got {name!r} as a "
                    f"{type(cond).__name__}. This kind of model cannot be trained here."
                )
        return Condition(tensors, constants)

    def _model_conds(self, conditioning: Conditioning, noise: Tensor) -> dict[str, Any]:
        if len(conditioning) != 1:
            raise InputError(
                f"Expected prompts of a single conditioning, got {len(conditioning)} combined ones. "
                "Use the output of Domain Prompts as it is."
            )
        if not conditioning or not isinstance(conditioning[0][0], Tensor) or conditioning[0][0].ndim < 3:
            raise InputError("Expected encoded prompts, got an empty conditioning. Connect Domain Prompts.")
        check_text_encoder(self.model, [conditioning])
        [[context, extra]] = conditioning
        if self.family.guidance is not None:
            extra = {"guidance": self.family.guidance} | extra
        conds = {"positive": comfy.sampler_helpers.convert_cond([[context, extra]])}
        conds = comfy.samplers.process_conds(self.model.model, noise, conds, noise.device, seed=0)
        return conds["positive"][0]["model_conds"]

    def __call__(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Return x0 (B C H W) for x (B C H W, in the host's sigma space) at sigma (B)."""
        return self._apply(x, sigma, condition, {})

    def features(self, x: Tensor, sigma: Tensor, condition: Condition) -> list[Tensor]:
        """Return what the family's term of similarity compares, each B C H W.

        Raises:
            InputError: the family has nothing of this kind.
        """
        return self.family.features(
            self.model,
            self._options.get("patches", {}),
            lambda patches: self._apply(x, sigma, condition, {"patches": patches}),
        )

    def _apply(self, x: Tensor, sigma: Tensor, condition: Condition, options: dict[str, Any]) -> Tensor:
        """Evaluate the network as the host's samplers do, through the wrapper that the MODEL may have."""
        tensors = condition.expand(x.shape[0]).tensors
        rows = {"cond_or_uncond": [0], "sigmas": sigma}
        given: dict[str, Any] = {
            **{HOST_NAMES.get(name, name): tensor for name, tensor in tensors.items()},
            **condition.constants,
            "transformer_options": {**self._options, **rows, **options},
        }
        apply, seen = self.model.model.apply_model, with_frames(self.model, x)
        wrapper = self.model.model_options.get("model_function_wrapper")
        if wrapper is None:
            return without_frames(apply(seen, sigma, **given))
        inputs = {"input": seen, "timestep": sigma, "c": given, "cond_or_uncond": [0]}
        return without_frames(wrapper(apply, inputs))


def _transformer_options(model: ModelPatcher) -> dict[str, Any]:
    """Return what the samplers would give the network: the MODEL's patches and wrappers."""
    options = comfy.patcher_extension.copy_nested_dicts(model.model_options["transformer_options"])
    for kind, own in (("wrappers", model.wrappers), ("callbacks", model.callbacks)):
        comfy.patcher_extension.merge_nested_dicts(options.setdefault(kind, {}), own, copy_dict1=False)
    return options | {"optimized_attention_override": differentiable_attention}


def process_of(model: ModelPatcher) -> Process:
    """Return noise levels and prediction type of a MODEL, as its samplers use them.

    Raises:
        InputError: the model predicts something that training does not know.
    """
    sampling = model.get_model_object("model_sampling")
    kinds = {
        (EPS.calculate_input, EPS.calculate_denoised): "epsilon",
        (V_PREDICTION.calculate_input, V_PREDICTION.calculate_denoised): "v",
        (CONST.calculate_input, CONST.calculate_denoised): "flow",
    }
    kind = kinds.get((type(sampling).calculate_input, type(sampling).calculate_denoised))
    discrete = isinstance(sampling, ModelSamplingDiscrete) and not isinstance(sampling, StableCascadeSampling)
    if kind is None or not (kind == "flow" or (discrete and sampling.sigma_data == 1.0)):
        raise InputError(
            "Expected a model that predicts epsilon, v or a flow, got one of the type "
            f"{model.model.model_type.name}. Train with another model."
        )
    return Process(kind, sampling.sigmas.detach().clone())


@contextmanager
def training(
    model: ModelPatcher, *beside: ModelPatcher, home: Sequence[nn.Module] = ()
) -> Iterator[torch.device]:
    """Let autograd through a MODEL, fully loaded with the patches it carries; afterwards it is as it was.

    Gives the device to train on. On a CPU nothing is copied, elsewhere only what the host would load.

    Args:
        beside: what a prediction goes through besides, such as a text encoder; loaded with the MODEL.
        home: parts of the MODEL whose weights stay in system memory.
    """
    management = comfy.model_management
    patchers = (model, *beside)
    with ExitStack() as stack:
        # On a CPU a weight is at home wherever it is.
        placed = [model] if home and not management.is_device_cpu(model.load_device) else []
        placed += [patcher for patcher in patchers if patcher.is_dynamic() and patcher not in placed]
        if placed:
            management.unload_all_models()
            for patcher in placed:
                stack.enter_context(resident(patcher, home if patcher is model else ()))
        if plain := [patcher for patcher in patchers if patcher not in placed]:
            _load(plain)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(management.cuda_device_context(model.load_device))
        for patcher in patchers:
            stack.enter_context(ordinary_weights(patcher.model))
        stack.enter_context(differentiable())
        stack.callback(setattr, management, "in_training", management.in_training)
        management.in_training = True
        yield model.load_device


def _load(patchers: list[ModelPatcher]) -> None:
    comfy.model_management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
    if any(patcher.model.model_lowvram for patcher in patchers):
        raise InputError(
            "Expected the whole model on the device for training, got a host that offloads it. "
            "Start the host without --novram, or set offload in Domain Run Options to on."
        )


@contextmanager
def resident(model: ModelPatcher, home: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Put ordinary, patched weights on the load device into a MODEL whose weights the host would stream.

    What is streamed into reused memory must not be kept for a backward pass. The originals come back. Nothing
    may be loaded before.

    Args:
        home: parts of it whose weights are put into system memory.
    """
    at_home = {id(module._parameters) for part in home for module in part.modules()}
    originals: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        model.patch_model(load_weights=False)
        with torch.inference_mode(False), torch.no_grad():
            for prefix, module in model.model.named_modules():
                for tensors in (module._parameters, module._buffers):
                    for name, tensor in tensors.items():
                        if tensor is not None:
                            value = _resident_tensor(
                                model, module, prefix, name, tensor, home=id(tensors) in at_home
                            )
                            originals.append((tensors, name, tensor))
                            tensors[name] = value
        yield
    finally:
        for tensors, name, tensor in originals:
            tensors[name] = tensor
        model.unpatch_model(unpatch_weights=False)
        comfy.model_management.soft_empty_cache()


def _resident_tensor(
    model: ModelPatcher, module: nn.Module, prefix: str, name: str, tensor: Tensor, *, home: bool
) -> Tensor:
    dtype = getattr(module, f"{name}_comfy_model_dtype", None) or tensor.dtype
    key = f"{prefix}.{name}" if prefix else name
    if tensor.is_meta:  # the host makes absent weights when they are first used
        value = torch.zeros(tensor.shape, device=model.load_device)
    elif home and key not in model.patches and _is_at_home(model, tensor, dtype):
        return tensor  # so that there is no second copy of it
    elif isinstance(tensor, nn.Parameter):
        value = model.patch_weight_to_device(
            key, device_to=model.load_device, return_weight=True, force_cast=True
        )
    else:
        value = tensor.to(model.load_device, copy=True)
    if type(value) in (Tensor, nn.Parameter):  # a quantised weight keeps its own type
        value = value.to(dtype)
    if home:
        value = value.to("cpu")
    return nn.Parameter(value, requires_grad=False) if isinstance(tensor, nn.Parameter) else value


def _is_at_home(model: ModelPatcher, tensor: Tensor, dtype: torch.dtype) -> bool:
    """Tell whether a weight is in system memory as it is needed; what is streamed may be a part of a file."""
    return not model.is_dynamic() and (tensor.device.type, tensor.dtype) == ("cpu", dtype)
