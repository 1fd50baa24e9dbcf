"""Source images are kept on disk under all that determines them, and never drawn twice."""

from __future__ import annotations

import importlib
import itertools
import os
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.nodes.data.test_several_categories import PlainVae
from tests.nodes.tiny import conditioning, host_module, tiny_model, tiny_prompts


@pytest.fixture
def sampled(comfy, monkeypatch) -> list[int]:
    """Return the sizes of the batches that the host samples."""
    module, sizes = host_module("comfy.sample"), []
    sample = module.sample

    def counted(model, noise, *args, **options):
        sizes.append(len(noise))
        return sample(model, noise, *args, **options)

    monkeypatch.setattr(module, "sample", counted)
    return sizes


def draw(nodes, model=None, prompts=None, count=4, **changes):
    vae = changes.pop("vae", PlainVae())
    options = {
        "width": 64, "height": 64, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal",
        "batch_size": 2, "seed": 3,
    } | changes  # fmt: skip
    with torch.inference_mode():
        out = nodes("nodes.data.source_images").DomainGallerySourceImages.execute(
            model or tiny_model(), vae, prompts or tiny_prompts(nodes), count=count, **options
        )
        return [source.latents for source in out[0]]


def test_a_second_run_draws_nothing(nodes, output, sampled):
    """Also with another MODEL object of the same weights, and with fewer or more images."""
    [first] = draw(nodes)
    [again] = draw(nodes)
    [fewer], [more] = draw(nodes, count=2), draw(nodes, count=6)

    assert torch.equal(first, again) and torch.equal(first[:2], fewer) and torch.equal(first, more[:4])
    assert sampled == [2, 2, 2]


@pytest.mark.parametrize(
    "changes", [{"steps": 3}, {"cfg": 2.0}, {"sampler_name": "heun"}, {"scheduler": "simple"}, {"seed": 4},
                {"width": 72}, "weights", "words", "negative", "patch"],
    ids=str,
)  # fmt: skip
def test_whatever_determines_an_image_is_in_the_key(nodes, output, sampled, changes):
    draw(nodes, count=1)
    model, prompts, options = tiny_model(), tiny_prompts(nodes), {}
    if changes == "weights":
        model = tiny_model(seed=1)
    elif changes == "words":
        prompts = tiny_prompts(nodes, source=conditioning(9))
    elif changes == "negative":
        prompts = tiny_prompts(nodes, empty=conditioning(9))
    elif changes == "patch":
        key = "diffusion_model.out.2.weight"
        model.add_patches({key: ("diff", (torch.ones(model.model.state_dict()[key].shape),))})
    else:
        options = changes

    draw(nodes, model, prompts, count=1, **options)

    assert sampled == [1, 1]


def test_the_same_patches_have_the_same_key_also_once_they_are_applied(nodes, output, sampled):
    def patched():
        model = tiny_model()
        key = "diffusion_model.out.2.weight"
        model.add_patches({key: ("diff", (torch.ones(model.model.state_dict()[key].shape),))})
        return model

    model = patched()
    draw(nodes, model, count=1)
    draw(nodes, model, count=1)
    draw(nodes, patched(), count=1)

    assert sampled == [1]


def test_a_model_that_cannot_be_told_from_others_is_not_kept(nodes, output, sampled, caplog):
    model = tiny_model()
    lock = threading.Lock()
    model.set_model_sampler_post_cfg_function(lambda given: given["denoised"] if lock else None)

    draw(nodes, model, count=1)
    draw(nodes, model, count=1)

    assert sampled == [1, 1]
    assert "The options of this MODEL cannot be told from others" in caplog.text
    assert not list(output.iterdir())


def test_models_that_predict_something_else_do_not_share_images(nodes, output, sampled):
    """The classes that the host's node makes for each of them have one name."""
    patch = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete().patch
    pictures = []
    for sampling in ("eps", "v_prediction", "x0"):
        for _ in range(2):
            pictures.append(draw(nodes, patch(tiny_model(), sampling, False)[0], count=1)[0])

    assert sampled == [1, 1, 1]
    assert torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[0], pictures[2])


def test_a_damaged_file_alone_is_drawn_again(nodes, output, sampled):
    [first] = draw(nodes)
    file = sorted(output.rglob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:100])

    [again] = draw(nodes)

    assert torch.equal(first, again)
    assert sampled == [2, 2, 2]
    assert len(list(output.rglob("*"))) == 3 + 4


def test_what_is_kept_stays_as_it_is_when_others_are_drawn_again(nodes, output, sampled):
    """Even where this machine would draw it otherwise."""
    [first] = draw(nodes)
    kept, lost, *_ = sorted(output.rglob("*.safetensors"))
    nodes("domaingallery_core.data.latent_cache").LatentCache(kept.parent).write(0, first[0] + 1, 2)
    content = kept.read_bytes()
    lost.unlink()

    [again] = draw(nodes)

    assert torch.equal(again[0], first[0] + 1) and torch.equal(again[1:], first[1:])
    assert kept.read_bytes() == content and lost.exists()


def test_images_that_are_not_finite_are_refused_and_not_kept(nodes, errors, output):
    model, key = tiny_model(), "diffusion_model.out.2.weight"
    broken = torch.full(model.model.state_dict()[key].shape, float("nan"))
    model.add_patches({key: ("diff", (broken,))})

    with pytest.raises(errors.InputError, match="latents that are not finite"):
        draw(nodes, model)

    assert not list(output.rglob("*.safetensors"))


def test_a_flipped_bit_is_noticed(nodes, output, sampled, caplog):
    [first] = draw(nodes)
    file = sorted(output.rglob("*.safetensors"))[1]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)

    [again] = draw(nodes)

    assert torch.equal(first, again) and sampled == [2, 2, 2]
    assert "Image 1 is drawn again" in caplog.text


@pytest.mark.parametrize("sampler_name", ["euler", "euler_ancestral"])
def test_images_are_the_same_whatever_memory_is_free(nodes, output, sampled, monkeypatch, sampler_name):
    """Samplers that draw noise as they go draw other images in other batches; the first size is kept."""
    source = nodes("nodes.data.source_images")
    fits = [4]
    monkeypatch.setattr(source, "fitting_batch", lambda *_: fits[0])
    management = host_module("comfy.model_management")
    module, sample = host_module("comfy.sample"), host_module("comfy.sample").sample
    options = {"count": 10, "batch_size": 0, "sampler_name": sampler_name}
    [expected] = draw(nodes, seed=5, **options)
    assert sampled == [4, 4, 2]
    for file in output.rglob("*.*"):
        file.unlink()

    def cancelled(*args, **more):
        management.interrupt_current_processing(len(sampled) == 4)
        return sample(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", cancelled)
        with pytest.raises(management.InterruptProcessingException):
            draw(nodes, seed=5, **options)
    fits[0] = 8
    [resumed] = draw(nodes, seed=5, **options)

    assert torch.equal(resumed, expected)
    assert sampled[5:] == [4, 2]


def test_noise_that_a_sampler_draws_is_of_the_seed_whatever_else_draws_numbers(nodes, output, sampled):
    [expected] = draw(nodes, sampler_name="euler_ancestral")
    model = tiny_model()

    def drawing(apply, given):
        torch.rand(1)
        return apply(given["input"], given["timestep"], **given["c"])

    model.set_model_unet_function_wrapper(drawing)
    [found] = draw(nodes, model, sampler_name="euler_ancestral")

    assert torch.equal(found, expected) and sampled == [2, 2, 2, 2]


def test_the_end_of_a_shorter_drawing_is_drawn_again_in_a_longer_one(nodes, output, sampled):
    """Its last images were drawn in a smaller batch."""
    [expected] = draw(nodes, seed=6, count=6, batch_size=4, sampler_name="euler_ancestral")
    for file in output.rglob("*.safetensors"):
        file.unlink()

    draw(nodes, seed=6, count=5, batch_size=4, sampler_name="euler_ancestral")
    [longer] = draw(nodes, seed=6, count=6, batch_size=4, sampler_name="euler_ancestral")

    assert torch.equal(longer, expected) and sampled == [4, 2, 4, 1, 2]


def test_few_pictures_are_shown_and_all_are_kept_as_latents(nodes, output):
    with torch.inference_mode():
        out = nodes("nodes.data.source_images").DomainGallerySourceImages.execute(
            tiny_model(), PlainVae(), tiny_prompts(nodes), count=20, width=72, height=64, steps=1, cfg=1.0,
            sampler_name="euler", scheduler="normal", batch_size=8, seed=3,
        )  # fmt: skip

    assert out[0][0].latents.shape == (20, 4, 8, 9) and out[1][0].shape == (16, 8, 9, 3)
    assert out[0][0].size == (8, 9), "what a dataset makes of the images of the domain"
    assert torch.equal(out[1][0], PlainVae().decode(out[0][0].latents[:16]))


def test_the_model_is_looked_at_once_for_all_categories(nodes, output, monkeypatch):
    source, looks = nodes("nodes.data.source_images"), []
    identity = source.model_identity
    monkeypatch.setattr(source, "model_identity", lambda model: looks.append(1) or identity(model))

    draw(nodes, prompts=tiny_prompts(nodes, {"category": "house"}), count=1)

    assert looks == [1]


def test_an_interrupted_drawing_goes_on_where_it_was(nodes, output, sampled, monkeypatch):
    [expected] = draw(nodes, seed=8)
    for file in output.rglob("*.safetensors"):
        file.unlink()
    sampled.clear()
    management = host_module("comfy.model_management")
    module, sample = host_module("comfy.sample"), host_module("comfy.sample").sample

    def cancelled(*args, **options):
        management.interrupt_current_processing(len(sampled) == 1)
        return sample(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "sample", cancelled)
        with pytest.raises(management.InterruptProcessingException):
            draw(nodes, seed=8)
    kept = len(list(output.rglob("*.safetensors")))
    sampled.clear()

    [resumed] = draw(nodes, seed=8)

    assert kept == 2
    assert sampled == [2]
    assert torch.equal(resumed, expected)


def test_each_category_has_its_batch(nodes, output):
    house = {"category": "house", "source": conditioning(9)}

    both = draw(nodes, prompts=tiny_prompts(nodes, house))

    assert len(both) == 2
    assert torch.equal(both[0], draw(nodes, prompts=tiny_prompts(nodes))[0])
    assert torch.equal(both[1], draw(nodes, prompts=tiny_prompts(nodes, **house))[0])
    assert not torch.equal(*both)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_batch_fits_the_memory(nodes, monkeypatch, device):
    """On a GPU, room is left for the weights that are not there yet, and for what the host keeps free."""
    source, model = nodes("nodes.data.source_images"), tiny_model()
    management = source.comfy.model_management
    latents = torch.zeros(100, 4, 64, 64)
    one = model.memory_required([2, 4, 64, 64])
    monkeypatch.setattr(management, "is_device_cpu", lambda _: device == "cpu")
    monkeypatch.setattr(management, "minimum_inference_memory", lambda: 3 * one)
    monkeypatch.setattr(model, "model_size", lambda: 5 * one)
    monkeypatch.setattr(model, "loaded_size", lambda: 2 * one)
    taken = 0 if device == "cpu" else (5 - 2 + 3) * one
    sizes = []
    for images in (0.5, 1, 3.5, 7.9, 8, 1000):
        monkeypatch.setattr(management, "get_free_memory", lambda _, n=images: n * one + taken)
        sizes.append(source.fitting_batch(model, latents))

    assert sizes == [1, 1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("form", "shape"),
    [("SD15", (2, 4, 8, 9)), ("SC_B", (2, 4, 16, 18)), ("HunyuanVideo", (2, 16, 1, 8, 9))],
)
def test_latents_have_the_form_of_the_model(nodes, form, shape):
    """Models of videos draw one frame."""
    model = tiny_model(latent_format=getattr(host_module("comfy.latent_formats"), form))

    latents = nodes("nodes.data.source_images").empty_latents(model, 2, width=72, height=64)

    assert latents.shape == shape and not latents.any()


@pytest.fixture
def updates(nodes, monkeypatch) -> list[tuple]:
    """Return what is shown of the progress: done, total, text and preview. A step takes a minute."""
    source, seen, minutes = nodes("nodes.data.source_images"), [], itertools.count()

    class Watched(source.Progress):
        def update(self, done, text, preview=None):
            seen.append((done, self.total, text, preview))
            super().update(done, text)

    previewer = SimpleNamespace(decode_latent_to_preview_image=lambda form, x0: f"{form} of {len(x0)}")
    monkeypatch.setattr(source, "Progress", Watched)
    monkeypatch.setattr(source, "time", SimpleNamespace(perf_counter=lambda: 60.0 * next(minutes)))
    monkeypatch.setattr(source.latent_preview, "get_previewer", lambda *_: previewer)
    return seen


def test_it_shows_how_far_it_is_how_long_it_takes_and_what_is_drawn(nodes, output, updates):
    """Over all categories; of each batch, the picture is shown that is finished."""
    prompts = tiny_prompts(nodes, {"category": "house", "source": conditioning(9)})

    draw(nodes, prompts=prompts, count=3)

    texts = [
        "1 of 3 images, 2 min 00 s left",
        "2 of 3 images, 60 s left",
        "2 of 3 images, 36 s left",
        "3 of 3 images, 0 s left",
    ]
    previews = [None, "JPEG of 2", None, "JPEG of 1"]
    done = [2, 4, 5, 6, 8, 10, 11, 12]
    assert updates == list(zip(done, 8 * [12], 2 * texts, 2 * previews, strict=True))


def test_what_is_kept_takes_no_time(nodes, output, updates):
    draw(nodes, count=2)
    updates.clear()

    draw(nodes, count=3)

    assert [(done, text) for done, _, text, _ in updates] == [
        (4, "2 of 3 images, kept from before"),
        (5, "2 of 3 images, 60 s left"),
        (6, "3 of 3 images, 0 s left"),
    ]


def test_a_sampler_that_takes_more_steps_does_not_draw_more_images(nodes, output, updates):
    draw(nodes, count=1, sampler_name="dpm_adaptive")

    assert len(updates) > 2
    assert {done for done, *_ in updates} == {1, 2}
    assert {text for _, _, text, _ in updates[1:]} == {"1 of 1 images, 0 s left"}


def test_source_images_that_were_not_used_make_room(nodes, output, monkeypatch):
    draw(nodes, count=1, seed=1)
    first = {*output.rglob("*.safetensors")}
    for path in [*first, *(path.parent for path in first)]:
        os.utime(path, (9, 9))
    monkeypatch.setattr(nodes("nodes.files.kept"), "MOST_BYTES", 1)

    draw(nodes, count=1, seed=2)

    [left] = output.rglob("*.safetensors")
    assert first and left not in first


@pytest.mark.parametrize("bars", [True, False])
def test_bars_in_the_console_are_drawn_where_the_host_draws_them(nodes, output, monkeypatch, bars):
    module, without = host_module("comfy.sample"), []
    sample = module.sample

    def watched(*args, disable_pbar, **options):
        without.append(disable_pbar)
        return sample(*args, disable_pbar=True, **options)

    monkeypatch.setattr(module, "sample", watched)
    monkeypatch.setattr(host_module("comfy.utils"), "PROGRESS_BAR_ENABLED", bars)

    draw(nodes, count=1)

    assert without == [not bars]


def test_parts_of_other_families_are_named(nodes, errors, output, sampled):
    class OtherVae(PlainVae):
        latent_channels = 16

    with pytest.raises(errors.InputError, match=r"VAE of this model \(4 channels\), got one of 16 channels"):
        draw(nodes, vae=OtherVae())
    wide = tiny_prompts(nodes, source=[[torch.zeros(1, 6, 24), {}]])
    with pytest.raises(errors.InputError, match=r"text encoder of this model \(16 wide\), got 24"):
        draw(nodes, prompts=wide)
    with pytest.raises(errors.InputError, match="prompts with a pooled embedding"):
        draw(nodes, model=tiny_model(pooled=5))
    assert not sampled
