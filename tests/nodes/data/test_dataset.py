"""The Domain Dataset node: categories, masks, crops, buckets, posteriors, and images of all kinds."""

from __future__ import annotations

import pytest
import torch

from tests.nodes.data.test_several_categories import PlainVae, execute
from tests.nodes.tiny import host_module, tiny_prompts

SOURCE = torch.rand(4, 32, 32, 3)


def words(nodes, *categories):
    first, *more = ({"category": word} for word in categories)
    return tiny_prompts(nodes, *more, **first)


def only_part(nodes, *given, **options):
    """Return the part of a dataset that has one."""
    [part] = execute(nodes, *given, **options).parts
    return part


def gaussian_vae() -> object:
    """Return a VAE of the host with random weights and a normal posterior."""

    sd = host_module("comfy.sd")
    config = {
        "double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    kind = host_module("comfy.ldm.models.autoencoder").AutoencoderKL
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = kind(ddconfig=config, embed_dim=4).eval()
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.05)
    vae = sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    vae.first_stage_model = network
    vae.patcher = host_module("comfy.model_patcher").CoreModelPatcher(
        network, load_device=vae.device, offload_device=vae.device
    )
    vae.downscale_ratio = vae.upscale_ratio = 8
    vae.latent_channels = 4
    vae.vae_dtype = torch.float32
    vae.process_input = lambda image: image * 2.0 - 1.0
    return vae


def test_the_posterior_of_a_vae_is_kept(comfy, nodes):
    """The mean is what the host encodes, the deviation is that of its own distribution."""
    vae = gaussian_vae()
    images = torch.rand(3, 32, 32, 3)
    distribution = host_module("comfy.ldm.modules.distributions.distributions").DiagonalGaussianDistribution

    source = only_part(nodes, images, vae=vae).source

    with torch.inference_mode():
        network = vae.first_stage_model
        moments = network.quant_conv(network.encoder(images.movedim(-1, 1) * 2 - 1))
        assert torch.equal(source.latents, vae.encode(images))
    expected = distribution(moments)
    torch.testing.assert_close(source.latents, expected.mean)
    torch.testing.assert_close(source.deviation, expected.std)
    assert float(source.deviation.min()) > 0
    assert not vae.first_stage_model.regularization._forward_pre_hooks


def test_a_vae_without_posterior_gives_what_it_encodes(nodes):
    source = only_part(nodes, SOURCE).source

    assert source.deviation is None
    assert torch.equal(source.latents, PlainVae().encode(SOURCE))


def test_a_list_of_mixed_sizes_is_fitted_one_by_one(nodes):
    images = [torch.rand(1, 40, 50, 3), torch.rand(2, 64, 32, 4), torch.rand(1, 33, 90, 1)]

    together = only_part(nodes, SOURCE, images).target
    alone = [only_part(nodes, SOURCE, image).target.latents for image in images]

    assert torch.equal(together.latents, torch.cat(alone))


@pytest.mark.parametrize(("flip", "factor"), [(False, 1), (True, 2)])
def test_random_crops_and_flips_are_variants_of_an_image(nodes, flip, factor):
    images = torch.rand(2, 32, 64, 3)

    target = only_part(nodes, SOURCE, images, fit="random crop", flip=flip).target
    square = only_part(nodes, SOURCE, images[:, :, :32], fit="random crop", flip=flip).target

    assert len(target) == 2 and target.variants == 8 * factor
    assert len(target.latents.unique(dim=0)) > 8
    assert len(square) == 2 and square.variants == factor


def test_buckets_sort_images_by_shape(nodes, said):
    """Each bucket has the source images at its size, so that a batch has one size."""
    images = [torch.rand(1, 32, 32, 3), torch.rand(1, 48, 32, 3), torch.rand(1, 96, 64, 3)]

    dataset = execute(nodes, SOURCE, images, fit="buckets")

    assert [len(part.target) for part in dataset.parts] == [1, 2]
    shapes = [part.target.latents.shape[1:] for part in dataset.parts]
    assert shapes == [part.source.latents.shape[1:] for part in dataset.parts]
    assert shapes[0] == (3, 4, 4) and shapes[1] == (3, 5, 3)
    assert said == ["1 images, 4 source images (4 x 4 latents); 2 images, 4 source images (3 x 5 latents)"]
    assert all(len(part.source) == 4 for part in dataset.parts)


def test_masks_are_cropped_as_their_images(nodes):
    images = torch.rand(2, 32, 64, 3)
    masks = torch.zeros(2, 32, 64)
    masks[:, :, 24:40] = 1

    centre = only_part(nodes, SOURCE, images, masks=masks).target
    random = only_part(
        nodes, SOURCE, torch.cat([masks[..., None]] * 3, -1), masks=masks, fit="random crop"
    ).target

    assert centre.masks[0, 0, 0].tolist() == [0, 1, 1, 0]
    # The images are the masks here, and this VAE is a mean over 8 x 8 pixels.
    torch.testing.assert_close(random.masks, random.latents[:, :1])


def test_images_are_held_out_of_the_training(nodes):
    images = torch.rand(5, 32, 32, 3)

    part = only_part(nodes, SOURCE, images, held_out=2)

    assert torch.equal(part.target.latents, PlainVae().encode(images[:3]))
    assert torch.equal(part.validation.latents, PlainVae().encode(images[3:]))


def test_what_is_held_out_is_cropped_at_the_centre_once(nodes):
    """However those are cropped that are learned from, so that the validation loss compares."""
    images = torch.rand(4, 32, 64, 3)

    validation = only_part(nodes, SOURCE, images, held_out=1, fit="random crop", flip=True).validation

    assert validation.variants == 1
    assert torch.equal(validation.latents, PlainVae().encode(images[3:, :, 16:48]))


def test_images_go_to_their_category(nodes):
    images, sources = torch.rand(5, 32, 32, 3), [torch.rand(4, 32, 32, 3) for _ in range(2)]
    given = {"prompts": words(nodes, "face", "house")}

    listed = execute(nodes, sources, images, categories="2 face, 3 house", **given)
    captions = execute(
        nodes, sources, images, categories=["a house", "face", "face", "house", "house"], **given
    )

    assert [part.category for part in listed.parts] == ["face", "house"]
    assert [len(part.target) for part in listed.parts] == [2, 3]
    assert torch.equal(captions.parts[0].target.latents, PlainVae().encode(images[1:3]))
    for part, source in zip(listed.parts, sources, strict=True):
        assert torch.equal(part.source.latents, PlainVae().encode(source))


def test_categories_have_names_without_images_too(nodes):
    """As erasing needs no images."""
    dataset = execute(nodes, [SOURCE, SOURCE], prompts=words(nodes, "face", "house"))

    assert [(part.category, part.target) for part in dataset.parts] == [("face", None), ("house", None)]


def test_a_list_of_source_images_is_of_one_category(nodes):
    """All get the size of the first, which need not be a square."""
    batches = [torch.rand(2, 32, 48, 3), torch.rand(3, 40, 60, 3)]

    source = only_part(nodes, batches).source

    assert torch.equal(source.latents[:2], PlainVae().encode(batches[0]))
    assert source.latents.shape == (5, 3, 4, 6)


def test_one_category_is_as_no_category(nodes):
    images = torch.rand(3, 32, 32, 3)

    plain = only_part(nodes, SOURCE, images)
    one = only_part(nodes, SOURCE, images, prompts=words(nodes, "face"), categories="ignored")

    assert torch.equal(plain.source.latents, one.source.latents)
    assert torch.equal(plain.target.latents, one.target.latents)


IMAGES = torch.rand(3, 32, 32, 3)


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ([], None, {}, "source_images to be source images of Domain Source Images or images, got nothing"),
        (SOURCE, [IMAGES, torch.rand(1, 9, 9, 3)], {}, r"number 4\) of about 32 x 32 pixels.*got 9 x 9"),
        (SOURCE, IMAGES, {"masks": torch.ones(2, 32, 32)}, "a mask for each of the 3 images.*got 2"),
        (SOURCE, IMAGES, {"masks": torch.zeros(3, 32, 32)}, "a black one for image 1"),
        (SOURCE, IMAGES, {"held_out": 3}, "images to learn from besides 3 held out, got 3"),
        (SOURCE, IMAGES, {"prompts": ("face", "house")}, r"categories face, house, got 1 batch"),
        ([SOURCE, SOURCE], IMAGES, {"prompts": ("face", "house")}, "category of each of the 3 images, got 0"),
        ([SOURCE, SOURCE], IMAGES, {"prompts": ("face", "house"), "categories": "3 face"}, "none of 'house'"),
        ([SOURCE, torch.rand(4, 8, 8, 3)], None, {"prompts": ("face", "house")}, "source images of about 32"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(nodes, errors, source, target, options, message):
    if "prompts" in options:
        options = options | {"prompts": words(nodes, *options["prompts"])}
    with pytest.raises(errors.InputError, match=message):
        execute(nodes, source, target, **options)


def test_the_node_says_what_it_holds(nodes, said):
    given = {"prompts": words(nodes, "face", "house"), "masks": torch.ones(4, 32, 32), "held_out": 1}

    execute(nodes, SOURCE)
    execute(nodes, [SOURCE, SOURCE[:2]], torch.rand(4, 32, 32, 3), categories="2 face, 2 house",
            **given)  # fmt: skip

    assert said == [
        "4 source images",
        "face: 1 images with masks, 4 source images, 1 held out; "
        "house: 1 images with masks, 2 source images, 1 held out",
    ]


@pytest.mark.parametrize("shape", [(5, 4), (4, 5)])
def test_parts_of_two_sizes_are_told_with_their_sizes(nodes, shape):
    part, examples = nodes("nodes.sockets").LatentPart, nodes("domaingallery_core.data.examples").Examples
    square = part(source=examples(torch.zeros(3, 4, 4, 4)))
    other = part(source=examples(torch.zeros(3, 4, *shape)))

    text = nodes("nodes.data.dataset").summary([square, other])

    assert text == f"3 source images (4 x 4 latents); 3 source images ({shape[1]} x {shape[0]} latents)"


def test_source_latents_are_the_images_that_they_stand_for(comfy, nodes):
    """To the byte: decoded and encoded a few at a time, as the images would be."""
    sockets, vae = nodes("nodes.sockets"), gaussian_vae()
    with torch.inference_mode():
        latents = torch.randn(19, 4, 4, 4)
        images = torch.cat([vae.decode(chunk) for chunk in latents.split(8)])
    source = sockets.SourceLatents(latents=latents, vae=vae, size=(32, 32))

    found, expected = (only_part(nodes, given, vae=vae).source for given in (source, images))

    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.deviation, expected.deviation)


def test_pixels_of_many_images_never_exist_at_once(comfy, nodes, monkeypatch):
    """Of 40 images no more than a chunk is decoded and not yet encoded."""
    alive, most = [0], [0]

    class Counting(PlainVae):
        def decode(self, latents):
            alive[0] += len(latents)
            most[0] = max(most[0], alive[0])
            return torch.full((len(latents), 32, 32, 3), 0.5)

        def encode(self, images):
            alive[0] -= len(images)
            return super().encode(images)

    source = nodes("nodes.sockets").SourceLatents(
        latents=torch.randn(40, 3, 4, 4), vae=Counting(), size=(32, 32)
    )
    encoded = only_part(nodes, source, vae=source.vae).source

    assert len(encoded) == 40 and most[0] == 8 and alive[0] == 0
    assert [nodes("nodes.host.pixels.encoding").at_once(side, side) for side in (64, 512, 1024, 4096)] == [
        8,
        4,
        1,
        1,
    ]


def test_with_buckets_each_source_image_is_encoded_once(comfy, nodes):
    """Shared out as buckets are read; where one gets less than the similarity term needs, each gets all."""
    images = [torch.rand(2, 32, 32, 3), torch.rand(1, 32, 64, 3), torch.rand(1, 64, 32, 3)]

    shared = execute(nodes, torch.rand(12, 32, 32, 3), images, fit="buckets")
    two = execute(nodes, torch.rand(12, 32, 32, 3), images[1:], fit="buckets")
    few = execute(nodes, torch.rand(10, 32, 32, 3), images, fit="buckets")

    assert sorted(len(part.source) for part in shared.parts) == [3, 3, 6]
    assert [len(part.source) for part in two.parts] == [6, 6]
    assert [len(part.source) for part in few.parts] == [10, 10, 10]


@pytest.mark.parametrize("fit", ["centre crop", "buckets"])
def test_a_damaged_source_image_is_named_by_its_number(nodes, errors, fit):
    """Also where a bucket has some of them only."""
    source = torch.rand(12, 32, 32, 3)
    source[8, 0, 0, 0] = torch.nan
    images = [torch.rand(1, 32, 64, 3), torch.rand(1, 64, 32, 3)]

    with pytest.raises(errors.InputError, match=r"source images \(number 9\)"):
        execute(nodes, source, images, fit=fit)


def test_crops_go_through_the_vae_a_few_at_a_time(nodes):
    """As many as there are, with their mirror images, of one picture."""
    sizes = []

    class Counting(PlainVae):
        def encode(self, images):
            sizes.append(len(images))
            return super().encode(images)

    execute(nodes, SOURCE, torch.rand(3, 32, 64, 3), vae=Counting(), fit="random crop", flip=True)

    assert sorted(sizes) == [4, *[8] * 6]


@pytest.mark.parametrize(("fit", "white"), [("centre crop", 4), ("random crop", 4), ("random crop", 48)])
def test_a_mask_that_leaves_nothing_of_a_crop_is_named(comfy, nodes, errors, fit, white):
    """Even of a single one."""
    masks = torch.ones(2, 32, 96)
    masks[1, :, white:] = 0  # there is something white at one edge alone

    with pytest.raises(
        errors.InputError, match=r"in each crop of 32 x 32 pixels, got a crop of image 2 without"
    ):
        execute(nodes, SOURCE, torch.rand(2, 32, 96, 3), masks=[masks], fit=fit)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.ones(0, 32, 32), r"masks \(H W\) with pixels, got a tensor of \(0, 32, 32\)"),
        (torch.ones(2, 0, 32), r"masks \(H W\) with pixels, got a tensor of \(2, 0, 32\)"),
        (torch.ones(7), r"masks \(H W\) with pixels, got a tensor of \(7,\)"),
        (torch.ones(2, 4, 4).int(), r"masks \(H W\) with pixels, got a tensor of \(2, 4, 4\) in int32"),
        (torch.ones(4, 4), "a mask for each of the 2 images of the domain, got 1"),
        (torch.tensor([[1.0, -torch.inf]]).expand(2, 4, 2), "something white in them.* for image 1"),
    ],
)
def test_masks_that_cannot_work_are_named(comfy, nodes, errors, masks, message):
    with pytest.raises(errors.InputError, match=message):
        execute(nodes, SOURCE, torch.rand(2, 32, 32, 3), masks=[masks])


@pytest.mark.parametrize(
    "text", ["2000000000 face", "1" + 5000 * "0" + " face", "face, 99999999999999999999 house"]
)
def test_counts_beyond_the_images_are_refused_at_once(comfy, nodes, errors, text):
    with pytest.raises(errors.InputError, match="category of each of the 2 images, got more"):
        execute(
            nodes, [SOURCE, SOURCE], torch.rand(2, 32, 32, 3), prompts=words(nodes, "face", "house"),
            categories=text,
        )  # fmt: skip
