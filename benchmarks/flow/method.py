"""The whole method on a MODEL of the sketchbook's world, by the pack's own nodes in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from domaingallery_core.sketchbook.things import CATEGORIES
from tools.demo.measure import LEAST, MODES, Pictures, Scenarios
from tools.demo.prompts import derived_seed
from tools.demo.scenarios import OTHERS, TAUGHT, total
from tools.make.workflow_parts import DOMAIN_IMAGES, SUBJECT_IMAGES, Numbers
from tools.make.workflows import DEMO

from .pictures import as_pictures

#: The demo's, but for what this model needs: euler on the simple schedule, as flow models draw, and a higher
#: cfg; a second stage at twice the rate, as at 2e-3 few faces are in the domain (.13 after 100 steps); less
#: enhancement, which beside this cfg darkens all colours at the demo's 2.5.
FLOW = replace(
    DEMO, sampler_name="euler", scheduler="simple", cfg=2.5, erase_steps=200, train_rate=4e-3, v_uncond=1.0,
    vn_n=1.0,
)  # fmt: skip
#: A few steps of everything.
SHORT = replace(
    FLOW, source_count=4, subject_source_count=4, erase_steps=1, train_steps=1, subject_steps=1,
    sampling_steps=1,
)  # fmt: skip
EXTRAS = ("with a hat", "by the sea", "with a balloon in snow")

Lora = Mapping[str, Tensor]


class Job:
    """The demo's job, with another network."""

    def __init__(
        self, sketchbook: ModuleType, model: Any, numbers: Numbers, *, seed: int = 0, least: int = LEAST,
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self.pack = sketchbook.__name__.removesuffix(".nodes.demo.sketchbook")
        self.model, self.numbers, self.seed, self.least, self.say = model, numbers, seed, least, say
        with torch.inference_mode():
            _, self.clip, self.vae = sketchbook.load_sketchbook()

    def node(self, module: str, name: str, **inputs: Any) -> Any:
        """Run a node of the pack as the host does; return its first output."""
        node = getattr(sys.modules[f"{self.pack}.nodes.{module}"], name)
        with torch.inference_mode():
            return node.execute(**inputs).result[0]

    # what is learned

    def words(self, category: str = TAUGHT, identifier: str = "sks") -> Any:
        return self.node(
            "data.prompts", "DomainGalleryPrompts", clip=self.clip, identifier=identifier, category=category
        )

    def dataset(self, words: Any, images: dict[str, Any], count: int, seed: int) -> Any:
        """Draw source images, and put them together with images of the world."""
        n = self.numbers
        [source] = self.node(
            "data.source_images", "DomainGallerySourceImages", model=self.model, vae=self.vae,
            prompts=words, count=count, width=n.size, height=n.size, steps=n.sampling_steps, cfg=n.cfg,
            sampler_name=n.sampler_name, scheduler=n.scheduler, batch_size=16,
            seed=derived_seed(self.seed, seed),
        )  # fmt: skip
        target = self.node("demo.demo", "DomainGalleryDemoImages", **images)
        return self.node(
            "data.dataset", "DomainGalleryDataset", vae=[self.vae], source_images=[source],
            target_images=[target],
        )  # fmt: skip

    def learn(
        self, name: str, words: Any, dataset: Any, steps: int, rate: float, erased: Lora | None = None,
        **options: Any,
    ) -> Lora:  # fmt: skip
        """Run a training node; options are added to those of all stages."""
        n, more = self.numbers, {} if erased is None else {"erased": erased}
        sockets = sys.modules[f"{self.pack}.nodes.sockets"]
        given = sockets.TrainingOptions(
            rank=n.rank, alpha=float(n.rank), batch_size=n.batch_size, denoise_steps=n.denoise_steps,
            **options,
        )  # fmt: skip
        return self.node(
            "train.training", name, model=self.model, prompts=words, dataset=dataset, steps=steps,
            learning_rate=rate, seed=derived_seed(self.seed, name), options=given, **more,
        )  # fmt: skip

    def erase(self, words: Any, dataset: Any) -> Lora:
        n = self.numbers
        return self.learn("DomainGalleryErase", words, dataset, n.erase_steps, n.erase_rate)

    def finetune(self, words: Any, dataset: Any, erased: Lora, **options: Any) -> Lora:
        n = self.numbers
        return self.learn(
            "DomainGalleryTrain", words, dataset, n.train_steps, n.train_rate, erased, **options
        )

    def subject(self) -> Lora:
        """Learn the subject by the target and prior terms alone, as the demo does."""
        n, words = self.numbers, self.words(identifier="olis")
        dataset = self.dataset(words, SUBJECT_IMAGES, n.subject_source_count, 2000)
        weights = {"prior": n.subject_prior_weight, "disentanglement": 0.0, "similarity": 0.0}
        return self.learn(
            "DomainGalleryTrain", words, dataset, n.subject_steps, n.subject_rate,
            weights=weights, schedule="linear",
        )  # fmt: skip

    # what is drawn

    def draw(
        self, text: str, category: str, count: int, loras: list[tuple[Lora, float]], mode: str = "none"
    ) -> Pictures:
        """Draw a prompt with LoRAs; pictures of a category begin with the same noise in all scenarios."""
        n, words = self.numbers, self.words(category)
        loader = importlib.import_module("comfy_extras.nodes_train").LoraModelLoader
        model = self.model
        with torch.inference_mode():
            for lora, strength in loras:
                model = loader.execute(model, lora, strength).result[0]
            positive = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))
            latent = self.node(
                "draw.sampling", "DomainGalleryKSampler", model=model, positive=positive,
                negative=words.first.empty, prompts=words, mode=mode, cfg=n.cfg,
                enhancement={"none": 0.0, "V-uncond": n.v_uncond, "VN-N": n.vn_n}[mode],
                seed=derived_seed(self.seed, "pictures", category), steps=n.sampling_steps,
                sampler_name=n.sampler_name, scheduler=n.scheduler, denoise=1.0,
                latent_image={"samples": torch.zeros(count, 24, n.size // 4, n.size // 4)},
            )  # fmt: skip
            return as_pictures(self.vae.decode(latent["samples"]), category)

    def all_categories(self, loras: list[tuple[Lora, float]], count: int) -> Pictures:
        """Draw "a sks [category]" of each."""
        return total(self.draw(f"a sks {each}", each, count, loras) for each in CATEGORIES)

    def others(self, domain: Lora, mode: str) -> Pictures:
        """Draw the domain in every category that was not taught."""
        loras = [(domain, self.numbers.strength_elsewhere)]
        count = -(-self.least // len(OTHERS))
        return total(self.draw(f"a sks {each}", each, count, loras, mode) for each in OTHERS)

    def plain(self, count: int) -> Pictures:
        """Draw "a [category]" of each with the base model, which no share is of."""
        return total(self.draw(f"a {each}", each, count, []) for each in CATEGORIES)

    def prepare(self) -> tuple[Any, Any, Lora]:
        """Return prompts, dataset and the LoRA of the first stage, for the second."""
        words = self.words()
        self.say("source images")
        dataset = self.dataset(words, DOMAIN_IMAGES, self.numbers.source_count, 1000)
        self.say("stage 1: erase what sks meant")
        return words, dataset, self.erase(words, dataset)

    def run(self, words: Any, dataset: Any, erased: Lora) -> Scenarios:
        """Do all that comes after the first stage, and return the pictures to measure."""
        n, each = self.numbers, -(-self.least // len(OTHERS))
        self.say("stage 2: learn the domain")
        domain = self.finetune(words, dataset, erased)
        self.say("learn the subject")
        subject = self.subject()
        self.say("draw")
        face = f"a sks {TAUGHT}"
        extra = -(-self.least // len(EXTRAS))
        return Scenarios(
            base=self.all_categories([], each),
            erased=self.all_categories([(erased, 1.0)], each),
            intra=self.draw(face, TAUGHT, self.least, [(domain, 1.0)]),
            cross={mode: self.others(domain, mode) for mode in MODES},
            extra_attribute=total(
                self.draw(f"{face} {words}", TAUGHT, extra, [(domain, 1.0)]) for words in EXTRAS
            ),
            subject=self.draw(
                f"a sks olis {TAUGHT}", TAUGHT, self.least,
                [(subject, n.strength_of_subject), (domain, 1.0)],
            ),
        )  # fmt: skip
