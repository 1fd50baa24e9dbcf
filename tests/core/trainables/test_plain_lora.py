"""Without all terms but the target term, a run is plain LoRA finetuning, written out here with peft alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch.nn.functional import mse_loss
from toys import ToyDenoiser, conditions, latents, network, part

from domaingallery_core.generators import generator
from domaingallery_core.methods import MethodSettings
from domaingallery_core.model.denoiser import Conditions
from domaingallery_core.run.plan import TrainingPlan
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.adapters import Adapter

STEPS, RATE, BATCH, SEED = 12, 1e-2, 3, 4
DOUBLE = torch.float64


def plain_lora_finetuning(images, prompt, kind):
    """Finetune the toy network's attention on images under a prompt; yield loss and weights of each step."""
    net = network().double()
    layers = [f"attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")]
    config = LoraConfig(r=4, lora_alpha=4, target_modules=layers)
    inject_adapter_in_model(config, net)
    weights = {}
    draw = generator(SEED, "adapter")
    for layer in layers:
        a = net.get_submodule(layer).lora_A["default"]
        a.weight.data = torch.randn(4, a.in_features, generator=draw).double() / 4
        weights[f"{layer}.lora_A.weight"] = a.weight
        b = net.get_submodule(layer).lora_B["default"]
        b.weight.data = torch.zeros(b.out_features, 4, dtype=DOUBLE)
        weights[f"{layer}.lora_B.weight"] = b.weight
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE, weight_decay=1e-2)
    abar = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=DOUBLE) ** 2).cumprod(0)
    order, noises = generator(SEED, "order"), generator(SEED, "noise")
    waiting = []
    for _ in range(STEPS):
        while len(waiting) < BATCH:
            waiting += torch.randperm(len(images), generator=order).tolist()
        x0, waiting = images[waiting[:BATCH]], waiting[BATCH:]
        t = int(torch.randint(1000, (), generator=noises))
        noise = torch.randn(x0.shape, generator=noises).double()
        noisy = abar[t].sqrt() * x0 + (1 - abar[t]).sqrt() * noise
        level = ((1 - abar[t]) / abar[t]).sqrt().log() / 4
        out = net(noisy, level.expand(BATCH), prompt.expand(BATCH, -1, -1))
        wanted = noise if kind == "epsilon" else abar[t].sqrt() * noise - (1 - abar[t]).sqrt() * x0
        loss = mse_loss(out, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        yield float(loss.detach()), {name: weight.detach().clone() for name, weight in weights.items()}


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("method", ["domaingallery", "plain"])
def test_a_run_of_the_target_term_alone_is_plain_lora_finetuning(method, kind):
    images, prompt = latents(5, 1).double(), conditions().target.to(dtype=DOUBLE)
    plan = TrainingPlan.of(
        method=method, steps=STEPS, learning_rate=RATE, batch_size=BATCH, seed=SEED,
        weights=dict.fromkeys(MethodSettings(name=method).weights, 0.0),
    )  # fmt: skip
    model, found = network().double(), []
    with Adapter.inject(model, plan.adapter, generator(SEED, "adapter"), dtype=DOUBLE) as adapter:

        def note(event):
            weights = {name: p.detach().clone() for name, p in adapter.named_parameters().items()}
            found.append((event.losses["total"], weights))

        parts = [part(images, prompts=Conditions(target=prompt))]
        train(ToyDenoiser(model, kind), adapter, parts, plan, note)

    expected = list(plain_lora_finetuning(images, prompt.tensors["context"], kind))
    assert len(found) == len(expected) == STEPS
    for (loss, weights), (plain_loss, plain_weights) in zip(found, expected, strict=True):
        assert loss == pytest.approx(plain_loss, rel=1e-6)
        for name, weight in plain_weights.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-7)
    assert any(float(w.abs().max()) > 1e-2 for name, w in found[-1][1].items() if "lora_B" in name)
