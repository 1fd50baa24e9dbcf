"""The workflows that draw with what was learned."""

from __future__ import annotations

from . import workflow_notes as notes
from .workflow_graph import PURPLE, Node
from .workflow_layout import place
from .workflow_parts import DATA_FRAME, DRAW_FRAME, Workflow


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
    domain = g.load_domain(model["model"], g.numbers.strength_elsewhere)
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


def choose_enhancement(g: Workflow) -> None:
    model = g.load_model()
    domain = g.load_domain(model["model"], g.numbers.strength_elsewhere)
    words = g.words(model["clip"], category="house")
    inputs = g.latent_and_seed("fixed")
    few = g.pictures("Pictures of the sweep", min(3, g.numbers.pictures))
    sweep = g.sweep(domain, words, model, [few, inputs[1]], "Domain Enhancement Sweep")
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
