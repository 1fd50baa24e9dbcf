"""Every node explains itself, and keeps the order of inputs that saved workflows rely on."""

from __future__ import annotations

import asyncio
import re

import pytest

from gallery import PACK

# Widgets are stored by position: append to these lists, and never insert.
INPUTS = {
    "DomainGalleryPrompts": ["clip", "identifier", "category"],
    "DomainGallerySourceImages": [
        "model", "vae", "prompts", "count", "width", "height", "steps", "cfg", "sampler_name", "scheduler",
        "batch_size", "seed", "options",
    ],
    "DomainGalleryLoadImages": ["folder", "largest_side"],
    "DomainGalleryDataset": [
        "vae", "source_images", "target_images", "prompts", "masks", "categories", "fit", "flip", "held_out",
    ],
    "DomainGalleryErase": [
        "model", "prompts", "dataset", "steps", "learning_rate", "seed", "options", "run_options",
        "subject_prompts", "subject_dataset",
    ],
    "DomainGalleryPersonalize": [
        "model", "prompts", "dataset", "steps", "learning_rate", "seed", "subject_prompts", "subject_dataset",
        "subject_weight", "erased", "options", "run_options",
    ],
    "DomainGallerySubject": [
        "model", "prompts", "dataset", "steps", "learning_rate", "seed", "options", "run_options",
        "text_encoder",
    ],
    "DomainGalleryBaseline": [
        "model", "prompts", "dataset", "method", "seed", "options", "run_options",
    ],
    "DomainGalleryTrain": [
        "model", "prompts", "dataset", "steps", "learning_rate", "seed", "erased", "options",
        "run_options", "text_encoder",
    ],
    "DomainGalleryOptions": [
        "rank", "alpha", "batch_size", "prior_weight", "disentanglement_weight", "erasure_weight",
        "similarity_weight", "denoise_steps", "offset_noise", "adapter", "targets", "dropout",
        "similarity_scale", "denoise_guidance", "accumulation", "schedule", "warmup_steps",
        "ema", "min_snr", "optimizer", "precision", "text_encoder_rate", "preset",
    ],
    "DomainGalleryRunOptions": [
        "preview_every", "preview_count", "preview_steps", "preview_cfg", "validate_every",
        "checkpoint_every", "keep", "resume", "run_name", "gradient_checkpointing",
        "offload",
    ],
    "DomainGalleryKept": ["clear"],
    "DomainGallerySaveLora": ["lora", "name", "key_format"],
    "DomainGalleryLoadLora": ["lora_name"],
    "DomainGallerySaveEmbedding": ["embedding", "name"],
    "DomainGalleryGuider": [
        "model", "positive", "negative", "prompts", "mode", "cfg", "enhancement", "base", "start_percent",
        "end_percent", "rescale",
    ],
    "DomainGalleryEnhancement": [
        "model", "prompts", "mode", "enhancement", "base", "start_percent", "end_percent", "rescale",
    ],
    "DomainGalleryKSampler": [
        "model", "positive", "negative", "prompts", "mode", "cfg", "enhancement", "seed", "steps",
        "sampler_name", "scheduler", "denoise", "latent_image", "base", "start_percent", "end_percent",
        "rescale",
    ],
    "DomainGallerySweep": [
        "model", "positive", "negative", "prompts", "vae", "modes", "enhancements", "cfg", "seed", "steps",
        "sampler_name", "scheduler", "denoise", "latent_image", "start_percent", "end_percent", "rescale",
    ],
    "DomainGalleryGrid": ["images", "columns", "rows", "notes"],
    "DomainGalleryLoadDemo": [],
    "DomainGalleryDemoImages": ["domain", "category", "count", "seed"],
}  # fmt: skip
OUTPUTS = {
    "DomainGalleryPrompts": ["DG_PROMPTS", *["CONDITIONING"] * 4],
    "DomainGallerySourceImages": ["DG_SOURCE", "IMAGE"],
    "DomainGalleryLoadImages": ["IMAGE", "STRING"],
    "DomainGalleryDataset": ["DG_DATASET"],
    "DomainGalleryErase": ["LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "STRING"],
    "DomainGalleryTrain": ["LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "STRING"],
    "DomainGallerySubject": ["LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "STRING"],
    "DomainGalleryBaseline": ["LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "DG_EMBEDDING", "STRING"],
    "DomainGalleryPersonalize": ["LORA_MODEL", "LOSS_MAP", "IMAGE", "IMAGE", "STRING"],
    "DomainGalleryOptions": ["DG_OPTIONS"],
    "DomainGalleryRunOptions": ["DG_RUN"],
    "DomainGallerySaveLora": ["STRING"],
    "DomainGalleryLoadLora": ["LORA_MODEL"],
    "DomainGallerySaveEmbedding": ["STRING", "STRING"],
    "DomainGalleryKept": ["STRING"],
    "DomainGalleryGuider": ["GUIDER"],
    "DomainGalleryEnhancement": ["MODEL"],
    "DomainGalleryKSampler": ["LATENT"],
    "DomainGallerySweep": ["IMAGE"],
    "DomainGalleryGrid": ["IMAGE"],
    "DomainGalleryLoadDemo": ["MODEL", "CLIP", "VAE"],
    "DomainGalleryDemoImages": ["IMAGE"],
}


@pytest.fixture(scope="module")
def schemas(pack):
    async def read():
        return [node.GET_SCHEMA() for node in await (await pack.comfy_entrypoint()).get_node_list()]

    return {schema.node_id: schema for schema in asyncio.run(read())}


def inputs_of(schema):
    """Return the inputs of a node with those of its choices; one that grows is one input."""
    return [
        part
        for given in schema.inputs
        for part in ([given] if given.get_io_type().startswith("COMFY_AUTOGROW") else given.get_all())
    ]


def test_all_nodes_are_there_with_a_common_prefix(schemas):
    assert schemas.keys() == OUTPUTS.keys()
    assert all(name.startswith("DomainGallery") for name in schemas)


def test_every_node_has_a_name_a_place_a_description_and_aliases(schemas):
    for schema in schemas.values():
        assert schema.display_name
        assert "DomainGallery" not in schema.display_name
        assert schema.category.partition("/")[0] == "DomainGallery"
        assert len(schema.description) > 30
        assert schema.search_aliases


def test_every_input_and_output_is_explained(schemas):
    for schema in schemas.values():
        for part in [*inputs_of(schema), *schema.outputs]:
            assert part.tooltip, f"{schema.node_id}: {part.id}"
            assert part.tooltip.endswith("."), f"{schema.node_id}: {part.tooltip}"
        assert all(output.display_name for output in schema.outputs)


@pytest.mark.parametrize(
    "name", ["DomainGallerySaveLora", "DomainGallerySaveEmbedding", "DomainGalleryTrain"]
)
def test_what_a_node_says_reaches_it(schemas, name):
    """The host tells a node its own id only where its schema asks for it."""
    assert "UNIQUE_ID" in [hidden.value for hidden in schemas[name].hidden]


def test_inputs_and_outputs_keep_their_order(schemas):
    assert schemas.keys() == INPUTS.keys() == OUTPUTS.keys()
    for name, inputs in INPUTS.items():
        assert [part.id for part in schemas[name].inputs] == inputs
    for name, outputs in OUTPUTS.items():
        assert [part.io_type for part in schemas[name].outputs] == outputs


def test_the_host_accepts_every_schema(schemas):
    for schema in schemas.values():
        schema.validate()


def test_defaults_are_the_papers(schemas):
    """What is left open goes by the model: see test_presets.py."""

    def default(node: str, name: str):
        return next(part for part in schemas[node].inputs if part.id == name).default

    assert [default("DomainGalleryTrain", name) for name in ("steps", "learning_rate")] == [0, 0]
    assert (default("DomainGalleryKSampler", "steps"), default("DomainGalleryKSampler", "cfg")) == (50, 7.5)


def test_the_default_options_are_those_without_an_options_node(pack, nodes, schemas):
    node = nodes("nodes.train.training_options").DomainGalleryOptions
    defaults = {part.id: part.default for part in node.GET_SCHEMA().inputs}

    assert node.execute(**defaults)[0] == nodes("nodes.sockets").TrainingOptions()


def test_every_node_has_a_help_page(schemas):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in (PACK / "web" / "docs").glob("*.md")}

    assert pages.keys() == schemas.keys()
    for name, schema in schemas.items():
        assert pages[name].startswith(f"# {schema.display_name}\n")


def test_a_help_page_names_every_input_as_the_node_does(schemas):
    for name, schema in schemas.items():
        page = (PACK / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        named = re.findall(r"\*\*([^*]+)\*\*", page) + re.findall(r"^\| ([\w, ]+) \|", page, re.M)
        words = {word for part in named for word in re.split(r", | and ", part)}

        assert {part.id for part in inputs_of(schema)} <= words, name
