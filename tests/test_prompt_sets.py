"""Published prompt sets from files of their formats, which the tests make: counts, categories, splits, messages; and
suites, whose cells name what is there."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from alignbench import downloads, plugins
from alignbench.cli import run_command_line
from alignbench.errors import InputError, RunError
from alignbench.experiment import prompts as prompt_sets
from alignbench.experiment.spec import RunSpec, resolve
from alignbench.experiment.suite import read_suite

SUITES = sorted((Path(__file__).resolve().parents[1] / "benchmarks" / "suites").glob("*.yaml"))
PUBLISHED = ("ddpo_animals dpok drawbench geneval hpsv2 imagenet_animals parti pickapic pickapic_train").split()
TRAIN, DEV = 25_432, 2_048


def known(module, split, path: Path, monkeypatch):
    """Make the made file's content the expected one: sets with a hash take no other file."""
    expected = replace(module.FILES[split], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(module.FILES, split, expected)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Files of all formats, in full number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from alignbench.benchmarks import geneval

    for folder in ("geneval", "pickapic", "pickapic_train", "ymhao/HPDv2/benchmark"):
        (tmp_path / folder).mkdir(parents=True)
    for style in ("anime", "concept-art", "paintings", "photo"):
        texts = [f"a {style} picture of {i} \u00e9toiles" for i in range(800)]
        (tmp_path / f"ymhao/HPDv2/benchmark/{style}.json").write_text(json.dumps(texts))
    rows = [
        {"tag": tag, "include": [{"class": "cow", "count": i}], "prompt": f"a photo of {tag} {i}"}
        for tag, count in geneval.TAGS.items()
        for i in range(count)
    ]
    path = tmp_path / "geneval/evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(geneval, "FILE", replace(geneval.FILE, sha256=digest))
    with open(tmp_path / "drawbench.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["Prompts", "Category"])
        writer.writerows([f'number {i}, "quoted"', f"kind {i % 11}"] for i in range(200))
    for split in ("validation_unique", "test_unique"):
        table = pa.table({"caption": [f"{split} caption {i}" for i in range(500)], "label_0": [1.0] * 500})
        pq.write_table(table, tmp_path / f"pickapic/{split}-00000-of-00001-c239.parquet")
    monkeypatch.setenv("ALIGNBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def captions(data, monkeypatch):
    """Captions to train on, in full number."""
    from alignbench.benchmarks import pickapic_train

    for split, name, count in (("train", "train", TRAIN), ("dev", "test", DEV)):
        path = data / f"pickapic_train/{name}.txt"
        path.write_text("\n".join(f"a caption to {split} with, number {i}" for i in range(count)))
        known(pickapic_train, split, path, monkeypatch)
    return data


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def unreachable(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(downloads, "reachable", lambda endpoint: False)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)


def test_hpsv2_has_four_styles_of_800_as_categories(data):
    found = prompt_sets.take("hpsv2", "test")
    assert Counter(prompt.category for prompt in found) == dict.fromkeys(
        ("anime", "concept-art", "paintings", "photo"), 800
    )
    assert found[800].text == "a concept-art picture of 0 étoiles"


@pytest.mark.parametrize("content", ['["one"]', '{"a": 1}', "[" + ", ".join(['""'] * 800) + "]", "not json"])
def test_another_hpsv2_file_is_refused(data, content):
    (data / "ymhao/HPDv2/benchmark/photo.json").write_text(content)
    with pytest.raises(InputError, match=r"photo\.json .*delete it to download it again"):
        prompt_sets.take("hpsv2", "test")


def test_geneval_keeps_tags_as_categories_and_what_must_be_seen_as_metadata(data):
    found = prompt_sets.take("geneval", "test")
    assert Counter(prompt.category for prompt in found) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    assert found[1].metadata["include"] == [{"class": "cow", "count": 1}]


def test_a_geneval_file_of_other_content_is_refused(data):
    path = data / "geneval/evaluation_metadata.jsonl"
    path.write_text(path.read_text().replace("cow", "cat"))
    with pytest.raises(InputError, match="has sha256"):
        prompt_sets.take("geneval", "test")


def test_drawbench_is_read_from_the_users_file(data):
    found = prompt_sets.take("drawbench", "test")
    assert (len(found), len({prompt.category for prompt in found})) == (200, 11)
    assert (found[12].text, found[12].category) == ('number 12, "quoted"', "kind 1")


@pytest.mark.parametrize("content", ["Prompts,Category\na cat,x\n", "a,b\n" * 201, ""])
def test_another_drawbench_file_is_refused_naming_the_counts(data, content):
    (data / "drawbench.csv").write_text(content)
    with pytest.raises(InputError, match="expected 200 in 11"):
        prompt_sets.take("drawbench", "test")


def test_pickapic_reads_each_split_from_its_own_file(data):
    dev, test = prompt_sets.take("pickapic", "dev"), prompt_sets.take("pickapic", "test")
    assert (len(dev), dev[3].text) == (500, "validation_unique caption 3")
    assert (len(test), test[499].text) == (500, "test_unique caption 499")
    with pytest.raises(InputError, match="no split 'train'"):
        prompt_sets.take("pickapic", "train")


@pytest.mark.parametrize(
    ("columns", "message"), [({"caption": ["a"]}, "holds 1 captions"), ({"text": ["a"]}, "cannot be read")]
)
def test_another_pickapic_file_is_refused(data, columns, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), data / "pickapic/test_unique-00000-of-00001-c239.parquet")
    with pytest.raises(InputError, match=message):
        prompt_sets.take("pickapic", "test")


@pytest.mark.parametrize(("name", "counts"), [("ddpo_animals", (45, 6)), ("imagenet_animals", (398, 39))])
def test_ddpos_animals_are_trained_on_and_others_evaluated(name, counts):
    training, evaluated = prompt_sets.take(name, "train"), prompt_sets.take(name, "test")
    assert (len(training), len(evaluated)) == counts
    assert prompt_sets.overlap(training, evaluated) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_set_says_of_itself_is_what_it_holds(name, captions, real_data):
    data = captions
    if name == "parti":
        (data / "PartiPrompts.tsv").symlink_to(real_data / "PartiPrompts.tsv")
    kind = plugins.load("benchmarks", name)
    assert {split: len(prompt_sets.take(name, split)) for split in kind.splits} == kind.counts
    assert kind.source
    assert kind.licence


@pytest.mark.parametrize(
    "name", [name for name in PUBLISHED if name not in ("ddpo_animals", "dpok", "imagenet_animals")]
)
def test_without_file_and_network_one_line_says_what_to_put_where(name, offline, tmp_path):
    kind = plugins.load("benchmarks", name)
    with pytest.raises(RunError, match="is not on this machine and") as caught:
        prompt_sets.take(name, kind.splits[0])
    assert str(tmp_path / "empty" / "alignbench") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_list_prompts_says_source_licence_counts_and_what_is_here(data, capsys):
    (data / "drawbench.csv").unlink()
    assert run_command_line(["list", "--prompts"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith("  ")] == PUBLISHED
    assert "  licence  MIT" in text
    assert "  prompts  test 3,200" in text
    assert f"  here     {data}/ymhao/HPDv2/benchmark/anime.json" in text
    assert "  missing  drawbench.csv" in text


def test_list_takes_one_thing_at_a_time(capsys):
    assert run_command_line(["list", "rewards", "--prompts"]) == 2
    assert "one of GROUP, --scorers and --prompts" in capsys.readouterr().err


def test_fetching_what_only_its_user_has_says_so(offline, capsys):
    assert run_command_line(["fetch", "prompts", "pickapic"]) == 2
    assert "cannot be downloaded; put pickapic/validation_unique*.parquet" in capsys.readouterr().err


def test_a_real_model_trains_on_its_default_set_without_what_is_evaluated(captions):
    data = captions
    texts = ["A  caption to TRAIN with, number 7", "something else"]
    (data / "mine.txt").write_text("\n".join(texts))
    options = {"algo": "ddpo", "model": "sd15", "prompts": str(data / "mine.txt"), "reward": "jpeg_compressibility"}
    cell = resolve(RunSpec(**options, scorers=()))
    assert cell.configuration.train_prompts == "pickapic_train"
    assert len(cell.training) == TRAIN - 1
    assert prompt_sets.overlap(cell.training, cell.evaluated) == []


def test_what_trains_nothing_does_not_look_for_training_prompts(offline, tmp_path):
    (tmp_path / "mine.txt").write_text("a cat\n")
    options = {
        "algo": "base",
        "model": "sd15",
        "prompts": str(tmp_path / "mine.txt"),
        "scorers": ("jpeg_compressibility",),
    }
    assert resolve(RunSpec(**options)).configuration.train_prompts is None
    with pytest.raises(RunError, match="not on this machine: sd15, pickapic_train"):
        resolve(RunSpec(**(options | {"algo": "ddpo", "reward": "jpeg_compressibility"})))


@pytest.mark.parametrize("name", ["diffusion_dpo_sd15", "diffusion_dpo_sdxl", "pickapic_500", "ddpo", "dpok"])
def test_the_papers_suites_resolve_where_model_and_files_are(name, captions, real_data):
    data = captions
    (data / "PartiPrompts.tsv").symlink_to(real_data / "PartiPrompts.tsv")
    (path,) = (path for path in SUITES if path.stem == name)
    cells = [resolve(spec) for spec in read_suite(path) if spec.pairs is None]
    assert len({cell.path for cell in cells}) == len(cells) > 0
    for cell in cells:
        assert cell.algorithm.trains == (cell.configuration.train_prompts is not None)
        if cell.algorithm.trains and name != "dpok":
            assert prompt_sets.overlap(cell.training, cell.evaluated) == []
