"""LoRA files load in diffusers, into a model of the same weights, which then gives the host's output."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.loaders import (
    FluxLoraLoaderMixin,
    SD3LoraLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
)
from einops import rearrange

from tests.nodes.files.test_saving import save, trained
from tests.nodes.tiny import SIZE, TOKENS, UNET, WIDTH, host_module, tiny_model
from tests.nodes.tiny_transformers import AXES, FLUX, HEADS, POOLED, TEXT, tiny_flux, tiny_sd3, transformer
from tests.nodes.tiny_transformers import SD3 as SD3_NETWORK
from tests.nodes.tiny_transformers import WIDTH as FLUX_WIDTH

#: Of SDXL: the pooled text, and six numbers of so many waves each.
POOLED_TEXT, WAVES = 5, 8


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(theirs, base, listed):
    """Give a model of diffusers the host's weights, by the host's own list of names."""
    ours, found = base.diffusion_model.state_dict(), {}
    for name in theirs.state_dict():
        key, rows, change = (
            *((listed[name],) if isinstance(listed[name], str) else listed[name]),
            None,
            None,
        )[:3]
        tensor = ours[key] if rows is None else ours[key].narrow(*rows)
        found[name] = (tensor if change is None else change(tensor)).clone()
    theirs.load_state_dict(found)
    return theirs.eval()


class StableDiffusion:
    loader, pooled = StableDiffusionLoraLoaderMixin, 0

    def host(self):
        return tiny_model(pooled=self.pooled)

    def diffusers(self, base):
        more = {}
        if self.pooled:
            more = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": WAVES,
                "projection_class_embeddings_input_dim": POOLED_TEXT + 6 * WAVES,
            }
        model = UNet2DConditionModel(
            sample_size=SIZE, block_out_channels=[WIDTH * each for each in UNET["channel_mult"]],
            down_block_types=["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2,
            layers_per_block=1, cross_attention_dim=UNET["context_dim"], attention_head_dim=2, **more,
        )  # fmt: skip
        return filled(model, base, host_module("comfy.utils").unet_to_diffusers(UNET))

    def given(self):
        return (
            noise(2, 4, SIZE, SIZE),
            torch.tensor([20.0, 700.0]),
            noise(2, TOKENS, UNET["context_dim"], seed=1),
        )

    def of_host(self, network):
        return network(*self.given(), y=None)

    def of_diffusers(self, model):
        return model(*self.given()).sample

    def load(self, path, model):
        state, alphas = self.loader.lora_state_dict(path, unet_config=model.config)
        self.loader.load_lora_into_unet(state, network_alphas=alphas, unet=model)


class StableDiffusionXL(StableDiffusion):
    loader, pooled = StableDiffusionXLLoraLoaderMixin, POOLED_TEXT + 6 * WAVES - 2

    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)

    def of_host(self, network):
        embed = host_module("comfy.ldm.modules.diffusionmodules.util").timestep_embedding
        waves = embed(self.sizes.flatten(), WAVES).reshape(2, -1)
        return network(*self.given(), y=torch.cat([noise(2, POOLED_TEXT, seed=2), waves], dim=1))

    def of_diffusers(self, model):
        sizes = {"text_embeds": noise(2, POOLED_TEXT, seed=2), "time_ids": self.sizes}
        return model(*self.given(), added_cond_kwargs=sizes).sample


class Flux:
    def host(self):
        return tiny_flux()

    def diffusers(self, base):
        model = FluxTransformer2DModel(
            in_channels=64, num_layers=FLUX["depth"], num_single_layers=FLUX["depth_single_blocks"],
            attention_head_dim=FLUX_WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=TEXT,
            pooled_projection_dim=POOLED, guidance_embeds=True, axes_dims_rope=AXES,
        )  # fmt: skip
        return filled(model, base, host_module("comfy.utils").flux_to_diffusers(FLUX))

    x, sigma = noise(2, 16, SIZE, SIZE), torch.tensor([0.2, 0.8])
    text, pooled, guidance = noise(2, TOKENS, TEXT, seed=1), noise(2, POOLED, seed=2), torch.full((2,), 3.5)

    def of_host(self, network):
        return network(self.x, self.sigma, self.text, self.pooled, self.guidance)

    def of_diffusers(self, model):
        side, split = SIZE // 2, "b c (h p) (w q) -> b (h w) (c p q)"
        ids = torch.zeros(side, side, 3)
        ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None]
        out = model(
            rearrange(self.x, split, p=2, q=2), self.text, self.pooled, self.sigma,
            ids.reshape(-1, 3), torch.zeros(TOKENS, 3), self.guidance,
        ).sample  # fmt: skip
        back = "b (h w) (c p q) -> b c (h p) (w q)"
        return rearrange(out, back, h=side, w=side, p=2, q=2)

    def load(self, path, model):
        loader = FluxLoraLoaderMixin
        state, alphas = loader.lora_state_dict(path, return_alphas=True)
        loader.load_lora_into_transformer(state, network_alphas=alphas, transformer=model)


class SD3(Flux):
    def host(self):
        return tiny_sd3()

    def diffusers(self, base):
        model = SD3Transformer2DModel(
            sample_size=SIZE, in_channels=16, out_channels=16, num_layers=SD3_NETWORK["depth"],
            attention_head_dim=64, num_attention_heads=2, joint_attention_dim=TEXT,
            caption_projection_dim=128, pooled_projection_dim=POOLED, pos_embed_max_size=8,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        )  # fmt: skip
        return filled(model, base, host_module("comfy.utils").mmdit_to_diffusers(SD3_NETWORK))

    def of_host(self, network):
        return network(self.x, self.sigma * 1000, self.text, self.pooled)

    def of_diffusers(self, model):
        return model(self.x, self.text, self.pooled, self.sigma * 1000).sample

    def load(self, path, model):
        SD3LoraLoaderMixin.load_lora_into_transformer(SD3LoraLoaderMixin.lora_state_dict(path), model)


# What diffusers reads of kohya's files for Flux has the true width of `linear1` written into it; see below.
DOUBLE = "double_blocks.*, single_blocks.*.linear2"
CASES = [
    (StableDiffusion, "kohya", "lora", "linear"),
    (StableDiffusion, "diffusers", "lora", "linear"),
    (StableDiffusion, "diffusers", "dora", "linear"),
    (StableDiffusionXL, "kohya", "lora", "linear"),
    (StableDiffusionXL, "diffusers", "lora", "linear"),
    (Flux, "kohya", "lora", DOUBLE),
    (Flux, "diffusers", "lora", "linear"),
    (Flux, "diffusers", "dora", "linear"),
    (SD3, "diffusers", "lora", "linear"),
]


@pytest.mark.parametrize(("family", "key_format", "kind", "targets"), CASES)
def test_a_file_gives_the_hosts_output(comfy, nodes, output, family, key_format, kind, targets):
    family = family()
    model, host = family.host(), nodes("nodes.host.model")
    lora = trained(nodes, model, rank=2, alpha=3.0, kind=kind, targets=targets)
    path = save(nodes, lora, key_format=key_format)[0]
    loaded, _ = host_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0)
    with torch.no_grad():
        with host.training(model):
            plain = family.of_host(model.model.diffusion_model)
            theirs = family.diffusers(model.model)
        with host.training(loaded):
            expected = family.of_host(loaded.model.diffusion_model)
        torch.testing.assert_close(family.of_diffusers(theirs), plain, rtol=1e-4, atol=1e-4)

        family.load(path, theirs)
        found = family.of_diffusers(theirs)

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert float((expected - plain).abs().max()) > 0.05


def test_what_diffusers_makes_of_kohyas_names_for_flux_is_what_is_written_under_its_own(comfy, nodes):
    """At the true width, for every fused layer, without a model of that size."""
    base = transformer("Flux", FLUX | {"hidden_size": 3072, "num_heads": 96}, "meta")
    names, formats = (
        nodes("nodes.host.families").FAMILIES["plain"].names(base),
        "domaingallery_core.files.formats",
    )
    layers = ["double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "single_blocks.1.linear1"]
    lora = {}
    for seed, name in enumerate(layers):
        outputs = names.places[names.kohya[name]].outputs
        lora[f"{name}.lora_A.weight"] = noise(2, 3072, seed=seed)
        lora[f"{name}.lora_B.weight"] = noise(outputs, 2, seed=seed + 5)
        lora[f"{name}.alpha"] = torch.tensor(3.0)

    kohya = nodes(f"{formats}.kohya").Kohya(names).to_file(lora)
    found = FluxLoraLoaderMixin.lora_state_dict(kohya)
    expected = nodes(f"{formats}.diffusers").Diffusers(names).to_file(lora)

    assert found.keys() == expected.keys() and len(found) == 2 * (3 + 3 + 4)
    for layer in {name.partition(".lora_")[0] for name in found}:
        one, other = (
            each[f"{layer}.lora_B.weight"] @ each[f"{layer}.lora_A.weight"][:, :9]
            for each in (found, expected)
        )
        torch.testing.assert_close(one, other)
