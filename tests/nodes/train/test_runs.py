"""Runs that are stopped, watched and fitted into memory, on a host MODEL."""

from __future__ import annotations

import json
import logging
import os
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from tests.nodes import training
from tests.nodes.tiny import host_module, same, tiny_dataset, tiny_model, tiny_part, tiny_prompts, weights_of
from tests.nodes.training import draw

STEPS = 6


@pytest.fixture
def run_options(nodes):
    return nodes("nodes.sockets").RunOptions


def train(nodes, model, **changes):
    """Run Train Domain LoRA without the similarity term, whose steps are slow."""
    weights = dict(similarity=0.0)
    options = nodes("nodes.sockets").TrainingOptions(weights=weights)
    inputs = {"steps": STEPS, "learning_rate": 1e-2, "options": options}
    return training.train(nodes, model, **{**inputs, **changes})


def test_a_cancelled_training_goes_on_to_the_same_bytes(nodes, model, output, said, cancel_at):
    """Also under Domain Run Options that differ; the checkpoint of the cancel is gone at the end."""
    options = nodes("nodes.sockets").RunOptions(preview_every=2, preview_count=1, preview_steps=2)
    expected = train(nodes, model)
    folder = output / "domaingallery" / "checkpoints"

    for step in (2, 2):
        cancel_at(step)
        with pytest.raises(host_module("comfy.model_management").InterruptProcessingException):
            train(nodes, model)
    files = sorted(path.relative_to(output).as_posix() for path in folder.rglob("*.safetensors"))
    cancel_at(1000)
    result = train(nodes, model, run_options=options)

    assert files[-1].endswith("/step_000004.safetensors")
    assert f"stopped; kept in output/{files[-1]}. Run the same again to go on." in said
    assert same(result[0], expected[0])
    assert result[1] == expected[1]
    assert "gone on from step 4" in result.ui["text"][0]
    assert not list(folder.rglob("*.*"))


def test_a_training_that_is_stopped_gives_what_it_learned_and_can_go_on(
    nodes, model, output, said, monkeypatch
):
    """As the button does, on the node that trains and on no other."""
    stopping, live = nodes("nodes.host.stopping"), nodes("nodes.train.live")
    expected, show, answers = train(nodes, model), live.Live.show, []

    def shown(self, event):
        show(self, event)
        if event.step == 3:
            answers.extend([stopping.ask_to_stop("8"), stopping.ask_to_stop("7")])

    monkeypatch.setattr(live.Live, "show", shown)
    monkeypatch.setattr(nodes("nodes.train.training"), "node_id", lambda node: "5:7")
    stopped = train(nodes, model)
    monkeypatch.setattr(live.Live, "show", show)

    assert answers == [False, True] and not stopping.ask_to_stop("7")
    assert stopped[1]["loss"] == expected[1]["loss"][:4]
    assert stopped.ui["text"][0].startswith(f"stopped after 4 of {STEPS} steps in ")
    assert stopped[4].startswith(f"DomainGallery: stopped after 4 of {STEPS} steps in ")
    assert stopped[0].metadata["ss_steps"] == "4" and not same(stopped[0], expected[0])
    kept = list((output / "domaingallery" / "checkpoints").rglob("step_000004.safetensors"))
    assert len(kept) == 1 and any(
        f"kept in output/{kept[0].relative_to(output).as_posix()}" in text for text in said
    )
    whole = train(nodes, model)
    assert same(whole[0], expected[0]) and "gone on from step 4" in whole.ui["text"][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("ending", ["finished", "cancelled", "failed"])
def test_the_model_draws_the_same_after_a_training(nodes, cancel_at, run_options, ending, dtype):
    """With checkpoints, previews and gradient checkpointing, for a model in float16 as well."""
    options = run_options(
        preview_every=3, preview_count=1, preview_steps=2, checkpoint_every=2, validate_every=3,
        gradient_checkpointing="on",
    )  # fmt: skip
    model = tiny_model(dtype=dtype)
    before, expected, calls = weights_of(model), draw(nodes, model), []

    def fail(*_):
        calls.append(1)
        if ending == "failed" and len(calls) == 30:
            raise RuntimeError("broken")

    handle = model.model.diffusion_model.middle_block[0].register_forward_pre_hook(fail)
    if ending == "cancelled":
        cancel_at(4)
    if ending == "finished":
        train(nodes, model, run_options=options)
    else:
        cancelled = host_module("comfy.model_management").InterruptProcessingException
        with pytest.raises(cancelled if ending == "cancelled" else RuntimeError):
            train(nodes, model, run_options=options)
    handle.remove()

    assert ending != "failed" or len(calls) == 30
    assert torch.equal(draw(nodes, model), expected)
    assert same(weights_of(model), before)
    for module in model.model.modules():
        assert not {"forward", "comfy_cast_weights"} & module.__dict__.keys()


def test_another_plan_under_the_name_of_a_run_is_refused(nodes, errors, model, run_options):
    options = run_options(checkpoint_every=2, run_name="faces/first")
    train(nodes, model, run_options=options)

    with pytest.raises(
        errors.InputError, match=r"plan\.optimizer\.learning_rate was 0\.01 and is 0\.02.*another run name"
    ):
        train(nodes, model, learning_rate=2e-2, run_options=options)
    with pytest.raises(errors.InputError, match=r"got another one: target images of sks face differs"):
        other = tiny_dataset(nodes, target=tiny_part(nodes, seed=8).target)
        train(nodes, model, dataset=other, run_options=options)
    with pytest.raises(errors.InputError, match=r"got another one: base model weights differs\. Set"):
        train(nodes, tiny_model(seed=1), run_options=options)

    again = run_options(checkpoint_every=2, run_name="faces/first", resume="start over")
    assert "gone on" not in train(nodes, model, run_options=again).ui["text"][0]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "C:\\x", "a/"])
def test_run_names_that_climb_out_are_refused(nodes, errors, name):
    node = nodes("nodes.train.run_options").DomainGalleryRunOptions
    values = {part.id: part.default for part in node.GET_SCHEMA().inputs} | {"run_name": name}

    with pytest.raises(errors.InputError, match="inside the folder output/domaingallery/checkpoints, got"):
        node.execute(**values)


def test_previews_begin_with_the_base_model_and_change_nothing(nodes, model, run_options):
    plain = train(nodes, model)
    watched = train(
        nodes, model,
        run_options=run_options(preview_every=3, preview_count=2, preview_steps=2, validate_every=3),
    )  # fmt: skip

    assert same(plain[0], watched[0])
    blocked = plain[3]
    assert "Set preview_every in Domain Run Options" in blocked.message
    columns = watched[3].shape[2] // 3  # steps 0, 3 and 6
    pictures = [watched[3][:, 20:, i * columns : (i + 1) * columns] for i in range(3)]
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])
    assert plain[2].shape == watched[2].shape == (1, 480, 800, 3)
    assert len(watched[1]["validation"]) == 3 and "validation" not in plain[1]
    assert list(watched.ui["validation"][0]) == [0, 3, 6]


def test_previews_are_decoded_by_the_vae_of_the_dataset(nodes, model, dataset, run_options):
    decoded = []

    class Vae:
        def decode(self, latents):
            decoded.append(latents)
            return torch.full((len(latents), 64, 64, 3), 0.5)

    with_vae = replace(dataset, vae=Vae())
    result = train(
        nodes, model, dataset=with_vae,
        run_options=run_options(preview_every=6, preview_count=3, preview_steps=1),
    )  # fmt: skip

    assert [tuple(latents.shape) for latents in decoded] == [(3, 4, 8, 8)] * 2
    assert result[3].shape == (1, 20 + 3 * 64, 2 * 64, 3)
    assert float(result[3][0, 30, 10, 0]) == pytest.approx(0.5, abs=0.01)


class BrokenVae:
    """Fail to decode, or be cancelled in it."""

    def __init__(self, error):
        self.error = error

    def decode(self, latents):
        raise self.error


def test_a_vae_that_fails_costs_no_lora(nodes, model, dataset, run_options, caplog):
    """The previews are the rough ones then, and the node says so."""
    options = run_options(preview_every=6, preview_count=1, preview_steps=1)
    expected = train(nodes, model, run_options=options)

    with_vae = replace(dataset, vae=BrokenVae(RuntimeError("no kernel")))
    result = train(nodes, model, dataset=with_vae, run_options=options)

    assert same(result[0], expected[0]) and torch.equal(result[3], expected[3])
    assert "Expected to make pictures of the previews by the VAE, got: no kernel" in caplog.text


class Begun(Exception):
    """Raised where the first step of a training would begin."""


@pytest.fixture
def at_the_first_step(nodes, model, monkeypatch):
    """Return a function that begins a training and gives what is seen at its first step, where it ends."""

    def see(look, **changes):
        seen = []

        def begin(*_, **__):
            seen.append(look())
            raise Begun

        monkeypatch.setattr(nodes("nodes.train.training"), "train", begin)
        with pytest.raises(Begun):
            train(nodes, model, **changes)
        return seen[0]

    return see


def test_the_oldest_stopped_trainings_make_room_before_the_first_step(at_the_first_step, output):
    folder = output / "domaingallery" / "checkpoints"
    for number in range(30):
        (folder / f"run-{number:02}").mkdir(parents=True)
        path = folder / f"run-{number:02}" / "step_000001.safetensors"
        path.write_bytes(b"x")
        for each in (path, path.parent):
            os.utime(each, (number, number))

    left = at_the_first_step(lambda: {path.name for path in folder.iterdir()})

    assert "run-00" not in left and "run-29" in left


@pytest.mark.parametrize("setting", ["on", "off", "automatic"])
def test_run_options_say_whether_blocks_are_computed_twice(nodes, model, run_options, setting, monkeypatch):
    """A tiny model needs it only where it is asked for."""
    module, again = nodes("domaingallery_core.memory.blocks"), []
    checkpoint = module.checkpoint

    def noted(*args, **kwargs):
        again.append(1)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(module, "checkpoint", noted)

    train(nodes, model, steps=1, run_options=run_options(gradient_checkpointing=setting))

    assert bool(again) == (setting == "on")


def test_a_folder_that_cannot_be_set_free_costs_no_lora(nodes, model, monkeypatch, caplog):
    checkpoints = nodes("domaingallery_core.run.checkpoints").Checkpoints

    @contextmanager
    def claimed(self):
        yield
        raise OSError("the disk is gone")

    monkeypatch.setattr(checkpoints, "claimed", claimed)

    assert train(nodes, model, steps=1)[0]
    assert "the folder of the run free for others, got: the disk is gone" in caplog.text


def test_a_cancel_in_the_last_decoding_costs_no_lora(nodes, model, dataset, run_options, output, said):
    """The run is kept after its last step; the same again gives the LoRA at once."""
    options = run_options(preview_every=6, preview_count=1, preview_steps=1)
    cancelled = host_module("comfy.model_management").InterruptProcessingException
    with pytest.raises(cancelled):
        train(nodes, model, dataset=replace(dataset, vae=BrokenVae(cancelled())), run_options=options)

    [kept] = (output / "domaingallery" / "checkpoints").rglob("*.safetensors")
    result = train(nodes, model, run_options=options)

    assert kept.name == f"step_{STEPS:06}.safetensors" and not kept.exists()
    where = kept.relative_to(output).as_posix()
    assert f"stopped; kept in output/{where}. Run the same again to go on." in said
    assert f"gone on from step {STEPS}" in result.ui["text"][0]
    assert same(result[0], train(nodes, model)[0])


def test_only_a_run_that_was_done_is_said_to_be_when_it_is_stopped(nodes, model, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(nodes("nodes.train.training"), "train", broken)
        with pytest.raises(RuntimeError, match="broken"):
            train(nodes, model, steps=1)
    assert "when it was done" not in caplog.text

    cancelled = host_module("comfy.model_management").InterruptProcessingException

    def cancel(*_):
        raise cancelled

    monkeypatch.setattr(nodes("domaingallery_core.run.checkpoints"), "_remove", cancel)
    with pytest.raises(cancelled):
        train(nodes, model, steps=1)
    assert "The run was stopped when it was done, and is not kept." in caplog.text


def test_the_plot_on_the_node_goes_on_where_a_run_was_stopped(nodes, model, cancel_at, monkeypatch):
    live, plotted = nodes("nodes.train.live"), []
    draw_plot = live.plot
    monkeypatch.setattr(live, "PICTURE_EVERY", 0.0)
    monkeypatch.setattr(live, "plot", lambda losses, *rest: plotted.append(len(losses["total"])) or
                        draw_plot(losses, *rest))  # fmt: skip
    cancel_at(3)
    with pytest.raises(host_module("comfy.model_management").InterruptProcessingException):
        train(nodes, model)
    plotted.clear()
    cancel_at(1000)

    train(nodes, model)

    assert plotted[0] == 4


def test_warnings_stay_on_the_node(nodes, model, said):
    """What is warned of while a node runs is shown under what it says later, and when it is done."""
    progress = nodes("nodes.host.progress")
    log = logging.getLogger("domaingallery")
    with progress.showing_warnings("1") as warnings:
        for number in range(6):
            log.warning("Step %d is skipped.", number)
        log.warning("Step 5 is skipped.")

        text = warnings.under("step 7 of 8")
        assert progress.warned() == [f"Step {number} is skipped." for number in range(6)]

    assert text.splitlines() == [
        "step 7 of 8",
        *[f"Step {number} is skipped." for number in range(2, 6)],
        "and 2 more warnings before, in the log",
    ]
    assert progress.warned() == []


def gradients(nodes, model, dataset, setting):
    """Return the gradients of one step, and the bytes that were kept for its backward pass."""
    host, memory = nodes("nodes.host.model"), nodes("nodes.host.network.memory")
    places = ("trainables.adapters", "methods", "data.parts")
    core = {name.rpartition(".")[2]: nodes(f"domaingallery_core.{name}") for name in places}
    plan = nodes("nodes.sockets").TrainingOptions().plan("domaingallery", 1, 1e-3, 0)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with host.training(model), memory.gradient_checkpointing(model, setting):
        weights = {p.untyped_storage().data_ptr() for p in model.model.diffusion_model.parameters()}
        data, denoiser = nodes("nodes.train.data"), host.HostDenoiser(model)
        pairs = {"domain": data.with_prompts(tiny_prompts(nodes), dataset)}
        [part] = data.training_parts(model, denoiser, pairs, plan)
        seed = torch.Generator().manual_seed(0)
        network = model.model.diffusion_model
        with core["adapters"].Adapter.inject(network, plan.adapter, seed) as adapter:
            for name, weight in adapter.named_parameters().items():
                if "lora_B" in name:
                    weight.data.normal_(generator=seed)
            batch = core["parts"].Batch(part, part.target.latents[:3], part.source.latents[:3])
            noised = core["methods"].draw({"domain": batch}, denoiser.process, seed)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                terms = plan.method.terms(denoiser, adapter, noised)
            plan.method.total(terms).backward()
            found = [p.grad.clone() for p in adapter.parameters()]
    return found, sum(size for place, size in kept.items() if place not in weights)


def test_gradient_checkpointing_gives_the_same_gradients_in_a_fraction_of_the_memory(nodes, model, dataset):
    plain, much = gradients(nodes, model, dataset, "off")
    again, little = gradients(nodes, model, dataset, "on")
    _, automatic = gradients(nodes, model, dataset, "automatic")

    assert all(float(gradient.abs().max()) > 0 for gradient in plain)
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert little < 0.5 * much
    assert automatic == much  # a tiny model needs none


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_random_state_is_kept_for_a_block_only_where_something_is_drawn_in_it(
    nodes, model, run_options, monkeypatch, dropout
):
    blocks, found = nodes("domaingallery_core.memory.blocks"), []
    real = blocks.checkpoint

    def noted(*args, **kwargs):
        found.append(kwargs["preserve_rng_state"])
        return real(*args, **kwargs)

    monkeypatch.setattr(blocks, "checkpoint", noted)
    options = nodes("nodes.sockets").TrainingOptions(dropout=dropout)
    chosen = run_options(gradient_checkpointing="on", preview_every=0)
    train(nodes, model, steps=1, options=options, run_options=chosen)

    assert set(found) == {dropout > 0}


@pytest.mark.parametrize(("dtype", "wanted"), [("float16", "automatic"), ("float32", "bfloat16")])
def test_half_precision_trains_to_finite_weights(nodes, dtype, wanted):
    """A base in float16 computes in float32 on a CPU; its gradients would overflow."""
    model = tiny_model(dtype=getattr(torch, dtype))
    options = nodes("nodes.sockets").TrainingOptions(precision=wanted, denoise_steps=2)
    seen = set()
    block = model.model.diffusion_model.middle_block[0]
    handle = block.register_forward_hook(lambda module, inputs, out: seen.add(out.dtype))

    lora = train(nodes, model, options=options)[0]
    handle.remove()

    assert seen == {torch.float32 if wanted == "automatic" else torch.bfloat16}
    assert all(
        tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all()) for tensor in lora.values()
    )
    assert any(float(tensor.abs().max()) > 1e-3 for name, tensor in lora.items() if "lora_B" in name)
    assert model.model.get_dtype_inference() == getattr(torch, dtype)


def test_metadata_say_step_plan_words_and_base(nodes, model):
    first, second = train(nodes, model)[0], train(nodes, tiny_model(seed=1))[0]

    assert first.metadata["ss_steps"] == str(STEPS)
    assert json.loads(first.metadata["domaingallery.plan"])["optimizer"]["schedule"] == "constant"
    assert len(first.metadata["domaingallery.base_model_hash"]) == 64
    assert (
        first.metadata["domaingallery.base_model_hash"]
        == train(nodes, model, seed=1)[0].metadata["domaingallery.base_model_hash"]
        != second.metadata["domaingallery.base_model_hash"]
    )
