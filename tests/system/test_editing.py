"""Image-to-image evaluation: where an edit starts, what its file may hold, and that every method does it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from alignbench import Key, Prompt, Sampling, Start, plugins
from alignbench.asking.options import RunOptions
from alignbench.asking.presets import build_algorithm
from alignbench.asking.resolve import resolve
from alignbench.asking.sources import read_sources
from alignbench.diffusion import registry as models
from alignbench.errors import InputError
from alignbench.experiment.run import run_cell
from alignbench.meter import Meter

SMALL = {
    "doodl": {"updates": 1, "steps": 4, "chain": "recompute"},
    "demon": {"candidates": 2, "steps": 4, "value_steps": 1},
    "steering": {"n": 2, "interval": 1},
    "svdd": {"candidates": 2},
    "rollover": {"candidates": 2, "starts": 2},
    "noise_search": {"iterations": 1, "neighbours": 1},
    "best_of_n": {"n": 2},
    "universal_guidance": {"recurrence": 1},
}
TEST_TIME = [n for n in plugins.own_names("algorithms") if not plugins.load("algorithms", n).trains]


@pytest.fixture
def images(tmp_path):
    """A file of three prompts with images of another size than the model's."""
    (tmp_path / "pictures").mkdir()
    lines = []
    for i, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (48, 40), colour).save(tmp_path / "pictures" / f"{i}.png")
        lines.append(json.dumps({"prompt": f"a {colour} circle", "image": f"pictures/{i}.png"}))
    path = tmp_path / "edits.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def cell(images, tmp_path):
    def build(algo, **changes):
        values = {
            "algo": algo,
            "task": "sdedit",
            "images": images,
            "strength": 0.5,
            "steps": 4,
            "scorers": ["jpeg_compressibility"],
        }
        return resolve(RunOptions.parse(values | {"output": tmp_path / "results"} | changes, "test"))

    return build


@pytest.mark.parametrize("name", TEST_TIME)
def test_every_test_time_method_edits_and_stays_near_its_source_at_a_small_strength(name, make_problem):
    pipeline = models.load(models.named()["tiny"], Meter())
    problem = make_problem(
        plugins.load("rewards", "shapes_preference")(), pipeline, Sampling(4, 1.0, 0.0 if name == "base" else 1.0)
    )
    sampler = build_algorithm(name, plugins.load("algorithms", name), "other", SMALL.get(name, {}))[0].align(problem)
    prompts = [Prompt("a", "a red circle on a white background"), Prompt("b", "a blue star on a white background")]
    keys = [Key("edit", p.id) for p in prompts]
    source = sampler(prompts, keys).images
    with torch.no_grad():
        near, far = (sampler(prompts, keys, Start(source.flip(0), s)).images for s in (0.25, 1.0))
    assert (near - source.flip(0)).abs().mean() < 0.7 * (far - source.flip(0)).abs().mean()


def test_an_edit_is_a_cell_with_its_own_evaluation(cell):
    base = run_cell(cell("base"), quiet=True).result
    assert base.status == "complete"
    assert len(base.rows) == 3
    assert base.evaluation.task == {"name": "sdedit", "strength": 0.5, "images_sha256": cell("base").sources.sha256}
    assert base.cost.per_image["denoiser_forward"] == 4  # two of four steps, with guidance
    best = run_cell(cell("best_of_n"), quiet=True).result
    assert best.evaluation == base.evaluation
    other = cell("base", strength=0.75)
    assert other.path != cell("base").path
    assert run_cell(other, quiet=True).result.evaluation.fingerprint != base.evaluation.fingerprint


def test_images_are_fitted_to_the_model_and_the_digest_is_of_their_content(images):
    sources = read_sources(images, 0.5)
    start = sources.start(models.load(models.named()["tiny"], Meter()), [2, 0])
    assert start.images.shape == (2, 3, 32, 32)
    assert start.strength == 0.5
    assert start.images[1, 0].eq(1).all()
    assert read_sources(images, 0.9).sha256 == sources.sha256
    Image.new("RGB", (48, 40), "white").save(images.parent / "pictures" / "0.png")
    assert read_sources(images, 0.5).sha256 != sources.sha256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4: not JSON"),
        ('{"prompt": "a"}', "line 4: expected an object"),
        ('{"prompt": "a", "image": "../0.png"}', "leaves"),
        ('{"prompt": "a", "image": "pictures/9.png"}', "line 4: the image 'pictures/9.png' is not in"),
    ],
)
def test_a_bad_line_is_named(images, line, message):
    images.write_text(images.read_text() + line + "\n")
    with pytest.raises(InputError, match=message):
        read_sources(images, 0.5)


def test_a_broken_image_is_named_before_anything_is_aligned(cell, images):
    (images.parent / "pictures" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"edits\.jsonl, line 2: the image pictures/1\.png cannot be read: 10 bytes"):
        cell("base")


def test_an_image_is_edited_as_it_is_shown_and_that_is_part_of_what_is_edited(cell, images):
    plain = read_sources(images, 0.5)
    exif = Image.Exif()
    exif[0x0112] = 3
    picture = Image.new("RGB", (48, 40), "red")
    picture.putpixel((24, 20), (0, 0, 255))
    picture.save(images.parent / "pictures" / "0.png", exif=exif)
    turned = read_sources(images, 0.5)
    assert turned.notes == ["1 turned as their EXIF orientation says"]
    assert turned.sha256 != plain.sha256
    pipeline = models.load(models.named()["tiny"], Meter())
    rotated = turned.start(pipeline, [0]).images
    picture.save(images.parent / "pictures" / "0.png")
    assert torch.equal(rotated.flip(2, 3), read_sources(images, 0.5).start(pipeline, [0]).images)
    assert cell("base").notes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strength": None}, "--task sdedit needs --images FILE.jsonl and --strength"),
        ({"images": None}, "--task sdedit needs --images FILE.jsonl and --strength"),
        ({"model": "mixture"}, "makes points, not pictures"),
        ({"prompts": "shapes"}, "leave --prompts and --split out"),
        ({"task": "generate"}, "--images: only --task sdedit starts from images"),
        ({"strength": 1.5}, "at most 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(cell, changes, message):
    with pytest.raises(InputError, match=message):
        cell("base", **changes)
