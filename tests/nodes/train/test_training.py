"""Both stages on a host MODEL: what comes out loads in the host, and the MODEL never changes."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.tiny import (
    host_module,
    same,
    tiny_dataset,
    tiny_latents,
    tiny_model,
    tiny_prompts,
    weights_of,
)
from tests.nodes.training import STEPS, draw, erase, personalize, train


def test_both_stages_report_their_terms_and_leave_the_model_alone(nodes, model, said):
    """Weights and samples of the MODEL are the same bytes before and after."""
    before, sample = weights_of(model), draw(nodes, model)

    erased = erase(nodes, model)
    trained = train(nodes, model, erased=erased[0])

    assert set(erased.ui["losses"][0]) == {"prior", "disentanglement", "erasure", "total"}
    assert set(trained.ui["losses"][0]) == {"target", "prior", "disentanglement", "similarity", "total"}
    assert len(trained[1]["loss"]) == STEPS
    assert trained.ui["text"] == [said[-1]]
    assert same(before, weights_of(model))
    assert torch.equal(sample, draw(nodes, model))
    assert not same(erased[0], trained[0])


def test_the_same_inputs_give_the_same_lora(nodes, model):
    first, again, other = (erase(nodes, model, seed=seed)[0] for seed in (7, 7, 8))

    assert same(first, again)
    assert not same(first, other)


@pytest.mark.parametrize("when", ["first step", "inside a step"])
def test_cancelling_leaves_the_model_alone(nodes, model, monkeypatch, when):
    """The host's interrupt passes through, between steps and within one, and nothing of the adapter stays."""
    management = host_module("comfy.model_management")
    before, modules = weights_of(model), dict(model.model.named_modules())
    if when == "first step":
        monkeypatch.setattr(nodes("nodes.host.progress"), "check_interrupt",
                            lambda: management.interrupt_current_processing(True) or
                            management.throw_exception_if_processing_interrupted())  # fmt: skip
    else:
        calls = []
        block = model.model.diffusion_model.middle_block[0]

        def interrupt(*_):
            calls.append(1)
            management.interrupt_current_processing(len(calls) == 3)

        handle = block.register_forward_pre_hook(interrupt)

    with pytest.raises(management.InterruptProcessingException):
        train(nodes, model)

    if when == "inside a step":
        handle.remove()
    assert not management.processing_interrupted()
    assert not management.in_training
    assert same(before, weights_of(model))
    now = dict(model.model.named_modules())
    assert now.keys() == modules.keys()
    assert all(now[name] is module for name, module in modules.items())


def test_a_lora_acts_through_the_host_as_it_did_in_training(nodes, model):
    """Every key of the LORA_MODEL loads, and x0 under the stock loader is x0 under the adapter."""
    host, core = nodes("nodes.host.model"), nodes("domaingallery_core.trainables.adapters")
    lora = train(nodes, model, learning_rate=0.05)[0]
    prompts = tiny_prompts(nodes)
    x, sigma = tiny_latents(2), torch.tensor([0.4, 0.7])
    with host.training(model):
        denoiser = host.HostDenoiser(model)
        [condition] = denoiser.conditions([prompts.first.target], x.clone())
        plain = denoiser(x.clone(), sigma, condition)
        config = nodes("domaingallery_core.trainables.adapter_settings").AdapterSettings()
        with core.Adapter.inject(model.model.diffusion_model, config, torch.Generator()) as adapter:
            adapter.load(nodes("domaingallery_core.files.formats.comfyui").Comfyui().from_file(lora)[0])
            expected = denoiser(x.clone(), sigma, condition).detach()

    with torch.inference_mode():
        loaded, _ = host_module("comfy.sd").load_lora_for_models(model, None, lora, 1.0, 0)
    assert len(loaded.patches) == len([name for name in lora if name.endswith("alpha")])
    with host.training(loaded):
        denoiser = host.HostDenoiser(loaded)
        [condition] = denoiser.conditions([prompts.first.target], x.clone())
        with torch.no_grad():
            actual = denoiser(x.clone(), sigma, condition)

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_metadata_says_what_made_a_lora(nodes, model):
    lora = erase(nodes, model)[0]

    plan = json.loads(lora.metadata["domaingallery.plan"])

    assert lora.metadata["modelspec.trigger_phrase"] == "a sks face"
    optimizer = plan["optimizer"]
    assert (plan["method"]["name"], optimizer["steps"], optimizer["learning_rate"]) == (
        "erasure",
        STEPS,
        1e-3,
    )
    assert all(isinstance(value, str) for value in lora.metadata.values())


@pytest.mark.parametrize(
    ("adapter", "module"),
    [
        ("lora", "networks.lora"),
        ("dora", "networks.lora"),
        ("loha", "lycoris.kohya"),
        ("lokr", "lycoris.kohya"),
    ],
)
def test_metadata_names_the_module_that_other_programs_load(nodes, adapter, module):
    sockets = nodes("nodes.sockets")
    plan = sockets.TrainingOptions(kind=adapter).plan("domaingallery", 10, 1e-4, 0)

    found = nodes("nodes.train.metadata").metadata(
        tiny_prompts(nodes), plan, {"base model weights": "00"}, 10
    )

    assert (found["ss_network_module"], found["ss_network_args"]) == (module, json.dumps({"algo": adapter}))
    assert (found["ss_network_dim"], found["ss_steps"]) == (str(plan.adapter.rank), "10")


def test_rank_and_alpha_of_an_erased_lora_are_kept(nodes, model):
    sockets = nodes("nodes.sockets")
    erased = erase(nodes, model, options=sockets.TrainingOptions(rank=2, alpha=1.0))[0]

    trained = train(nodes, model, erased=erased)[0]

    assert {name: tensor.shape for name, tensor in trained.items()} == {n: t.shape for n, t in erased.items()}
    assert json.loads(trained.metadata["domaingallery.plan"])["adapter"]["alpha"] == 1.0


def test_an_erased_lora_of_a_higher_rank_is_refused(nodes, errors, model):
    erased = erase(nodes, model)[0]
    options = nodes("nodes.sockets").TrainingOptions(rank=2, alpha=2.0)

    with pytest.raises(errors.AdapterError, match=r"rank of at least 4 to go on with this LoRA, got 2"):
        train(nodes, model, erased=erased, options=options)


def test_an_erased_lora_of_another_model_is_refused(nodes, errors, model):
    erased = erase(nodes, model)[0]
    other = {name.replace("blocks", "bricks"): tensor for name, tensor in erased.items() if "blocks" in name}
    other = {name: tensor for name, tensor in other.items() if "middle" not in name}
    before = weights_of(model)

    with pytest.raises(errors.FileError, match=r"layers of this model, got \d+ names.*Use a LoRA made"):
        train(nodes, model, erased=other)

    assert same(before, weights_of(model))


def test_a_lora_under_the_names_of_kohya_is_gone_on_with_as_under_the_hosts_own(nodes, model):
    first = erase(nodes, model)[0]
    own = nodes("domaingallery_core.files.formats.comfyui").Comfyui().from_file(first)[0]
    kohya = nodes("domaingallery_core.files.formats.kohya").Kohya(first.names).to_file(own)

    found, expected = (train(nodes, model, erased=lora)[0] for lora in (kohya, first))

    assert all(name.startswith("lora_unet_") for name in kohya)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"lora_unet_x.lora_down.weight": torch.zeros(1)}, "such as 'lora_unet_x.lora_down.weight'"),
        ({"lora_te_x.lora_down.weight": torch.zeros(1)}, "such as 'lora_te_x.lora_down.weight'"),
        ({"diffusion_model.x.lora_up.weight": torch.zeros(1)}, "such as 'diffusion_model.x"),
        ({}, "got 0 names that it does not have"),
    ],
)
def test_loras_of_other_models_are_refused(nodes, errors, model, lora, message):
    with pytest.raises(errors.FileError, match=re.escape(message)):
        train(nodes, model, erased=lora)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps to be a whole number from 0 to 100000, got -1"),
        ({"learning_rate": -1.0}, r"learning_rate to be a finite number from 0 to 1, got -1\.0"),
        ({"learning_rate": float("nan")}, "learning_rate to be a finite number from 0 to 1, got nan"),
    ],
)
def test_numbers_that_cannot_work_are_named(nodes, errors, model, changes, message):
    with pytest.raises(errors.InputError, match=message):
        erase(nodes, model, **changes)


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "images of the domain, got a dataset without them"), (1, "at least 2 images of the domain, got 1")],
)
def test_training_without_images_of_the_domain_is_refused(nodes, errors, model, count, message):
    """What is of the domain is what two images share."""
    target = nodes("domaingallery_core.data.examples").Examples(tiny_latents(count)) if count else None

    with pytest.raises(errors.InputError, match=message):
        train(nodes, model, dataset=tiny_dataset(nodes, target=target))


def test_target_and_source_of_different_size_are_refused(nodes, errors, model):
    small = nodes("domaingallery_core.data.examples").Examples(torch.zeros(3, 4, 4, 4))

    with pytest.raises(errors.InputError, match="latents of one size"):
        train(nodes, model, dataset=tiny_dataset(nodes, target=small))


def test_terms_with_weight_zero_need_no_small_batch(nodes, model):
    """Target and prior terms alone are DreamBooth with a LoRA."""
    weights = dict(disentanglement=0.0, similarity=0.0)
    options = nodes("nodes.sockets").TrainingOptions(batch_size=1, weights=weights)

    trained = train(nodes, model, options=options)

    assert set(trained.ui["losses"][0]) == {"target", "prior", "total"}


class Enough(Exception):
    """Raised where a training would begin."""


@pytest.mark.parametrize(("stage", "rate"), [(erase, 1e-4), (train, 5e-5), (personalize, 5e-5)])
def test_a_rate_far_above_the_papers_is_warned_of(nodes, model, monkeypatch, caplog, said, stage, rate):
    """Each stage has a rate of its own. The node says so before it begins, and goes on saying it."""
    monkeypatch.setattr(nodes("nodes.host.far"), "LARGE", 1000)

    def begin(_, **__):
        raise Enough

    monkeypatch.setattr(nodes("nodes.train.training"), "training", begin)
    with caplog.at_level(logging.WARNING):
        for times in (9, 20):
            with pytest.raises(Enough):
                stage(nodes, model, learning_rate=times * rate)

    [record] = caplog.records
    assert f"20 times the paper's {rate:g}" in record.message
    steps = ["looking at the model", "loading the model"]
    assert said == [*steps, record.message, *(f"{step}\n{record.message}" for step in steps)]


def test_a_result_is_told_in_a_line_and_in_numbers(nodes):
    training, trainer = nodes("nodes.train.training"), nodes("domaingallery_core.run.trainer")
    losses = {"total": [3.0, 2.0, 1.23456789], "target": [2.0, 1.0, 0.5]}
    result = trainer.TrainingResult(
        {}, losses, steps=3, seconds=65.4, resumed=0, validation={}, previews={}, skipped=0
    )
    watched = replace(result, resumed=2, skipped=1, validation={0: 2.5, 3: 1.5})

    settings = nodes("domaingallery_core.run.optimizers").OptimizerSettings
    three, five = (SimpleNamespace(optimizer=settings(steps=n, learning_rate=1.0)) for n in (3, 5))

    assert training.summary(result, three) == "3 steps in 65 s, last loss 1.2346"
    assert training.summary(watched, three) == (
        "3 steps, 1 of them skipped as not finite, gone on from step 2 in 65 s, last loss 1.2346"
    )
    assert training.summary(result, five) == ("stopped after 3 of 5 steps in 65 s, last loss 1.2346")
    assert training.loss_map(result) == {"loss": losses["total"], "target": losses["target"]}
    assert training.loss_map(watched)["validation"] == [2.5, 1.5]
    assert training.interface(result, three) == {
        "losses": [{"total": [3.0, 2.0, 1.2346], "target": [2.0, 1.0, 0.5]}],
        "seconds": [65.4],
        "text": [training.summary(result, three)],
    }
    assert training.interface(watched, three)["validation"] == [{0: 2.5, 3: 1.5}]


@pytest.mark.parametrize("pooled", [0, 5])
@pytest.mark.parametrize("kind", ["V_PREDICTION", "FLOW"])
def test_other_families_train(comfy, nodes, kind, pooled):
    model = tiny_model(kind, pooled=pooled)
    dataset = tiny_dataset(nodes, 4)
    training = nodes("nodes.train.training")
    plan = nodes("nodes.sockets").TrainingOptions().plan("domaingallery", 1, 1e-3, 0)

    with torch.inference_mode():
        result = training.run(model, tiny_prompts(nodes, pooled=pooled), dataset, plan, None)

    assert all(torch.isfinite(tensor).all() for tensor in result[0].values())
    assert all(bool(tensor.any()) for name, tensor in result[0].items() if "lora_B" in name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", ["lora", "dora", "loha", "lokr"])
def test_half_precision_bases_train_in_both_stages(comfy, nodes, dtype, adapter):
    """Losses and weights are finite, the weights float32, the MODEL as it was; the second stage goes on."""
    model = tiny_model(dtype=dtype)
    before = weights_of(model)
    options = nodes("nodes.sockets").TrainingOptions(kind=adapter, rank=2, alpha=2.0)
    assert model.model.diffusion_model.input_blocks[0][0].weight.dtype == dtype

    erased = erase(nodes, model, options=options)
    trained = train(nodes, model, erased=erased[0])

    for out in (erased, trained):
        assert all(t.dtype == torch.float32 and bool(torch.isfinite(t).all()) for t in out[0].values())
        assert all(math.isfinite(v) for values in out.ui["losses"][0].values() for v in values)
    assert json.loads(trained[0].metadata["domaingallery.plan"])["adapter"]["kind"] == adapter
    assert erased[0].keys() == trained[0].keys() and not same(erased[0], trained[0])
    assert same(before, weights_of(model))


def test_an_erased_lora_of_another_kind_is_refused(nodes, errors, model):
    options = [nodes("nodes.sockets").TrainingOptions(kind=kind) for kind in ("lora", "loha")]
    erased = erase(nodes, model, options=options[0])[0]

    with pytest.raises(errors.AdapterError, match="Expected a LoHa to go on with, got a LoRA"):
        train(nodes, model, erased=erased, options=options[1])
