"""What several of the workflows have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from . import workflow_notes as notes
from .workflow_graph import BLUE, BROWN, GREEN, PURPLE, Graph, Node, Socket
from .workflow_layout import Group

DOMAIN = "cyanotype"  # what the demo teaches; a style of the sketchbook that its model has never seen
DOMAIN_LORA = f"sketchbook_{DOMAIN}.safetensors"
DOMAIN_IMAGES: dict[str, Any] = {"domain": DOMAIN, "category": "face", "count": 10, "seed": 0}
SUBJECT_IMAGES: dict[str, Any] = {"domain": "plain", "category": "olis", "count": 5, "seed": 0}
LINE, CURVES = 60, 290  # extra heights: for a line of progress, for it and the curves of a stage
ERASE_FRAME, LEARN_FRAME, DRAW_FRAME, DATA_FRAME = "#a1309b", "#b06634", "#3f789e", "#3f9e6f"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What differs between models: sizes, lengths, rates and scales."""

    size: int
    source_count: int
    subject_source_count: int
    rank: int
    batch_size: int
    denoise_steps: int
    erase_steps: int
    erase_rate: float
    train_steps: int
    train_rate: float
    subject_steps: int
    subject_rate: float
    subject_prior_weight: float
    dreambooth_steps: int
    dreambooth_rate: float
    dreambooth_lora_steps: int
    dreambooth_lora_rate: float
    domainstudio_steps: int
    domainstudio_rate: float
    inversion_steps: int
    inversion_rate: float
    inversion_vectors: int
    joint_steps: int
    joint_rate: float
    joint_subject_weight: float
    sampling_steps: int
    sampler_name: str
    scheduler: str
    cfg: float
    v_uncond: float
    vn_n: float
    strength_elsewhere: float
    strength_of_subject: float
    pictures: int
    compared: int
    compared_enhancement: float


class Workflow(Graph):
    """A workflow with the parts that several of them have."""

    def __init__(self, name: str, info: dict[str, Any], version: str, numbers: Numbers) -> None:
        super().__init__(name, info, version)
        self.numbers = numbers
        n = numbers
        self.sampling: dict[str, Any] = {
            "steps": n.sampling_steps,
            "cfg": n.cfg,
            "sampler_name": n.sampler_name,
            "scheduler": n.scheduler,
        }

    # what is written

    def write(self, title: str, text: str) -> Node:
        """Add a note, with the numbers in it."""
        return self.note(title, text.format(**asdict(self.numbers), domain=DOMAIN))

    def explain(self, text: str, *, file: bool = True) -> Group:
        """Add the notes that a workflow begins with."""
        texts = {"Read me": text, **({"The LoRA": notes.FILE} if file else {}), "Your model": notes.OWN_MODEL}
        return self.group("", [self.write(*each) for each in texts.items()])

    # what is loaded

    def load_model(self) -> Node:
        return self.node("DomainGalleryLoadDemo", colour=GREEN, wide=300)

    def load_domain(self, model: Socket, strength: float = 1.0) -> Node:
        return self.node(
            "LoraLoaderModelOnly", title="Load LoRA of the domain", colour=GREEN, wide=300,
            model=model, lora_name=DOMAIN_LORA, strength_model=strength,
        )  # fmt: skip

    def load_learned(self, model: Node, stage: Node, title: str, strength: float = 1.0) -> Node:
        inputs: dict[str, Any] = {
            "model": model["model"],
            "lora": stage["lora"],
            "strength_model": strength,
        }
        return self.node("LoraModelLoader", title=title, colour=GREEN, wide=300, **inputs)

    # what is asked for

    def words(
        self, clip: Socket, *, category: str = "face", identifier: str = "sks", title: str = ""
    ) -> Node:
        return self.node(
            "DomainGalleryPrompts", title=title, colour=GREEN, wide=300,
            clip=clip, identifier=identifier, category=category,
        )  # fmt: skip

    def prompt(self, clip: Socket, text: str, title: str) -> Node:
        return self.node("CLIPTextEncode", title=title, colour=GREEN, wide=300, tall=40, clip=clip, text=text)

    def pictures(self, title: str, count: int) -> Node:
        size: dict[str, Any] = {"width": self.numbers.size, "height": self.numbers.size, "batch_size": count}
        return self.node("EmptyLatentImage", title=title, wide=300, **size)

    def latent_and_seed(self, control: str = "randomize") -> list[Node]:
        latent = self.pictures("Pictures", self.numbers.pictures)
        return [latent, self.node("PrimitiveInt", title="Seed", control=control, wide=300, value=0)]

    # what is learned from

    def images(
        self, model: Node, words: Node, target: dict[str, Any], title: str, *, count: int, seed: int
    ) -> list[Node]:
        """Add target images, their preview, source images, and the dataset of both."""
        images, preview = self.target_images(target, title)
        source = self.source_images(model, words, count=count, seed=seed)
        dataset = self.node(
            "DomainGalleryDataset", colour=BLUE, tall=LINE,
            vae=model["vae"], source_images=source["source"], target_images=images["images"],
        )  # fmt: skip
        return [images, preview, source, dataset]

    def images_beside(self, model: Node, source: Node, target: dict[str, Any], title: str) -> list[Node]:
        """Add target images, their preview, and their dataset with source images that are there already."""
        images, preview = self.target_images(target, title)
        dataset = self.node(
            "DomainGalleryDataset", title=f"Dataset of the {title}", colour=BLUE, tall=LINE, vae=model["vae"],
            source_images=source["source"], target_images=images["images"],
        )  # fmt: skip
        return [images, preview, dataset]

    def target_images(self, target: dict[str, Any], title: str) -> list[Node]:
        images = self.node("DomainGalleryDemoImages", title=f"Images of the {title}", colour=BLUE, **target)
        return [images, self.node("PreviewImage", title=f"The {title}", tall=280, images=images["images"])]

    def source_images(self, model: Node, words: Node, *, count: int, seed: int) -> Node:
        size = self.numbers.size
        return self.node(
            "DomainGallerySourceImages", colour=BLUE, tall=LINE, model=model["model"], vae=model["vae"],
            prompts=words["prompts"], count=count, width=size, height=size, batch_size=16, seed=seed,
            **self.sampling,
        )  # fmt: skip

    def options(self) -> Node:
        n = self.numbers
        return self.node(
            "DomainGalleryOptions", rank=n.rank, alpha=float(n.rank), batch_size=n.batch_size,
            denoise_steps=n.denoise_steps,
        )  # fmt: skip

    def learnt_from(self, model: Node, words: Node, dataset: Node) -> tuple[Node, dict[str, Any]]:
        """Add the options of both stages; return them, and the inputs that the stages share."""
        options = self.options()
        return options, {
            "model": model["model"],
            "prompts": words["prompts"],
            "dataset": dataset["dataset"],
            "options": options["options"],
        }

    def stages(self, model: Node, words: Node, dataset: Node) -> list[Node]:
        """Add the options of both stages, and the stages."""
        n = self.numbers
        options, data = self.learnt_from(model, words, dataset)
        erase = self.node(
            "DomainGalleryErase", title="1  Erase Prior Attributes", colour=PURPLE, tall=CURVES,
            steps=n.erase_steps, learning_rate=n.erase_rate, seed=1, **data,
        )  # fmt: skip
        learn = self.node(
            "DomainGalleryTrain", title="2  Train Domain LoRA", colour=PURPLE, tall=CURVES,
            erased=erase["lora"], steps=n.train_steps, learning_rate=n.train_rate, seed=2, **data,
        )  # fmt: skip
        return [options, erase, learn]

    def save_lora(self, stage: Node, title: str, name: str) -> Node:
        return self.node("DomainGallerySaveLora", title=title, colour=BROWN, lora=stage["lora"], name=name)

    def plot(self, stage: Node, name: str) -> Node:
        inputs: dict[str, Any] = {"loss": stage["losses"], "filename_prefix": name}
        return self.node("LossGraphNode", title=f"Loss of {name}", tall=240, **inputs)

    # what is drawn

    def sampler(
        self, model: Node, positive: Socket, negative: Socket, inputs: list[Node], title: str
    ) -> Node:
        latent, seed = inputs
        return self.node(
            "KSampler", title=title, colour=PURPLE, wide=300, model=model["model"], positive=positive,
            negative=negative, latent_image=latent["latent"], seed=seed["int"], denoise=1.0, **self.sampling,
        )  # fmt: skip

    def domain_sampler(
        self,
        model: Node,
        words: Node,
        inputs: list[Node],
        mode: str,
        title: str,
        strength: float | None = None,
    ) -> Node:
        latent, seed = inputs
        if strength is None:
            strength = {"none": 0.0, "V-uncond": self.numbers.v_uncond, "VN-N": self.numbers.vn_n}[mode]
        return self.node(
            "DomainGalleryKSampler", title=title, colour=PURPLE, wide=300, model=model["model"],
            positive=words["target"], negative=words["empty"], prompts=words["prompts"], mode=mode,
            enhancement=strength, latent_image=latent["latent"], seed=seed["int"], denoise=1.0,
            **self.sampling,
        )  # fmt: skip

    def sweep(self, model: Node, words: Node, decoder: Node, inputs: list[Node], title: str) -> Node:
        """Add a sweep around the strength that suits the model."""
        latent, seed = inputs
        steps = (0, 0.2, 0.6, 1, 1.4)
        return self.node(
            "DomainGallerySweep", title=title, colour=PURPLE, wide=300, model=model["model"],
            positive=words["target"], negative=words["empty"], prompts=words["prompts"], vae=decoder["vae"],
            enhancements=", ".join(f"{self.numbers.v_uncond * step:g}" for step in steps),
            latent_image=latent["latent"], seed=seed["int"], denoise=1.0, **self.sampling,
        )  # fmt: skip

    def save(self, images: Socket, title: str, prefix: str, *, tall: int = 280) -> Node:
        name = f"domaingallery/{prefix}"
        return self.node("SaveImage", title=title, wide=300, tall=tall, images=images, filename_prefix=name)

    def drawings(
        self,
        loaded: Node,
        model: Node,
        negative: Socket,
        inputs: list[Node],
        number: str,
        texts: dict[str, str],
    ) -> list[Group]:
        """Add a row of prompt, sampler and pictures for each text, under its title."""
        rows = []
        for row, (text, title) in enumerate(texts.items(), 1):
            prompt = self.prompt(model["clip"], text, f"Prompt {row}")
            sampler = self.sampler(loaded, prompt["conditioning"], negative, inputs, f"Draw {row}")
            pictures = self.show(sampler, model, title, f"{number}_{row}")
            rows.append(self.group(f"{title}: {text}", [prompt], [sampler], pictures, colour=DRAW_FRAME))
        return rows

    def show(self, latent: Node, model: Node, title: str, prefix: str) -> list[Node]:
        """Add what turns a latent into saved pictures."""
        decode = self.decode(latent, model)
        return [decode, self.save(decode["image"], title, prefix)]

    def decode(self, latent: Node, model: Node) -> Node:
        return self.node("VAEDecode", wide=300, samples=latent["latent"], vae=model["vae"])
