"""Inputs and outputs that the training nodes share."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ...domaingallery_core.methods import Method
from ..inputs import seed_input
from ..presets import LEFT_OPEN
from ..sockets import Dataset, Options, Prompts, Run


def training_inputs(method: Method, origin: str = "the paper's") -> list[io.Input]:
    """Return the inputs that all training nodes begin with; `origin` says whose numbers are the method's."""
    return [*data_inputs(), *left_open(length_inputs(method, origin)), training_seed_input()]


def data_inputs() -> list[io.Input]:
    """Return the inputs for what is learned on, and from."""
    return [
        io.Model.Input("model", tooltip="The model to learn on. It is left exactly as it was."),
        Prompts.Input("prompts", tooltip="From Domain Prompts."),
        Dataset.Input("dataset", tooltip="From Domain Dataset."),
    ]


def length_inputs(method: Method, origin: str) -> list[io.Input]:
    """Return the inputs for how long a training is, and how fast."""
    steps, learning_rate = method.steps, method.learning_rate
    return [
        io.Int.Input(
            "steps", default=steps, min=1, max=100000, tooltip=f"Training steps. {steps} are {origin}."
        ),
        io.Float.Input(
            "learning_rate",
            default=learning_rate,
            min=0.0,
            max=1.0,
            step=1e-6,
            tooltip=f"How far each step goes. {learning_rate:g} is {origin}, for Stable Diffusion; "
            "small models need more.",
        ),
    ]


def left_open(inputs: list[io.Input]) -> list[io.Input]:
    """Return inputs of numbers that begin with 0, which leaves them to the model and the preset."""
    for part in inputs:
        part.default, part.min = LEFT_OPEN, LEFT_OPEN
        part.tooltip = f"{part.tooltip} 0: what suits the model, as much of it as the preset says."
    return inputs


def training_seed_input() -> io.Input:
    """Return the input for the seed of a training."""
    return seed_input(
        "The seed of everything random here. The same inputs give the same LoRA again, and a "
        "training that was cancelled goes on.",
        control=io.ControlAfterGenerate.fixed,
    )


def erased_input(words: str) -> io.Input:
    """Return the input for the LoRA of stage 1, for the same model and for `words`."""
    return io.LoraModel.Input(
        "erased",
        optional=True,
        tooltip=f"The LoRA of Erase Prior Attributes for the same model, {words}, or one of Load LoRA for "
        "Training. Its kind, rank and alpha are kept; Domain Training Options, if connected, may have a "
        "higher rank.",
    )


def option_inputs() -> list[io.Input]:
    """Return the inputs of all training nodes for options."""
    return [
        Options.Input(
            "options",
            optional=True,
            tooltip="From Domain Training Options; without it, the paper's settings.",
        ),
        Run.Input(
            "run_options",
            optional=True,
            tooltip="From Domain Run Options: previews, checkpoints, memory. A cancelled training goes on "
            "without it, too.",
        ),
    ]


def training_outputs(*own: io.Output) -> list[io.Output]:
    """Return the outputs of all training nodes, those that one has by itself before the last."""
    return [
        io.LoraModel.Output(
            display_name="lora",
            tooltip="The LoRA: for Load LoRA Model, Save Trained LoRA, or the next training.",
        ),
        io.LossMap.Output(display_name="losses", tooltip="The losses over the steps, for Plot Loss Graph."),
        io.Image.Output(display_name="plot", tooltip="Each loss term over the steps, as a picture."),
        io.Image.Output(
            display_name="previews",
            tooltip="What the LoRA draws over the steps, beginning with the base model. "
            "Needs preview_every of Domain Run Options.",
        ),
        *own,
        io.String.Output(
            display_name="report",
            tooltip="A line about the training: steps, time, numbers that were learned, size. For the notes "
            "of Labelled Image Grid.",
        ),
    ]
