"""The command line: parses, calls, prints. It imports no torch until a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from alignbench import __version__
from alignbench.errors import AlignbenchError, InputError

PICTURES = (".png", ".pdf", ".svg")
Flag = Annotated[bool, Parameter(negative=())]
Names = Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative=())]

app = App(
    name="alignbench",
    help="Compare algorithms that align text-to-image diffusion models with preferences and rewards.",
    help_epilogue="Every command takes --debug: show a traceback instead of one line when something goes wrong.",
    version=__version__,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@app.command
def run(
    *,
    algo: str | None = None,
    model: str | None = None,
    reward: str | None = None,
    prompts: str | None = None,
    split: str | None = None,
    train_prompts: str | None = None,
    pairs: Path | None = None,
    pair_count: int | None = None,
    pair_candidates: int | None = None,
    pair_ties: Literal["drop", "keep"] | None = None,
    pair_models: str | None = None,
    pair_crop: Literal["centre", "random"] | None = None,
    scorers: Names = None,
    scorer_dtype: Literal["float32", "bfloat16"] | None = None,
    allow_unverified: Flag = False,
    seed: int | None = None,
    eval_seed: int | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    limit: int | None = None,
    images_per_prompt: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    kernel: Literal["ddim", "exact"] | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    output: Path | None = None,
    name: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    checkpointing: Flag = False,
    adapter: Path | None = None,
    vae: str | None = None,
    vae_slicing: Flag = False,
    vae_tiling: Flag = False,
    resolution: str | None = None,
    budget: Annotated[list[str] | None, Parameter(negative=())] = None,
    task: Literal["generate", "sdedit"] | None = None,
    images: Path | None = None,
    strength: float | None = None,
    config: Path | None = None,
    force: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Run one cell: align, generate, score, write results/*.json. Typed again, the same command continues.

    Parameters
    ----------
    algo: str
        Algorithm: a name from `alignbench list`, package.module:Name, or path/file.py:Name.
    model: str
        tiny (default), mixture, sd15, sdxl, another name of `alignbench list models`, a diffusers folder, or a hub id.
    reward: str
        Reward to optimise; also a name, package.module:Name, or path/file.py:Name; a learned one with weights of
        one's own as NAME=FILE; one that is served (alignbench serve) by its URL, or NAME=URL.
    prompts: str
        Prompts to evaluate on: a name, or a .txt, .tsv, .csv or .jsonl file.
    split: str
        Split of the prompts; tune on dev, report on test (default).
    train_prompts: str
        Prompts to train on; by default the train split of --prompts, else the model's own.
    pairs: Path
        Preference pairs to learn from: a Pick-a-Pic parquet file or folder, an HPDv2 .json, or a folder with
        pairs.jsonl. By default the base model makes pairs on --train-prompts and --reward labels them.
    pair_count: int
        How many pairs are made where none are given (default 2000).
    pair_candidates: int
        How many images are drawn for each of them (default 2); of more, the reward's best and worst are kept.
    pair_ties: str
        Ties among the pairs: drop (default) or keep.
    pair_models: str
        Only pairs both of whose source models contain this, such as dream.
    pair_crop: str
        How a pair's images are cropped to the model's size: centre (default) or random.
    scorers: str
        Held-out scorers, besides the reward.
    scorer_dtype: str
        Precision of learned rewards and scorers (default float32).
    allow_unverified: bool
        Use weights of learned rewards that are not the published ones; the result names them.
    seed: int
        Seed of the alignment only (default 0).
    eval_seed: int
        Seed of the evaluation's noise (default 0), the same for every algorithm.
    set_: str
        A hyper-parameter, such as --set clip=1e-4; may be repeated.
    limit: int
        Evaluate the first prompts only.
    images_per_prompt: int
        Images evaluated per prompt (default 1).
    steps: int
        Sampling steps of the evaluation; guidance and eta likewise.
    guidance: float
        Classifier-free guidance scale; 1 is none.
    eta: float
        Noise of DDIM sampling: 0 is deterministic, 1 ancestral.
    kernel: str
        Reverse steps: ddim (default), or exact, which only mixture has.
    dtype: str
        Precision of the model.
    output: Path
        Folder for the result and its files (default results).
    name: str
        A name in the result's file name, instead of a hash of what is not default.
    device: str
        auto (default), cpu, cuda, or cuda:1.
    batch_size: int
        Images generated at once.
    checkpointing: bool
        Keep no activations while training but compute them again: less memory, a third more time.
    adapter: Path
        A trained adapter (a cell's folder or result file, a LoRA, a folder or hub id with a fine-tuned unet) that the
        model has from the start; for methods that do not train.
    vae: str
        An autoencoder in the place of the model's own, such as madebyollin/sdxl-vae-fp16-fix: a folder or a hub id.
    vae_slicing: bool
        Decode one image after another: less memory.
    vae_tiling: bool
        Decode large images in tiles: less memory, other pixels near the seams.
    resolution: str
        Pixels of the images, such as 512, or HEIGHTxWIDTH; by default the model's own.
    budget: str
        What a test-time method may spend on an image, such as nfe=800 (denoiser evaluations, backward ones and
        guidance included), reward_evals=20, or seconds=2 (turned into counts once); it chooses its free parameter.
    task: str
        generate (default), or sdedit: edit the images of --images.
    images: Path
        A .jsonl file with a prompt and an image a line, for --task sdedit.
    strength: float
        Share of the steps that an edit runs, in (0, 1].
    config: Path
        YAML file with these options as keys; the command line wins.
    force: bool
        Replace a result, or a half-finished one, of this path.
    dry_run: bool
        Print what would run, what differs from the paper, and what it would cost.
    json: bool
        Print the outcome as JSON.
    """
    given = dict(locals())
    flags = {name: given.pop(name) for name in ("config", "force", "dry_run", "json")}
    given["set"] = _assignments(given.pop("set_"), "--set", "clip=1e-4") or None
    given["budget"] = _assignments(given["budget"], "--budget", "nfe=800") or None
    from alignbench.experiment.spec import parse_spec
    from alignbench.experiment.suite import read_yaml

    values = read_yaml(flags["config"]) if flags["config"] else {}
    for name in ("checkpointing", "allow_unverified", "vae_slicing", "vae_tiling"):  # a --config file may ask for it
        given[name] = given[name] or None
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(values.get("set"), dict) and "set" in chosen:
        chosen["set"] = {**values["set"], **chosen["set"]}
    where = str(flags["config"]) if flags["config"] else "alignbench run"
    if "algo" not in {*values, *chosen}:
        raise InputError("name an algorithm: alignbench run --algo NAME (see `alignbench list`).")
    cell = _resolve(parse_spec({**values, **chosen}, where))
    if flags["dry_run"]:
        return _dry_run(cell)
    return _run(cell, force=flags["force"], as_json=flags["json"])


def _assignments(texts: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    """`name=value` strings as a dictionary."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {text!r}: expected NAME=VALUE, such as {option} {example}.")
        found[name] = value
    return found


def _run(cell: Any, force: bool = False, as_json: bool = False) -> int:
    import json as json_module

    from alignbench.analysis import summary
    from alignbench.experiment.run import run_cell

    outcome = run_cell(cell, force=force, quiet=as_json)
    if as_json:
        values = summary.as_values(outcome.result, outcome.path) | {"was_complete": outcome.was_complete}
        print(json_module.dumps(values, indent=1, allow_nan=False))
    else:
        if outcome.was_complete:
            print("already complete; --force runs it again")
        print(summary.text(outcome.result, outcome.path), end="")
        if outcome.result.status == "complete" and outcome.result.configuration.algorithm != "base":
            lines, base = summary.against_base(outcome.path)
            print(
                "\n".join(lines) + "\n" if lines else "  no complete `base` with this evaluation beside it yet\n",
                end="",
            )
            print(f"compare with: alignbench compare {_both(base, outcome.path)}")
    if outcome.result.status == "unsupported":
        raise InputError(outcome.result.reason or "this is unsupported")
    return 1 if outcome.result.status == "diverged" else 0


def _both(base: Path | None, path: Path) -> str:
    return f"{base} {path}" if base else f"{path.parent}/*.json"


def _dry_run(cell: Any) -> int:
    from alignbench.analysis.load import budget_text
    from alignbench.analysis.tables import number
    from alignbench.experiment.estimate import estimate

    c = cell.configuration
    print(f"{c.algorithm} on {cell.model.name} ({cell.model.source}), would write {cell.path}")
    for label, values in (
        (
            "evaluate on",
            f"{c.prompts}/{c.split}, {len(cell.evaluated)} prompts x {c.images_per_prompt}, seed {c.eval_seed}",
        ),
        (
            "train on",
            f"{c.train_prompts}, {len(cell.training)} prompts, seed {c.seed}" if c.train_prompts else "nothing",
        ),
        ("pairs", ", ".join(f"{name}={value}" for name, value in c.pairs.items() if value is not None))
        if c.pairs
        else ("pairs", "none"),
        ("reward", c.reward or "none"),
        ("task", ", ".join(f"{name}={value}" for name, value in c.task.items()) if c.task else "generate"),
        ("budget", budget_text(c.budget) if c.budget else "none"),
        ("scorers", ", ".join(c.scorers)),
        ("sampling", ", ".join(f"{name}={value}" for name, value in c.sampling.items())),
    ):
        print(f"  {label:12} {values}")
    cost = estimate(cell)
    for name, value in c.fields.items():
        paper = cell.differs_from_paper.get(name)
        used = getattr(cost.algorithm, name) if cost else value
        note = "   (what the budget pays for)" if used != value else f"   (paper: {paper['paper']})" if paper else ""
        print(f"  {'field':12} {name} = {used}{note}")
    if cell.preset:
        print(f"  {'preset':12} {cell.preset}")
    if cost is None:
        unknown = "a second is measured" if c.budget and "seconds" in c.budget else "the model is on this machine"
        print(f"  {'cost':12} not known before {unknown}")
        return 0
    for label, part in (("alignment", cost.alignment), ("evaluation", cost.evaluation)):
        print(
            f"  {label:12} {number(part.denoiser_forward)} denoiser evaluations forward, "
            f"{number(part.denoiser_backward)} backward, {number(part.reward_forward)} reward evaluations"
        )
    if cost.seconds is not None:
        print(f"  {'time':12} about {cost.seconds / 60:.1f} minutes on this machine")
    return 0


def _resolve(spec: Any) -> Any:
    """The cell of a specification."""
    from alignbench.experiment.spec import resolve

    cell = resolve(spec)
    if cell.model.source != "exact":  # the mixture needs neither library, and importing them takes seconds
        _quieten_libraries()
    return cell


@app.command
def compare(
    *files: Path,
    baseline: str = "base",
    by: Literal["category", "challenge", "budget"] | None = None,
    scorer: Names = None,
    skip_bad: Flag = False,
    published: Flag = False,
    format: Literal["table", "markdown", "csv", "latex", "json"] = "table",
    output: Path | None = None,
) -> int:
    """Compare result files: paired win rates with intervals, ranks and costs.

    Parameters
    ----------
    files: Path
        Result files, or folders of them (default: results).
    baseline: str
        Algorithm or method the others are compared with.
    by: str
        Also break win rates down by category or challenge, or group methods by their --budget.
    scorer: str
        Only these scorers.
    skip_bad: bool
        Leave unreadable files out, and say so, instead of stopping.
    published: bool
        Also show what papers report about these methods on these prompts, with who judged.
    format: str
        table, markdown, csv, latex or json.
    output: Path
        Write to this file instead of the terminal.
    """
    from alignbench.analysis.compare import compare as compare_files
    from alignbench.analysis.tables import render
    from alignbench.files import write_text

    comparison = compare_files(files or (Path("results"),), baseline, by, scorer or (), skip_bad, published)
    text = render(comparison, format)
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
        print(f"written to {output}")
    return 0


@app.command(name="list")
def list_(
    group: Literal["algorithms", "rewards", "prompts", "models"] | None = None,
    *,
    scorers: Flag = False,
    prompts: Flag = False,
) -> int:
    """List algorithms, rewards, prompt sets and models.

    Parameters
    ----------
    group: str
        Only one of them.
    scorers: bool
        Only the scorers whose weights are published files, and which of these are on this machine.
    prompts: bool
        Only the published prompt sets: source, licence, counts, and which are on this machine.
    """
    if scorers or prompts:
        if group is not None or (scorers and prompts):
            raise InputError("list takes one of GROUP, --scorers and --prompts at a time; leave the others out.")
        return _list_scorers() if scorers else _list_prompts()
    from alignbench import plugins
    from alignbench.diffusion.models import PRESETS

    rooms: tuple[tuple[str, plugins.Group], ...] = (
        ("algorithms", "algorithms"),
        ("rewards", "rewards"),
        ("prompts", "benchmarks"),
    )
    for title, room in rooms:
        if group in (None, title):
            print(title)
            for name in plugins.names(room):
                print(f"  {name:24} {plugins.summary(room, name)}")
            for short, name in plugins.aliases(room).items():
                print(f"  {short:24} means {name}.")
    if group in (None, "models"):
        print("models")
        for model in PRESETS.values():
            print(f"  {model.name:24} {model.note}")
            if model.licence:
                sampling = f"{model.prediction}-prediction, {model.steps} steps, guidance {model.guidance:g}"
                others = [part.repository for part in (model.denoiser, model.refiner) if part is not None]
                print(f"  {'':24} {' and '.join([model.source, *others])}; {sampling}; {model.licence}")
    return 0


def _list_scorers() -> int:
    from alignbench.experiment.fetching import present

    for name, file, state in present():
        print(f"{name:16} {file.place}\n{'':16} {state}")
    return 0


def _list_prompts() -> int:
    from alignbench.experiment.fetching import prompt_sets

    for name, lines in prompt_sets():
        print(name)
        for line in lines.splitlines():
            print(f"  {line}")
    return 0


@app.command
def fetch(kind: Literal["scorers", "prompts", "models"], *names: str, to: Path | None = None) -> int:
    """Download what runs without network need later: verified, and continued where it was interrupted.

    Parameters
    ----------
    kind: str
        scorers, prompts or models.
    names: str
        Which of them; by default all that are published files.
    to: Path
        Folder to put them in, for another machine: ALIGNBENCH_DATA names it there. By default the local caches.
    """
    from alignbench.experiment.fetching import fetch as fetch_files

    paths = fetch_files(kind, names, to, say=lambda line: print(line, flush=True))
    if to is not None and kind != "models":
        print(f"{len(paths)} files; use them with ALIGNBENCH_DATA={to}")
    return 0


@app.command
def score(
    place: Path,
    *,
    scorers: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())],
    prompts: str | None = None,
    split: str = "test",
    scorer_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_unverified: Flag = False,
    device: str = "auto",
    batch_size: int = 32,
    json: Flag = False,
    output: Path | None = None,
) -> int:
    """Score pictures that are there already. Typed again, it continues; scores are kept for the next time.

    Parameters
    ----------
    place: Path
        A folder of pictures, or a result file with its folder beside it.
    scorers: str
        Scorers, as in `alignbench run`.
    prompts: str
        What a folder's pictures were made for: a name or a file. Pictures named by number, such as 00012.png, belong to
        the prompt of that place from 0 on; others to the prompts in the order of their names.
    split: str
        Split of the prompts (default test).
    scorer_dtype: str
        Precision of learned scorers.
    allow_unverified: bool
        Use weights of learned scorers that are not the published ones; the report names them.
    device: str
        auto (default), cpu, cuda, or cuda:1.
    batch_size: int
        Pictures scored at once.
    json: bool
        Print every row as JSON instead of a summary.
    output: Path
        Also write the JSON to this .json file.
    """
    if output is not None and output.suffix != ".json":
        raise InputError(f"--output {output}: expected a .json file.")
    import json as json_module

    from alignbench.diffusion.models import device_of
    from alignbench.downloads import cache_folder
    from alignbench.experiment import score as scoring
    from alignbench.experiment.progress import Progress
    from alignbench.experiment.spec import RunSpec, label, reward_of
    from alignbench.files import write_text

    spec = RunSpec(algo="base", scorers=scorers, scorer_dtype=scorer_dtype, allow_unverified=allow_unverified)
    rewards = {label(name): reward_of(name, spec.scoring) for name in spec.scorers or ()}
    items = scoring.items_of(place, prompts, split)
    _quieten_libraries()
    with Progress(quiet=json) as progress:
        report = scoring.score_items(items, rewards, batch_size, device_of(device), cache_folder() / "scores", progress)
    content = json_module.dumps(scoring.as_values(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    print(content if json else scoring.text(report), end="")
    if output is not None:
        write_text(output, content)
        if not json:
            print(f"written to {output}")
    return 0


@app.command
def serve(
    name: str,
    *,
    port: int = 8000,
    scorer_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_unverified: Flag = False,
    device: str = "auto",
) -> int:
    """Serve a scorer to other environments of this machine, until interrupted: --reward http://127.0.0.1:8000.

    Parameters
    ----------
    name: str
        A scorer, as in `alignbench run`.
    port: int
        Port to listen on, at 127.0.0.1 alone; 0 takes a free one.
    scorer_dtype: str
        Precision of a learned scorer.
    allow_unverified: bool
        Use weights of a learned scorer that are not the published ones; its identity names them.
    device: str
        auto (default), cpu, cuda, or cuda:1.
    """
    from alignbench.diffusion.models import device_of
    from alignbench.experiment.serving import serve as serve_scorer
    from alignbench.experiment.spec import RunSpec, label, reward_of

    spec = RunSpec(algo="base", reward=name, scorer_dtype=scorer_dtype, allow_unverified=allow_unverified)
    assert spec.reward is not None
    _quieten_libraries()

    def ready(url: str) -> None:
        print(f"{spec.reward} at {url}; use it with: alignbench run --reward {url}", flush=True)

    try:
        serve_scorer(label(spec.reward), reward_of(spec.reward, spec.scoring), port, device_of(device), ready)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0


@app.command
def show(file: Path, *, json: Flag = False) -> int:
    """Show one result file.

    Parameters
    ----------
    file: Path
        A result file.
    json: bool
        As JSON.
    """
    import json as json_module

    from alignbench.analysis import summary
    from alignbench.experiment.result import read

    result = read(file)
    if json:
        print(json_module.dumps(summary.as_values(result, file), indent=1, allow_nan=False))
    else:
        print(summary.text(result, file, details=True), end="")
    return 0


@app.command
def env() -> int:
    """Print versions and hardware, for bug reports."""
    from alignbench.experiment.run import environment

    for name, value in environment().items():
        if isinstance(value, dict):
            for package, version in value.items():
                print(f"{package:12} {version}")
        else:
            print(f"{name:12} {value}")
    return 0


@app.command
def suite(file: Path, *, dry_run: Flag = False) -> int:
    """Run the cells of a suite file one after another; finished ones are not run again.

    Parameters
    ----------
    file: Path
        YAML with `defaults` and `cells`, whose keys are the options of `alignbench run`.
    dry_run: bool
        Only list the cells and their result files.
    """
    from alignbench.experiment.spec import RunSpec
    from alignbench.experiment.suite import describe, read_suite, run_suite

    specs = read_suite(file)
    if dry_run:
        for spec in specs:
            print(f"{describe(spec)}  ->  {_resolve(spec).path}")
        return 0
    from alignbench.experiment.run import run_cell

    def one(spec: RunSpec) -> str:
        outcome = run_cell(_resolve(spec))
        result = outcome.result
        reason = f" ({result.reason})" if result.reason else ""
        return f"{result.status}{' before' if outcome.was_complete else ''}{reason}  {outcome.path}"

    reports = run_suite(specs, one, say=lambda line: print(line, file=sys.stderr, flush=True))
    for report in reports:
        print(f"{describe(report.spec):60} {report.status}{': ' + report.message if report.message else ''}")
    return 1 if any(report.status.startswith(("failed", "diverged")) for report in reports) else 0


@app.command
def pairs(
    *,
    model: str = "tiny",
    reward: str | None = None,
    prompts: str | None = None,
    split: str | None = None,
    count: int = 2000,
    candidates: int = 2,
    output: Path = Path("pairs"),
    seed: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    eta: float | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
) -> int:
    """Make preference pairs: images of the model for a prompt, labelled by a reward. Typed again, it continues.

    Parameters
    ----------
    model: str
        tiny (default), another name of `alignbench list models`, a diffusers folder, or a hub id.
    reward: str
        Reward that says which image is preferred; by default the model's own.
    prompts: str
        Prompts of the pairs: a name or a file, by default what the model is trained on.
    split: str
        Split of the prompts (default train).
    count: int
        How many pairs.
    candidates: int
        Images drawn per pair (default 2); of more, the reward's best and worst are kept.
    output: Path
        Folder for images and pairs.jsonl.
    seed: int
        Seed of prompts and images (default 0).
    steps: int
        Sampling steps; guidance and eta likewise.
    guidance: float
        Classifier-free guidance scale; 1 is none.
    eta: float
        Noise of DDIM sampling: 0 is deterministic, 1 ancestral.
    dtype: str
        Precision of the model.
    device: str
        auto (default), cpu, cuda, or cuda:1.
    batch_size: int
        Images generated at once.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    for name in ("count", "candidates", "output"):
        del given[name]
    from alignbench.analysis.tables import number
    from alignbench.experiment.making import make_for, pairs_spec

    cell = _resolve(pairs_spec(given))
    made = make_for(cell, count, candidates, output)
    c, cost = cell.configuration, made.cost
    print(f"{made.pairs} pairs of {cell.model.name} on {c.prompts}/{c.split}, labelled by {c.reward}, in {made.folder}")
    print(f"  ties  {made.ties}")
    print(
        f"  cost  {number(cost.denoiser_forward)} denoiser evaluations, {number(cost.reward_forward)} reward "
        f"evaluations, {made.seconds:.1f} s"
    )
    print(f"learn from them with: alignbench run --algo NAME --model {model} --pairs {made.folder}")
    return 0


@app.command
def accuracy(
    *,
    pairs: Path,
    model: str | None = None,
    adapter: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative=())] = (),
    scorers: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())] = (),
    timesteps: int = 10,
    pair_ties: Literal["drop", "keep"] = "drop",
    pair_models: str | None = None,
    pair_crop: Literal["centre", "random"] = "centre",
    limit: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    json: Flag = False,
    output: Path | None = None,
) -> int:
    """How often scorers, and aligned models as implicit rewards, agree with the labels of preference pairs.

    Parameters
    ----------
    pairs: Path
        Preference pairs, as in `alignbench run`.
    model: str
        The model that was aligned; images then have its size, else their own.
    adapter: Path
        Aligned models: adapter folders, cells' folders, or cells' result files.
    scorers: str
        Scorers; with --model and no --adapter, by default the model's own.
    timesteps: int
        Draws of timestep and noise for each pair (default 10).
    pair_ties: str
        Ties among the pairs: drop (default) or keep.
    pair_models: str
        Only pairs both of whose source models contain this, such as dream.
    pair_crop: str
        How images are cropped to the model's size: centre (default) or random.
    limit: int
        The first pairs only.
    batch_size: int
        Images judged at once.
    seed: int
        Seed of timesteps and noise (default 0).
    device: str
        auto (default), cpu, cuda, or cuda:1.
    dtype: str
        Precision of the model.
    json: bool
        Print JSON instead of a table.
    output: Path
        Also write the JSON to this .json file.
    """
    given = {name: value for name, value in locals().items() if name not in ("adapter", "json", "output")}
    if output is not None and output.suffix != ".json":
        raise InputError(f"--output {output}: expected a .json file.")
    import json as json_module

    from alignbench.experiment.accuracy import AccuracySpec, as_values, measure, text
    from alignbench.files import write_text

    spec = AccuracySpec(adapters=adapter, **given)
    _quieten_libraries()
    report = measure(spec, quiet=json)
    content = json_module.dumps(as_values(report), indent=1, allow_nan=False) + "\n"
    print(content if json else text(report), end="")
    if output is not None:
        write_text(output, content)
        if not json:
            print(f"written to {output}")
    return 0


@app.command
def audit(
    *,
    pairs: Path,
    scorers: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())],
    scorer_dtype: Literal["float32", "bfloat16"] = "float32",
    allow_unverified: Flag = False,
    pair_ties: Literal["drop", "keep"] = "drop",
    pair_models: str | None = None,
    limit: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    device: str = "auto",
    json: Flag = False,
    output: Path | None = None,
    figure: Path | None = None,
) -> int:
    """What scorers are worth on preference pairs: accuracy, agreement with each other, sensitivity to small changes.

    Parameters
    ----------
    pairs: Path
        Preference pairs, as in `alignbench run`.
    scorers: str
        Scorers, as in `alignbench run`.
    scorer_dtype: str
        Precision of learned scorers.
    allow_unverified: bool
        Use weights of learned scorers that are not the published ones; the report names them.
    pair_ties: str
        Ties among the pairs: drop (default) or keep.
    pair_models: str
        Only pairs both of whose source models contain this, such as dream.
    limit: int
        The first pairs only.
    batch_size: int
        Pictures scored at once.
    seed: int
        Seed of the noise and of the intervals (default 0).
    device: str
        auto (default), cpu, cuda, or cuda:1.
    json: bool
        Print JSON instead of tables.
    output: Path
        Also write the JSON to this .json file.
    figure: Path
        Also draw it: .png, .pdf or .svg.
    """
    given = {name: value for name, value in locals().items() if name not in ("json", "output", "figure")}
    if output is not None and output.suffix != ".json":
        raise InputError(f"--output {output}: expected a .json file.")
    if figure is not None and figure.suffix not in PICTURES:
        raise InputError(f"--figure {figure}: expected a .png, .pdf or .svg file.")
    import json as json_module

    from alignbench.experiment import audit_report
    from alignbench.experiment.audit import AuditSpec
    from alignbench.experiment.audit import audit as audit_scorers
    from alignbench.files import replace_file, write_text

    spec = AuditSpec(**given)
    _quieten_libraries()
    report = audit_scorers(spec, quiet=json)
    content = json_module.dumps(audit_report.as_values(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    print(content if json else audit_report.text(report), end="")
    if output is not None:
        write_text(output, content)
    if figure is not None:
        with replace_file(figure) as temporary:
            audit_report.figure(report).savefig(temporary, format=figure.suffix[1:], dpi=150)
    if not json:
        for path in (output, figure):
            print(f"written to {path}" if path else "", end="\n" if path else "")
    return 0


def _quieten_libraries() -> None:
    """Keep the model libraries' progress bars and advice off the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@app.command
def train_reward(
    *,
    pairs: Path,
    output: Path,
    start: str = "shapes_preference",
    steps: int | None = None,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    held_out: float = 0.1,
    seed: int = 0,
    pair_ties: Literal["drop", "keep"] = "drop",
    pair_models: str | None = None,
    force: Flag = False,
    json: Flag = False,
) -> int:
    """Train the embedded model's reward on preference pairs, and measure it on held-out prompts.

    Typed again, it continues. The file it writes can be named wherever a reward can: --reward FILE.safetensors.

    Parameters
    ----------
    pairs: Path
        Preference pairs, in any layout that `alignbench run --pairs` takes; prompts in words of the shapes world.
    output: Path
        File to write, .safetensors.
    start: str
        Network to start from: shapes_preference (default), none, or a .safetensors file of this command.
    steps: int
        Training steps; by default three passes over the pairs. From nothing it takes more.
    batch_size: int
        Pairs per step.
    learning_rate: float
        Its highest value; it rises and falls again.
    held_out: float
        Share of the prompts that is not trained on but measured; which ones, their words alone decide.
    seed: int
        Seed of new weights and of the pairs' order.
    pair_ties: str
        Ties among the pairs: drop (default) or keep, half to either side.
    pair_models: str
        Only pairs both of whose source models contain this, such as dream.
    force: bool
        Replace the output, or a half-finished one, of another configuration.
    json: bool
        Print the report as JSON.
    """
    options = dict(locals())
    flags = {name: options.pop(name) for name in ("force", "json")}
    import json as json_module

    from alignbench.experiment import reward_training

    trained = reward_training.train_reward(
        reward_training.Training(**options), force=flags["force"], quiet=flags["json"]
    )
    if flags["json"]:
        print(json_module.dumps(trained.as_values(), indent=1, allow_nan=False))
        return 0
    if trained.was_complete:
        print("already complete; --force trains it again")
    print(reward_training.text(trained), end="")
    print(f"use it with: alignbench run --algo NAME --model tiny --reward {trained.path}")
    return 0


@app.command
def plot(
    *files: Path,
    against: Literal["rounds", "denoiser", "seconds"] = "rounds",
    scorer: Names = None,
    output: Path = Path("curves.png"),
) -> int:
    """Draw the reward curves of trained methods, with bands over seeds.

    Parameters
    ----------
    files: Path
        Result files, or folders of them (default: results).
    against: str
        The horizontal axis: training rounds, denoiser evaluations, or seconds.
    scorer: str
        Only these scorers.
    output: Path
        Picture to write: .png, .pdf or .svg.
    """
    from alignbench.analysis.plots import reward_curves
    from alignbench.files import replace_file

    _check_picture(output)
    figure = reward_curves(files or (Path("results"),), against, scorer or ())
    with replace_file(output) as temporary:
        figure.savefig(temporary, format=output.suffix[1:], dpi=150)
    print(f"written to {output}")
    return 0


@app.command
def frontier(
    *files: Path,
    scorer: Names = None,
    format: Literal["figure", "csv"] = "figure",
    output: Path | None = None,
) -> int:
    """Draw methods on the exact reward-KL frontier of the problems whose optimum is known.

    Parameters
    ----------
    files: Path
        Result files of --model mixture, or folders of them (default: results/testbed).
    scorer: str
        Only these scorers.
    format: str
        figure, or csv for its data.
    output: Path
        File to write: .png (default frontier.png), .pdf or .svg for a figure; csv goes to the terminal without it.
    """
    from alignbench.analysis.optimality import as_csv, panels
    from alignbench.analysis.plots import frontier_figure
    from alignbench.files import replace_file, write_text

    if format == "figure":
        output = output or Path("frontier.png")
        _check_picture(output)
    elif output is not None and output.suffix in PICTURES:
        raise InputError(f"--output {output}: --format csv is text; name a .csv file.")
    found = panels(files or (Path("results/testbed"),), scorer or ())
    if output is None:
        print(as_csv(found), end="")
        return 0
    if format == "csv":
        write_text(output, as_csv(found))
    else:
        with replace_file(output) as temporary:
            frontier_figure(found).savefig(temporary, format=output.suffix[1:], dpi=150)
        lacking = {
            (p.problem, s.method): s.missing.get("kl", "") for p in found for s in p.standings if "kl" not in s.metrics
        }
        for (problem, method), why in lacking.items():
            print(f"not drawn on {problem}: {method} ({why or 'it has no KL'})")
    print(f"written to {output}")
    return 0


def _check_picture(output: Path) -> None:
    if output.suffix not in PICTURES:
        raise InputError(f"--output {output}: expected a .png, .pdf or .svg file.")


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every failure is one line on stderr unless --debug is given."""
    debug = "--debug" in arguments
    try:
        code = app([a for a in arguments if a != "--debug"], exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        print(f"alignbench: {_one_line(error)}", file=sys.stderr)
        return 2
    except AlignbenchError as error:
        if debug:
            raise
        print(f"alignbench: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("alignbench: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        print(f"alignbench: unexpected {kind}: {_one_line(error)} (--debug shows where)", file=sys.stderr)
        return 1


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
