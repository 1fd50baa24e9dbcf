"""The workflow that holds methods against each other: the same images, words, noise and trainer for all."""

from __future__ import annotations

from typing import Any

from . import workflow_notes as notes
from .workflow_graph import BLUE, GREEN, PURPLE, Node
from .workflow_layout import place
from .workflow_parts import (
    CURVES,
    DATA_FRAME,
    DOMAIN_IMAGES,
    DRAW_FRAME,
    ERASE_FRAME,
    LEARN_FRAME,
    Numbers,
    Workflow,
)

TAUGHT, OTHER = "face", "house"
ENHANCED = "V-uncond"


def fields(n: Numbers) -> dict[str, dict[str, Any]]:
    """Return what differs from the defaults of each method."""
    return {
        "DreamBooth": {"steps": n.dreambooth_steps, "learning_rate": n.dreambooth_rate},
        "DreamBooth LoRA": {"steps": n.dreambooth_lora_steps, "learning_rate": n.dreambooth_lora_rate},
        "DomainStudio": {"steps": n.domainstudio_steps, "learning_rate": n.domainstudio_rate},
        "Textual Inversion": {
            "steps": n.inversion_steps,
            "learning_rate": n.inversion_rate,
            "vectors": n.inversion_vectors,
        },
    }


def compare(g: Workflow) -> None:
    n = g.numbers
    model = g.load_model()
    words = {category: g.words(model["clip"], category=category, title=f"Words: {category}")
             for category in (TAUGHT, OTHER)}  # fmt: skip
    latent = g.pictures("Pictures", n.compared)
    inputs = [latent, g.node("PrimitiveInt", title="Seed", control="fixed", wide=300, value=0)]
    images, preview, source, dataset = g.images(
        model, words[TAUGHT], DOMAIN_IMAGES, "domain", count=n.source_count, seed=1000
    )
    options, erase, learn = g.stages(model, words[TAUGHT], dataset)
    baselines = {method: baseline(g, method, model, words[TAUGHT], dataset, options) for method in fields(n)}
    learned = baselines["Textual Inversion"]["embedding"]
    new_word = g.node("DomainGallerySaveEmbedding", embedding=learned, name="sketchbook_compared")
    inverted = {category: g.node("DomainGalleryPrompts", title=f"New word: {category}", colour=GREEN,
                                 clip=model["clip"], identifier=new_word["word"], category=category)
                for category in words}  # fmt: skip

    loaders: list[Node] = []
    with_words: dict[str, tuple[Node, dict[str, Node]]] = {}
    for method, stage in {"DomainGallery": learn, **baselines}.items():
        if method == "Textual Inversion":
            with_words[method] = model, inverted
        else:
            loaders.append(g.load_learned(model, stage, f"Load: {method}"))
            with_words[method] = loaders[-1], words

    before = g.sampler(model, words[TAUGHT]["target"], words[TAUGHT]["empty"], inputs, "Draw: before")
    plain, others, enhanced = [g.decode(before, model)], [], []
    groups = [g.group("Before", [before], [*plain], colour=DRAW_FRAME)]
    for method, (loaded, asked) in with_words.items():
        drawn = [
            g.domain_sampler(loaded, asked[category], inputs, mode, f"{method}: {category}, {mode}", strength)
            for category, mode, strength in (
                (TAUGHT, "none", 0.0),
                (OTHER, "none", 0.0),
                (OTHER, ENHANCED, n.compared_enhancement),
            )
        ]
        decoded = [g.decode(each, model) for each in drawn]
        for pictures, row in zip(decoded, (plain, others, enhanced), strict=True):
            row.append(pictures)
        groups.append(g.group(method, *map(list, zip(drawn, decoded, strict=True)), colour=DRAW_FRAME))

    titles, trained = [*with_words], [*baselines.values()]
    costs = {f"notes.note{i}": node["report"] for i, node in enumerate([erase, learn, *trained])}
    figures = [
        (grid(g, "Grid: the category", plain, ["before", *titles], [f"a sks {TAUGHT}"], costs), "methods"),
        (grid(g, "Grid: enhancement", [*others, *enhanced], titles, ["none", ENHANCED], {}), "enhanced"),
    ]
    saved = [g.save(made["grid"], f"Methods: {name}", f"09_{name}", tall=620) for made, name in figures]
    for picture in saved:
        picture.width = 900
    place([
        [g.explain(notes.COMPARE, file=False)],
        [g.group("Model and words", [model, *words.values()]),
         g.group("Pictures to draw", inputs, colour=DATA_FRAME)],
        [g.group("Images", [images, preview], [source, dataset], colour=DATA_FRAME)],
        [g.group("DomainGallery", [options, erase], [learn], colour=ERASE_FRAME),
         g.group("The systems it is compared with", trained[:2], trained[2:], colour=LEARN_FRAME)],
        [g.group("Load", loaders), g.group("The new word", [new_word], [*inverted.values()])],
        groups[:3],
        groups[3:],
        [g.group("Side by side", [made for made, _ in figures], saved, colour=DRAW_FRAME)],
    ])  # fmt: skip


def baseline(g: Workflow, method: str, model: Node, words: Node, dataset: Node, options: Node) -> Node:
    """Add the training of a method."""
    own = {f"method.{name}": value for name, value in fields(g.numbers)[method].items()}
    if method == "Textual Inversion":
        own["method.clip"] = model["clip"]
    return g.node(
        "DomainGalleryBaseline", title=method, colour=PURPLE, tall=CURVES, model=model["model"],
        prompts=words["prompts"], dataset=dataset["dataset"], options=options["options"], method=method,
        seed=2, **own,
    )  # fmt: skip


def grid(
    g: Workflow, title: str, pictures: list[Node], columns: list[str], rows: list[str], costs: dict[str, Any]
) -> Node:
    """Add a grid of pictures, row by row."""
    cells = {f"images.image{i}": node["image"] for i, node in enumerate(pictures)}
    return g.node(
        "DomainGalleryGrid", title=title, colour=BLUE, wide=300, tall=120, columns="\n".join(columns),
        rows="\n".join(rows), **cells, **costs,
    )  # fmt: skip
