"""Prompt sets: PartiPrompts as published, the shapes world's splits, and users' files."""

from __future__ import annotations

from collections import Counter

import pytest

from alignbench import downloads
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.errors import InputError, RunError
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


def test_dpoks_prompts_may_be_trained_on_and_evaluated_and_no_others(tmp_path):
    own = {"model": "tiny", "algo": "ddpo", "output": tmp_path}
    cell = resolve(RunOptions(**own, prompts="alignbench.benchmarks.dpok:Place", reward="jpeg_compressibility"))
    assert (
        [prompt.text for prompt in cell.training]
        == [prompt.text for prompt in cell.evaluated]
        == ["A dog on the moon."]
    )
    assert len(prompt_sets.take("dpok", "test")) == 4
    (tmp_path / "mine.txt").write_text("A dog on the moon.\n")
    with pytest.raises(InputError, match="1 prompts would be both trained on and evaluated"):
        resolve(
            RunOptions(**own, prompts=str(tmp_path / "mine.txt"), train_prompts="dpok", reward="jpeg_compressibility")
        )


def test_of_a_models_own_training_prompts_those_that_are_evaluated_are_left_out(tmp_path):
    (tmp_path / "mine.txt").write_text(prompt_sets.take("shapes", "train")[5].text.upper() + "\n")
    cell = resolve(RunOptions(algo="ddpo", model="tiny", prompts=str(tmp_path / "mine.txt"), output=tmp_path))
    assert len(cell.training) == 599
    assert cell.configuration.train_prompts == "shapes"
