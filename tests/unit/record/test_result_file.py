"""Result files: what is written is read back, and what cannot be trusted is refused with the reason."""

from __future__ import annotations

import json

import pytest

from alignbench.errors import ResultFileError
from alignbench.record import result as results
from alignbench.record.contents import digest_of
from alignbench.record.result import Configuration, Costs, Diversity, Evaluation, PromptRow, Result, Row, Scorer


def configuration(**changes) -> Configuration:
    values = {
        "algorithm": "base", "fields": {}, "model": "tiny", "prompts": "shapes", "split": "test", "limit": None,
        "images_per_prompt": 1, "reward": "r", "train_prompts": None, "scorers": ["r"],
        "sampling": {"steps": 20, "guidance": 3.0, "eta": 1.0}, "dtype": "float32", "eval_seed": 0, "seed": None,
    }  # fmt: skip
    return Configuration(**(values | changes))


def scorer(**changes) -> Scorer:
    values = {"id": "r-1", "files": {}, "preprocessing": "none", "tie_epsilon": 0.0, "range": "real"}
    return Scorer(**(values | {"higher_is_better": True, "versions": {}} | changes))


def make(scores=(0.1, 0.2, 0.3), **changes) -> Result:
    values = {
        "schema": 1, "status": "complete", "trains": False, "configuration": configuration(), "preset": "tiny",
        "differs_from_paper": {},
        "evaluation": Evaluation(
            model={"name": "tiny", "image_shape": [3, 32, 32]}, prompts="shapes", split="test",
            prompts_sha256="0" * 64, eval_seed=0,
        ),
        "sampler": {"kind": "ddim", "steps": 20}, "scorers": {"r": scorer()},
        "prompts": [PromptRow(id=f"p{i}", text=f"prompt {i}") for i in range(len(scores))],
        "rows": [Row(prompt=f"p{i}", sample=0, scores={"r": s}) for i, s in enumerate(scores)],
        "metrics": {}, "curve": [], "budget": None,
        "cost": Costs(
            alignment={f"{r}_{d}": 0 for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")},
            alignment_seconds=0.0,
            per_image={f"{r}_{d}": 1.0 for r in ("denoiser", "decode", "reward") for d in ("forward", "backward")},
            per_image_seconds=0.1, peak_memory_bytes=1000,
        ),
        "environment": {}, "attempts": 1, "started": "2026-01-01T00:00:00+00:00", "finished": None,
    }  # fmt: skip
    return Result(**(values | changes))


@pytest.fixture
def path(tmp_path):
    results.write(tmp_path / "r.json", make())
    return tmp_path / "r.json"


def test_what_is_written_is_read_back(path):
    assert results.read(path) == make()


def test_floats_survive_to_the_last_bit(tmp_path):
    awkward = (0.1 + 0.2, 1 / 3, 5e-324, -1.7976931348623157e308)
    results.write(tmp_path / "r.json", make(awkward))
    assert [row.scores["r"] for row in results.read(tmp_path / "r.json").rows] == list(awkward)


def test_text_of_any_script_survives(tmp_path):
    made = make(scores=[1.0], prompts=[PromptRow(id="p0", text='“café” 猫 <script> "G I G"\t\\')])
    results.write(tmp_path / "r.json", made)
    assert results.read(tmp_path / "r.json") == made


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refused(path, message):
    with pytest.raises(ResultFileError, match=message) as caught:
        results.read(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_edited_score_is_noticed(path):
    edited(path, lambda content: content["rows"][1]["scores"].update(r=0.9))
    refused(path, "the digest does not match")


def test_an_edited_configuration_is_noticed(path):
    edited(path, lambda content: content["configuration"].update(algorithm="ddpo"))
    refused(path, "the digest does not match")


def test_a_truncated_file_is_refused(path):
    path.write_text(path.read_text()[:-200])
    refused(path, "not valid JSON")


def test_other_files_are_refused(tmp_path):
    for name, text, message in (
        ("text", "hello", "not valid JSON"),
        ("list", "[1, 2]", "not an alignbench result"),
        ("other", '{"a": 1}', "not an alignbench result"),
        ("empty", "", "not valid JSON"),
    ):
        file = tmp_path / f"{name}.json"
        file.write_text(text)
        refused(file, message)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    refused(tmp_path / "binary.json", "cannot be read as text")
    refused(tmp_path / "missing.json", "there is no such file")


def test_a_newer_schema_says_so(path):
    edited(path, lambda content: content.update(schema=4))
    refused(path, "schema 4, this version reads 1, 2 and 3: it was written by a newer alignbench; upgrade")
    edited(path, lambda content: content.update(schema=True))
    refused(path, "schema True, this version reads 1, 2 and 3")


LIKE = {"edge_density": 0.25, "colour_entropy": 3.5, "saturation": 0.5, "darkness": 0.125}


def test_what_is_kept_of_pictures_is_read_back(tmp_path):
    rows = [Row(prompt="p0", sample=0, scores={"r": 1.0}, sha256="0" * 64, picture=LIKE)]
    diversity = [Diversity(prompt="p0", pictures=0.5, latents=1.25)]
    made = make([1.0], schema=2, rows=rows, diversity=diversity)
    results.write(tmp_path / "r.json", made)
    assert results.read(tmp_path / "r.json") == made


def test_a_file_of_the_first_schema_is_read_and_written_again_as_it_was(path):
    """What an older version wrote, it can still read after a column was added."""
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert not {"sha256", "picture", "diversity"} & {*content, *content["rows"][0]}
    before = path.read_bytes()
    results.write(path, results.read(path))
    assert path.read_bytes() == before


def test_the_first_schema_says_nothing_of_single_pictures():
    with pytest.raises(ValueError, match="schema 1 says nothing of single pictures"):
        make([1.0], rows=[Row(prompt="p0", sample=0, scores={"r": 1.0}, picture=LIKE)])
    with pytest.raises(ValueError, match="schema 1 says nothing of single pictures"):
        make([1.0], diversity=[Diversity(prompt="p0", pictures=0.5, latents=None)])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sha256": "0" * 63}, "sha256"),
        ({"picture": {"edge_density": -0.5}}, "edge_density"),
        ({"picture": {"beauty": 1.0}}, "beauty"),
        ({"picture": {"darkness": float("nan")}}, "darkness"),
    ],
)
def test_what_no_picture_can_have_is_refused(change, problem):
    with pytest.raises(ValueError, match=problem):
        Row(prompt="p0", sample=0, scores={"r": 1.0}, **change)


def test_the_diversity_of_an_unknown_prompt_is_refused():
    with pytest.raises(ValueError, match="a prompt that is not among the prompts"):
        make([1.0], schema=2, diversity=[Diversity(prompt="p9", pictures=0.5, latents=1.0)])


def test_the_diversity_of_one_prompt_is_not_told_twice(path):
    def twice(content):
        content["diversity"] = 2 * [{"prompt": "p0", "pictures": 0.5, "latents": 1.0}]
        content["schema"] = 2
        content["digest"] = digest_of(content)

    edited(path, twice)
    refused(path, r"two lines are of one prompt's diversity \(1 problems in all\)")


def test_nan_is_refused_when_read_and_when_written(path, tmp_path):
    path.write_text(path.read_text().replace("0.2", "NaN"))
    refused(path, "holds NaN")
    with pytest.raises(ValueError, match="finite"):
        make((float("nan"),))


def test_unknown_keys_are_refused_even_with_a_fitting_digest(path):
    def change(content):
        content["surprise"] = 1
        content["digest"] = digest_of(content)

    edited(path, change)
    refused(path, "surprise")


def test_a_failed_score_is_null_with_its_reason(tmp_path):
    made = make(rows=[Row(prompt="p0", sample=0, scores={"r": None}, failures={"r": "ValueError: too dark"})])
    results.write(tmp_path / "r.json", made)
    row = results.read(tmp_path / "r.json").rows[0]
    assert row.scores["r"] is None
    assert row.failures["r"] == "ValueError: too dark"


def test_differences_name_the_entries():
    one = configuration(fields={"clip": 0.1, "rounds": 5})
    other = configuration(fields={"clip": 0.2, "rounds": 5}, limit=3)
    assert one.differences(other) == ["limit", "fields.clip"]
    assert one.differences(one) == []


def test_the_fingerprint_depends_on_the_protocol_alone():
    one, other = make(), make((0.5, 0.6, 0.7), attempts=4)
    assert one.evaluation.fingerprint == other.evaluation.fingerprint
    assert one.evaluation.model_copy(update={"eval_seed": 1}).fingerprint != one.evaluation.fingerprint


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    import os

    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    from alignbench.errors import RunError

    with pytest.raises(RunError, match="the disk is full"):
        results.write(path, make((0.9,)))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
