"""Prompt sets: PartiPrompts as published, the shapes world's splits, and users' files."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from alignbench import downloads
from alignbench.errors import InputError, RunError
from alignbench.experiment import prompts as prompt_sets
from alignbench.experiment.spec import RunSpec, resolve
from alignbench.shapes.scene import parse


@pytest.fixture
def parti(real_data, monkeypatch):
    monkeypatch.setenv("ALIGNBENCH_DATA", str(real_data))
    return prompt_sets.take("parti", "test")


def test_partiprompts_has_the_published_counts(parti):
    assert len(parti) == 1632
    categories = Counter(prompt.category for prompt in parti)
    assert categories["Animals"] == 314
    assert categories["World Knowledge"] == 214
    assert categories["Indoor Scenes"] == 40
    assert len(categories) == 12
    challenges = Counter(prompt.challenge for prompt in parti)
    assert challenges["Fine-grained Detail"] == 312
    assert challenges["Quantity"] == 90
    assert len(challenges) == 11


def test_partiprompts_keeps_quotes_and_spaces(parti):
    assert any(prompt.text.startswith('"G I G G L E"') for prompt in parti)
    assert sum(prompt.text.endswith(" ") for prompt in parti) == 9
    assert sum(prompt.text.startswith(" ") for prompt in parti) == 1
    assert sum(not prompt.text.isascii() for prompt in parti) == 17


def test_partiprompts_are_for_evaluation_only(parti):
    with pytest.raises(InputError, match="prompt set 'parti' has no split 'train'; it has test"):
        prompt_sets.take("parti", "train")


def test_another_partiprompts_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "PartiPrompts.tsv").write_text("Prompt\tCategory\tChallenge\tNote\n")
    monkeypatch.setenv("ALIGNBENCH_DATA", str(tmp_path))
    with pytest.raises(InputError, match="expected fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb"):
        prompt_sets.take("parti", "test")


def test_without_file_and_network_the_message_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def unreachable(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)
    with pytest.raises(
        RunError, match=r"PartiPrompts.tsv is not on this machine .* Put the file \(123107 bytes"
    ) as caught:
        prompt_sets.take("parti", "test")
    assert str(tmp_path / "alignbench") in str(caught.value)


def test_a_download_is_verified_and_kept(tmp_path, monkeypatch, real_data):
    content = (real_data / "PartiPrompts.tsv").read_bytes()
    monkeypatch.delenv("ALIGNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = [content[:-5], content]

    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self, _):
            return answers.pop(0)

    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *a, **k: Answer())
    with pytest.raises(RunError, match="other content than expected"):
        prompt_sets.take("parti", "test")
    assert list((tmp_path / "alignbench").iterdir()) == []
    assert len(prompt_sets.take("parti", "test")) == 1632
    assert len(prompt_sets.take("parti", "test")) == 1632  # from the cache: no third answer


def test_the_shapes_splits_share_no_composition():
    splits = {name: prompt_sets.take("shapes", name) for name in ("train", "dev", "test")}
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 600, "dev": 100, "test": 200}
    compositions = {name: {parse(p.text).composition for p in prompts} for name, prompts in splits.items()}
    assert not compositions["train"] & compositions["dev"]
    assert not compositions["train"] & compositions["test"]
    assert not compositions["dev"] & compositions["test"]
    assert prompt_sets.overlap(splits["train"], splits["test"]) == []


def test_the_shapes_prompts_are_pinned():
    """A changed prompt set would silently stop pairing with committed results."""
    assert (
        prompt_sets.digest(prompt_sets.take("shapes", "test"))
        == "1f304bdd5d3dc2860cefc6e3b56a96d0c35ba8464498c327a487feeec8f23d2a"
    )
    assert Counter(p.category for p in prompt_sets.take("shapes", "test")).keys() == {
        "single",
        "pair",
        "relation",
        "count",
    }


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.txt", "a red fox\n\n“café” cat \n", ["a red fox", "“café” cat "]),
        ("a.txt", "one\r\ntwo\r\n", ["one", "two"]),
        ("a.tsv", 'Prompt\tCategory\n"G I G" sign\tText\n', ['"G I G" sign']),
        ("a.csv", 'text,category\n"a cat, sitting",Animals\n', ["a cat, sitting"]),
        ("a.jsonl", '{"caption": "a dog"}\n{"caption": "a cat"}\n', ["a dog", "a cat"]),
    ],
)
def test_prompt_files_are_read_in_every_format(tmp_path, name, content, texts):
    (tmp_path / name).write_text(content, newline="")
    assert [prompt.text for prompt in prompt_sets.read_file(tmp_path / name)] == texts


def test_columns_of_a_file_carry_over(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,prompt,category,challenge\nx1,a cat,Animals,Basic\n")
    (prompt,) = prompt_sets.read_file(path)
    assert (prompt.id, prompt.category, prompt.challenge) == ("x1", "Animals", "Basic")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"fine\nbad \xff\xfe byte\n", "line 2: not UTF-8"),
        ("a.txt", b"fine\n" + b"x" * 10_000 + b"\n", "line 2: 10000 characters; a prompt has at most 5000"),
        ("a.csv", b"name,kind\na,b\n", "no column named prompt, text, caption; found name, kind"),
        ("a.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: expected an object"),
        ("a.jsonl", b'{"prompt": " "}\n', "prompt number 1 is empty"),
    ],
)
def test_a_file_that_is_no_prompt_file_says_where_and_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        prompt_sets.read_file(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_and_a_doubled_id_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"there is no prompt file 'nowhere.txt'"):
        prompt_sets.find("nowhere.txt")
    (tmp_path / "a.csv").write_text("id,prompt\nx,a\nx,b\n")
    with pytest.raises(InputError, match="the ids of split 'test' are not unique"):
        prompt_sets.take(str(tmp_path / "a.csv"), "test")


# The other published sets, from files of their formats


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty folder of data and no network."""
    monkeypatch.setenv("ALIGNBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def unreachable(*arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.urllib.request, "urlopen", unreachable)
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def write_styles(folder, count: int = 800) -> None:
    (folder / "hpsv2").mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        texts = [f"{style} picture number {i}" for i in range(count)]
        (folder / "hpsv2" / f"{style}.json").write_text(json.dumps(texts))


def test_hpsv2_has_eight_hundred_prompts_in_each_of_four_styles(data):
    write_styles(data)
    prompts = prompt_sets.take("hpsv2", "test")
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(
        ("anime", "concept-art", "paintings", "photo"), 800
    )
    assert (prompts[0].id, prompts[0].text) == ("hpsv2-anime-000", "anime picture number 0")
    assert prompts[-1].id == "hpsv2-photo-799"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(["one"] * 799), "holds 799 entries, expected a list of 800 prompts"),
        (json.dumps({"prompts": []}), "holds dict, expected a list of 800 prompts"),
        (json.dumps([1] * 800), "holds 800 entries, expected a list of 800 prompts"),
        ("[", "is not JSON"),
    ],
)
def test_an_hpsv2_file_of_other_content_is_refused(data, content, message):
    write_styles(data)
    (data / "hpsv2" / "paintings.json").write_text(content)
    with pytest.raises(InputError, match=f"paintings.json {message}"):
        prompt_sets.take("hpsv2", "test")


def write_captions(path, captions) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table({"caption": captions, "model_0": ["m"] * len(captions)}), path)


@pytest.mark.parametrize(("split", "name"), [("dev", "validation_unique"), ("test", "test_unique")])
def test_pickapics_unique_prompts_come_from_a_users_parquet_file(data, split, name):
    write_captions(
        data / "pickapic" / f"{name}-00000-of-00001-c2396290184ff49d.parquet", [f"p {i}" for i in range(500)]
    )
    prompts = prompt_sets.take("pickapic", split)
    assert len(prompts) == 500
    assert (prompts[499].id, prompts[499].text) == (f"pickapic-{split}-499", "p 499")


def test_another_pickapic_file_is_refused_by_its_count(data):
    write_captions(data / "pickapic" / "test_unique.parquet", ["the same"] * 500)
    with pytest.raises(InputError, match="holds 1 different captions, expected 500; is it test_unique"):
        prompt_sets.take("pickapic", "test")


def test_a_broken_parquet_file_is_one_line(data):
    (data / "pickapic").mkdir()
    (data / "pickapic" / "test_unique.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as parquet"):
        prompt_sets.take("pickapic", "test")


def sheet(count: int = 200, categories: int = 11, header: str = "Prompts,Category") -> str:
    return "\n".join([header, *(f'"a, {i}",kind {i % categories}' for i in range(count))]) + "\n"


def test_drawbench_is_read_from_a_users_sheet(data):
    (data / "drawbench.csv").write_text(sheet(), encoding="utf-8-sig")
    prompts = prompt_sets.take("drawbench", "test")
    assert (len(prompts), prompts[3].text, prompts[3].category) == (200, "a, 3", "kind 3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (sheet(count=199), "holds 199 prompts in 11 categories, expected 200 in 11"),
        (sheet(categories=10), "holds 200 prompts in 10 categories, expected 200 in 11"),
        (sheet(header="Text,Category"), "lacks a column Prompts or Category"),
        ("", "lacks a column Prompts or Category"),
    ],
)
def test_another_sheet_is_refused(data, content, message):
    (data / "drawbench.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        prompt_sets.take("drawbench", "test")


def test_genevals_lines_keep_the_tag_and_what_must_be_seen():
    from alignbench.benchmarks.geneval import parsed

    line = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"}
    (prompt,) = parsed([json.dumps(line)])
    assert (prompt.id, prompt.category, prompt.text) == ("geneval-000", "counting", "a photo of two clocks")
    assert prompt.metadata == {"include": [{"class": "clock", "count": 2}]}


@pytest.mark.parametrize(
    ("name", "place", "published"),
    [
        ("geneval", "geneval/evaluation_metadata.jsonl", "5c48e0813e812e3c"),
        ("pickapic_train", "pickapic_train/train.txt", "2f425adcbb9a6d0f"),
    ],
)
def test_a_file_with_a_known_hash_must_have_it(data, name, place, published):
    (data / place).parent.mkdir()
    (data / place).write_text("{}\n")
    split = "test" if name == "geneval" else "train"
    with pytest.raises(InputError, match=rf"has sha256 \w+, expected {published}"):
        prompt_sets.take(name, split)


@pytest.mark.parametrize(
    ("name", "split", "parts"),
    [
        ("hpsv2", "test", ("hpsv2/anime.json is not on this machine", "cannot be reached", "hash not published")),
        ("geneval", "test", ("geneval/evaluation_metadata.jsonl is not on this machine", "sha256 5c48e0813e812e3c")),
        ("pickapic_train", "train", ("pickapic_train/train.txt is not on this machine", "sha256 2f425adcbb9a6d0f")),
        ("pickapic", "dev", ("Pick-a-Pic's validation_unique (parquet", "cannot be downloaded", "ALIGNBENCH_DATA")),
        ("drawbench", "test", ("DrawBench (the sheet as CSV", "cannot be downloaded", "drawbench.csv")),
    ],
)
def test_a_set_that_is_not_here_says_what_to_do_in_one_line(data, name, split, parts):
    with pytest.raises(RunError) as caught:
        prompt_sets.take(name, split)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(("name", "counts"), [("ddpo_animals", (45, 16)), ("imagenet_animals", (398, 45))])
def test_ddpos_animals_are_trained_on_and_others_evaluated(name, counts):
    training, evaluated = prompt_sets.take(name, "train"), prompt_sets.take(name, "test")
    assert (len(training), len(evaluated)) == counts
    assert prompt_sets.overlap(training, evaluated) == []


def test_dpoks_prompts_may_be_trained_on_and_evaluated_and_no_others(tmp_path):
    own = {"model": "tiny", "algo": "ddpo", "output": tmp_path}
    cell = resolve(RunSpec(**own, prompts="alignbench.benchmarks.dpok:Place", reward="jpeg_compressibility"))
    assert (
        [prompt.text for prompt in cell.training]
        == [prompt.text for prompt in cell.evaluated]
        == ["A dog on the moon."]
    )
    assert len(prompt_sets.take("dpok", "test")) == 4
    (tmp_path / "mine.txt").write_text("A dog on the moon.\n")
    with pytest.raises(InputError, match="1 prompts would be both trained on and evaluated"):
        resolve(RunSpec(**own, prompts=str(tmp_path / "mine.txt"), train_prompts="dpok", reward="jpeg_compressibility"))


def test_of_a_models_own_training_prompts_those_that_are_evaluated_are_left_out(tmp_path):
    (tmp_path / "mine.txt").write_text(prompt_sets.take("shapes", "train")[5].text.upper() + "\n")
    cell = resolve(RunSpec(algo="ddpo", model="tiny", prompts=str(tmp_path / "mine.txt"), output=tmp_path))
    assert len(cell.training) == 599
    assert cell.configuration.train_prompts == "shapes"
