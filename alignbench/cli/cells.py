"""Commands that run one cell: `run` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignbench.asking.options import EvaluateOptions, RunOptions
from alignbench.cli.flags import Flag, Whole, takes
from alignbench.cli.output import listing, note, print_json, say, typed
from alignbench.errors import InputError

if TYPE_CHECKING:
    from alignbench.asking.resolve import Cell
    from alignbench.experiment.run import Outcome

PER_CORE = 8  # processes of a run: more of them would take the machine's memory, and help nobody


@takes(RunOptions)
def run(
    given: dict[str, Any],
    *,
    config: Path | None = None,
    processes: Whole = 1,
    force: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Run one cell: align, generate, score, write results/*.json. Typed again, the same command continues.

    A cell is one model, prompt set, algorithm, reward and seed.

    alignbench run --algo best_of_n --model tiny

    alignbench run --algo diffusion_dpo --model sd15 --set beta=2000 --scorers pickscore hpsv2

    Parameters
    ----------
    config: Path
        YAML file with these options as keys; the command line and the environment win.
    processes: int
        Processes that share the work, such as one for each GPU of this machine. The result is that of one, but for
        rounding. Torchrun and `accelerate launch --multi_gpu` start them as well.
    force: bool
        Run a finished cell again, and replace a half-finished one of another configuration.
    dry_run: bool
        Print what would run, what differs from the paper, and what it would cost.
    json: bool
        Print the outcome as JSON.
    """
    from alignbench.asking import names
    from alignbench.asking.yaml_files import read_yaml

    options = RunOptions.parse(given)
    if config is not None:
        values = read_yaml(config)
        both = {"set": {**values["set"], **options.set}} if isinstance(values.get("set"), dict) else {}
        options = RunOptions.parse({**values, **given, **both}, str(config))
    names.check(options)
    if _wants_several(processes) and not dry_run:
        from alignbench.launch import launch

        flags = [name for name, given in (("--force", force), ("--json", json)) if given]
        return launch(["run"], options.model_dump(mode="json", exclude_unset=True), flags, processes)
    if not json:  # what follows imports for seconds
        note(f"loading {options.algorithm} and what it needs")
    cell = _resolve(options)
    if dry_run:
        cell.family.device(options.device)  # refuses what a run would
        say(*_description(cell))
        return 0
    return _run(cell, force, json)


@takes(EvaluateOptions)
def evaluate(
    given: dict[str, Any], *results: Path, force: Flag = False, dry_run: Flag = False, json: Flag = False
) -> int:
    """Evaluate a finished cell once more: more images, other prompts, another seed or other scorers, without training.

    What is not given is as it was. The new cell has the old method's name and what its alignment cost. It is the one
    that `alignbench run` makes with these options, which then finds it complete.

    alignbench evaluate results/tiny-shapes-refl-seed0.json --images-per-prompt 4

    Parameters
    ----------
    results: Path
        Result files. Of a method that trains, the weights lie in the folder beside them.
    force: bool
        Make a finished evaluation again, and replace a half-finished one of another configuration.
    dry_run: bool
        Only say which result files would be written.
    json: bool
        Print the outcomes as JSON.
    """
    if not results:
        raise InputError("name a result file: alignbench evaluate RESULT.json --images-per-prompt 4.")
    options = EvaluateOptions.parse(given)
    from alignbench.asking.evaluation import ask_again

    asked = ask_again(results, options, say=note)
    if dry_run:
        say(*(f"{again.path}  ->  {again.cell.path}" for again in asked))
        return 0
    from alignbench.experiment.run import run_cell
    from alignbench.experiment.trained import Trained

    code, found = 0, []
    for again in asked:
        trained = Trained(again.path, again.result) if again.result.trains else None
        found.append(run_cell(again.cell, force, json, trained))
        code = max(code, _code(found[-1]))
        if not json:
            _show(again.cell, found[-1])
    if json:
        print_json({"results": [_values(outcome) for outcome in found]})
    return code


def _wants_several(processes: int) -> bool:
    """Whether several processes were asked for and are not there. Raises InputError where others are."""
    from alignbench.children import cores
    from alignbench.processes import launched, started_by_accelerate

    if processes < 1:
        raise InputError(f"--processes {processes}: expected at least 1.")
    if processes > (most := PER_CORE * cores()):
        raise InputError(f"--processes {processes}: expected at most {most}, which is {PER_CORE} for each core here.")
    if launched() == 1 and started_by_accelerate():
        note("accelerate launch started one process: for several, use --processes or accelerate launch --multi_gpu")
    if processes > 1 and launched() not in (1, processes):
        raise InputError(f"--processes {processes}: {launched()} were started by a launcher already; leave it out.")
    return processes > 1 and launched() == 1


def _resolve(options: RunOptions) -> Cell:
    from alignbench.asking.resolve import resolve

    return resolve(options)


def _run(cell: Cell, force: bool, json: bool) -> int:
    from alignbench.experiment.run import run_cell

    outcome = run_cell(cell, force=force, quiet=json)
    if json:
        print_json(_values(outcome))
    else:
        _show(cell, outcome)
    return _code(outcome)


def _values(outcome: Outcome) -> dict[str, Any]:
    """What --json prints."""
    from alignbench.analysis import summary

    return summary.as_values(outcome.result, outcome.path) | {"was_complete": outcome.was_complete}


def _code(outcome: Outcome) -> int:
    """The exit code of a cell. Raises InputError where the method cannot do what was asked."""
    if outcome.result.status == "unsupported":
        raise InputError(outcome.result.reason or "this is unsupported")
    return 1 if outcome.result.status == "diverged" else 0


def _show(cell: Cell, outcome: Outcome) -> None:
    """The result, how it stands against `base` where that is beside it, and what to type next."""
    from alignbench.analysis import summary
    from alignbench.analysis.card import write_card

    if outcome.was_complete:
        say("already complete; --force runs it again")
        write_card(outcome.path)  # `base` may have come since
    listing(*summary.text(outcome.result, outcome.path).splitlines())
    if outcome.result.status != "complete" or outcome.result.configuration.algorithm == "base":
        return
    lines, base = summary.against_base(outcome.path)
    if not lines:
        say(f"  no complete `base` with this evaluation beside it yet: {_base_command(cell)}")
    else:
        say(*lines)
    both = [base, outcome.path] if base else [outcome.path.parent]
    say(f"compare with: alignbench compare {typed(*both)}")
    say(f"look at it: alignbench report {typed(*both)}")


def _base_command(cell: Cell) -> str:
    """What to type for the unaligned model under the same evaluation."""
    from alignbench.asking.options import EVALUATION, MEMORY, option_of

    options = cell.options
    same = ("model", "reward", "prompts", "split", "allow_unverified", "vae", "resolution", "images", "output")
    words = ["alignbench run --algo base"]
    for name, field in RunOptions.model_fields.items():
        of_evaluation = option_of(RunOptions, name).heading in (EVALUATION, MEMORY)
        value = getattr(options, name)
        if (of_evaluation or name in same) and value not in (field.default, ()):
            words.append(f"--{name.replace('_', '-')}{_words(value)}")
    if options.reward is None and options.scorers is not None:  # `base` would leave the reward out
        words.append(f"--reward {typed(cell.reward_name)}")
    return " ".join(words)


def _words(value: Any) -> str:
    """What is typed behind a flag."""
    if value is True:
        return ""
    if not isinstance(value, tuple):
        return f" {typed(value)}"
    pixels = all(isinstance(part, int) for part in value)
    return f" {'x'.join(map(str, value)) if pixels else typed(*value)}"


def _description(cell: Cell) -> list[str]:
    """What a cell would do, and what is known of its cost."""
    from alignbench.analysis.load import budget_text
    from alignbench.experiment import cut_off
    from alignbench.experiment.estimate import estimate

    c = cell.configuration
    data = f"{c.prompts}/{c.split}, {len(cell.evaluated)} prompts x {c.images_per_prompt}, seed {c.eval_seed}"
    training = f"{c.train_prompts}, {len(cell.training)} prompts, seed {c.seed}" if c.train_prompts else "nothing"
    rows = [
        ("evaluate on", data),
        ("train on", training),
        ("pairs", _listed({k: v for k, v in (c.pairs or {}).items() if v is not None}) or "none"),
        ("reward", c.reward or "none"),
        ("task", _listed(c.task or {}) or "generate"),
        ("budget", budget_text(c.budget) if c.budget else "none"),
        ("scorers", ", ".join(c.scorers)),
        ("sampling", _listed(c.sampling)),
    ]
    used = cut_off.prompts_of(cell)
    cut = cut_off.counted(cut_off.reader_before_loading(cell), used)
    if cut is None:
        rows.append(("cut off", "not known before the model is on this machine"))
    elif cut:
        rows.append(("cut off", cut_off.sentence(cell.model.name, cut, used)))
    cost = estimate(cell)
    for name, value in c.fields.items():
        used = getattr(cost.algorithm, name) if cost else value
        note = "   (what the budget pays for)" if used != value else cell.beside.note(name) if cell.beside else ""
        rows.append(("field", f"{name} = {used}{note}"))
    rows += _published_rows(cell)
    if cell.preset:
        rows.append(("preset", cell.preset))
    if cell.needs.names:
        rows.append(("not here", f"{', '.join(cell.needs.names)}; alignbench fetch gets them"))
    rows += [("note", line) for line in cell.notes]
    title = f"{c.algorithm} on {cell.model.name} ({cell.model.source}), would write {cell.path}"
    return [title, *(f"  {label:12} {value}" for label, value in [*rows, *_cost_rows(cell, cost)])]


def _published_rows(cell: Cell) -> list[tuple[str, str]]:
    """Which published configuration a cell is nearest to, and what of it that is no field is different here."""
    if cell.beside is None:
        return []
    fields = cell.configuration.fields
    named = {name: value for name, value in cell.beside.values.items() if name.rpartition(".")[2] not in fields}
    notes = ((name, value, cell.beside.note(name)) for name, value in named.items())
    rows = [("differs", f"{name.replace('.', ' ')} = {value}{note}") for name, value, note in notes if note]
    return [("paper", f"nearest: {cell.beside.nearest}"), *rows]


def _listed(values: Any) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _cost_rows(cell: Cell, cost: Any) -> list[tuple[str, str]]:
    from alignbench.analysis.formats import number

    if cost is None:
        budget = cell.configuration.budget
        unknown = "a second is measured" if budget and "seconds" in budget else "the model is on this machine"
        return [("cost", f"not known before {unknown}")]
    rows = [
        (
            label,
            f"{number(part.denoiser_forward)} denoiser evaluations forward, "
            f"{number(part.denoiser_backward)} backward, {number(part.reward_forward)} reward evaluations",
        )
        for label, part in (("alignment", cost.alignment), ("evaluation", cost.evaluation))
    ]
    if cost.seconds is not None:
        rows.append(("time", f"about {cost.seconds / 60:.1f} minutes on this machine, as busy as it is now"))
    return rows
