"""Try enhancement beside patches of other packs: python -m benchmarks.patches --host COMFYUI --packs FOLDER

FOLDER holds checkouts of node packs, as `custom_nodes` does; those that are absent are left out. Each patch
is put on the demo model, with an enhancement before and after it, in both modes. Prints a table for
docs/enhancement.md: whether it draws, how many rows each evaluation of the model has, and whether what the
enhancement adds to one prediction is the last summand of Eq. 6, made of rows that are predicted one by one
with the patch. Ends with 1 where something fails, or adds something else and is not said to.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.util
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.unet_denoiser import find_host
from tools.host.load_pack import load_pack

HOST = "ComfyUI"
CFG, STRENGTH, SIGMA = 3.0, 0.7, 2.0
MODES = ("V-uncond", "VN-N")
#: How far what is added may be from the formula, as a share of it: batches of other sizes round otherwise.
CLOSE = 1e-3

# What a patch does, where the summand cannot be told from the outside.
GUIDED = "works on the enhanced picture"
RANDOM = "random"
CACHED = "skips steps"


@dataclass(frozen=True)
class Patch:
    """Name a node that patches a MODEL.

    Attributes:
        pack: the folder of its pack, or HOST.
        node: its id; of the host's, module and class with a dot between.
        what: how it is called in the table.
        inputs: those that differ from its defaults; a function makes one of the bench.
        does: why what is added cannot be compared; empty where it can.
    """

    pack: str
    node: str
    what: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    does: str = ""


SD = "sd-perturbed-attention"
PPM = "ComfyUI-ppm"
TRIED = [
    Patch(SD, "NormalizedAttentionGuidance", "NAG", {"negative": lambda bench: bench.prompts.empty}),
    Patch(
        PPM, "AttentionCouplePPM", "Attention Couple",
        {
            "base_cond": lambda bench: bench.prompts.target, "base_mask": lambda bench: bench.half,
            "cond_1": lambda bench: bench.prompts.source, "mask_1": lambda bench: 1 - bench.half,
        },
    ),
    Patch(
        "cgem156-ComfyUI", "AttentionCouple|cgem156", "Attention Couple",
        {
            "base_mask": lambda bench: bench.half, "cond_1": lambda bench: bench.prompts.source,
            "mask_1": lambda bench: 1 - bench.half,
        },
    ),
    Patch(SD, "PerturbedAttention", "PAG"),
    Patch(SD, "SmoothedEnergyGuidanceAdvanced", "SEG"),
    Patch(
        SD, "SlidingWindowGuidanceAdvanced", "SWG",
        {"tile_width": 64, "tile_height": 64, "tile_overlap": 32, "sigma_end": -1.0},
    ),
    Patch(SD, "PLADIS", "PLADIS"),
    Patch(SD, "TokenPerturbationGuidance", "TPG", {"unet_block_list": ""}, RANDOM),
    Patch(SD, "FrequencyDecoupledGuidance", "FDG"),
    Patch(SD, "MomentumGuidance", "Momentum Guidance", {}, GUIDED),
    Patch(SD, "SlidingModeControlCFG", "SMC-CFG"),
    Patch(PPM, "CLIPNegPip", "NegPip", {"clip": lambda bench: bench.clip}),
    Patch(PPM, "CADSPPM", "CADS", {}, RANDOM),
    Patch("ComfyUI-CADS", "CADS", "CADS", {"key": "c_crossattn", "apply_to": "both", "seed": 1}, RANDOM),
    Patch(PPM, "TCFGAdvanced", "TCFG"),
    Patch(PPM, "RescaleCFGPost", "RescaleCFG", {}, GUIDED),
    Patch(PPM, "RenormCFGPost", "RenormCFG", {}, GUIDED),
    Patch(PPM, "DynamicThresholdingSimplePost", "Dynamic Thresholding", {}, GUIDED),
    Patch("ComfyUI-APG_ImYourCFGNow", "APG_ImYourCFGNow", "APG", {"momentum": 0.0}),
    Patch("Skimmed_CFG", "Skimmed CFG", "Skimmed CFG"),
    Patch(HOST, "nodes_nag.NAGuidance", "NAG"),
    Patch(HOST, "nodes_pag.PerturbedAttentionGuidance", "PAG"),
    Patch(HOST, "nodes_sag.SelfAttentionGuidance", "SAG"),
    Patch(HOST, "nodes_apg.APG", "APG", {"momentum": 0.0}),
    Patch(HOST, "nodes_tcfg.TCFG", "TCFG"),
    Patch(HOST, "nodes_cfg.CFGZeroStar", "CFG-Zero*"),
    Patch(HOST, "nodes_cfg.CFGNorm", "CFGNorm", {"strength": 1.0}, GUIDED),
    Patch(HOST, "nodes_mahiro.Mahiro", "Mahiro", {}, GUIDED),
    Patch(HOST, "nodes_fresca.FreSca", "FreSca"),
    Patch(HOST, "nodes_freelunch.FreeU_V2", "FreeU"),
    Patch(HOST, "nodes_hypertile.HyperTile", "HyperTile", {}, RANDOM),
    Patch(HOST, "nodes_tomesd.TomePatchModel", "Token Merging", {}, RANDOM),
    Patch(HOST, "nodes_easycache.EasyCacheNode", "EasyCache", {}, CACHED),
    Patch(HOST, "nodes_easycache.LazyCacheNode", "LazyCache", {}, CACHED),
    # It replaces the host's sampling function, for good.
    Patch("ComfyUI-AutomaticCFG", "Automatic CFG", "Automatic CFG", {"boost": False}, GUIDED),
]  # fmt: skip


#: What packs import of older hosts and need for other models alone, by module. It is given to them here.
MOVED = {"comfy.ldm.cosmos.predict2": ["apply_rotary_pos_emb"]}


class Bench:
    """Draw with the demo model, patched by other packs and enhanced by ours."""

    def __init__(self, host: Path, packs: Path) -> None:
        self.own = load_pack(host)
        import comfy.samplers
        import comfy.utils

        comfy.utils.PROGRESS_BAR_ENABLED = False
        self.samplers, self.packs = comfy.samplers, packs
        self.found: dict[str, ModuleType] = {}
        with torch.inference_mode():
            self.model, self.clip = self.module("nodes.demo.sketchbook").load_sketchbook()[:2]
        self.half = torch.zeros(1, 64, 64)
        self.half[..., :32] = 1.0
        self.domain = self._domain(self.clip)
        self.prompts = self.domain.first

    def module(self, name: str) -> Any:
        return sys.modules[f"{self.own.__name__}.{name}"]

    def _domain(self, clip: Any) -> Any:
        with torch.inference_mode():
            node = self.module("nodes.data.prompts").DomainGalleryPrompts
            return node.execute(clip=clip, identifier="sks", category="face")[0]

    def node(self, patch: Patch) -> type:
        """Return the class of a node."""
        if patch.pack == HOST:
            module, _, name = patch.node.rpartition(".")
            return getattr(importlib.import_module(f"comfy_extras.{module}"), name)
        module = self.found.get(patch.pack) or load(self.packs / patch.pack)
        self.found[patch.pack] = module
        mapping = getattr(module, "NODE_CLASS_MAPPINGS", {})
        if not mapping:
            extension = asyncio.run(module.comfy_entrypoint())
            mapping = {n.GET_SCHEMA().node_id: n for n in asyncio.run(extension.get_node_list())}
        return mapping[patch.node]

    def put_on(self, patch: Patch, model: Any) -> tuple[Any, Any]:
        """Return a MODEL with a patch, and the prompts for it."""
        node = self.node(patch)
        given = {name: value(self) if callable(value) else value for name, value in patch.inputs.items()}
        inputs = {**defaults(node), **given}
        with torch.inference_mode():
            run: Callable[..., Any] = (
                node.execute if hasattr(node, "execute") else getattr(node(), node.FUNCTION)  # type: ignore[attr-defined]
            )
            out = run(model=model, **inputs)
        outputs = list(getattr(out, "args", out))
        return outputs[0], self._domain(outputs[1]) if "clip" in given else self.domain

    def enhance(self, model: Any, domain: Any, mode: str) -> Any:
        node = self.module("nodes.draw.sampling").DomainGalleryEnhancement
        with torch.inference_mode():
            return node.execute(model, mode=mode, enhancement=STRENGTH, prompts=domain)[0]

    def predict(
        self, model: Any, positive: Any, negative: Any
    ) -> tuple[Tensor, dict[str, Tensor], list[int]]:
        """Return the guided x0 for a fixed noise, the x0 of both rows, and the rows of each evaluation."""
        guider = self.samplers.CFGGuider(model.clone())
        rows: list[int] = []
        seen: dict[str, Tensor] = {}

        def keep(args: dict[str, Any]) -> Tensor:
            seen.update(positive=args["cond_denoised"], negative=args["uncond_denoised"])
            return args["denoised"]

        guider.model_patcher.set_model_sampler_post_cfg_function(keep, disable_cfg1_optimization=True)
        guider.set_conds(positive, negative)
        guider.set_cfg(CFG)
        noise = torch.randn(2, 24, 16, 16, generator=torch.Generator().manual_seed(1))
        once = _Once()
        handle = guider.model_patcher.model.diffusion_model.register_forward_pre_hook(
            lambda module, args: rows.append(args[0].shape[0] // 2)
        )
        torch.manual_seed(0)
        try:
            with torch.inference_mode():
                guider.sample(noise, torch.zeros_like(noise), once, torch.tensor([SIGMA, 0.0]), seed=0)
        finally:
            handle.remove()
        assert once.x0 is not None
        return once.x0, seen, rows

    def draws(self, model: Any, prompts: Any) -> bool:
        """Tell whether four steps end in finite latents."""
        latent = {"samples": torch.zeros(2, 24, 16, 16)}
        with torch.inference_mode():
            out = sys.modules["nodes"].common_ksampler(
                model, 5, 4, CFG, "euler", "normal", prompts.target, prompts.empty, latent
            )
        return bool(torch.isfinite(out[0]["samples"]).all())

    def summand(self, patched: Any, prompts: Any, mode: str) -> Tensor:
        """Return the last summand of Eq. 6; the base is predicted alone, marked as its counterpart."""
        bare = patched.clone()
        for name in [name for name in bare.model_options if name.startswith("sampler_")]:
            del bare.model_options[name]
        _, rows, _ = self.predict(bare, prompts.target, prompts.empty)
        base = prompts.bare if mode == "V-uncond" else prompts.source
        _, alone, _ = self.predict(bare, base, base)
        if mode == "V-uncond":
            return CFG * STRENGTH * (alone["negative"] - rows["negative"])
        return CFG * STRENGTH * (rows["positive"] - alone["positive"])

    def try_patch(self, patch: Patch, mode: str) -> tuple[str, bool]:
        """Return what happens with a patch and a mode, in words, and whether that is right."""
        patched, domain = self.put_on(patch, self.model)
        prompts = domain.first
        orders = (
            self.enhance(patched, domain, mode),
            self.put_on(patch, self.enhance(self.model, domain, mode))[0],
        )
        for model in orders:
            if not self.draws(model, prompts):
                return "not finite", False
        plain, _, _ = self.predict(patched, prompts.target, prompts.empty)
        expected = self.summand(patched, prompts, mode)
        far, rows = 0.0, []
        for model in orders:
            found, _, rows = self.predict(model, prompts.target, prompts.empty)
            far = max(far, float((found - plain - expected).norm() / expected.norm()))
        words = f"rows {' + '.join(map(str, rows))}"
        if patch.does:
            return f"{words}; {patch.does}", True
        return (f"{words}; Eq. 6", True) if far < CLOSE else (f"{words}; {far:.2g} from Eq. 6", False)


class _Once:
    """A sampler that predicts once and keeps it."""

    x0: Tensor | None = None

    def sample(
        self, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any
    ):
        self.x0 = guider(noise, torch.full((len(noise),), SIGMA), **extra_args)
        return noise


def load(folder: Path) -> ModuleType:
    """Return a pack, imported as the host does it: by path, with what it misses of older hosts."""
    for module, names in MOVED.items():
        for name in names:
            vars(importlib.import_module(module)).setdefault(name, None)
    around = sys.modules.setdefault(
        "custom_nodes", ModuleType("custom_nodes")
    )  # some import themselves from it
    around.__path__ = [str(folder.parent)]
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def defaults(node: Any) -> dict[str, Any]:
    """Return what a node's inputs are by themselves, where they are something; both kinds of nodes."""
    if hasattr(node, "INPUT_TYPES"):
        given = node.INPUT_TYPES()
        found = {}
        for name, (kind, *more) in {**given.get("required", {}), **given.get("optional", {})}.items():
            options = more[0] if more else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            if "default" in options or choices:
                found[name] = options.get("default", choices[0] if choices else None)
        return found
    inputs = node.define_schema().inputs
    return {each.id: each.default for each in inputs if getattr(each, "default", None) is not None}


def version(folder: Path) -> str:
    """Return a version of a pack with the date and the first digits of its commit."""
    project = folder / "pyproject.toml"
    said = (
        tomllib.loads(project.read_text("utf-8"))["project"].get("version", "") if project.is_file() else ""
    )
    log = ["git", "-C", str(folder), "log", "-1", "--format=%cs, %h"]
    commit = subprocess.run(log, capture_output=True, text=True).stdout.strip()
    return f"{said} ({commit})".strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.patches", description=__doc__.splitlines()[0])
    parser.add_argument("--host", help="folder of ComfyUI; else COMFYUI_PATH")
    parser.add_argument("--packs", type=Path, required=True, help="folder with checkouts of other packs")
    parser.add_argument("--only", help="those with this in their name")
    given = parser.parse_args()
    host, packs = find_host(given.host), given.packs.resolve()
    bench, wrong = Bench(host, packs), 0
    print("| patch | of | V-uncond | VN-N |\n|---|---|---|---|")
    for patch in TRIED:
        absent = patch.pack != HOST and not (packs / patch.pack).is_dir()
        if absent or (given.only and given.only not in f"{patch.pack} {patch.what}"):
            continue
        told = []
        for mode in MODES:
            try:
                words, right = bench.try_patch(patch, mode)
            except Exception as error:  # whatever another pack raises is what is looked for
                words, right = f"{type(error).__name__}: {error}".splitlines()[0][:90], False
            told.append(words)
            wrong += not right
        whose = f"{patch.pack} {version(packs / patch.pack) if patch.pack != HOST else host_version(host)}"
        print(f"| {patch.what} | {whose} | {' | '.join(told)} |", flush=True)
    raise SystemExit(wrong > 0)


def host_version(host: Path) -> str:
    """Return the version of the host."""
    return (host / "comfyui_version.py").read_text("utf-8").split('"')[-2]


if __name__ == "__main__":
    main()
