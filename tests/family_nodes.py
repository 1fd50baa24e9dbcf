"""Custom nodes for tests of model families: text encoder and VAE of any width; a look at what was trained.

What the first two give depends on what they are given and on nothing else.
"""

import hashlib
import sys

import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import node_helpers
import torch
from comfy_api.v0_0_2 import ComfyExtension, io

PIECE = 6  # characters of a token


class RandomTextEncoder:
    """Behave as the host's CLIP: tokens of a text, and a CONDITIONING of tokens."""

    def __init__(self, width, pooled, length, whole_numbers):
        self.width, self.pooled, self.length, self.whole_numbers = width, pooled, length, whole_numbers

    def tokenize(self, text):
        pieces = [word[i : i + PIECE] for word in text.split() for i in range(0, len(word), PIECE)]
        return {"test": [[(self._seed(piece), 1.0) for piece in ["<", *pieces, ">"]]]}

    def encode_from_tokens_scheduled(self, tokens):
        numbers = [number for number, _ in tokens["test"][0]]
        if self.length:
            numbers = (numbers + [0] * self.length)[: self.length]
        extra = {}
        if self.pooled:
            extra["pooled_output"] = self._random(sum(numbers), 1, self.pooled)
        if self.whole_numbers:
            extra["t5xxl_ids"] = torch.tensor([number % 1000 for number in numbers])
            extra["t5xxl_weights"] = torch.ones(len(numbers))
        rows = [self._random(number, 1, 1, self.width) for number in numbers]
        return [[torch.cat(rows, dim=1), extra]]

    def _seed(self, piece):
        return int.from_bytes(hashlib.sha256(piece.encode()).digest()[:4], "big")

    def _random(self, seed, *shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**31))


class RandomVae:
    """Behave as the host's VAE: means over squares of pixels, mixed into channels, and back."""

    def __init__(self, channels, ratio, frames):
        self.latent_channels, self.ratio, self.latent_dim = channels, ratio, 3 if frames else 2
        self.mix = torch.randn(channels, 3, generator=torch.Generator().manual_seed(0))

    def encode(self, pixels):
        images = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1) * 2 - 1, self.ratio)
        latents = torch.einsum("oc,bchw->bohw", self.mix, images)
        if self.latent_dim == 3:  # a batch is a video here
            latents = latents.movedim(0, 1).unsqueeze(0)
        return latents

    def decode(self, latents):
        if self.latent_dim == 3:
            latents = latents.movedim(2, 1).flatten(0, 1)
        images = torch.einsum("oc,bohw->bchw", torch.linalg.pinv(self.mix).T, latents)
        pixels = torch.nn.functional.interpolate(images, scale_factor=self.ratio) / 2 + 0.5
        pixels = pixels.movedim(1, -1).clamp(0, 1)
        return pixels.unsqueeze(0) if self.latent_dim == 3 else pixels


class TextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTextEncoder",
            display_name="Random Text Encoder",
            category="tests",
            inputs=[
                io.Int.Input("width", default=16, max=100_000),
                io.Int.Input("pooled", default=0, max=100_000),
                io.Int.Input("length", default=0, max=1000),
                io.Boolean.Input("whole_numbers", default=False),
            ],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, width, pooled, length, whole_numbers):
        return io.NodeOutput(RandomTextEncoder(width, pooled, length, whole_numbers))


class Vae(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestVae",
            display_name="Random VAE",
            category="tests",
            inputs=[
                io.Int.Input("channels", default=4, max=1000),
                io.Int.Input("ratio", default=8, max=64),
                io.Boolean.Input("frames", default=False),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, channels, ratio, frames):
        return io.NodeOutput(RandomVae(channels, ratio, frames))


class Family(io.ComfyNode):
    """Compare a trained adapter with its files, rows in a batch with rows alone, Eq. 6 with its formula."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestFamily",
            display_name="Look at a Family",
            category="tests",
            is_output_node=True,
            inputs=[
                io.Model.Input("model"),
                io.Custom("DG_PROMPTS").Input("prompts"),
                io.LoraModel.Input("lora"),
                io.Latent.Input("latent"),
                io.String.Input("files", tooltip="Paths, one a line."),
            ],
        )

    @classmethod
    def execute(cls, model, prompts, lora, latent, files):
        look = Look(model, prompts.first, latent["samples"])
        plain, trained = look.plain(), look.trained(lora)
        name = type(model.model).__name__
        found = {"model": [name], "layers": [look.layers], "differences": [], "keys": []}
        for path in files.splitlines():
            loaded, known, matched = look.loaded(path)
            with torch.inference_mode():
                drawn = look.alone(loaded)
            found["differences"].append(relative(drawn, trained))
            found["keys"].append([known, matched])
        found["effect"] = [relative(trained, plain)]
        found["batch"] = [look.batch()]
        found["enhancement"] = [look.enhancement(loaded, mode) for mode in ("V-uncond", "VN-N")]
        return io.NodeOutput(ui=found)


def relative(found, expected):
    """Return the largest difference, as a share of the largest number that is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


class Look:
    """Evaluate a MODEL on fixed noise under the prompts of a domain."""

    def __init__(self, model, prompts, latents):
        self.model, self.layers = model, 0
        # A guidance scale, which some networks read, is the same in all that is compared.
        self.prompts = {
            name: node_helpers.conditioning_set_values(getattr(prompts, name), {"guidance": 3.5})
            for name in ("target", "source", "bare", "empty")
        }
        self.pack = next(name for name in sys.modules if name.endswith(".domaingallery_core"))[
            : -len(".domaingallery_core")
        ]
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(latents.shape, generator=generator)
        sigmas = model.get_model_object("model_sampling").sigmas
        self.sigma = float(sigmas[len(sigmas) // 2])

    def module(self, name):
        return sys.modules[f"{self.pack}.{name}"]

    def alone(self, model, prompt="target"):
        """Return x0 (1 C ...) under a prompt, as the host's samplers evaluate it."""
        conds = {"positive": comfy.sampler_helpers.convert_cond(self.prompts[prompt])}
        conds = comfy.samplers.process_conds(model.model, self.x, conds, self.x.device, seed=0)
        comfy.model_management.load_models_gpu([model])
        model.pre_run()
        sigma = torch.full((1,), self.sigma)
        options = comfy.model_patcher.create_model_options_clone(model.model_options)
        return comfy.samplers.calc_cond_batch(model.model, [conds["positive"]], self.x, sigma, options)[0]

    def plain(self):
        """Return x0 of the MODEL as it is."""
        with torch.inference_mode():
            return self.alone(self.model)

    def trained(self, lora):
        """Return x0 of the MODEL with the adapter in it, as it is trained."""
        core, host = "domaingallery_core", self.module("nodes.host.model")
        weights = self.module(f"{core}.files.formats.comfyui").Comfyui().from_file(lora)[0]
        kinds, adapters = self.module(f"{core}.trainables.kinds"), self.module(f"{core}.trainables.adapters")
        kind, rank, alpha = kinds.describe(weights)
        settings = self.module(f"{core}.trainables.adapter_settings").AdapterSettings(
            kind=kind, rank=rank, alpha=alpha
        )
        with host.training(self.model), torch.no_grad():
            denoiser = host.HostDenoiser(self.model)
            x = self.module("nodes.host.pixels.latents").without_frames(self.x.clone())
            conditions = denoiser.conditions([self.prompts["target"]], x)
            network, named = self.model.model.diffusion_model, denoiser.family.targets
            draws = torch.Generator().manual_seed(0)
            with adapters.Adapter.inject(network, settings, draws, named=named) as adapter:
                adapter.load(adapter.imported(weights))
                self.layers = len({name.split(".lora_")[0] for name in weights if ".lora_" in name})
                found = denoiser(x, torch.full((1,), self.sigma), conditions[0])
        return found.reshape(self.x.shape)

    def loaded(self, path):
        """Return the MODEL with a LoRA file by the stock loader, its layers, and those that matched."""
        state = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(path, safe_load=True))
        loaded, _ = comfy.sd.load_lora_for_models(self.model, None, dict(state), 1.0, 0)
        pairs = sum(".lora_A." in name or ".lora_down." in name for name in state)
        keys = comfy.lora.model_lora_keys_unet(self.model.model, {})
        return loaded, pairs, len(comfy.lora.load_lora(dict(state), keys, log_missing=False))

    def batch(self):
        """Return how far rows under equal prompts in a batch are from each alone."""
        host = self.module("nodes.host.model")
        together = self.module("domaingallery_core.model.denoiser").denoise_together
        with host.training(self.model), torch.no_grad():
            denoiser = host.HostDenoiser(self.model)
            x = self.module("nodes.host.pixels.latents").without_frames(self.x.clone())
            rows = torch.cat([x, -x, x.flip(-1)])
            sigma = torch.full((3,), self.sigma)
            target, source = denoiser.conditions([self.prompts["target"], self.prompts["source"]], x)
            batch = together(denoiser, [(rows, sigma, target), (rows, sigma, source)])
            singly = [
                torch.cat([denoiser(row, sigma[:1], prompt) for row in rows.split(1)])
                for prompt in (target, source)
            ]
        return max(relative(found, expected) for found, expected in zip(batch, singly, strict=True))

    def enhancement(self, model, mode):
        """Return how far a step with enhancement is from Eq. 6 on rows that are evaluated one by one."""
        cfg, strength = 3.0, 0.7
        sampling = self.module("nodes.draw.sampling")
        with torch.inference_mode():
            t, n, v, u = (self.alone(model, name) for name in ("target", "source", "bare", "empty"))
            term = v - u if mode == "V-uncond" else t - n
            expected = u + cfg * (t - u) + cfg * strength * term
            base = self.prompts["bare" if mode == "V-uncond" else "source"]
            guider = sampling.make_guider(
                model, self.prompts["target"], self.prompts["empty"], None, mode, cfg, strength,
                base=base, node=None,
            )  # fmt: skip
            steps = torch.tensor([self.sigma, 0.0])
            clean = torch.zeros_like(self.x)
            scaled = model.get_model_object("model_sampling")
            noise = (
                self.x / scaled.noise_scaling(steps[:1], torch.ones_like(self.x[:1]), clean[:1]).flatten()[0]
            )
            found = guider.sample(
                noise, clean, comfy.samplers.sampler_object("euler"), steps, disable_pbar=True, seed=0
            )
            expected = model.model.process_latent_out(expected)
        return relative(found, expected.to(found))


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [TextEncoder, Vae, Family]


async def comfy_entrypoint():
    return Extension()
