"""The workflows that teach on a checkpoint of one's own; all numbers are left to the model and the preset."""

from __future__ import annotations

from . import notes_for_own_models as notes
from .blueprints import teach_a_domain
from .workflow_graph import BLUE, GREEN, Graph
from .workflow_layout import place


def on_sd15(g: Graph) -> None:
    _teach(g, notes.SD15)


def on_sdxl(g: Graph) -> None:
    _teach(g, notes.SDXL)


#: By their titles, which are all that the template browser shows and searches.
OWN_MODELS = {"00 train a style LoRA on SD 1.5": on_sd15, "00 train a style LoRA on SDXL": on_sdxl}


def _teach(g: Graph, size: str) -> None:
    teach = teach_a_domain(g.info, g.version)
    g.info = {**g.info, teach.id: teach.as_node()}
    read = g.note("Read me", notes.TEACH.format(size=size))
    model = g.node("CheckpointLoaderSimple", colour=GREEN, wide=420, ckpt_name="")
    images = g.node("DomainGalleryLoadImages", colour=BLUE, wide=420, folder="")
    taught = g.node(
        teach.id, title=teach.name, wide=420, model=model["model"], clip=model["clip"],
        vae=model["vae"], images=images["images"],
    )  # fmt: skip
    picture = g.node(
        "SaveImage", title="Before and after", wide=520, tall=560, images=taught["picture"],
        filename_prefix="domaingallery/before_and_after",
    )  # fmt: skip
    file = g.node("PreviewAny", title="The file", wide=520, tall=80, source=taught["file"])
    place([
        [g.group("", [read]), g.group("1  Choose", [model, images])],
        [g.group("2  Name", [taught])],
        [g.group("3  Look", [file, picture])],
    ])  # fmt: skip
