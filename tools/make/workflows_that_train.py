"""The workflows that learn: a domain, a subject, both together, and a domain of several categories."""

from __future__ import annotations

from typing import Any

from . import workflow_notes as notes
from .workflow_graph import BLUE, PURPLE
from .workflow_layout import place
from .workflow_parts import (
    CURVES,
    DATA_FRAME,
    DOMAIN,
    DOMAIN_IMAGES,
    DRAW_FRAME,
    ERASE_FRAME,
    LEARN_FRAME,
    LINE,
    SUBJECT_IMAGES,
    Workflow,
)


def teach(g: Workflow) -> None:
    model = g.load_model()
    words = g.words(model["clip"])
    images, preview, source, dataset = g.images(
        model, words, DOMAIN_IMAGES, "domain", count=g.numbers.source_count, seed=1000
    )
    options, erase, learn = g.stages(model, words, dataset)
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
         g.group("Stage 2: learn", [learn, g.write("The files", notes.SAVED)], learned, colour=LEARN_FRAME)],
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
        batch_size=n.batch_size, prior_weight=n.subject_prior_weight, disentanglement_weight=0.0,
        similarity_weight=0.0, schedule="linear",
    )  # fmt: skip
    learn = g.node(
        "DomainGalleryTrain", title="Train Subject LoRA", colour=PURPLE, tall=CURVES, model=model["model"],
        prompts=words["prompts"], dataset=dataset["dataset"], options=options["options"],
        steps=n.subject_steps, learning_rate=n.subject_rate, seed=3,
    )  # fmt: skip
    saved = g.save_lora(learn, "Save the subject", "sketchbook_olis")
    subject = g.load_learned(model, learn, "Load LoRA of the subject", n.strength_of_subject)
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
    options, data = g.learnt_from(model, words, dataset)
    data["subject_prompts"] = subject_words["prompts"]
    erase = g.node(
        "DomainGalleryErase", title="1  Erase both words", colour=PURPLE, tall=CURVES,
        steps=n.erase_steps, learning_rate=n.erase_rate, seed=1, **data,
    )  # fmt: skip
    learn = g.node(
        "DomainGalleryPersonalize", title="2  Learn both", colour=PURPLE, tall=CURVES, erased=erase["lora"],
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
        "DomainGalleryDataset", colour=BLUE, tall=LINE, vae=model["vae"], source_images=source["source"],
        target_images=images["image"], prompts=words["prompts"], categories="6 face, 4 house",
    )  # fmt: skip
    options, erase, learn = g.stages(model, words, dataset)
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
         g.group("Stage 2: learn", [learn], learned, colour=LEARN_FRAME)],
        [g.group("Load", [loaded])],
        rows,
    ])  # fmt: skip
