"""A number belongs to the code and the bytes that made it: cells, scores and pairs of changed plug-ins."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from places import TOY
from servers import running

from alignbench.analysis.compare import compare
from alignbench.asking.options import RunOptions
from alignbench.asking.resolve import resolve
from alignbench.cli.app import run_command_line
from alignbench.errors import InputError
from alignbench.experiment.align import folder_of_pairs
from alignbench.experiment.run import run_cell
from alignbench.judging.serving import server_of
from alignbench.plugins import reward_of
from alignbench.record import result as results
from alignbench.record.contents import digest_of
from alignbench.record.resumable import Resumable

BRIGHTNESS = """
from dataclasses import dataclass
from alignbench import RewardInfo

@dataclass(frozen=True)
class Brightness:
    differentiable = True

    def __call__(self, images, prompts):
        return images.flatten(1).mean(1)

    with_grad = __call__

    def info(self):
        return RewardInfo(id="brightness-1", range="0 to 1", files=FILES)

    def unsupported(self, prompts, image_shape):
        return None

FILES = {}
"""
BASE = """
from dataclasses import dataclass
from alignbench import PipelineSampler

@dataclass(frozen=True, kw_only=True)
class Mine:
    trains = False
    n: int = 1

    def align(self, problem):
        return PipelineSampler(problem.pipeline, problem.sampling)

    def unsupported(self, problem):
        return None
"""
PROMPTS = """
from alignbench import Prompt

class Few:
    splits = ("test",)

    def prompts(self, split):
        return [Prompt(f"few-{i}", f"point {i}") for i in range(3)]
"""


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def brightness(tmp_path):
    """A function that writes the reward, perhaps turned round."""

    def write(turned: bool = False, files: str = "{}") -> str:
        text = BRIGHTNESS.replace("FILES = {}", f"FILES = {files}")
        (tmp_path / "brightness.py").write_text(
            text.replace("return images", "return 1 - images" if turned else "return images")
        )
        return "brightness.py:Brightness"

    write()
    return write


def run(options, **arguments):
    return run_cell(resolve(RunOptions.parse(options)), quiet=True, **arguments)


def means(outcome, name="Brightness"):
    return [row.scores[name] for row in outcome.result.rows]


@pytest.mark.parametrize("role", ["reward", "scorers"])
def test_a_cell_whose_reward_or_scorer_was_changed_is_another_cell(role, brightness, toy_cell):
    name = brightness()
    options = toy_cell("base", **{role: name if role == "reward" else (name,)})
    first = run(options)
    assert run(options).was_complete
    brightness(turned=True)
    second = run(options)
    assert not second.was_complete
    assert second.path != first.path
    assert means(second) == pytest.approx([1 - value for value in means(first)])
    brightness()
    assert run(options).path == first.path


def test_under_a_name_of_its_own_the_changed_cell_is_refused_naming_the_code(brightness, toy_cell):
    options = toy_cell("base", reward=brightness(), name="mine")
    run(options)
    brightness(turned=True)
    with pytest.raises(InputError, match=r"differs in code\.brightness\.py:Brightness.*use --force"):
        run(options)
    assert not run(options, force=True).was_complete


@pytest.mark.parametrize(
    ("file", "text", "option"),
    [("mine.py", BASE, {"algo": "mine.py:Mine"}), ("few.py", PROMPTS, {"prompts": "few.py:Few"})],
)
def test_a_changed_algorithm_or_prompt_set_is_another_cell(file, text, option, toy_cell, tmp_path):
    (tmp_path / file).write_text(text)
    options = toy_cell("base") | option
    first = run(options)
    assert run(options).was_complete
    (tmp_path / file).write_text(text.replace("point {i}", "place {i}").replace("n: int = 1", "n: int = 1  # of one"))
    second = run(options)
    assert not second.was_complete
    assert second.path != first.path


def test_a_changed_file_of_evaluated_prompts_is_refused_and_one_of_training_prompts_is_another_cell(toy_cell, tmp_path):
    options = toy_cell("ddpo", set={"rounds": 1, "samples_per_round": 8, "batch": 8})
    first = run(options)
    training = (tmp_path / "training.txt").read_text()
    (tmp_path / "training.txt").write_text(training + "one more\n")
    assert run(options).path != first.path
    (tmp_path / "training.txt").write_text(training)
    assert run(options).was_complete
    (tmp_path / "points.txt").write_text("another point\n")
    with pytest.raises(InputError, match="differs in prompts_sha256"):
        run(options)


def test_half_a_cell_is_not_continued_with_other_prompts_or_another_reward(brightness, toy_cell, tmp_path, monkeypatch):
    options = toy_cell("base", reward=brightness(), name="mine")
    with monkeypatch.context() as patch:
        patch.setattr("alignbench.experiment.run.rows_of", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(options)
    points = (tmp_path / "points.txt").read_text()
    (tmp_path / "points.txt").write_text(points.replace("point 1\n", "dot 1\n"))
    with pytest.raises(InputError, match="differs in prompts_sha256"):
        run(options)
    (tmp_path / "points.txt").write_text(points)
    brightness(turned=True)
    with pytest.raises(InputError, match=r"differs in code\.brightness"):
        run(options)
    brightness()
    assert run(options).result.attempts == 2


def test_what_an_older_version_left_half_done_is_continued(tmp_path):
    """Its state file lacks the entries that came since."""
    remedies = {"elsewhere": "choose another", "replace": "use --force"}
    work = Resumable(tmp_path / "cell", {"a": 1}, "cell.json", **remedies)
    with work.held() as attempt:
        assert attempt == 1
    newer = Resumable(
        work.folder, {"a": 1, "code": None}, "cell.json", elsewhere="choose another", replace="use --force"
    )
    with newer.held() as attempt:
        assert attempt == 2


def test_compare_pairs_no_column_of_changed_code_and_says_why(brightness, toy_cell, tmp_path):
    run(toy_cell("base", reward=brightness()))
    brightness(turned=True)
    run(toy_cell("best_of_n", reward=brightness(turned=True), scorers=(f"{TOY}:FirstCoordinate",)))
    (group,) = compare([tmp_path / "results"]).groups
    assert "Brightness" not in {row.scorer for row in group.versus}
    assert any(
        "Brightness: " in note and "its scorer differs from" in note and "in source" in note for note in group.notes
    )


def test_a_result_from_before_sources_were_kept_is_read_and_not_paired_with_a_new_one(brightness, toy_cell, tmp_path):
    new = run(toy_cell("base", reward=brightness()))
    old = new.path.with_name("old.json")
    content = json.loads(new.path.read_text())
    for name in ("asked", "kept", "origin", "added"):
        del content[name]
    del content["configuration"]["code"]
    for scorer in content["scorers"].values():
        del scorer["source"]
    content["digest"] = digest_of(content)
    old.write_text(json.dumps(content))
    assert results.read(old).scorers["Brightness"].source is None
    (group,) = compare([tmp_path / "results"]).groups
    assert len(set(group.methods)) == 2
    assert any("only one of them says what code it is" in note for note in group.notes)


def score(folder, name, capsys):
    assert run_command_line(["score", str(folder), "--prompts", "p.txt", "--scorers", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["summary"]["Brightness"]["mean"]


@pytest.mark.parametrize("files", ["{}", f"{{'w': '{'0' * 64}'}}"])
def test_score_takes_no_number_of_changed_code_from_its_cache(files, brightness, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a\n")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), (51, 51, 51)).save(tmp_path / "pictures" / "0.png")
    assert score(tmp_path / "pictures", brightness(files=files), capsys) == pytest.approx(0.2)
    assert score(tmp_path / "pictures", brightness(turned=True, files=files), capsys) == pytest.approx(0.8)
    kept = list((tmp_path / "cache").rglob("scores/*.jsonl"))
    assert len(kept) == (0 if files == "{}" else 2)


TWICE = [
    (["jpeg_compressibility", "jpeg_compressibility"], "'jpeg_compressibility' is named twice"),
    (["a.py:Brightness", "b.py:Brightness"], "'a.py:Brightness' and 'b.py:Brightness'"),
]


@pytest.mark.parametrize(("names", "message"), TWICE)
@pytest.mark.parametrize(
    "command",
    [
        ["run", "--algo", "base", "--limit", "2"],
        ["suite", "suite.yaml", "--dry-run"],
        ["score", "pictures", "--prompts", "p.txt"],
        ["audit", "--pairs", "pairs"],
        ["accuracy", "--pairs", "pairs"],
    ],
)
def test_two_scorers_of_one_column_are_refused_in_every_command(command, names, message, brightness, tmp_path, capsys):
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text(BRIGHTNESS)
    (tmp_path / "suite.yaml").write_text(
        f"cells:\n  - {{algo: base, scorers: [{', '.join(map(json.dumps, names))}]}}\n"
    )
    more = [] if command[0] == "suite" else ["--scorers", *names]
    assert run_command_line([*command, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_reward_may_be_named_among_the_scorers_too(toy_cell):
    name = f"{TOY}:FirstCoordinate"
    assert list(run(toy_cell("base", reward=name, scorers=(name,))).result.scorers) == ["FirstCoordinate"]


def test_a_served_plug_in_says_its_source(brightness):
    reward = reward_of(brightness())
    with running(server_of("it", reward, 0)) as url:
        assert reward_of(url).info() == reward.info()


def test_pairs_that_an_unknown_server_labelled_stay_in_the_cells_folder(mixture, tmp_path):
    """Its name is all that a server without files says of itself: another day another scorer may have it."""
    for reward, shared in (("shapes_truth", False), ("shapes_preference", True)):
        with running(server_of("it", reward_of(reward), 0)) as url:
            options = {"algo": "diffusion_dpo", "reward": f"it={url}", "limit": 2, "output": tmp_path / "results"}
            cell = resolve(RunOptions.parse(options))
            folder = folder_of_pairs(cell, mixture, 8, 2, tmp_path / "cache")
        assert (folder == cell.folder / "pairs") is not shared
        assert folder.is_relative_to(tmp_path / "cache") is shared
