"""The subgraphs that the host lists as nodes: the whole of a teaching, and of a drawing."""

from __future__ import annotations

from typing import Any

from .subgraphs import Subgraph
from .workflow_graph import BLUE, BROWN, GREEN, PURPLE, Node, Socket
from .workflow_layout import place
from .workflow_parts import CURVES, DATA_FRAME, DRAW_FRAME, ERASE_FRAME, LEARN_FRAME, LINE

#: Numbers and choices that leave a drawing to the model, and its noise to a seed.
FOLLOWS: dict[str, Any] = {
    "steps": 0,
    "cfg": 0.0,
    "sampler_name": "automatic",
    "scheduler": "automatic",
    "denoise": 1.0,
}
TEACH_FILE = "Teach a Domain (train a style LoRA)"
DRAW_FILE = "Draw in a Domain (with a style LoRA)"


def teach_a_domain(info: dict[str, Any], version: str) -> Subgraph:
    """Return source images, both stages, the file, and a picture of before and after, as one node."""
    g = Subgraph(
        "Teach a Domain",
        info,
        version,
        category="DomainGallery",
        description="Teaches a model a visual domain from about ten images of one category, such as an "
        "artist's drawings of faces: source images, erasure, finetuning and the file of the LoRA, with a "
        "picture of before and after.",
        aliases=("train lora", "train style", "lora training", "dreambooth", "finetune", "domaingallery"),
    )
    model, clip, vae, images = (
        g.socket(name, name.upper() if name != "images" else "IMAGE")
        for name in ("model", "clip", "vae", "images")
    )
    words = {
        "category": g.widget("category", "DomainGalleryPrompts", "category", "face"),
        "identifier": g.widget("identifier", "DomainGalleryPrompts", "identifier", "sks"),
    }
    preset = g.widget("preset", "DomainGalleryOptions", "preset", "paper")
    name = g.widget("name", "DomainGallerySaveLora", "name", "my_style")
    other = g.widget("another", "DomainGalleryPrompts", "category", "house", label="another category")

    prompts = g.node("DomainGalleryPrompts", colour=GREEN, wide=300, clip=clip, **words)
    options = g.node("DomainGalleryOptions", wide=300, preset=preset)
    source = g.node(
        "DomainGallerySourceImages", colour=BLUE, tall=LINE, model=model, vae=vae, prompts=prompts["prompts"],
        options=options["options"], seed=1000,
    )  # fmt: skip
    dataset = g.node(
        "DomainGalleryDataset", colour=BLUE, tall=LINE, vae=vae, source_images=source["source"],
        target_images=images, prompts=prompts["prompts"],
    )  # fmt: skip
    data: dict[str, Any] = {
        "model": model,
        "prompts": prompts["prompts"],
        "dataset": dataset["dataset"],
        "options": options["options"],
    }
    erase = g.node(
        "DomainGalleryErase", title="1  Erase Prior Attributes", colour=PURPLE, tall=CURVES, seed=1, **data
    )
    learn = g.node(
        "DomainGalleryTrain", title="2  Train Domain LoRA", colour=PURPLE, tall=CURVES, seed=2,
        erased=erase["lora"], **data,
    )  # fmt: skip
    save = g.node("DomainGallerySaveLora", colour=BROWN, lora=learn["lora"], name=name)
    erased, learned = (
        g.node("LoraModelLoader", title=f"Load: {title}", colour=GREEN, wide=300, model=model,
               lora=stage["lora"], strength_model=1.0)
        for title, stage in (("what was erased", erase), ("the domain", learn))
    )  # fmt: skip
    elsewhere = g.node(
        "DomainGalleryPrompts", title="Another category", colour=GREEN, wide=300, clip=clip, category=other,
        identifier=words["identifier"],
    )  # fmt: skip
    rows, cells = [], []
    for title, loaded, asked, mode in (
        ("before", model, prompts, "none"),
        ("erased", erased["model"], prompts, "none"),
        ("domain", learned["model"], prompts, "none"),
        ("another category", learned["model"], elsewhere, "V-uncond"),
    ):
        drawn = _drawn(g, loaded, asked["target"], asked, vae, title, mode=mode, enhancement=1.0)
        label = g.node(
            "TextOverlay", title=f"Label: {title}", wide=300, tall=40, images=drawn[1]["image"], text=title,
            font_size=8.0, position="bottom",
        )  # fmt: skip
        cells.append(label)
        rows.append(g.group(title.capitalize(), [drawn[0]], [drawn[1], label], colour=DRAW_FRAME))
    picture = _square(g, cells)

    g.output("model", learned["model"])
    g.output("lora", learn["lora"])
    g.output("picture", picture[-1]["image"])
    g.output("file", save["path"])
    place([
        [g.group("Words and options", [prompts, options])],
        [g.group("Images", [source, dataset], colour=DATA_FRAME)],
        [g.group("Stage 1: erase", [erase], colour=ERASE_FRAME),
         g.group("Stage 2: learn", [learn, save], colour=LEARN_FRAME)],
        [g.group("Load", [erased, learned, elsewhere])],
        rows,
        [g.group("One picture", picture[:2], picture[2:], colour=DRAW_FRAME)],
    ])  # fmt: skip
    return g


def draw_in_a_domain(info: dict[str, Any], version: str) -> Subgraph:
    """Return a drawing with the file of a LoRA, with enhancement, as one node."""
    g = Subgraph(
        "Draw in a Domain",
        info,
        version,
        category="DomainGallery",
        description="Draws with a LoRA of a domain, in the size and with the sampling that suit the model. "
        "Enhancement carries the domain over to categories that it was not taught with.",
        aliases=("style lora", "generate", "text to image", "enhanced sampling", "domaingallery"),
    )
    model, clip, vae = (g.socket(name, name.upper()) for name in ("model", "clip", "vae"))
    lora = g.widget("lora_name", "LoraLoaderModelOnly", "lora_name", "", label="lora")
    text = g.widget("prompt", "CLIPTextEncode", "text", "a sks face")
    words = {
        "category": g.widget("category", "DomainGalleryPrompts", "category", "face"),
        "identifier": g.widget("identifier", "DomainGalleryPrompts", "identifier", "sks"),
    }
    mode = g.widget("mode", "DomainGalleryKSampler", "mode", "none")
    enhancement = g.widget("enhancement", "DomainGalleryKSampler", "enhancement", 1.0)

    loaded = g.node("LoraLoaderModelOnly", title="Load LoRA of the domain", colour=GREEN, wide=300,
                    model=model, lora_name=lora, strength_model=1.0)  # fmt: skip
    prompts = g.node("DomainGalleryPrompts", colour=GREEN, wide=300, clip=clip, **words)
    prompt = g.node("CLIPTextEncode", title="Prompt", colour=GREEN, wide=300, tall=40, clip=clip, text=text)
    drawn = _drawn(g, loaded["model"], prompt["conditioning"], prompts, vae, "in the domain", mode=mode,
                   enhancement=enhancement, control="randomize")  # fmt: skip
    g.output("image", drawn[1]["image"])
    g.output("model", loaded["model"])
    place([
        [g.group("Model and words", [loaded, prompts, prompt])],
        [g.group("Draw", [drawn[0]], [drawn[1]], colour=DRAW_FRAME)],
    ])  # fmt: skip
    return g


#: By the names of their files, which the host's search and menu show.
BLUEPRINTS = {TEACH_FILE: teach_a_domain, DRAW_FILE: draw_in_a_domain}


def _drawn(
    g: Subgraph, model: Socket, positive: Socket, prompts: Node, vae: Socket, title: str, **inputs: Any
) -> list[Node]:
    """Add a sampler that follows the model, and its decoder."""
    sampler = g.node(
        "DomainGalleryKSampler", title=f"Draw: {title}", colour=PURPLE, wide=300, model=model,
        positive=positive, negative=prompts["empty"], prompts=prompts["prompts"], **FOLLOWS | inputs,
    )  # fmt: skip
    return [sampler, g.node("VAEDecode", wide=300, samples=sampler["latent"], vae=vae)]


def _square(g: Subgraph, cells: list[Node]) -> list[Node]:
    """Add what puts four images into two rows; it gives them last."""
    a, b, c, d = (cell["images"] for cell in cells)
    gap: dict[str, Any] = {"match_image_size": True, "spacing_width": 8}
    above, below = (
        g.node("ImageStitch", title=title, wide=300, image1=one, image2=two, direction="right", **gap)
        for title, one, two in (("Above", a, b), ("Below", c, d))
    )
    both = g.node("ImageStitch", title="Before and after", wide=300, image1=above["image"],
                  image2=below["image"], direction="down", **gap)  # fmt: skip
    return [above, below, both]
