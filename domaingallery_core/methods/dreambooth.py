"""DreamBooth (arXiv 2208.12242): all weights, or an adapter, learn a subject beside what keeps its class."""

from __future__ import annotations

from .evaluation import Ask, needed
from .method import Losses, Method, MethodSettings
from .noising import NoisedStep
from .terms import PRIOR, TARGET


class DreamBooth(Method):
    """Eq. 1 on images under "a [V] [N]", and on images that the base drew under "a [N]" (prior preservation).

    Each image has its own timestep. Without the weight of the prior it is plain finetuning.
    """

    name = "dreambooth"
    title = "DreamBooth"
    terms = (TARGET, PRIOR)
    steps, learning_rate = 800, 5e-6
    trains = "weights"
    shares_timestep = False

    def losses(self, ask: Ask, noised: NoisedStep, settings: MethodSettings) -> Losses:
        domain = noised["domain"]
        prompts = domain.prompts
        terms: Losses = {"target": ask(needed(domain.target, "images"), prompts.target).reconstruction}
        if settings.uses("prior"):
            images = needed(domain.source, "source images")
            terms["prior"] = ask(images, needed(prompts.source, "the source prompt")).reconstruction
        return terms


class DreamBoothLora(DreamBooth):
    """The same losses; an adapter learns, by steps and rate of the recipe that is common for that."""

    name = "dreambooth_lora"
    title = "DreamBooth LoRA"
    steps, learning_rate = 500, 1e-4
    trains = "adapter"
