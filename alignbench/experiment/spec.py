"""What a run is asked to do, and what that resolves to."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from alignbench import plugins
from alignbench.diffusion import adapters, models
from alignbench.diffusion.checkpoints import Options
from alignbench.errors import InputError, RunError, UnknownName
from alignbench.experiment import prompts as prompt_sets
from alignbench.experiment import readiness
from alignbench.experiment.editing import Sources, read_sources
from alignbench.experiment.result import Configuration, canonical
from alignbench.experiment.trained import adapter_folder
from alignbench.interface import (
    Algorithm,
    Kernel,
    PairAlgorithm,
    Prompt,
    Prompts,
    Reward,
    Sampling,
    TestTimeAlgorithm,
    TrainsOnEvaluated,
)
from alignbench.preferences.choosing import Chosen, Ties, choose
from alignbench.preferences.encoded import Crop
from alignbench.preferences.source import open_pairs
from alignbench.testbed.problem import problem_of

DType = Literal["float32", "float16", "bfloat16"]
ScorerDType = Literal["float32", "bfloat16"]
EXACT_PAIRS = 10_000  # of the mixture, by default
PAIR_OPTIONS = ("pairs", "pair_count", "pair_candidates", "pair_ties", "pair_models", "pair_crop")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RunSpec(BaseModel):
    """The options of `alignbench run`; also the keys of a `--config` file and of a suite's cells."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    algo: str
    model: str = "tiny"
    reward: str | None = None
    prompts: str | None = None
    split: str = "test"
    train_prompts: str | None = None
    pairs: Path | None = None
    pair_count: Annotated[int, Field(ge=2)] | None = None
    pair_candidates: Annotated[int, Field(ge=2)] | None = None
    pair_ties: Ties = "drop"
    pair_models: str | None = None
    pair_crop: Crop = "centre"
    scorers: tuple[str, ...] | None = None
    scorer_dtype: ScorerDType = "float32"
    allow_unverified: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    eval_seed: Annotated[int, Field(ge=0)] = 0
    set: dict[str, Any] = {}
    limit: Annotated[int, Field(ge=1)] | None = None
    images_per_prompt: Annotated[int, Field(ge=1)] = 1
    steps: int | None = None
    guidance: float | None = None
    eta: float | None = None
    kernel: Kernel = "ddim"
    dtype: DType = "float32"
    output: Path = Path("results")
    name: str | None = None
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None
    checkpointing: bool = False
    adapter: Path | None = None
    vae: str | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
    resolution: tuple[int, int] | None = None
    budget: dict[Literal["nfe", "reward_evals", "seconds"], Positive] | None = None
    task: Literal["generate", "sdedit"] = "generate"
    images: Path | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = None

    @field_validator("reward", "scorers")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        """Scorers under the names that results use, whichever the user typed."""
        if isinstance(value, tuple):
            return tuple(plugins.canonical("rewards", name) for name in value)
        return value and plugins.canonical("rewards", value)

    @field_validator("resolution", mode="before")
    @classmethod
    def _pixels(cls, value: Any) -> Any:
        """512 or 768x512 (height and width) as a pair."""
        if not isinstance(value, int | str):
            return value
        found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(value))
        if not found:
            raise ValueError("expected pixels such as 512, or HEIGHTxWIDTH such as 768x512")
        return (int(found[1]), int(found[2] or found[1]))

    @property
    def scoring(self) -> dict[str, Any]:
        """How learned rewards are to be made, where that is not as usual."""
        chosen = {"dtype": self.scorer_dtype, "allow_unverified": self.allow_unverified}
        return {name: value for name, value in chosen.items() if value not in ("float32", False)}


def parse_spec(values: Mapping[str, Any], where: str) -> RunSpec:
    """A RunSpec from plain values. Raises InputError naming the key; `where` says which file or command it is in."""
    for key in values:
        if key not in RunSpec.model_fields:
            raise InputError(f"{where}: {UnknownName('option', str(key), RunSpec.model_fields)}")
    try:
        return RunSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {name}: {first['msg']}, got {first['input']!r}.") from None


class Defaults(BaseModel):
    """What a model is evaluated on and aligned with by default: the `[model]` table of its preset."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompts: str
    train_prompts: str | None = None
    rewards: tuple[str, ...] = ()  # the first that can score the prompts is optimised
    scorers: tuple[str, ...] = ()
    pair_count: int = 2000  # made where none are given
    pair_candidates: int = 2

    def reward(self, evaluated: Sequence[Prompt]) -> str | None:
        """The reward to optimise where none is named."""
        if len(self.rewards) < 2:
            return next(iter(self.rewards), None)
        usable = (name for name in self.rewards if reward_of(name).unsupported(evaluated, ()) is None)
        return next(usable, self.rewards[0])


@dataclasses.dataclass(frozen=True)
class Cell:
    """A resolved run: everything loaded but the model's weights."""

    spec: RunSpec
    algorithm: Algorithm
    model: models.Model
    configuration: Configuration
    sampling: Sampling
    preset: str | None
    differs_from_paper: dict[str, Any]
    evaluated: Sequence[Prompt]
    prompts_sha256: str
    training: Prompts
    held_out: Sequence[Prompt]  # the dev split, for probes while training
    chosen: Chosen | None  # preference pairs of a file, for algorithms that learn from them
    sources: Sources | None  # images to start from, for an editing task
    reward: Reward | None
    scorers: dict[str, Reward]
    adapter: Path | None  # the folder of weights that the model has from the start
    path: Path

    def options(self, device: str) -> Options:
        """How the model is to be held on a device."""
        spec = self.spec
        return Options(device, spec.dtype, spec.resolution, spec.checkpointing, spec.vae_slicing, spec.vae_tiling)

    @property
    def folder(self) -> Path:
        """Where images, adapter, checkpoint and curve go: beside the result, with its stem."""
        return self.path.with_suffix("")


def resolve(spec: RunSpec) -> Cell:
    """Load the named plug-ins, apply preset and overrides, check what can be checked without the model's weights."""
    model = models.find(spec.model)
    defaults = defaults_of(model)
    kind = plugins.load("algorithms", spec.algo)
    algorithm, preset = build_algorithm(spec.algo, kind, model.preset, spec.set)
    needs_prompts = algorithm.trains and spec.pairs is None
    if spec.checkpointing and not algorithm.trains:
        raise InputError(f"--checkpointing: {spec.algo!r} trains nothing and keeps no activations; leave it out.")
    adapter = _adapter(spec, model, algorithm)
    if spec.budget and not isinstance(algorithm, TestTimeAlgorithm):
        why = "trains" if algorithm.trains else "has nothing to choose"
        raise InputError(f"--budget: {spec.algo!r} {why}: what an image costs is the model's sampling; leave it out.")
    sampling = _sampling(model, spec)

    sources = _sources(spec, model)
    prompts_name = str(spec.images) if sources else spec.prompts or defaults.prompts
    try:
        whole = prompt_sets.take(prompts_name, spec.split)
        train_name, training = _training_prompts(spec, defaults, prompts_name, needs_prompts)
    except RunError:  # a file is missing: say what else is
        check_ready(spec, model, needs_prompts)
        raise
    evaluated = whole[: spec.limit]
    if model.source == "exact":
        _check_exact(spec, algorithm, evaluated, training)
    if needs_prompts:
        training = _disjoint(spec, training, whole, train_name, prompts_name)
    held_out_set = prompt_sets.find(train_name) if train_name else None
    held_out = held_out_set.prompts("dev") if held_out_set and "dev" in held_out_set.splits else ()

    default_reward = defaults.reward(evaluated)
    reward_name = spec.reward or default_reward
    reward = reward_of(reward_name, spec.scoring) if reward_name else None
    chosen, pairs = _pairs(spec, defaults, algorithm, model, whole, train_name, reward_name)
    scorers = _scorers(spec, defaults, reward_name, evaluated)
    configuration = Configuration(
        algorithm=spec.algo,
        fields=dataclasses.asdict(algorithm),  # type: ignore[call-overload]
        model=model.identity,
        prompts=prompts_name,
        split=spec.split,
        limit=spec.limit,
        images_per_prompt=spec.images_per_prompt,
        reward=reward_name,
        train_prompts=train_name if algorithm.trains and chosen is None else None,
        pairs=pairs,
        scorers=list(scorers),
        sampling=sampling.as_dict(),
        dtype=spec.dtype,
        eval_seed=spec.eval_seed,
        seed=spec.seed if algorithm.trains else None,
        budget={str(kind): limit for kind, limit in spec.budget.items()} if spec.budget else None,
        task={"name": "sdedit", "strength": sources.strength, "images_sha256": sources.sha256} if sources else None,
        adapter=adapters.digest(adapter) if adapter else None,
        vae=_vae(spec),
        vae_tiling=spec.vae_tiling,
        resolution="x".join(map(str, spec.resolution)) if spec.resolution else None,
    )
    return Cell(
        spec=spec,
        algorithm=algorithm,
        model=model,
        configuration=configuration,
        sampling=sampling,
        preset=preset,
        differs_from_paper=_differences(kind(), algorithm),
        evaluated=evaluated,
        prompts_sha256=prompt_sets.digest(whole),
        training=training,
        held_out=held_out,
        chosen=chosen,
        sources=sources,
        reward=reward,
        scorers=scorers,
        adapter=adapter,
        path=spec.output / f"{_stem(spec, model, default_reward, configuration)}.json",
    )


def check_ready(spec: RunSpec, model: models.Model, needs_prompts: bool) -> None:
    """Raise RunError naming everything that a run needs and is missing, where it is several things and the network."""
    defaults = defaults_of(model)
    evaluated = spec.prompts or defaults.prompts
    prompts = [] if spec.task == "sdedit" else [evaluated]
    own = evaluated in plugins.names("benchmarks") and "train" in plugins.load("benchmarks", evaluated).splits
    if needs_prompts and (name := spec.train_prompts or (None if own else defaults.train_prompts)):
        prompts.append(name)
    rewards = [spec.reward] if spec.reward else defaults.rewards[:1]
    readiness.check(model, prompts, [*rewards, *(defaults.scorers if spec.scorers is None else spec.scorers)])


def build_algorithm(
    name: str, kind: type[Any], preset_name: str, overrides: Mapping[str, Any]
) -> tuple[Algorithm, str | None]:
    """An algorithm with the model's preset and then the user's overrides applied, and the preset's name."""
    if not (dataclasses.is_dataclass(kind) and hasattr(kind, "align")):
        raise InputError(f"algorithm {name!r} is not a dataclass with an `align` method.")
    types = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    preset = _preset(preset_name).get(name, {})
    values: dict[str, Any] = {}
    for source in (preset, overrides):
        for field, value in source.items():
            if field not in known:
                raise InputError(f"{name}: {UnknownName('field', field, known)}")
            try:
                values[field] = TypeAdapter(_written(types[field])).validate_python(value)
            except ValidationError as error:
                raise InputError(f"{name}: {field}={value!r}: {error.errors()[0]['msg']}.") from None
    try:
        algorithm = kind(**values)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    assert isinstance(algorithm, Algorithm)
    return algorithm, preset_name if preset else None


def _written(kind: Any) -> Any:
    """A field's type as it is written: neither command lines nor TOML have a None, so a field that may be one takes
    "none"."""
    return Annotated[kind, BeforeValidator(_none)] if type(None) in get_args(kind) else kind


def _none(value: Any) -> Any:
    return None if value == "none" else value


def defaults_of(model: models.Model) -> Defaults:
    """The `[model]` table of a model's preset."""
    return Defaults(**_preset(model.preset)["model"])


def _preset(name: str) -> dict[str, dict[str, Any]]:
    """`algorithms/presets/<name>.toml`: a `[model]` table and one per algorithm; for other models, `other.toml`."""
    folder = plugins.folder_of("algorithms") / "presets"
    own = folder / f"{name}.toml"
    return tomllib.loads((own if own.is_file() else folder / "other.toml").read_text(encoding="utf-8"))


def _differences(paper: Algorithm, chosen: Algorithm) -> dict[str, Any]:
    fields = dataclasses.fields(chosen)  # type: ignore[arg-type]
    pairs = {f.name: (getattr(chosen, f.name), getattr(paper, f.name)) for f in fields}
    return {name: {"value": own, "paper": other} for name, (own, other) in pairs.items() if own != other}


def _adapter(spec: RunSpec, model: models.Model, algorithm: Algorithm) -> Path | None:
    """The folder of --adapter. Raises InputError where the method would train what is trained already."""
    if algorithm.trains and (spec.adapter is not None or not model.trainable):
        what = f"--model {model.name}" if spec.adapter is None else f"--adapter {spec.adapter}"
        raise InputError(
            f"{what} is for evaluation, and {spec.algo!r} trains; choose --algo base or a test-time method."
        )
    if spec.adapter is not None and model.refiner is not None:
        raise InputError(
            f"--adapter: {model.name!r} is two models, and an adapter is of one; use --model {model.like}."
        )
    return adapter_folder(spec.adapter) if spec.adapter is not None else None


def _vae(spec: RunSpec) -> str | None:
    """What the configuration keeps of --vae: of a folder what it holds, of the hub's its name."""
    if spec.vae is None or not Path(spec.vae).is_dir():
        return spec.vae
    return models.autoencoder_digest(models.find_autoencoder(spec.vae))


def _check_exact(spec: RunSpec, algorithm: Algorithm, evaluated: Sequence[Prompt], training: Prompts) -> None:
    """Refuse what the exact model would have to ignore, and two distributions at once."""
    for name in ("vae", "vae_slicing", "vae_tiling", "resolution"):
        if getattr(spec, name):
            raise InputError(f"--{name.replace('_', '-')}: model 'mixture' makes points, not pictures; leave it out.")
    if spec.dtype != "float32":
        raise InputError(f"--dtype {spec.dtype}: model 'mixture' computes in float64; leave it out.")
    if spec.device not in ("auto", "cpu"):
        raise InputError(f"--device {spec.device}: model 'mixture' runs on the CPU; leave it out.")
    if spec.guidance not in (None, 1):
        raise InputError(f"--guidance {spec.guidance:g}: model 'mixture' has no prompts to be guided by; leave it out.")
    if spec.kernel == "exact" and algorithm.trains:
        raise InputError(f"--kernel exact: a policy that {spec.algo!r} trains has no exact kernel; leave it out.")
    problem_of([*evaluated[:1], *(training[:1] if algorithm.trains else ())])


def _sampling(model: models.Model, spec: RunSpec) -> Sampling:
    if spec.kernel == "exact":
        if model.source != "exact":
            raise InputError(
                f"--kernel exact: the reverse kernel of model {model.name!r} is not known; only mixture's is."
            )
        if spec.eta is not None:
            raise InputError("--kernel exact draws from p(x_s | x_t) itself; --eta has no place in it.")
    try:
        return Sampling(
            kernel=spec.kernel,
            steps=model.steps if spec.steps is None else spec.steps,
            guidance=model.guidance if spec.guidance is None else spec.guidance,
            eta=model.eta if spec.eta is None else spec.eta,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def _sources(spec: RunSpec, model: models.Model) -> Sources | None:
    """The images to edit, or None where images are made from noise."""
    if spec.task == "generate":
        for name in ("images", "strength"):
            if getattr(spec, name) is not None:
                raise InputError(f"--{name}: only --task sdedit starts from images; add it, or leave this out.")
        return None
    if spec.budget:
        raise InputError("--budget counts whole chains, and --task sdedit runs a part of one; leave one of them out.")
    if model.source == "exact":
        raise InputError("--task sdedit: model 'mixture' makes points, not pictures; choose another --model.")
    if spec.images is None or spec.strength is None:
        raise InputError("--task sdedit needs --images FILE.jsonl and --strength, such as 0.6.")
    if spec.prompts is not None or spec.split != "test":
        raise InputError("--task sdedit: the prompts are those of --images; leave --prompts and --split out.")
    return read_sources(spec.images, spec.strength)


def _training_prompts(spec: RunSpec, defaults: Defaults, prompts_name: str, needed: bool) -> tuple[str | None, Prompts]:
    """The training split of --train-prompts, else of the evaluated set, else, where prompts are needed, of the model's
    own default."""
    if spec.train_prompts:
        prompt_set = prompt_sets.find(spec.train_prompts)
        split = "train" if "train" in prompt_set.splits else prompt_set.splits[0]
        return spec.train_prompts, Prompts(prompt_set.prompts(split))
    for name in (prompts_name, defaults.train_prompts if needed else None):
        if name and "train" in prompt_sets.find(name).splits:
            return name, Prompts(prompt_sets.find(name).prompts("train"))
    return None, Prompts(())


def _disjoint(
    spec: RunSpec, training: Prompts, evaluated: Sequence[Prompt], train_name: str | None, prompts_name: str
) -> Prompts:
    """The training prompts without those that are evaluated. Raises InputError where a user named sets that share
    some, unless the set is one that is meant to be trained on and evaluated."""
    shared = prompt_sets.overlap(training, evaluated)
    if not shared:
        return training
    if train_name == prompts_name and isinstance(prompt_sets.find(prompts_name), TrainsOnEvaluated):
        return training
    if spec.train_prompts or train_name == prompts_name:
        raise InputError(
            f"{len(shared)} prompts would be both trained on and evaluated, such as {shared[0]!r}; "
            "choose another --train-prompts or --split."
        )
    return Prompts(prompt_sets.without(training, evaluated))


def _pairs(
    spec: RunSpec,
    defaults: Defaults,
    algorithm: Algorithm,
    model: models.Model,
    evaluated: Sequence[Prompt],
    train_name: str | None,
    reward_name: str | None,
) -> tuple[Chosen | None, dict[str, Any] | None]:
    """The pairs of a file, and what the configuration keeps of them or of pairs that the base model will make."""
    learns = isinstance(algorithm, PairAlgorithm) and algorithm.learns_from_pairs
    if not learns or model.source == "exact":
        default = RunSpec(algo=spec.algo)
        given = [name for name in PAIR_OPTIONS if getattr(spec, name) != getattr(default, name)]
        if given and not (learns and given == ["pair_count"]):
            why = f"{spec.algo!r} learns from no pairs" if not learns else "model 'mixture' makes its own pairs"
            raise InputError(f"--{given[0].replace('_', '-')}: {why}; leave it out.")
        return None, {"source": "exact", "count": spec.pair_count or EXACT_PAIRS} if learns else None
    unused = ("pair_models", "pair_crop") if spec.pairs is None else ("pair_count", "pair_candidates")
    for name in unused:
        if getattr(spec, name) != getattr(RunSpec(algo=spec.algo), name):
            why = "only pairs of a file (--pairs) have a choice of it" if spec.pairs is None else "--pairs has its own"
            raise InputError(f"--{name.replace('_', '-')}: {why}; leave it out.")
    if spec.pairs is None:
        if train_name is None or reward_name is None:
            return None, None
        count, candidates = spec.pair_count or defaults.pair_count, spec.pair_candidates or defaults.pair_candidates
        made = {"source": "made", "count": count, "candidates": candidates, "ties": spec.pair_ties}
        return None, made | {"reward": reward_name, "prompts": train_name}
    chosen = choose(open_pairs(spec.pairs), spec.pair_ties, spec.pair_models, {p.text for p in evaluated})
    kept: dict[str, Any] = {"source": spec.pairs.name, "sha256": chosen.sha256, "count": len(chosen)}
    return chosen, kept | {"ties": spec.pair_ties, "models": spec.pair_models, "crop": spec.pair_crop}


def label(name: str) -> str:
    """A plug-in's name in columns and file names: of `path/file.py:Name`, the last part; of weights, the stem; of a
    scorer that is served, its own or the host and port."""
    if remote := plugins.served(name):
        return remote[0]
    plain, equals, weights = name.partition("=")
    if equals and plain.isidentifier():
        return f"{plain}-{Path(weights).stem}"
    return Path(name).stem if name.endswith(plugins.WEIGHTS) else name.rpartition(":")[2]


def reward_of(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> Reward:
    """The reward a name means, with those of the options that it has (dtype, allow_unverified). Raises InputError where
    it does not fit the interface."""
    kind = plugins.load("rewards", name)
    known = inspect.signature(kind).parameters
    reward = kind(**{option: value for option, value in options.items() if option in known})
    if not isinstance(reward, Reward):
        raise InputError(f"reward {name!r} lacks one of: differentiable, __call__, with_grad, info, unsupported.")
    return reward


def _scorers(
    spec: RunSpec, defaults: Defaults, reward_name: str | None, evaluated: Sequence[Prompt]
) -> dict[str, Reward]:
    """The training reward first, then the held-out scorers. Default ones that cannot score these prompts are left
    out; named ones that cannot are an error."""
    named = {name for name in (spec.reward, *(spec.scorers or ())) if name}
    wanted = [*([reward_name] if reward_name else []), *(defaults.scorers if spec.scorers is None else spec.scorers)]
    chosen, why = {}, ""
    for name in dict.fromkeys(wanted):
        reward = reward_of(name, spec.scoring)
        reason = reward.unsupported(evaluated, ())
        if reason is None and label(name) in chosen:
            raise InputError(f"two scorers would be called {label(name)!r}, one of them {name!r}; rename a file.")
        if reason is None:
            chosen[label(name)] = reward
        elif name in named:
            raise InputError(f"scorer {name!r} cannot score these prompts: {reason}")
        why = why or (f" ({name}: {reason.rstrip('.')})" if reason else "")
    if not chosen:
        raise InputError(f"nothing would be scored{why}; pass --reward NAME or --scorers NAME (see `alignbench list`).")
    return chosen


def _stem(spec: RunSpec, model: models.Model, default_reward: str | None, configuration: Configuration) -> str:
    """<model>-<prompts>-<algo>[-<reward>][-<name or hash of what is not default>][-seed<k>]"""
    parts = [model.name, prompt_sets.label(configuration.prompts), label(configuration.algorithm)]
    if configuration.reward != default_reward and configuration.reward is not None:
        parts.append(label(configuration.reward))
    if spec.name is not None:
        if not re.fullmatch(r"[\w.=-]+", spec.name):
            raise InputError(f"--name {spec.name!r}: expected letters, digits, '.', '_', '=' and '-'.")
        parts.append(spec.name)
    else:
        default = RunSpec(algo=spec.algo)
        plain = (
            "set",
            "split",
            "limit",
            "images_per_prompt",
            "eval_seed",
            "kernel",
            "dtype",
            "scorers",
            "scorer_dtype",
            "allow_unverified",
            "train_prompts",
            "budget",
            "task",
            "strength",
            "vae",
            "vae_tiling",
            "resolution",
            *PAIR_OPTIONS,
        )
        changed = {name: getattr(spec, name) for name in plain if getattr(spec, name) != getattr(default, name)}
        changed |= {"adapter": configuration.adapter} if configuration.adapter else {}
        changed |= {name: v for name in ("steps", "guidance", "eta") if (v := getattr(spec, name)) is not None}
        if changed:
            parts.append(hashlib.sha256(canonical(_text(changed)).encode()).hexdigest()[:6])
    if configuration.seed is not None:
        parts.append(f"seed{configuration.seed}")
    return "-".join(parts)


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as a user may write them, so that --set n=4 and `set: {n: 4}` name the same file."""
    return {k: {n: str(x) for n, x in v.items()} if isinstance(v, dict) else str(v) for k, v in values.items()}
