"""Published prompt sets from files of their formats, which the tests make: counts, categories, splits, messages; and
suites, whose cells name what is there."""

from __future__ import annotations

from collections import Counter

import pytest
from places import ROOT

from alignbench import downloads, plugins
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.asking.suite import read_suite
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError, RunError

SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.yaml"))
PUBLISHED = ("ddpo_animals dpok drawbench geneval hpsv2 imagenet_animals parti pickapic pickapic_train").split()
TRAIN, DEV = 25_432, 2_048


@pytest.fixture
def offline(tmp_path, monkeypatch):
    def unreachable(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(downloads, "reachable", lambda endpoint: False)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)


def test_hpsv2_has_four_styles_of_800_as_categories(prompt_files):
    found = prompt_sets.take("hpsv2", "test")
    assert Counter(prompt.category for prompt in found) == dict.fromkeys(
        ("anime", "concept-art", "paintings", "photo"), 800
    )
    assert found[800].text == "a concept-art picture of 0 étoiles"


@pytest.mark.parametrize("content", ['["one"]', '{"a": 1}', "[" + ", ".join(['""'] * 800) + "]", "not json"])
def test_another_hpsv2_file_is_refused(prompt_files, content):
    (prompt_files / "ymhao/HPDv2/benchmark/photo.json").write_text(content)
    with pytest.raises(InputError, match=r"photo\.json .*delete it to download it again"):
        prompt_sets.take("hpsv2", "test")


def test_geneval_keeps_tags_as_categories_and_what_must_be_seen_as_metadata(prompt_files):
    found = prompt_sets.take("geneval", "test")
    assert Counter(prompt.category for prompt in found) == {
        "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100,
    }  # fmt: skip
    assert found[1].metadata["include"] == [{"class": "cow", "count": 1}]


def test_a_geneval_file_of_other_content_is_refused(prompt_files):
    path = prompt_files / "geneval/evaluation_metadata.jsonl"
    path.write_text(path.read_text().replace("cow", "cat"))
    with pytest.raises(InputError, match="has sha256"):
        prompt_sets.take("geneval", "test")


def test_drawbench_is_read_from_the_users_file(prompt_files):
    found = prompt_sets.take("drawbench", "test")
    assert (len(found), len({prompt.category for prompt in found})) == (200, 11)
    assert (found[12].text, found[12].category) == ('number 12, "quoted"', "kind 1")


@pytest.mark.parametrize("content", ["Prompts,Category\na cat,x\n", "a,b\n" * 201, ""])
def test_another_drawbench_file_is_refused_naming_the_counts(prompt_files, content):
    (prompt_files / "drawbench.csv").write_text(content)
    with pytest.raises(InputError, match="expected 200 in 11"):
        prompt_sets.take("drawbench", "test")


def test_pickapic_reads_each_split_from_its_own_file(prompt_files):
    dev, test = prompt_sets.take("pickapic", "dev"), prompt_sets.take("pickapic", "test")
    assert (len(dev), dev[3].text) == (500, "validation_unique caption 3")
    assert (len(test), test[499].text) == (500, "test_unique caption 499")
    with pytest.raises(InputError, match="no split 'train'"):
        prompt_sets.take("pickapic", "train")


@pytest.mark.parametrize(
    ("columns", "message"), [({"caption": ["a"]}, "holds 1 captions"), ({"text": ["a"]}, "cannot be read")]
)
def test_another_pickapic_file_is_refused(prompt_files, columns, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), prompt_files / "pickapic/test_unique-00000-of-00001-c239.parquet")
    with pytest.raises(InputError, match=message):
        prompt_sets.take("pickapic", "test")


@pytest.mark.parametrize(("name", "counts"), [("ddpo_animals", (45, 6)), ("imagenet_animals", (398, 39))])
def test_ddpos_animals_are_trained_on_and_others_evaluated(name, counts):
    training, evaluated = prompt_sets.take(name, "train"), prompt_sets.take(name, "test")
    assert (len(training), len(evaluated)) == counts
    assert prompt_sets.overlap(training, evaluated) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_a_set_says_of_itself_is_what_it_holds(name, captions, real_data):
    prompt_files = captions
    if name == "parti":
        (prompt_files / "PartiPrompts.tsv").symlink_to(real_data / "PartiPrompts.tsv")
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


def test_list_prompts_says_source_licence_counts_and_what_is_here(prompt_files, capsys):
    (prompt_files / "drawbench.csv").unlink()
    assert run_command_line(["list", "--prompts"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if not line.startswith("  ")] == PUBLISHED
    assert "  licence  MIT" in text
    assert "  prompts  test 3,200" in text
    assert f"  here     {prompt_files}/ymhao/HPDv2/benchmark/anime.json" in text
    assert "  missing  drawbench.csv" in text


def test_list_takes_one_thing_at_a_time(capsys):
    assert run_command_line(["list", "rewards", "--prompts"]) == 2
    assert "one of GROUP, --scorers and --prompts" in capsys.readouterr().err


def test_fetching_what_only_its_user_has_says_so(offline, capsys):
    assert run_command_line(["fetch", "prompts", "pickapic"]) == 2
    assert "cannot be downloaded; put pickapic/validation_unique*.parquet" in capsys.readouterr().err


def test_a_real_model_trains_on_its_default_set_without_what_is_evaluated(captions):
    prompt_files = captions
    texts = ["A  caption to TRAIN with, number 7", "something else"]
    (prompt_files / "mine.txt").write_text("\n".join(texts))
    options = {
        "algo": "ddpo",
        "model": "sd15",
        "prompts": str(prompt_files / "mine.txt"),
        "reward": "jpeg_compressibility",
    }
    cell = resolve(RunOptions(**options, scorers=()))
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
    assert resolve(RunOptions(**options)).configuration.train_prompts is None
    with pytest.raises(RunError, match="not on this machine: sd15, pickapic_train"):
        resolve(RunOptions(**(options | {"algo": "ddpo", "reward": "jpeg_compressibility"})))


@pytest.mark.parametrize(
    "name",
    [
        *("diffusion_dpo_sd15", "diffusion_dpo_sdxl", "pickapic_500", "ddpo", "dpok"),
        *("flow_grpo_sd35", "diffusion_nft_sd35", "awm_sd35", "dpo_sd35"),
        *("released_sd15", "released_sdxl", "released_sd35"),
    ],
)
def test_the_papers_suites_resolve_where_model_and_files_are(name, captions, real_data):
    prompt_files = captions
    (prompt_files / "PartiPrompts.tsv").symlink_to(real_data / "PartiPrompts.tsv")
    (path,) = (path for path in SUITES if path.stem == name)
    cells = [resolve(spec) for spec in read_suite(path) if spec.pairs is None]
    assert len({cell.path for cell in cells}) == len(cells) > 0
    for cell in cells:
        assert cell.algorithm.trains == (cell.configuration.train_prompts is not None)
        if cell.algorithm.trains and name != "dpok":
            assert prompt_sets.overlap(cell.training, cell.evaluated) == []
