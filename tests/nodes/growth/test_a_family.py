"""A family of models is one class: here, a small transformer that predicts a flow."""

from __future__ import annotations

import importlib
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.nodes.tiny import host_module, same, tiny_prompts, weights_of
from tests.nodes.training import STEPS, draw, erase, execute, train

WIDTH, CONTEXT = 24, 16


class Block(nn.Module):
    """Attend among all tokens, then think about each."""

    def __init__(self, operations, **factory) -> None:
        super().__init__()
        self.qkv = operations.Linear(WIDTH, 3 * WIDTH, **factory)
        self.proj = operations.Linear(WIDTH, WIDTH, **factory)
        self.mlp = operations.Linear(WIDTH, WIDTH, **factory)

    def forward(self, h):
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        h = h + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return h + self.mlp(nn.functional.silu(h))


class Transformer(nn.Module):
    """Predict a velocity from pixels (B C H W), a time (B) and a context (B L D)."""

    def __init__(self, *, operations, dtype=None, device=None, **_) -> None:
        super().__init__()
        factory = {"dtype": dtype, "device": device}
        self.dtype = dtype
        self.pixels = operations.Linear(4, WIDTH, **factory)
        self.words = operations.Linear(CONTEXT, WIDTH, **factory)
        self.layers = nn.ModuleList(Block(operations, **factory) for _ in range(3))
        self.out = operations.Linear(WIDTH, 4, **factory)

    def forward(self, x, timesteps, context=None, **_):
        tokens = self.pixels(x.flatten(2).mT) + timesteps[:, None, None].to(x.dtype)
        h = torch.cat([tokens, self.words(context)], dim=1)
        for layer in self.layers:
            h = layer(h)
        return self.out(h[:, : tokens.shape[1]]).mT.reshape(x.shape)


def transformer_model():
    """Return a MODEL of the transformer with random weights, made in inference mode."""
    bases = importlib.import_module("comfy.model_base")
    patcher, formats = host_module("comfy.model_patcher"), importlib.import_module("comfy.latent_formats")

    class Config(importlib.import_module("comfy.supported_models_base").BASE):
        unet_config: ClassVar = {"context_dim": CONTEXT}
        unet_extra_config: ClassVar = {}
        sampling_settings: ClassVar = {}
        latent_format = formats.SD15
        memory_usage_factor = 0.1

    with torch.inference_mode():
        config = Config({"context_dim": CONTEXT})
        config.set_inference_dtype(torch.float32, None)
        flow = bases.ModelType.FLOW
        model = bases.BaseModel(config, flow, device=torch.device("cpu"), unet_model=Transformer)
        generator = torch.Generator().manual_seed(0)
        for weight in model.diffusion_model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5)
    device = torch.device("cpu")
    return patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


@pytest.fixture
def tokens(nodes):
    """Add the family; return a MODEL of it."""
    families = nodes("nodes.host.families")

    class Tokens(families.Family):
        """Eq. 4 compares what each block gives for the pixels and the words."""

        name = "tokens"
        targets: ClassVar = {"attention": ("*.qkv", "*.proj")}
        compares = True

        def recognises(self, base):
            return isinstance(base.diffusion_model, Transformer)

        def features(self, model, patches, evaluate):
            found = []
            blocks = self.blocks(model.model.diffusion_model)
            hooks = [b.register_forward_hook(lambda _m, _g, h: found.append(h.mT[..., None])) for b in blocks]
            try:
                evaluate(patches)
            finally:
                for hook in hooks:
                    hook.remove()
            return found

    model = transformer_model()
    yield model
    del families.FAMILIES["tokens"]


def test_both_stages_train_its_layers_with_all_terms_and_leave_it_alone(nodes, tokens):
    before, sample = weights_of(tokens), draw(nodes, tokens)

    erased = erase(nodes, tokens)
    trained = train(nodes, tokens, erased=erased[0])

    layers = {name.rpartition(".lora_")[0] for name in trained[0] if ".lora_" in name}
    assert layers == {f"diffusion_model.layers.{i}.{part}" for i in range(3) for part in ("qkv", "proj")}
    assert set(trained.ui["losses"][0]) == {"target", "prior", "disentanglement", "similarity", "total"}
    assert trained.ui["losses"][0]["similarity"][-1] > 0
    assert same(before, weights_of(tokens)) and torch.equal(sample, draw(nodes, tokens))


def test_what_it_learned_loads_and_is_drawn_with_and_enhanced(nodes, tokens, tmp_path):
    lora = train(nodes, tokens, learning_rate=0.1)[0]
    files = nodes("nodes.files.saving").DomainGallerySaveLora
    host_loads = host_module("comfy.sd").load_lora_for_models

    drawn = []
    for key_format in ("comfyui", "kohya"):
        path = files.execute(lora, name=f"tokens {key_format}", key_format=key_format)[0]
        state = host_module("comfy.utils").load_torch_file(path)
        loaded, _ = host_loads(tokens, None, state, 1.0, 0)
        assert len(loaded.patches) == 6
        drawn.append(draw(nodes, loaded))
    prompts = tiny_prompts(nodes)
    with torch.inference_mode():
        enhanced = nodes("nodes.draw.sampling").DomainGalleryKSampler.execute(
            loaded, prompts.first.target, prompts.first.empty, "VN-N", 3.0, 1.0, 0, 2, "euler", "normal", 1.0,
            {"samples": torch.zeros(1, 4, 8, 8)}, prompts=prompts,
        )[0]["samples"]  # fmt: skip

    assert torch.equal(*drawn) and not torch.equal(drawn[0], draw(nodes, tokens))
    assert bool(torch.isfinite(enhanced).all())


def test_a_run_of_it_that_was_cancelled_goes_on_to_the_same_bytes(nodes, tokens, monkeypatch):
    node = nodes("nodes.train.training").DomainGalleryTrain
    live, interrupted = nodes("nodes.train.live").Live, host_module("comfy.model_management")
    whole = execute(node, nodes, tokens, seed=4)[0]
    show = live.show

    def stopped(self, event):
        show(self, event)
        if event.step == 1:
            raise interrupted.InterruptProcessingException

    with monkeypatch.context() as patch:
        patch.setattr(live, "show", stopped)
        with pytest.raises(interrupted.InterruptProcessingException):
            execute(node, nodes, tokens, seed=4)
    resumed = execute(node, nodes, tokens, seed=4)

    assert f"{STEPS} steps, gone on from step 1" in resumed.ui["text"][0]
    assert same(whole, resumed[0])
