"""Prompt sets: PartiPrompts as published, the shapes world's splits, and users' files."""

from __future__ import annotations

from collections import Counter

import pytest

from alignbench import downloads
from alignbench.asking import prompt_files
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
        ("a.csv", '\ufefftext,id\r\n"a ""cat"" of\ntwo lines",7\r\n\r\n', ['a "cat" of\ntwo lines']),
        ("a.jsonl", '{"caption": "a dog"}\n{"caption": "a cat"}\n', ["a dog", "a cat"]),
        ("a.json", '["a dog", "a cat"]', ["a dog", "a cat"]),
        ("a.json", '[{"id": "005695-0057", "prompt": "a dog"}]', ["a dog"]),
        ("A.TXT", "a dog\n", ["a dog"]),
    ],
)
def test_prompt_files_are_read_in_every_format(tmp_path, name, content, texts):
    (tmp_path / name).write_text(content, newline="")
    assert [prompt.text for prompt in prompt_files.read(tmp_path / name).prompts] == texts


def test_columns_of_a_file_carry_over(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,prompt,category,challenge\nx1,a cat,Animals,Basic\n")
    (prompt,) = prompt_files.read(path).prompts
    assert (prompt.id, prompt.category, prompt.challenge) == ("x1", "Animals", "Basic")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # a comma, a tab or a quote that would cut a prompt short
        (
            "a.csv",
            "prompt\na cat, sitting\n",
            r"line 2: 2 fields between its commas, and the header has 1; a text with",
        ),
        ("a.csv", 'prompt,id\n"one\ntwo",1\na, b, c\n', r"line 4: 3 fields"),
        ("a.csv", "prompt,category\na cat\n", r"line 2: 1 fields"),
        ("a.csv", 'prompt\n"a" cat\n', r"line 2: .* a double quote inside of quotes is written twice"),
        ("a.csv", 'prompt\nfine\n"a cat\n', r"line 3: a double quote is never closed"),
        ("a.tsv", "prompt\tcategory\na cat\tx\ty\n", r"line 2: 3 fields between its tabs"),
        ("a.csv", "prompt,Prompt\na,b\n", r"line 1: two columns are called 'prompt'"),
        # what is no text
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": null}\n', r"line 2: the prompt is null; expected text"),
        ("a.jsonl", '{"prompt": 3}\n', r"line 1: the prompt is 3, a number; expected text"),
        ("a.jsonl", '{"prompt": true}\n', r"the prompt is True, true or false"),
        ("a.jsonl", '{"prompt": NaN}\n', r"not JSON \(holds NaN"),
        ("a.jsonl", '{"prompt": ["a"]}\n', r"a list; expected text"),
        ("a.jsonl", '{"prompt": {"text": "a"}}\n', r"an object; expected text"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', r"line 2: the prompt is not there; expected text"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', r"not JSON \(holds '\\ud800', half of a character"),
        ("a.jsonl", '{"prompt": "a", "category": 3}\n', r"line 1: the category is 3, a number; expected text"),
        ("a.jsonl", '{"prompt": "a", "id": 1.5}\n', r"line 1: the id is 1.5, a number"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}\n', r"line 1: not JSON \(names 'prompt' twice in one object"),
        ("a.jsonl", '{"prompt": "a", "Prompt": "b"}\n', r"line 1: two columns are called 'prompt'"),
        ("a.jsonl", "[" * 100_000, r"line 1: not JSON"),
        ("a.json", '["a", null]', r"entry 1: expected an object"),
        ("a.json", '{"prompts": ["a"]}', r"expected a list of prompts"),
        # another encoding
        ("a.csv", "prompt\ncaf\u00e9\n".encode("cp1252"), r"line 2: not UTF-8 .*as Windows-1252 it would be '\u00e9'"),
        ("a.csv", "prompt\na cat\n".encode("utf-16"), r"is UTF-16; save the file as UTF-8"),
        ("a.txt", "a cat\n".encode("utf-16-le"), r"line 1: a null character"),
        ("a.txt", b"a cat\na\0dog\n", r"line 2: a null character"),
        ("a.parquet", b"PAR1", r"cannot be read as parquet"),
    ],
)
def test_nothing_is_turned_into_a_prompt_that_is_none(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        prompt_sets.take(str(tmp_path / name), "test")
    assert str(tmp_path / name) in str(caught.value)
    assert "unexpected" not in str(caught.value)


def test_columns_that_nothing_uses_are_named_once(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,negative_prompt,seed\na cat,blurry,1\na dog,,2\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "seed": 3, "image": "0.png"}\n')
    (tmp_path / "a.txt").write_text("a cat\n")
    assert prompt_sets.notes_on(str(tmp_path / "a.csv")) == [
        f"{tmp_path}/a.csv: columns that are not used: negative_prompt, seed"
    ]
    assert prompt_sets.notes_on(str(tmp_path / "a.jsonl"), used=("image",)) == [
        f"{tmp_path}/a.jsonl: columns that are not used: seed"
    ]
    assert prompt_sets.notes_on(str(tmp_path / "a.txt")) == prompt_sets.notes_on("parti") == []


def test_a_cell_says_which_columns_it_does_not_use(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,seed\na red circle,1\n")
    options = RunOptions(algo="base", model="tiny", prompts=str(tmp_path / "a.csv"), output=tmp_path)
    assert resolve(options).notes == [f"{tmp_path}/a.csv: columns that are not used: seed"]


def test_prompts_are_read_from_parquet_in_every_kind_of_text(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = ["a cat", "a dog", "a cat"]
    image = pa.array([{"bytes": b"x", "path": "0.png"}] * 3, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    for number, kind in enumerate((pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"caption": pa.array(texts, kind), "jpg_0": image, "id": [5, 6, 7]}), path)
        found = prompt_files.read(path)
        assert [(prompt.id, prompt.text) for prompt in found.prompts] == list(zip("567", texts, strict=True))
        assert found.unused == ["jpg_0"]
    pq.write_table(pa.table({"prompt": pa.array(["a", None])}), tmp_path / "null.parquet")
    with pytest.raises(InputError, match=r"null\.parquet, row 1: the prompt is null; expected text"):
        prompt_files.read(tmp_path / "null.parquet")


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
        ("a.jsonl", b'{"prompt": " "}\n', "line 1: the prompt is empty"),
    ],
)
def test_a_file_that_is_no_prompt_file_says_where_and_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        prompt_files.read(tmp_path / name)
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
