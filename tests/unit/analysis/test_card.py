"""The model card beside trained weights: what the hub reads of it, and what people do."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from alignbench.analysis.card import write_card
from alignbench.analysis.formats import markdown
from alignbench.diffusion.adapter_files import LORA

SD15 = {"name": "sd15", "source": "org/sd15", "revision": "451f4fe", "image_shape": [3, 512, 512]}
ASKED = {"model": "sd15", "reward": "pickscore"}


@pytest.fixture
def trained(make_result):
    """A function that writes a trained cell's result and its folder of weights, and returns the card's path."""

    def make(weights: str = LORA, scores=(2.0, 2.0, 0.0, 2.0), model=SD15, **changes) -> Path:
        path = make_result(
            "cell", list(scores), "ddpo", {"clip": 1e-4, "tuning": "lora"}, seed=1, evaluation={"model": model},
            configuration=ASKED, **changes,
        )  # fmt: skip
        place = path.with_suffix("") / "adapter" / weights
        place.parent.mkdir(parents=True)
        place.touch()
        write_card(path)
        return path.with_suffix("") / "adapter" / "README.md"

    return make


def test_the_front_matter_is_what_the_hub_reads(trained):
    data = ModelCard.load(trained()).data
    assert data.base_model == "org/sd15"
    assert data["base_model_relation"] == "adapter"
    assert data.library_name == "diffusers"
    assert data.license == "creativeml-openrail-m"
    assert data.pipeline_tag == "text-to-image"
    assert data.tags == ["alignbench", "ddpo", "lora", "text-to-image"]
    assert data.eval_results is None


def test_the_text_names_the_model_its_revision_the_method_and_its_fields(trained):
    text = trained().read_text()
    for row in (
        "| base model: revision | 451f4fe |",
        "| method | ddpo |",
        "| field clip | 0.0001 |",
        "| reward | pick",
    ):
        assert row in text
    assert 'DiffusionPipeline.from_pretrained("org/sd15", revision="451f4fe")' in text
    assert 'pipeline.load_lora_weights("THIS_FOLDER")' in text
    assert "| r | 1.5 | not known | – |" in text
    assert "is not known yet: run `--algo base`" in text


def test_win_rates_stand_in_it_as_soon_as_base_is_there(trained, make_result):
    path = trained()
    make_result("base", [1.0, 1.0, 1.0, 2.0], evaluation={"model": SD15}, configuration=ASKED)
    write_card(path.parents[1].with_suffix(".json"))
    (result,) = ModelCard.load(path).data.eval_results
    assert (result.metric_type, result.metric_value) == ("win_rate", 62.5)  # two wins, one tie, one loss
    assert result.metric_name == "r: wins over the base model, %"
    assert "| r | 1.5 | 62.5 (" in path.read_text()


def test_a_denoiser_of_a_folder_has_no_base_model_on_the_hub(trained):
    path = trained(
        "unet/config.json", model={"name": "own", "source": "folder", "sha256": "ab", "image_shape": [3, 8, 8]}
    )
    data = ModelCard.load(path).data
    assert data.base_model is None
    assert data.license is None
    text = path.read_text()
    assert "| base model: sha256 | ab |" in text
    assert "| licence | the base model's, which is not known here |" in text
    assert 'UNet2DConditionModel.from_pretrained("THIS_FOLDER", subfolder="unet")' in text


def test_a_licence_without_a_word_of_the_hub_is_named(trained):
    data = ModelCard.load(trained(model=SD15 | {"name": "dreamlike"})).data
    assert (data.license, data.license_name) == ("other", "CreativeML OpenRAIL-M with the authors' additions")


def test_what_stands_in_a_result_changes_no_markup(trained):
    hostile = "a<b>|`c`\n---\nlicense: mit"
    text = trained(model=SD15 | {"name": hostile}).read_text()
    assert f"# ddpo on {markdown(hostile)}" in text
    assert "<b>" not in text
    assert ModelCard(text).data.license is None


def test_a_cell_without_weights_or_without_a_result_has_no_card(make_result, trained, tmp_path):
    write_card(make_result("plain", [1.0, 2.0]))
    assert not (tmp_path / "plain").exists()
    assert not trained(status="diverged", reason="NaN").exists()
