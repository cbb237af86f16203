"""What learned scorers read of a picture: to the bit on the reporting path, within bounds on the differentiable one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity import recipe
from PIL import Image

from alignbench import Key
from alignbench.images import as_tensor, to_bytes
from alignbench.scoring.preprocessing import MEAN, STD, Crop, Pad, exact, normalised, unsuitable_shape

PICTURES = recipe.pictures()
FITS = (Crop("half-even"), Crop("down"), Pad(), Pad(antialias=False))


def floats(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def read(fit, picture: np.ndarray) -> torch.Tensor:
    """What a network reads on the reporting path."""
    return exact(fit.square(picture))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: "x".join(map(str, p.shape[:2])))
def test_the_reporting_crop_is_torchvisions_on_pillow_pictures(picture):
    from torchvision import transforms

    official = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    assert torch.equal(read(Crop("half-even"), picture), official(Image.fromarray(picture)))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: "x".join(map(str, p.shape[:2])))
def test_the_other_reporting_crop_is_that_of_transformers_on_pillow_pictures(picture):
    from transformers import CLIPImageProcessorPil

    official = CLIPImageProcessorPil()(images=Image.fromarray(picture), return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(read(Crop("down"), picture), official, atol=1e-6, rtol=0)


def test_the_two_crops_differ_where_the_middle_lies_between_two_pixels():
    odd = PICTURES[3]  # becomes 299 pixels high: 75 are cut off
    assert not torch.equal(read(Crop("down"), odd), read(Crop("half-even"), odd))
    assert torch.equal(read(Crop("down"), PICTURES[0]), read(Crop("half-even"), PICTURES[0]))


@pytest.mark.parametrize("picture", PICTURES, ids=lambda p: "x".join(map(str, p.shape[:2])))
@pytest.mark.parametrize("fit", FITS, ids=repr)
def test_the_differentiable_path_stays_near_the_reporting_path(fit, picture):
    difference = (fit.smooth(floats(picture))[0] - read(fit, picture)).abs()
    assert difference.max() <= 0.065
    assert difference.mean() <= 0.006


@pytest.mark.parametrize("fit", FITS, ids=repr)
def test_a_constant_picture_stays_constant(fit):
    picture = np.full((320, 320, 3), (10, 128, 250), np.uint8)
    expected = normalised(torch.tensor([10, 128, 250])[:, None, None] / 255).expand(3, 224, 224)
    torch.testing.assert_close(read(fit, picture), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.smooth(floats(picture))[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(300, 200), (224, 100), (223, 224)])
def test_padding_puts_black_bars_around_a_picture_and_turns_with_it(size):
    height, width = size
    wide = Key("wide").uniform(height, width, 3).numpy()
    picture = (wide * 255).round().astype(np.uint8)
    padded = read(Pad(), picture)
    turned = read(Pad(), np.ascontiguousarray(picture.transpose(1, 0, 2)))
    torch.testing.assert_close(turned, padded.transpose(1, 2), atol=1e-5, rtol=0)
    black = normalised(torch.zeros(3, 1, 1))[:, 0, 0]
    assert black.tolist() == pytest.approx([-m / s for m, s in zip(MEAN, STD, strict=True)])
    inside = round(width * 224 / max(size)), round(height * 224 / max(size))
    left, top = (224 - inside[0]) // 2, (224 - inside[1]) // 2
    outside = torch.ones(224, 224, dtype=torch.bool)
    outside[top : top + inside[1], left : left + inside[0]] = False
    assert (padded[:, outside] == black[:, None]).all()
    assert not (padded[:, ~outside] == black[:, None]).all(0).any()


def test_cropping_ignores_what_is_cut_off_and_padding_does_not():
    picture = PICTURES[4].copy()  # 517 x 230
    changed = picture.copy()
    changed[:, :20] = 255 - changed[:, :20]
    assert torch.equal(read(Crop("half-even"), picture), read(Crop("half-even"), changed))
    assert not torch.equal(read(Pad(), picture), read(Pad(), changed))


def test_antialiasing_is_a_choice_that_shows():
    picture = PICTURES[4]
    assert (read(Pad(), picture) - read(Pad(antialias=False), picture)).abs().max() > 0.05
    assert Pad().describe() != Pad(antialias=False).describe()


def test_values_outside_the_range_are_cut_off_where_a_file_would_cut_them_off():
    wild = 0.5 + 2 * Key("wild").normal(1, 3, 40, 50).float()
    fit = Crop("half-even")
    cut_off, whole = (read(fit, to_bytes(images)[0].numpy()) for images in (wild.clamp(0, 1), wild))
    assert torch.equal(whole, cut_off)
    limits = normalised(torch.tensor([0.0, 1.0]).expand(3, 1, 2))
    smooth = fit.smooth(wild)[0]
    assert (smooth >= limits[..., :1] - 1e-6).all()
    assert (smooth <= limits[..., 1:] + 1e-6).all()


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA", "1", "CMYK"])
def test_pictures_of_every_kind_become_rgb(mode):
    image = Image.fromarray(PICTURES[1]).convert(mode)
    tensor = as_tensor(image)
    assert tensor.shape == (3, *PICTURES[1].shape[:2])
    assert torch.equal((tensor * 255).round().byte().permute(1, 2, 0), torch.from_numpy(np.array(image.convert("RGB"))))


def test_shapes_that_are_no_pictures_are_refused_in_a_sentence():
    assert unsuitable_shape(()) is None
    assert unsuitable_shape((3, 8, 500)) is None
    for shape in ((2,), (1, 32, 32), (4, 32, 32), (3, 0, 8)):
        assert (unsuitable_shape(shape) or "").endswith(f"not images of shape {shape}.")
