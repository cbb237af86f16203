"""Options: written once, read from everywhere, refused by name."""

from __future__ import annotations

import pytest

from alignbench.asking.options import HASHED, NAMED, PLACE, RUNTIME, PairsOptions, RunOptions, option_of
from alignbench.cli.app import app, run_command_line
from alignbench.cli.flags import takes
from alignbench.errors import InputError
from alignbench.judging.options import AccuracyOptions, AuditOptions, ScoreOptions, ServeOptions, TrainRewardOptions

COMMANDS = {
    "run": RunOptions, "pairs": PairsOptions, "accuracy": AccuracyOptions, "audit": AuditOptions,
    "score": ScoreOptions, "serve": ServeOptions, "train-reward": TrainRewardOptions,
}  # fmt: skip


def flags_of(command: str) -> set[str]:
    return {name for argument in app[command].assemble_argument_collection() for name in argument.names}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_a_flag_with_a_heading_and_a_description(command):
    model = COMMANDS[command]
    flags = flags_of(command)
    for name, field in model.model_fields.items():
        assert f"--{name.replace('_', '-')}" in flags
        assert option_of(model, name).heading
        assert field.description
        assert field.description.endswith(".")


def test_the_roles_say_what_may_change_when_a_cell_is_continued():
    roles = {name: option_of(RunOptions, name).role for name in RunOptions.model_fields}
    assert {name for name, role in roles.items() if role is RUNTIME} == {
        "attention", "batch_size", "channels_last", "checkpointing", "compile", "device", "report_to", "vae_slicing",
    }  # fmt: skip
    assert {name for name, role in roles.items() if role is PLACE} == {"name", "output"}
    assert {name for name, role in roles.items() if role is NAMED} == {
        "algo", "images", "model", "prompts", "reward", "seed",
    }  # fmt: skip
    assert roles["vae_tiling"] is HASHED  # it changes pixels


def test_changed_are_the_hashed_ones_that_are_not_at_their_default():
    options = RunOptions(algo="ddpo", seed=3, limit=5, device="cpu", vae_slicing=True, steps=20, name="x")
    assert options.changed == {"limit": 5, "steps": 20}
    assert RunOptions(algo="ddpo", split="test", set={}).changed == {}


@pytest.fixture
def heard(monkeypatch):
    """What a command line makes of the options of `run`, without running."""
    from alignbench.asking import names
    from alignbench.cli import cells

    found = []
    monkeypatch.setattr(names, "check", lambda options: None)
    monkeypatch.setattr(
        cells, "_resolve", lambda options: found.append(options) or (_ for _ in ()).throw(InputError("x"))
    )

    def of(*arguments: str) -> RunOptions:
        assert run_command_line(["run", *arguments]) == 2
        return found.pop()

    return of


def test_words_are_collected_as_each_option_wants_them(heard):
    options = heard(
        "--algo", "a", "--set", "clip=1e-4", "--set", "n=3", "--scorers", "clip", "hpsv2", "--budget", "nfe=800",
        "--resolution", "768x512", "--report-to", "wandb", "trackio", "--checkpointing",
    )  # fmt: skip
    assert options.set == {"clip": "1e-4", "n": "3"}
    assert options.scorers == ("clip_l14", "hpsv2_1")
    assert options.budget == {"nfe": 800.0}
    assert options.resolution == (768, 512)
    assert options.report_to == ("wandb", "trackio")
    assert options.checkpointing is True


def test_the_command_line_wins_over_the_environment_and_that_over_a_file(heard, tmp_path, monkeypatch):
    config = tmp_path / "run.yaml"
    config.write_text("algo: ddpo\nmodel: mixture\nlimit: 1\nseed: 1\nset: {clip: 0.1, rounds: 2}\n")
    monkeypatch.setenv("ALIGNBENCH_RUN_LIMIT", "2")
    monkeypatch.setenv("ALIGNBENCH_RUN_SEED", "2")
    options = heard("--config", str(config), "--seed", "3", "--set", "rounds=9")
    assert (options.model, options.limit, options.seed) == ("mixture", 2, 3)
    assert options.set == {"clip": 0.1, "rounds": "9"}


@pytest.mark.parametrize(
    ("variable", "value", "name", "expected"),
    [
        ("ALIGNBENCH_RUN_MODEL", "mixture", "model", "mixture"),
        ("ALIGNBENCH_RUN_CHECKPOINTING", "true", "checkpointing", True),
        ("ALIGNBENCH_RUN_SCORERS", "clip hpsv2", "scorers", ("clip_l14", "hpsv2_1")),
        ("ALIGNBENCH_RUN_SET", "clip=1 n=2", "set", {"clip": "1", "n": "2"}),
        ("ALIGNBENCH_RUN_PAIR_TIES", "keep", "pair_ties", "keep"),
    ],
)
def test_every_option_can_be_set_in_the_environment(heard, monkeypatch, variable, value, name, expected):
    monkeypatch.setenv(variable, value)
    assert getattr(heard("--algo", "a"), name) == expected


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (
            "ALIGNBENCH_RUN_MODLE",
            "environment variable named 'ALIGNBENCH_RUN_MODLE'. Did you mean ALIGNBENCH_RUN_MODEL",
        ),
        ("ALIGNBENCH_TRAIN_REWARD_STEP", "Did you mean ALIGNBENCH_TRAIN_REWARD_STEPS"),
    ],
)
def test_a_variable_that_would_set_nothing_is_refused(variable, message, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("ALIGNBENCH_DATA", "/somewhere")  # no option's
    assert run_command_line(["list", "models"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "limit 0: expected at least 1."),
        ({"strength": 1.5}, "strength 1.5: expected at most 1."),
        ({"strength": 0}, "strength 0: expected more than 0."),
        ({"seed": "x"}, "seed x: expected a whole number."),
        ({"dtype": "int8"}, "dtype int8: expected 'float32', 'float16' or 'bfloat16'."),
        ({"set": ["clip"]}, "set clip: expected NAME=VALUE such as clip=1e-4 or nfe=800."),
        ({"set": ["n=2", "n=3"]}, "set n=2, n=3: n is '2' and '3'; leave one out."),
        ({"budget": ["nfe=40", "nfe=80"]}, "budget nfe=40, nfe=80: nfe is '40' and '80'; leave one out."),
        ({"budget": {"hours": 1}}, "budget hours: expected 'nfe', 'reward_evals' or 'seconds'."),
        ({"resolution": "axb"}, "resolution axb: expected pixels such as 512, or HEIGHTxWIDTH such as 768x512."),
        ({"report_to": ["comet"]}, "report_to comet: expected 'tensorboard', 'wandb', 'trackio' or 'mlflow'."),
        ({"modle": 1}, "no option named 'modle'. Did you mean model"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(values, message):
    with pytest.raises(InputError) as caught:
        RunOptions.parse({"algo": "a", **values}, "run.yaml")
    assert str(caught.value).startswith(f"run.yaml: {message}")
    with pytest.raises(InputError) as caught:
        RunOptions.parse({"algo": "a", **values})
    assert "run.yaml" not in str(caught.value)


NUMBERS = [
    (model, name)
    for model in COMMANDS.values()
    for name, field in model.model_fields.items()
    if "float" in str(field.annotation)
]


@pytest.mark.parametrize(("model", "name"), NUMBERS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_option_takes_what_is_no_finite_number(model, name, value):
    needed = {field: "x.safetensors" for field, info in model.model_fields.items() if info.is_required()}
    needed |= {"scorers": ("a",)} if "scorers" in needed else {}
    with pytest.raises(InputError, match=f"^--{name.replace('_', '-')} {value}: expected "):
        model.parse({**needed, name: value})


def test_what_was_not_typed_is_not_given():
    heard = {}

    @takes(ServeOptions)
    def command(given, name: str, *, loud: bool = False) -> int:
        heard.update(given=given, name=name, loud=loud)
        return 0

    assert command("x", port=3) == 0
    assert heard == {"given": {"port": 3}, "name": "x", "loud": False}


def test_help_has_the_headings_two_examples_and_says_what_scorers_replace(capsys):
    assert run_command_line(["run", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    places = [
        out.index(f"─ {heading} ─")
        for heading in ("What", "Data", "Training", "Evaluation", "Memory and device", "Files")
    ]
    assert places == sorted(places)
    assert out.count("alignbench run --algo ") == 2
    assert "They replace the model's default scorers" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_value_is_refused_for_every_option_that_takes_text(command):
    """A shell's variable that is not set is an empty value, and the default is not what was asked for."""
    model = COMMANDS[command]
    for name in model.model_fields:
        flag = f"--{name.replace('_', '-')}"
        for value in ("", [""], ("jpeg_compressibility", "")):
            with pytest.raises(InputError, match=f"^{flag}: an empty value; say what is meant"):
                model.parse({name: value})
        with pytest.raises(InputError, match=f"^a.yaml: {name}: an empty value"):
            model.parse({name: ""}, "a.yaml")


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["run", "--algo", "base", "--prompts", ""], "--prompts"),
        (["run", "--algo", "base", "--prompts="], "--prompts"),
        (["run", "--algo", "base", "--output", ""], "--output"),
        (["run", "--algo", "base", "--scorers", "jpeg_compressibility", ""], "what follows jpeg_compressibility"),
        (["score", "", "--scorers", "jpeg_compressibility"], "what follows score"),
        (["compare", ""], "what follows compare"),
        ([""], "what follows alignbench"),
    ],
)
def test_an_empty_value_is_refused_where_it_is_typed(typed, named, capsys):
    """A path made of it would be the folder one is in."""
    assert run_command_line(typed) == 2
    assert capsys.readouterr().err.startswith(f"alignbench: {named}: an empty value; say what is meant")


def test_a_variable_that_is_set_to_nothing_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("ALIGNBENCH_RUN_PROMPTS", "")
    assert run_command_line(["run", "--algo", "base"]) == 2
    assert "ALIGNBENCH_RUN_PROMPTS is set to nothing" in capsys.readouterr().err
