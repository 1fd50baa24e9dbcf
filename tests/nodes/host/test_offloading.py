"""Which blocks stay in system memory, and how a MODEL is loaded with them there."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.nodes.tiny import host_module, tiny_model
from tests.nodes.tiny_transformers import POOLED, TEXT, tiny_flux, tiny_sd3


@pytest.fixture
def offloading(nodes):
    return nodes("nodes.host.network.offloading")


@pytest.fixture
def on_a_card(comfy, monkeypatch):
    """Return a function that lets every device be one with so many bytes free."""
    management = host_module("comfy.model_management")
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 0)
    monkeypatch.setattr(management, "current_loaded_models", [])
    return lambda size: monkeypatch.setattr(management, "get_free_memory", lambda device: size)


def test_as_few_blocks_as_do_not_fit_stay_at_even_distances(offloading):
    sizes = [10] * 8

    assert offloading.spread(sizes, 0) == []
    assert offloading.spread(sizes, 1) == [0, 2, 5]  # two more, as two are there while they are moved
    assert offloading.spread(sizes, 20) == [0, 2, 4, 6]
    assert offloading.spread(sizes, 1000) == [*range(8)]
    assert offloading.spread([], 5) == []


def test_the_setting_decides_and_automatic_goes_by_what_is_free(offloading, nodes, model, on_a_card):
    blocks = nodes("nodes.host.families").family_of(model).blocks(model.model.diffusion_model)
    rows, size = (2, 4, 8, 8), model.model_size()
    beside = model.memory_required(list(rows))

    assert offloading.at_home(model, "on", rows) == blocks
    assert offloading.at_home(model, "off", rows) == []
    on_a_card(size + beside)
    assert offloading.at_home(model, "automatic", rows) == []
    on_a_card(size + beside - 1)
    some = offloading.at_home(model, "automatic", rows)
    assert 0 < len(some) < len(blocks)
    on_a_card(0)
    assert offloading.at_home(model, "automatic", rows) == blocks


def test_what_the_host_loaded_by_a_clone_that_is_gone_is_passed_over(offloading, model, on_a_card):
    management = host_module("comfy.model_management")
    clone = model.clone()
    management.current_loaded_models.append(management.LoadedModel(clone))
    management.current_loaded_models[0]._parent_model = lambda: None  # collected with it
    on_a_card(0)
    del clone
    gc.collect()

    assert management.current_loaded_models[0].model is None
    assert offloading.at_home(model, "automatic", (2, 4, 8, 8)) != []


def test_in_system_memory_nothing_is_moved_unless_asked_for(offloading, model):
    assert offloading.at_home(model, "automatic", (64, 4, 512, 512)) == []


@pytest.mark.parametrize("patched", [False, True])
def test_blocks_at_home_keep_their_own_weights_and_the_rest_is_copied(nodes, comfy, patched):
    """But where a patch changes a weight. The originals come back."""
    model = tiny_model()
    network = model.model.diffusion_model
    block = nodes("nodes.host.families").family_of(model).blocks(network)[0]
    name = next(n for n, each in network.named_modules() if each is block) + ".in_layers.2.weight"
    own, other = network.get_parameter(name), network.out[2].weight
    before = own.clone()
    if patched:
        model = model.clone()
        model.add_patches({f"diffusion_model.{name}": (torch.ones_like(own),)}, 0.5)

    with nodes("nodes.host.model").resident(model, [block]):
        inside = network.get_parameter(name)
        assert (inside is own) != patched
        assert torch.equal(inside, before + 0.5 * patched)
        assert network.out[2].weight is not other
        assert network.out[2].weight.data_ptr() != other.data_ptr()

    assert network.get_parameter(name) is own and network.out[2].weight is other
    assert torch.equal(own, before)


@pytest.mark.parametrize("make", [tiny_flux, tiny_sd3])
def test_transformers_give_the_same_values_and_gradients_with_blocks_at_home(nodes, comfy, make):
    """Their blocks read weights themselves, and change options as they go."""
    model, host = make(), nodes("nodes.host.model")
    memory = nodes("nodes.host.network.memory")
    blocks = nodes("nodes.host.families").family_of(model).blocks(model.model.diffusion_model)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 8, 8, generator=generator)
    prompt = [[torch.randn(1, 5, TEXT, generator=generator), {"pooled_output": torch.ones(1, POOLED)}]]

    def gradient(home):
        with host.training(model, home=home), memory.gradient_checkpointing(model, "off", home) as found:
            assert len(found.again) == len(home)
            denoiser, x = host.HostDenoiser(model), latents.clone().requires_grad_()
            [condition] = denoiser.conditions([prompt], latents)
            sigma = torch.tensor([0.3, 0.8])
            features = denoiser.features(x, sigma, condition)
            loss = denoiser(x, sigma, condition).square().sum() + sum(f.square().sum() for f in features)
            return loss.detach(), torch.autograd.grad(loss, x)[0]

    plain, moved = gradient([]), gradient(blocks)

    assert len(blocks) > 1 and all(torch.equal(one, other) for one, other in zip(plain, moved, strict=True))


def test_what_learns_is_brought_to_the_device(offloading):
    class Weight:
        """Stand for a parameter and its data, as no second device can be had."""

        def to(self, device):
            return f"on {device}"

    class Learning:
        weight = Weight()
        weight.data = Weight()

        def named_parameters(self):
            return {"weight": self.weight}

    learning = Learning()
    offloading.bring(learning, torch.device("cuda"))

    assert learning.weight.data == "on cuda"
