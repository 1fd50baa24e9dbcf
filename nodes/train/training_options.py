"""Training Options: what decides a LoRA besides its length and learning rate."""

from __future__ import annotations

from typing import get_args

from comfy_api.v0_0_2 import io

from ...domaingallery_core.plan import LossWeights, Optimizer, Precision, Schedule, SimilarityScale
from ...domaingallery_core.trainables.adapters import TARGETS
from ...domaingallery_core.trainables.kinds import KINDS
from ..node import Node
from ..sockets import CATEGORY, Options, TrainingOptions


def advanced_inputs() -> list[io.Input]:
    """Return the inputs of Training Options that the paper leaves alone."""

    def advanced(kind: type[io.ComfyTypeIO], name: str, default: object, tooltip: str, **more) -> io.Input:
        return kind.Input(name, default=default, tooltip=tooltip, optional=True, advanced=True, **more)

    return [
        advanced(
            io.Combo, "adapter", "lora",
            "What is trained. lora: the paper's. dora: LoRA and a magnitude for each output. "
            "loha, lokr: products that reach a higher rank with few weights. All load as LoRA files.",
            options=list(KINDS),
        ),
        advanced(
            io.String, "targets", "attention",
            f"Which layers learn: {', '.join(TARGETS)}, or patterns of layer names with commas "
            "between them, such as attn2.to_*. attention is the paper's.",
        ),
        advanced(
            io.Float, "dropout", 0.0,
            "Share of the adapter that is left out at random in a step. The paper has 0.",
            min=0.0, max=0.99, step=0.05,
        ),
        advanced(
            io.Combo, "similarity_scale", "released",
            "How the similarity term is scaled. released: as the authors' code computes it. "
            "paper: as the paper prints it, about batch size minus 1 times as much.",
            options=list(get_args(SimilarityScale)),
        ),
        advanced(
            io.Float, "denoise_guidance", 1.0,
            "Guidance scale of the denoising inside the similarity term. 1 is none, the "
            "reference's; others double its work.",
            min=0.0, max=30.0, step=0.1,
        ),
        advanced(
            io.Int, "accumulation", 1,
            "Batches whose gradients make one step, for the effect of a larger batch in the memory "
            "of a small one. Takes as many times longer.",
            min=1, max=1000,
        ),
        advanced(
            io.Combo, "schedule", "constant", "How the learning rate goes down over the steps.",
            options=list(get_args(Schedule)),
        ),
        advanced(
            io.Int, "warmup_steps", 0, "Steps in which the learning rate rises from near 0.",
            min=0, max=100000,
        ),
        advanced(
            io.Float, "ema", 0.0,
            "Decay of a moving average over the steps, which becomes the LoRA: 0.99 smooths the last "
            "hundred. 0 for none.",
            min=0.0, max=0.99999, step=0.001, round=0.00001,
        ),
        advanced(
            io.Float, "min_snr", 0.0,
            "Gamma of Min-SNR weighting of the target and prior terms, commonly 5. 0 for none.",
            min=0.0, max=100.0, step=0.1,
        ),
        advanced(
            io.Combo, "optimizer", "adamw",
            "adamw8bit needs the package bitsandbytes and saves little for a LoRA.",
            options=list(get_args(Optimizer)),
        ),
        advanced(
            io.Combo, "precision", "automatic",
            "What the model computes in. automatic: as when drawing, but never float16: bfloat16 "
            "where the device has it, else float32. The LoRA itself is always float32.",
            options=list(get_args(Precision)),
        ),
    ]  # fmt: skip


class DomainGalleryOptions(Node):
    """Gather the settings that most trainings leave alone."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def weight(name: str, default: float, tooltip: str) -> io.Input:
            return io.Float.Input(
                f"{name}_weight", default=default, min=0.0, max=1000.0, step=0.1, tooltip=tooltip
            )

        return io.Schema(
            node_id="DomainGalleryOptions",
            display_name="Training Options",
            category=CATEGORY,
            description="Settings of a training, with the paper's as defaults. A loss term with "
            "weight 0 is not computed, which saves its time.",
            search_aliases=["rank", "alpha", "loss weights", "lora settings", "offset noise"],
            inputs=[
                io.Int.Input(
                    "rank",
                    default=4,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA. Higher can learn more and forget more.",
                ),
                io.Float.Input(
                    "alpha",
                    default=4.0,
                    min=0.01,
                    max=1024.0,
                    step=0.5,
                    tooltip="Scale of the LoRA, divided by the rank. Equal to the rank is the plain choice.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="Images of each kind in a step. The similarity term needs at least 3.",
                ),
                weight(
                    "prior", 1.0, "Weight of keeping the source images as they are (Eq. 1 on source images)."
                ),
                weight("disentanglement", 10.0, "Weight of leaving the category itself untouched (Eq. 3)."),
                weight("erasure", 10.0, "Weight of erasing what the identifier meant (Eq. 2); stage 1 only."),
                weight(
                    "similarity",
                    1.0,
                    "Weight of keeping images as different from each other as they were (Eq. 4); "
                    "stage 2 only. By far the slowest term.",
                ),
                io.Int.Input(
                    "denoise_steps",
                    default=5,
                    min=1,
                    max=50,
                    tooltip="Steps of the recurrent denoising inside the similarity term.",
                ),
                io.Float.Input(
                    "offset_noise",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Helps with domains that are much lighter or darker than most images, such as "
                    "pencil sketches: 0.1.",
                ),
                *advanced_inputs(),
            ],
            outputs=[Options.Output(display_name="options", tooltip="For the training nodes.")],
        )

    @classmethod
    def execute(
        cls, rank, alpha, batch_size, prior_weight, disentanglement_weight, erasure_weight, similarity_weight,
        denoise_steps, offset_noise, adapter="lora", targets="attention", dropout=0.0,
        similarity_scale="released", denoise_guidance=1.0, accumulation=1, schedule="constant",
        warmup_steps=0, ema=0.0, min_snr=0.0, optimizer="adamw", precision="automatic",
    ) -> io.NodeOutput:  # fmt: skip
        weights = LossWeights(
            prior=prior_weight,
            disentanglement=disentanglement_weight,
            erasure=erasure_weight,
            similarity=similarity_weight,
        )
        return io.NodeOutput(
            TrainingOptions(
                weights=weights, rank=rank, alpha=alpha, batch_size=batch_size, denoise_steps=denoise_steps,
                offset_noise=offset_noise, adapter=adapter, targets=targets.strip(), dropout=dropout,
                similarity_scale=similarity_scale, denoise_guidance=denoise_guidance,
                accumulation=accumulation, schedule=schedule, warmup_steps=warmup_steps, ema=ema,
                min_snr=min_snr, optimizer=optimizer, precision=precision,
            )
        )  # fmt: skip
