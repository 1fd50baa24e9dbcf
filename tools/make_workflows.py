"""Write workflows/*.json from the descriptions below: python -m tools.make_workflows --host COMFYUI

All numbers for the demo model are in `DEMO`; the notes are in workflow_notes.py.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gallery import PACK

from . import workflow_notes as notes
from .workflow_graph import BLUE, PURPLE, Node
from .workflow_layout import place
from .workflow_parts import (
    DATA_FRAME,
    DOMAIN,
    DOMAIN_IMAGES,
    DRAW_FRAME,
    ERASE_FRAME,
    LEARN_FRAME,
    SUBJECT_IMAGES,
    Numbers,
    Workflow,
)

FOLDER = PACK / "workflows"

DEMO = Numbers(
    size=64,
    source_count=64,
    subject_source_count=40,
    rank=8,
    batch_size=4,
    denoise_steps=3,
    erase_steps=170,
    erase_rate=2e-3,
    train_steps=150,
    train_rate=2.5e-3,
    subject_steps=130,
    subject_rate=4e-3,
    joint_steps=170,
    joint_rate=3e-3,
    joint_subject_weight=2.0,
    sampling_steps=12,
    sampler_name="dpmpp_2m",
    scheduler="normal",
    cfg=1.8,
    v_uncond=0.5,
    vn_n=0.3,
    pictures=8,
)
SHORT = replace(  # the same graphs in seconds, for tests
    DEMO, source_count=4, subject_source_count=4, erase_steps=2, train_steps=2, subject_steps=2,
    joint_steps=2, sampling_steps=2, pictures=1,
)  # fmt: skip


def teach(g: Workflow) -> None:
    model = g.load_model()
    words = g.words(model["clip"])
    images, preview, source, dataset = g.images(
        model, words, DOMAIN_IMAGES, "domain", count=g.numbers.source_count, seed=1000
    )
    options, learning, erase, learn = g.stages(model, words, dataset)
    erased = [g.plot(erase, "erasing"), g.save_lora(erase, "Save what was erased", "sketchbook_erased")]
    learned = [g.plot(learn, "learning"), g.save_lora(learn, "Save the domain", f"sketchbook_{DOMAIN}")]
    inputs = g.latent_and_seed("fixed")
    rows = []
    for title, stage in (("Before", None), ("After erasing", erase), ("After learning", learn)):
        loaded, loader = model, []
        if stage is not None:
            loaded = g.node("LoraModelLoader", title=f"Load: {title.lower()}", wide=300,
                            model=model["model"], lora=stage["lora"])  # fmt: skip
            loader = [loaded]
        sampler = g.sampler(loaded, words["target"], words["empty"], inputs, f"Draw: {title.lower()}")
        name = f"01_{len(rows) + 1}_{title.lower().replace(' ', '_')}"
        pictures = g.show(sampler, model, f"{title}: a sks face", name)
        rows.append(g.group(title, loader, [sampler], pictures, colour=DRAW_FRAME))
    place([
        [g.explain(notes.TEACH, file=False)],
        [g.group("Model and words", [model, words]), g.group("Pictures to draw", inputs, colour=DATA_FRAME)],
        [g.group("Images", [images, preview], [source, dataset], colour=DATA_FRAME),
         g.group("", [g.write("Your images", notes.OWN_IMAGES)])],
        [g.group("Stage 1: erase", [options, erase], erased, colour=ERASE_FRAME),
         g.group("Stage 2: learn", [learning, learn, g.write("The files", notes.SAVED)], learned,
                 colour=LEARN_FRAME)],
        rows,
    ])  # fmt: skip


def same_category(g: Workflow) -> None:
    model = g.load_model()
    domain = g.load_domain(model["model"])
    prompt = g.prompt(model["clip"], "a sks face", "Prompt")
    negative = g.prompt(model["clip"], "", "Negative prompt")
    inputs = g.latent_and_seed()
    sampler = g.sampler(domain, prompt["conditioning"], negative["conditioning"], inputs, "Draw")
    pictures = g.show(sampler, model, "Faces of the domain", "02_face")
    place([
        [g.explain(notes.SAME)],
        [g.group("Model and LoRA", [model, domain])],
        [g.group("What to draw", [prompt, negative, *inputs], colour=DATA_FRAME)],
        [g.group("Draw", [sampler], pictures, colour=DRAW_FRAME)],
    ])  # fmt: skip


def other_categories(g: Workflow) -> None:
    model = g.load_model()
    domain = g.load_domain(model["model"])
    inputs = g.latent_and_seed()
    rows = []
    for number, category in enumerate(("house", "car"), 1):
        words = g.words(model["clip"], category=category, title=f"Domain Prompts {number}")
        columns: list[list[Node]] = [[words]]
        for mode in ("none", "V-uncond", "VN-N"):
            sampler = g.domain_sampler(domain, words, inputs, mode, f"Draw {number} {mode}")
            pictures = g.show(sampler, model, f"Pictures {number} {mode}", f"03_{number}_{mode}")
            columns.append([sampler, *pictures])
        rows.append(g.group(f"a sks {category}: none, V-uncond, VN-N", *columns, colour=DRAW_FRAME))
    place([
        [g.explain(notes.OTHER)],
        [g.group("Model and LoRA", [model, domain]), g.group("Pictures to draw", inputs, colour=DATA_FRAME)],
        rows,
    ])  # fmt: skip


def extra_attributes(g: Workflow) -> None:
    model = g.load_model()
    domain = g.load_domain(model["model"])
    negative = g.prompt(model["clip"], "", "Negative prompt")
    inputs = g.latent_and_seed()
    rows = []
    for number, extra in enumerate(("with a hat", "by the sea", "with a balloon in snow"), 1):
        prompt = g.prompt(model["clip"], f"a sks face {extra}", f"Prompt {number}")
        sampler = g.sampler(
            domain, prompt["conditioning"], negative["conditioning"], inputs, f"Draw {number}"
        )
        pictures = g.show(sampler, model, f"Pictures {number}", f"04_{number}")
        rows.append(g.group(f"a sks face {extra}", [prompt], [sampler], pictures, colour=DRAW_FRAME))
    place([
        [g.explain(notes.ATTRIBUTES)],
        [g.group("Model and LoRA", [model, domain]),
         g.group("Pictures to draw", [negative, *inputs], colour=DATA_FRAME)],
        rows,
    ])  # fmt: skip


def with_subject(g: Workflow) -> None:
    n = g.numbers
    model = g.load_model()
    words = g.words(model["clip"], identifier="olis", title="Words of the subject")
    images, preview, source, dataset = g.images(
        model, words, SUBJECT_IMAGES, "subject", count=n.subject_source_count, seed=2000
    )
    options = g.node(
        "DomainGalleryOptions", title="Target and prior terms alone", rank=n.rank, alpha=float(n.rank),
        batch_size=n.batch_size, disentanglement_weight=0.0, similarity_weight=0.0,
    )  # fmt: skip
    learn = g.node(
        "DomainGalleryTrain", title="Train Subject LoRA", colour=PURPLE, model=model["model"],
        prompts=words["prompts"], dataset=dataset["dataset"], options=options["options"],
        steps=n.subject_steps, learning_rate=n.subject_rate, seed=3,
    )  # fmt: skip
    saved = g.save_lora(learn, "Save the subject", "sketchbook_olis")
    subject = g.load_learned(model, learn, "Load LoRA of the subject")
    domain = g.load_domain(subject["model"])
    asked = [
        g.prompt(model["clip"], "a olis face", "Prompt 1"),
        g.prompt(model["clip"], "a sks olis face", "Prompt 2"),
    ]
    negative = g.prompt(model["clip"], "", "Negative prompt")
    inputs = g.latent_and_seed()
    rows = []
    for title, loaded, prompt in (
        ("Subject", subject, asked[0]),
        ("Subject in the domain", domain, asked[1]),
    ):
        sampler = g.sampler(
            loaded, prompt["conditioning"], negative["conditioning"], inputs, f"Draw: {title.lower()}"
        )
        pictures = g.show(sampler, model, title, f"05_{len(rows) + 1}_{title.lower().replace(' ', '_')}")
        rows.append(g.group(title, [sampler], pictures, colour=DRAW_FRAME))
    place([
        [g.explain(notes.SUBJECT)],
        [g.group("Model and words", [model, words])],
        [g.group("Images", [images, preview], [source, dataset], colour=DATA_FRAME)],
        [g.group("Learn the subject", [options, learn, saved], colour=LEARN_FRAME)],
        [g.group("Chain the LoRAs", [subject, domain, g.write("The balance", notes.STRENGTH)])],
        [g.group("What to draw", [*asked, negative, *inputs], colour=DATA_FRAME)],
        rows,
    ])  # fmt: skip


def joint(g: Workflow) -> None:
    n = g.numbers
    model = g.load_model()
    words = g.words(model["clip"], title="Words of the domain")
    subject_words = g.words(model["clip"], identifier="olis", title="Words of the subject")
    images, preview, source, dataset = g.images(
        model, words, DOMAIN_IMAGES, "domain", count=n.source_count, seed=1000
    )
    # Both are faces, so the same source images serve the subject.
    subject_images, subject_preview, subject_dataset = g.images_beside(
        model, source, SUBJECT_IMAGES, "subject"
    )
    options = g.options()
    data: dict[str, Any] = {
        "model": model["model"],
        "prompts": words["prompts"],
        "dataset": dataset["dataset"],
        "options": options["options"],
        "subject_prompts": subject_words["prompts"],
    }
    erase = g.node(
        "DomainGalleryErase", title="1  Erase both words", colour=PURPLE,
        steps=n.erase_steps, learning_rate=n.erase_rate, seed=1, **data,
    )  # fmt: skip
    learn = g.node(
        "DomainGalleryPersonalize", title="2  Learn both", colour=PURPLE, erased=erase["lora"],
        subject_dataset=subject_dataset["dataset"], subject_weight=n.joint_subject_weight,
        steps=n.joint_steps, learning_rate=n.joint_rate, seed=2, **data,
    )  # fmt: skip
    learned = [g.plot(learn, "learning both"), g.save_lora(learn, "Save both", "sketchbook_olis_domain")]
    loaded = g.load_learned(model, learn, "Load LoRA of both")
    negative = g.prompt(model["clip"], "", "Negative prompt")
    inputs = g.latent_and_seed()
    rows = g.drawings(
        loaded, model, negative["conditioning"], inputs, "06",
        {"a sks olis face": "Subject in the domain", "a olis face": "Subject", "a sks face": "Domain"},
    )  # fmt: skip
    place([
        [g.explain(notes.JOINT, file=False)],
        [g.group("Model and words", [model, words, subject_words]),
         g.group("Pictures to draw", [negative, *inputs], colour=DATA_FRAME)],
        [g.group("The domain", [images, preview], [source, dataset], colour=DATA_FRAME),
         g.group("The subject", [subject_images, subject_preview], [subject_dataset], colour=DATA_FRAME)],
        [g.group("Stage 1: erase", [options, erase], colour=ERASE_FRAME),
         g.group("Stage 2: learn", [learn], learned, colour=LEARN_FRAME)],
        [g.group("Load", [loaded])],
        rows,
    ])  # fmt: skip


def several_categories(g: Workflow) -> None:
    model = g.load_model()
    words = g.words(model["clip"], category="face, house")
    faces, houses = (
        g.node("DomainGalleryDemoImages", title=f"Images of {count} {category}s", colour=BLUE,
               domain=DOMAIN, category=category, count=count, seed=0)
        for category, count in (("face", 6), ("house", 4))
    )  # fmt: skip
    both: dict[str, Any] = {"images.image0": faces["images"], "images.image1": houses["images"]}
    images = g.node("BatchImagesNode", title="Batch Images", wide=300, **both)
    preview = g.node("PreviewImage", title="The domain", tall=280, images=images["image"])
    source = g.source_images(model, words, count=g.numbers.source_count, seed=1000)
    dataset = g.node(
        "DomainGalleryDataset", colour=BLUE, vae=model["vae"], source_images=source["images"],
        target_images=images["image"], prompts=words["prompts"], categories="6 face, 4 house",
    )  # fmt: skip
    options, learning, erase, learn = g.stages(model, words, dataset)
    learned = [g.plot(learn, "learning"), g.save_lora(learn, "Save the domain", "sketchbook_two_categories")]
    loaded = g.load_learned(model, learn, "Load LoRA of the domain")
    negative = g.prompt(model["clip"], "", "Negative prompt")
    inputs = g.latent_and_seed()
    rows = g.drawings(
        loaded, model, negative["conditioning"], inputs, "07",
        {"a sks face": "Faces", "a sks house": "Houses", "a sks car": "Neither: cars"},
    )  # fmt: skip
    place([
        [g.explain(notes.CATEGORIES, file=False)],
        [g.group("Model and words", [model, words]),
         g.group("Pictures to draw", [negative, *inputs], colour=DATA_FRAME)],
        [g.group("Images", [faces, houses], [images, preview], [source, dataset], colour=DATA_FRAME)],
        [g.group("Stage 1: erase", [options, erase], colour=ERASE_FRAME),
         g.group("Stage 2: learn", [learning, learn], learned, colour=LEARN_FRAME)],
        [g.group("Load", [loaded])],
        rows,
    ])  # fmt: skip


def choose_enhancement(g: Workflow) -> None:
    model = g.load_model()
    domain = g.load_domain(model["model"])
    words = g.words(model["clip"], category="house")
    inputs = g.latent_and_seed("fixed")
    few = g.pictures("Pictures of the sweep", min(3, g.numbers.pictures))
    sweep = g.sweep(domain, words, model, [few, inputs[1]], "Enhancement Sweep")
    grid = g.save(sweep["grid"], "Modes and strengths", "08_sweep", tall=420)
    enhanced = g.node(
        "DomainGalleryEnhancement", title="Domain Enhancement", colour=PURPLE, wide=300,
        model=domain["model"], prompts=words["prompts"], mode="V-uncond", enhancement=g.numbers.v_uncond,
    )  # fmt: skip
    prompt = g.prompt(model["clip"], "a sks house by the sea", "Prompt")
    sampler = g.sampler(enhanced, prompt["conditioning"], words["empty"], inputs, "Draw")
    pictures = g.show(sampler, model, "Houses of the domain", "08_house")
    place([
        [g.explain(notes.SWEEP)],
        [g.group("Model and words", [model, domain, words]),
         g.group("Pictures to draw", [few, *inputs], colour=DATA_FRAME)],
        [g.group("Compare", [sweep], [grid], colour=DRAW_FRAME),
         g.group("Draw with what was chosen", [prompt, enhanced], [sampler], pictures, colour=DRAW_FRAME)],
    ])  # fmt: skip


WORKFLOWS: dict[str, Callable[[Workflow], None]] = {
    "01 teach a domain": teach,
    "02 same category": same_category,
    "03 other categories": other_categories,
    "04 extra attributes": extra_attributes,
    "05 with a subject LoRA": with_subject,
    "06 a subject with the domain": joint,
    "07 several categories": several_categories,
    "08 choose an enhancement": choose_enhancement,
}


def pack_version() -> str:
    with (PACK / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]


def make_workflows(info: dict[str, Any], numbers: Numbers = DEMO) -> dict[str, str]:
    """Return the text of each workflow's file by its title; `info` is the host's answer to /object_info."""
    made = {}
    for name, describe in WORKFLOWS.items():
        graph = Workflow(name, info, pack_version(), numbers)
        describe(graph)
        made[name] = json.dumps(graph.to_json(), indent=1) + "\n"
    return made


def main() -> None:
    from .host_process import HostProcess

    parser = argparse.ArgumentParser(prog="tools.make_workflows", description="Write workflows/*.json.")
    parser.add_argument("--host", required=True, help="folder of ComfyUI, which tells the nodes' inputs")
    with HostProcess(parser.parse_args().host, cpu=True) as host:
        made = make_workflows(host.client.object_info())
    FOLDER.mkdir(exist_ok=True)
    for name, text in made.items():
        path = Path(FOLDER, f"{name}.json")
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path)


if __name__ == "__main__":
    main()
