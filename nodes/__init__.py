"""The nodes, in the order in which the menu shows them."""

from pathlib import Path

import folder_paths
from comfy_api.v0_0_2 import ComfyExtension, io

from .ahead.preflight import check_ahead
from .data.dataset import DomainGalleryDataset
from .data.folders import DomainGalleryLoadImages
from .data.prompts import DomainGalleryPrompts
from .data.source_images import DomainGallerySourceImages
from .demo.demo import DomainGalleryDemoImages, DomainGalleryLoadDemo
from .draw.grid import DomainGalleryGrid
from .draw.sampling import DomainGalleryEnhancement, DomainGalleryGuider, DomainGalleryKSampler
from .draw.sweep import DomainGallerySweep
from .files.kept import DomainGalleryKept
from .files.loading import DomainGalleryLoadLora
from .files.saving import DomainGallerySaveEmbedding, DomainGallerySaveLora
from .host.closing import close_when_terminated
from .host.stopping import serve
from .node import looks
from .train.baseline import DomainGalleryBaseline
from .train.personalization import DomainGalleryPersonalize
from .train.run_options import DomainGalleryRunOptions
from .train.subject import DomainGallerySubject
from .train.training import DomainGalleryErase, DomainGalleryTrain
from .train.training_options import DomainGalleryOptions

looks.append(check_ahead)

DEMO_LORAS = Path(__file__).parents[1] / "domaingallery_core" / "sketchbook" / "loras"

NODES: list[type[io.ComfyNode]] = [
    DomainGalleryPrompts,
    DomainGallerySourceImages,
    DomainGalleryLoadImages,
    DomainGalleryDataset,
    DomainGalleryErase,
    DomainGalleryTrain,
    DomainGalleryPersonalize,
    DomainGallerySubject,
    DomainGalleryBaseline,
    DomainGalleryOptions,
    DomainGalleryRunOptions,
    DomainGallerySaveLora,
    DomainGalleryLoadLora,
    DomainGallerySaveEmbedding,
    DomainGalleryKept,
    DomainGalleryGuider,
    DomainGalleryEnhancement,
    DomainGalleryKSampler,
    DomainGallerySweep,
    DomainGalleryGrid,
    DomainGalleryLoadDemo,
    DomainGalleryDemoImages,
]


class DomainGalleryExtension(ComfyExtension):
    """Register the pack's nodes with the host."""

    async def on_load(self) -> None:
        """Let the host find the LoRAs of the demo and saved embeddings; keep a training when it is closed.

        A button on the page can end one early, too.
        """
        close_when_terminated()
        serve()
        folder_paths.add_model_folder_path("loras", str(DEMO_LORAS))
        embeddings = Path(folder_paths.get_output_directory(), "embeddings")
        folder_paths.add_model_folder_path("embeddings", str(embeddings))

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> DomainGalleryExtension:
    """Return the extension; the host calls this after importing the pack."""
    return DomainGalleryExtension()
