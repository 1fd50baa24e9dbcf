"""Files with a LoRA on the text encoder load in diffusers, into text encoders of the same weights."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.nodes.baselines import encoded
from tests.nodes.files.test_saving import save
from tests.nodes.train.test_text_encoder import loaded, run

CONFIGS = {
    "demo": {"clip_l": dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
                            intermediate_size=512, max_position_embeddings=24, projection_dim=128)},
    "sdxl": {
        "clip_l": dict(hidden_size=768, num_hidden_layers=3, num_attention_heads=12, intermediate_size=3072,
                       projection_dim=768),
        "clip_g": dict(hidden_size=1280, num_hidden_layers=3, num_attention_heads=20, intermediate_size=5120,
                       projection_dim=1280, hidden_act="gelu"),
    },
}  # fmt: skip


def theirs(clip, name, config):
    """Return a text encoder of transformers with the weights of one of the host's."""
    config = CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407, **config)
    model = (CLIPTextModelWithProjection if name == "clip_g" else CLIPTextModel)(config)
    ours = getattr(clip.cond_stage_model, name).transformer.state_dict()
    known = model.state_dict().keys()
    named = {key if key in known else key.removeprefix("text_model."): t for key, t in ours.items()}
    missing, unknown = model.load_state_dict({key: named[key] for key in known if key in named}, strict=False)
    assert not [key for key in missing if "position_ids" not in key] and not unknown
    return model.eval()


def read(model, clip, name, text, layer):
    """Return what a text encoder of transformers makes of a text: its last layer, or one before."""
    tokens = [number for number, _ in clip.tokenize(text)[name.removeprefix("clip_")][0]]
    with torch.no_grad():
        found = model(torch.tensor([tokens]), output_hidden_states=True)
    return found.last_hidden_state if layer == -1 else found.hidden_states[layer]


@pytest.mark.parametrize("key_format", ["kohya", "diffusers"])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_file_gives_the_hosts_encoding(request, exact, sdxl, output, family, key_format):
    given = exact if family == "demo" else sdxl
    loader = StableDiffusionLoraLoaderMixin if family == "demo" else StableDiffusionXLLoraLoaderMixin
    lora = run(given, own={"rank": 2, "alpha": 3.0})[0]
    path = save(given.nodes, lora, key_format=key_format)[0]
    _, with_it = loaded(given, save(given.nodes, lora, key_format="comfyui")[0])
    expected, plain = (encoded(clip, "a sks dog") for clip in (with_it, given.clip))
    state, alphas = loader.lora_state_dict(path)

    first = 0
    for number, (name, config) in enumerate(CONFIGS[family].items()):
        model, layer = theirs(given.clip, name, config), -1 if family == "demo" else -2
        part = slice(first, first + config["hidden_size"])
        before = read(model, given.clip, name, "a sks dog", layer)
        torch.testing.assert_close(before, plain[..., part], rtol=1e-4, atol=1e-4)
        prefix = "text_encoder" if number == 0 else "text_encoder_2"
        loader.load_lora_into_text_encoder(state, alphas, text_encoder=model, prefix=prefix)
        found = read(model, given.clip, name, "a sks dog", layer)
        torch.testing.assert_close(found, expected[..., part], rtol=1e-4, atol=1e-4)
        assert float((found - before).abs().max()) > 1e-3
        first = part.stop
