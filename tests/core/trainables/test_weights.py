"""All weights of a module learn as copies, and its own are never written to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import ToyDenoiser, inputs, latents, network, part, plan, random, snapshot

from domaingallery_core.errors import AdapterError, InputError
from domaingallery_core.run.checkpoints import Checkpoints
from domaingallery_core.run.identity import run_identity
from domaingallery_core.run.monitor import Monitor
from domaingallery_core.run.trainer import train
from domaingallery_core.trainables.adapters import ordinary_weights
from domaingallery_core.trainables.trainable import Trainable
from domaingallery_core.trainables.weights import Weights, WeightSettings, bytes_beside_base


def run(model, folder=None, on_step=None, **changes):
    settings = plan("dreambooth", **{"steps": 6, "ema": 0.5} | changes)
    parts = [part(latents(5, 1), latents(6, 2))]
    with Weights(model, settings.weights) as weights:
        identity = run_identity(weights, parts, settings, {})
        checkpoints = Checkpoints(folder, identity, every=1) if folder else None
        return train(
            ToyDenoiser(model), weights, parts, settings, on_step, checkpoints=checkpoints,
            monitor=Monitor(preview_every=3, preview_steps=2, validate_every=3),
        )  # fmt: skip


def moved(model, seed=3):
    """Return copies in a module, moved away from its weights."""
    weights = Weights(model)
    with torch.no_grad():
        for parameter in weights.named_parameters().values():
            parameter += 0.1 * random(*parameter.shape, seed=seed)
    return weights


def test_a_run_knows_nothing_else_of_it():
    with Weights(network()) as weights:
        assert isinstance(weights, Trainable)


def test_they_change_nothing_until_they_learn_and_nothing_when_they_are_off():
    model, given = network(), inputs()
    before = model(*given)

    with Weights(model) as weights:
        assert torch.equal(model(*given), before)
        with torch.no_grad():
            weights.named_parameters()["attn1.to_q.weight"].add_(0.5)
        assert not torch.equal(model(*given), before)
        with weights.off(), weights.off():
            assert torch.equal(model(*given), before)
        with weights.off():
            with weights.off():
                pass
            assert torch.equal(model(*given), before)
        assert not torch.equal(model(*given), before)


@pytest.mark.parametrize("ending", ["finished", "stopped"])
def test_the_very_same_parameters_come_back_and_nothing_was_written_to_them(ending):
    model = network()
    before, versions = snapshot(model), [p._version for p in model.parameters()]
    bytes_before = [p.clone() for p in model.parameters()]

    def stop(event):
        if ending == "stopped" and event.step == 4:
            raise KeyboardInterrupt

    if ending == "stopped":
        with pytest.raises(KeyboardInterrupt):
            run(model, on_step=stop)
    else:
        run(model)

    assert snapshot(model) == before and [p._version for p in model.parameters()] == versions
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), bytes_before, strict=True))


def test_every_weight_learns_and_is_looked_at():
    result = run(network())

    assert result.state_dict.keys() == dict(network().named_parameters()).keys()
    assert all(bool(difference.abs().max() > 0) for difference in result.state_dict.values())
    assert result.validation[0] != result.validation[6]
    assert not torch.equal(result.previews[0], result.previews[6])


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    whole = run(network())

    def stop(event):
        if event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(network(), tmp_path / "run", stop)
    resumed = run(network(), tmp_path / "run")

    assert resumed.resumed == 4
    assert all(torch.equal(resumed.state_dict[name], tensor) for name, tensor in whole.state_dict.items())


def test_a_state_is_the_difference_to_the_base_and_comes_back():
    with moved(network()) as weights:
        state, copies = (
            weights.state_dict(),
            [p.detach().clone() for p in weights.named_parameters().values()],
        )
    base = dict(network().named_parameters())

    with Weights(network()) as other:
        other.load(other.imported(weights.exported(state)))
        back = [p.detach() for p in other.named_parameters().values()]

    assert all(torch.equal(state[name], copy - base[name]) for name, copy in zip(state, copies, strict=True))
    torch.testing.assert_close(back, copies, rtol=0, atol=1e-7)


def test_files_have_the_names_that_loaders_read():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "n": nn.LayerNorm(2, elementwise_affine=True)})
    model["a"].register_parameter("scale", nn.Parameter(torch.ones(1)))
    model["b"] = nn.Module()
    model["b"].register_parameter("bias", nn.Parameter(torch.ones(2)))

    with Weights(model) as weights:
        state = weights.state_dict()
        filed = weights.exported(state)

        assert sorted(filed) == sorted(
            ["a.diff", "a.diff_b", "a.scale.diff", "n.diff", "n.diff_b", "b.bias.diff"]
        )
        assert weights.imported(filed).keys() == state.keys()


def test_differences_of_another_model_are_refused():
    with Weights(network()) as weights:
        state = weights.state_dict()
        wide = state | {"proj_in.bias": torch.zeros(3)}
        del wide["attn1.to_q.weight"]

        with pytest.raises(
            AdapterError, match=r"to_q\.weight is missing; proj_in\.bias is \(3,\) and not \(8,\)"
        ):
            weights.load(wide)
        assert all(not bool(difference.any()) for difference in weights.state_dict().values())


def test_weights_that_are_tied_stay_tied():
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 2)})
    model["two"].weight = model["one"].weight

    with Weights(model) as weights:
        assert list(weights.named_parameters()) == ["one.weight", "one.bias", "two.bias"]
        assert model["two"].weight is model["one"].weight
        assert "two.weight" in weights.state_dict()
    assert model["two"].weight is model["one"].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("copies", ["float32", "bfloat16"])
def test_copies_are_kept_in_what_the_settings_say(dtype, copies):
    model = nn.Linear(4, 4).to(dtype)

    with Weights(model, WeightSettings(copies=copies)) as weights:
        kept = {parameter.dtype for parameter in weights.named_parameters().values()}
        assert kept == {getattr(torch, copies)}
        assert {difference.dtype for difference in weights.state_dict().values()} == {torch.float32}
    assert model.weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_quantised_weight_is_refused_by_name(dtype):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4).to(dtype), requires_grad=False)
    before = snapshot(model)

    with pytest.raises(InputError, match=r"all its weights, got '0\.weight' as a Parameter in (float8|int8)"):
        Weights(model)
    assert snapshot(model) == before


def test_weights_of_two_models_learn_under_names_of_their_own():
    one, two = network(), network(1)
    before = snapshot(one), snapshot(two)

    with Weights({"": one, "text.": two}) as weights:
        assert weights.roots == (one, two)
        names = set(dict(one.named_parameters()))
        assert weights.named_parameters().keys() == names | {f"text.{name}" for name in names}
        with torch.no_grad():
            weights.named_parameters()["text.proj_in.bias"].add_(1)
        state = weights.state_dict()
        assert not torch.equal(two(*inputs()), network(1)(*inputs()))
        with weights.off():
            assert torch.equal(two(*inputs()), network(1)(*inputs()))

    assert bool((state["text.proj_in.bias"] == 1).all()) and not bool(state["proj_in.bias"].any())
    assert (snapshot(one), snapshot(two)) == before


def test_a_model_without_weights_is_refused():
    with pytest.raises(InputError, match="Expected a model with weights to train, got none in ReLU"):
        Weights(nn.ReLU())


def test_weights_that_were_loaded_in_inference_mode_learn():
    with torch.inference_mode():
        model = network()
        model.load_state_dict({name: tensor.clone() for name, tensor in network().state_dict().items()})
        for module in model.modules():
            for name, tensor in list(module._parameters.items()):
                if tensor is not None:
                    module._parameters[name] = nn.Parameter(tensor.clone(), requires_grad=False)
        before = [p.clone() for p in model.parameters()]

        with ordinary_weights(model):
            found = run(model)

        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    expected = run(network())
    assert all(torch.equal(found.state_dict[name], t) for name, t in expected.state_dict.items())


def test_what_they_take_is_told_before():
    model = nn.Linear(10, 10, bias=False)

    assert bytes_beside_base([model], WeightSettings(), "adamw") == 100 * 16
    assert bytes_beside_base([model, model], WeightSettings(), "adamw") == 200 * 16
    assert bytes_beside_base([model], WeightSettings(copies="bfloat16"), "adamw") == 100 * 8
    assert bytes_beside_base([model], WeightSettings(), "adamw8bit") == 100 * 10
    assert bytes_beside_base([model], WeightSettings(), "prodigy") == 100 * 24
    assert bytes_beside_base([model], WeightSettings(), "adafactor") == 100 * 8
