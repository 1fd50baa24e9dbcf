"""The main job as prompts to a host: teach the domain, then draw in it what the report is measured on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from domaingallery_core.sketchbook.things import CATEGORIES

from ..host.client import Event, HostClient, Outputs
from ..host.graphs import Prompt, find_by_title, workflow_to_api
from ..make.workflows import FOLDER, WORKFLOWS
from .measure import LEAST, MODES, Pictures, Scenarios
from .prompts import Changes, changed, derived_seed, only, seeded, variant_id, variants
from .sheet import Row
from .terminal import Bar, Terminal

TAUGHT = "face"
FACES = f"a sks {TAUGHT}"
OTHERS = [category for category in CATEGORIES if category != TAUGHT]
# Pictures of a category: so that all categories together are enough, and so that those not taught are.
EACH_OF_ALL, EACH = -(-LEAST // len(CATEGORIES)), -(-LEAST // len(OTHERS))
SAMPLERS = {"KSampler", "DomainGalleryKSampler"}

TEACH, SAME, OTHER, ATTRIBUTES, SUBJECT, _, _, SWEEP, _ = WORKFLOWS
LORA_NODE = "Load LoRA of the domain"
Stages = dict[str, tuple[str, str]]  # title of a node -> what the bar says, key in the report
TEACH_STAGES: Stages = {
    "Domain Source Images": ("draw source images", "source_images"),
    "1  Erase Prior Attributes": ("erase what sks meant", "erase"),
    "2  Train Domain LoRA": ("learn the domain", "finetune"),
    "Draw: before": ("draw before", "draw"),
    "Draw: after erasing": ("draw after erasing", "draw"),
    "Draw: after learning": ("draw after learning", "draw"),
}
SUBJECT_STAGES: Stages = {
    "Domain Source Images": ("draw source images again", "subject"),
    "Train Subject LoRA": ("learn the subject", "subject"),
    "Draw: subject in the domain": ("draw the subject in the domain", "subject"),
}


class Demo:
    """The main job in a running host.

    Attributes:
        losses: stage -> term -> values. loras: "erased", "domain", "subject" -> file as the host names it.
        sheet_rows: what to show. thumbnails: workflow -> pictures for it.
    """

    def __init__(self, client: HostClient, seed: int, terminal: Terminal) -> None:
        self.client, self.seed, self.terminal = client, seed, terminal
        info = client.object_info()
        self.workflows: dict[str, dict[str, Any]] = {}
        self.prompts: dict[str, Prompt] = {}
        for name in WORKFLOWS:
            workflow = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
            self.workflows[name] = workflow
            self.prompts[name] = seeded(workflow_to_api(workflow, info), seed, name)
        self.losses: dict[str, dict[str, list[float]]] = {}
        self.loras: dict[str, dict[str, str]] = {}
        self.sheet_rows: list[Row] = []
        self.thumbnails: dict[str, Sequence[Image.Image]] = {}

    def run(self) -> Scenarios:
        """Run everything and return the pictures to measure."""
        target = self.teach()
        asked = {f"a sks {category}": category for category in CATEGORIES}
        base = self.same_category(
            "draw with the base model", {f"a {TAUGHT}": TAUGHT, **asked}, EACH_OF_ALL,
            lora_name=self.lora("domain"), strength_model=0.0,
        )  # fmt: skip
        plain = base.pop(f"a {TAUGHT}")
        erased = self.same_category("draw with sks erased", asked, EACH, lora_name=self.lora("erased"))
        intra = self.same_category("draw the domain", {FACES: TAUGHT}, LEAST, lora_name=self.lora("domain"))
        cross = self.other_categories()
        extra = self.extra_attributes()
        subject_target, subject = self.subject()
        self.sheet_rows = [
            ("Ten images\nthat teach the domain", target.images),
            (f"a {TAUGHT}\nbase model", plain.images),
            (f"{FACES}\nbefore erasing", base[FACES].images),
            (f"{FACES}\nafter erasing", erased[FACES].images),
            (f"{FACES}\nin the domain", intra[FACES].images),
            *cross_rows(cross),
            *((f"{words}\nextra attribute", pictures.images) for words, pictures in list(extra.items())[:1]),
            ("Five images\nof the subject olis", subject_target.images),
            ("a sks olis face\nsubject in the domain", subject.images),
        ]
        self.thumbnails = {
            TEACH: target.images,
            SAME: intra[FACES].images,
            OTHER: [images[0] for _, images in cross_rows(cross)[1::3]] + list(cross["V-uncond"].images[-2:]),
            ATTRIBUTES: [pictures.images[0] for pictures in extra.values()] + [last(extra).images[1]],
            SUBJECT: subject.images,
            SWEEP: [images[0] for _, images in cross_rows(cross)[1:3] + cross_rows(cross)[4:6]],
        }
        return Scenarios(
            total(base.values()), total(erased.values()), intra[FACES], cross, total(extra.values()), subject
        )

    # the stages

    def teach(self) -> Pictures:
        """Run the first workflow as it is and return the target images."""
        prompt = self.prompts[TEACH]
        outputs = self.run_stages(TEACH, prompt, TEACH_STAGES)
        found = {content["_meta"]["title"]: outputs.get(node, {}) for node, content in prompt.items()}
        self.losses = {
            "erase": found["1  Erase Prior Attributes"]["losses"][0],
            "learn": found["2  Train Domain LoRA"]["losses"][0],
        }
        self.loras = {
            "erased": found["Save what was erased"]["loras"][0],
            "domain": found["Save the domain"]["loras"][0],
        }
        return self.pictures(outputs, find_by_title(prompt, "The domain"), TAUGHT)

    def same_category(self, text: str, asked: dict[str, str], count: int, **lora: Any) -> dict[str, Pictures]:
        """Draw by the second workflow with some LoRA; `asked` is prompt -> category."""
        prompt = changed(self.prompts[SAME], {LORA_NODE: lora})
        all_changes: list[Changes] = [
            {"Prompt": {"text": words}, "Pictures": {"batch_size": count}, "Seed": self.seed_of(category)}
            for words, category in asked.items()
        ]
        outputs = self.draw(text, variants(prompt, all_changes))
        saved = find_by_title(prompt, "Faces of the domain")
        return {
            words: self.pictures(outputs, variant_id(saved, i), category)
            for i, (words, category) in enumerate(asked.items())
        }

    def other_categories(self) -> dict[str, Pictures]:
        """Draw by the third workflow every category that was not taught, in each mode."""
        titles = [f"Pictures 1 {mode}" for mode in MODES]
        prompt = only(changed(self.prompts[OTHER], self.domain()), titles)
        all_changes: list[Changes] = [
            {
                "Domain Prompts 1": {"category": category},
                "Pictures": {"batch_size": EACH},
                "Seed": self.seed_of(category),
            }
            for category in OTHERS
        ]
        outputs = self.draw("draw other categories", variants(prompt, all_changes))
        saved = {mode: find_by_title(prompt, title) for mode, title in zip(MODES, titles, strict=True)}
        return {
            mode: total(
                self.pictures(outputs, variant_id(node, i), category) for i, category in enumerate(OTHERS)
            )
            for mode, node in saved.items()
        }

    def extra_attributes(self) -> dict[str, Pictures]:
        """Draw by the fourth workflow: prompt -> pictures."""
        numbers = (1, 2, 3)
        count = {"batch_size": -(-LEAST // len(numbers))}
        prompt = changed(self.prompts[ATTRIBUTES], {**self.domain(), "Pictures": count})
        outputs = self.draw("draw extra attributes", prompt)
        return {
            prompt[find_by_title(prompt, f"Prompt {n}")]["inputs"]["text"]: self.pictures(
                outputs, find_by_title(prompt, f"Pictures {n}"), TAUGHT
            )
            for n in numbers
        }

    def subject(self) -> tuple[Pictures, Pictures]:
        """Learn the subject by the fifth workflow; return its images, and those of it in the domain."""
        titles = ["The subject", "Save the subject", "Subject in the domain"]
        prompt = changed(self.prompts[SUBJECT], {**self.domain(), "Pictures": {"batch_size": LEAST}})
        outputs = self.run_stages(SUBJECT, only(prompt, titles), SUBJECT_STAGES)
        target, saved, both = (find_by_title(prompt, title) for title in titles)
        self.loras["subject"] = outputs[saved]["loras"][0]
        return self.pictures(outputs, target, TAUGHT), self.pictures(outputs, both, TAUGHT)

    # what they share

    def run_stages(self, name: str, prompt: Prompt, stages: Stages) -> Outputs:
        """Run a prompt with a bar for each node that takes long."""
        nodes = {find_by_title(prompt, title): stage for title, stage in stages.items()}
        bar: Bar | None = None
        with ExitStack() as stack:

            def follow(event: Event) -> None:
                nonlocal bar
                if event.kind == "node":
                    stack.close()
                    stage = nodes.get(event.node)
                    bar = stack.enter_context(self.terminal.stage(*stage)) if stage else None
                elif event.kind == "progress" and bar is not None and event.max:
                    bar(event.value / event.max)

            return self.client.run(prompt, workflow=self.workflows[name], on_event=follow)

    def draw(self, text: str, prompt: Prompt) -> Outputs:
        """Run a prompt of samplers with one bar for all."""
        samplers = {node for node, content in prompt.items() if content["class_type"] in SAMPLERS}
        done: dict[str, float] = {}
        with self.terminal.stage(text, "measure") as bar:

            def follow(event: Event) -> None:
                if event.kind == "progress" and event.max and event.node in samplers:
                    done[event.node] = event.value / event.max
                    bar(sum(done.values()) / len(samplers))

            return self.client.run(prompt, on_event=follow)

    def pictures(self, outputs: Outputs, node: str, asked: str) -> Pictures:
        """Read back what a node saved."""
        return Pictures.from_png([self.client.view(**image) for image in outputs[node]["images"]], asked)

    def seed_of(self, category: str) -> dict[str, int]:
        """Return the seed of the pictures of a category, the same in all scenarios."""
        return {"value": derived_seed(self.seed, "pictures", category)}

    def domain(self) -> Changes:
        return {LORA_NODE: {"lora_name": self.lora("domain")}}

    def lora(self, name: str) -> str:
        """Return the name under which the host lists a LoRA that was saved."""
        folder = PurePosixPath(self.loras[name]["subfolder"]).relative_to("loras")
        return str(folder / self.loras[name]["filename"])


def cross_rows(cross: dict[str, Pictures]) -> list[Row]:
    """Return the rows of two categories that were not taught, in each mode."""
    names = {"none": "without enhancement", "V-uncond": "with V-uncond", "VN-N": "with VN-N"}
    return [
        (f"a sks {category}\n{names[mode]}", cross[mode].only(category).images)
        for category in ("house", "car")
        for mode in MODES
    ]


def total(parts: Iterable[Pictures]) -> Pictures:
    return sum(parts, Pictures((), ()))


def last(pictures: dict[str, Pictures]) -> Pictures:
    return list(pictures.values())[-1]
