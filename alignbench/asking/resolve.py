"""What options resolve to: a cell, with everything loaded but the model's weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignbench import plugins
from alignbench.asking import data, naming
from alignbench.asking import prompts as prompt_sets
from alignbench.asking.adapter_folders import adapter_folder
from alignbench.asking.needs import Needs
from alignbench.asking.options import RunOptions, SamplingOptions
from alignbench.asking.papers import BesidePaper, beside
from alignbench.asking.presets import Defaults, build_algorithm, defaults_of
from alignbench.asking.rewarded import NoReward, reward_name_of
from alignbench.asking.sources import IMAGE, Sources
from alignbench.choices import NO_REWARD
from alignbench.diffusion import registry
from alignbench.diffusion.latent_family import LatentFamily
from alignbench.diffusion.registry import Family, Hold, Model
from alignbench.errors import InputError
from alignbench.interface import (
    Algorithm,
    PairAlgorithm,
    Prompt,
    Prompts,
    Reward,
    Sampling,
    TestTimeAlgorithm,
)
from alignbench.plugins import label, reward_of
from alignbench.preferences.choosing import Chosen
from alignbench.quantities import UNGUIDED, guided
from alignbench.record.result import Configuration
from alignbench.sourced import Sourced

Asked = TypeVar("Asked", bound=SamplingOptions)
# Strength of each kernel's noise in its authors' configurations, named where nothing else gives one.
USUAL_NOISE: Mapping[str, float] = {"flow_sde": 0.7, "dance_sde": 0.3, "cps": 0.8}


@dataclass(frozen=True)
class Cell:
    """A resolved run: everything loaded but the model's weights."""

    options: RunOptions
    algorithm: Algorithm
    model: Model
    family: Family
    needs: Needs  # what is not on this machine
    configuration: Configuration
    sampling: Sampling
    preset: str | None
    beside: BesidePaper | None  # what was published of the algorithm
    evaluated: Sequence[Prompt]
    prompts_sha256: str
    training: Prompts
    held_out: Sequence[Prompt]  # the dev split, for probes while training
    chosen: Chosen | None  # preference pairs of a file, for algorithms that learn from them
    sources: Sources | None  # images to start from, for an editing task
    reward: Reward
    reward_name: str
    scorers: dict[str, Reward]
    adapter: Path | None  # the folder of weights that the model has from the start
    path: Path

    def hold(self, device: str) -> Hold:
        """How the model is to be held on a device."""
        o = self.options
        return Hold(
            device=device,
            dtype=o.dtype,
            resolution=o.resolution,
            checkpointing=o.checkpointing,
            slicing=o.vae_slicing,
            tiling=o.vae_tiling,
            autoencoder=o.vae,
            sigmas=o.sigmas,
            tokens=o.text_length,
            compiling=o.compile,
            channels_last=o.channels_last,
            attention=o.attention,
        )

    @property
    def folder(self) -> Path:
        """Where images, adapter, checkpoint and curve go: beside the result, with its stem."""
        return self.path.with_suffix("")

    @property
    def notes(self) -> list[str]:
        """What to know of the files it reads, in sentences: columns that nothing uses, images that were changed."""
        c = self.configuration
        notes = prompt_sets.notes_on(c.prompts, used=(IMAGE,) if self.sources else ())
        notes += prompt_sets.notes_on(c.train_prompts) if c.train_prompts and c.train_prompts != c.prompts else []
        learns_from_pairs = isinstance(self.algorithm, PairAlgorithm) and self.algorithm.learns_from_pairs
        if learns_from_pairs and self.sampling.embedded_guidance:
            told = f"{self.sampling.guidance:g} where images are drawn and {UNGUIDED:g} in the loss on pairs"
            notes.append(f"guidance: the denoiser is told its scale, {told}")
        return notes + ([f"images: {'; '.join(self.sources.notes)}"] if self.sources and self.sources.notes else [])


def resolve(options: RunOptions) -> Cell:
    """Load the named plug-ins, apply preset and overrides, check what can be checked without the model's weights."""
    model = registry.find(options.model)
    options = under_one_name(model, options)
    family = registry.family_of(model)
    defaults = defaults_of(model)
    kind = plugins.load("algorithms", options.algorithm)
    algorithm, preset = build_algorithm(options.algorithm, kind, model.preset, options.set)
    sampling = sampling_of(model, options)
    _check_algorithm(options, model, algorithm, sampling)
    family.refuse(model, options, options.algorithm, algorithm.trains)
    adapter, adapter_digest = _adapter(options, family)
    asked = data.prompts_of(options, model, family, defaults, algorithm)
    reward_name = reward_name_of(options, defaults, algorithm, asked.evaluated)
    reward = reward_of(reward_name, options.scoring) if reward_name is not None else NoReward()
    chosen, pairs = data.pairs_of(options, defaults, algorithm, family, asked, reward_name)
    scorers = _scorers(options, defaults, reward_name, asked.evaluated)
    train_name = _scored(asked, reward, reward_name) if algorithm.trains and chosen is None else None
    own = {reward_name: reward} if reward_name is not None else {}
    configuration = Configuration(
        algorithm=options.algorithm,
        fields=dataclasses.asdict(algorithm),  # type: ignore[call-overload]
        model=model.identity,
        prompts=asked.name,
        split=options.split,
        limit=options.limit,
        images_per_prompt=options.images_per_prompt,
        reward=reward_name,
        train_prompts=train_name,
        pairs=pairs,
        scorers=[label(name) for name in scorers],
        sampling=sampling.as_dict() | _flow_choices(options),
        dtype=options.dtype,
        eval_seed=options.eval_seed,
        seed=options.seed if algorithm.trains else None,
        budget={str(kind): limit for kind, limit in options.budget.items()} if options.budget else None,
        task=asked.sources.task if asked.sources else None,
        adapter=adapter_digest,
        vae=_vae(options, family, model),
        vae_tiling=options.vae_tiling,
        resolution="x".join(map(str, options.resolution)) if options.resolution else None,
        code=_code(options, kind, own | scorers, options.prompts, train_name),
    )
    return Cell(
        options=options,
        algorithm=algorithm,
        model=model,
        family=family,
        needs=asked.needs,
        configuration=configuration,
        sampling=sampling,
        preset=preset,
        beside=beside(algorithm, sampling, model, reward_name),
        evaluated=asked.evaluated,
        prompts_sha256=prompt_sets.digest(asked.whole),
        training=asked.training,
        held_out=asked.held_out,
        chosen=chosen,
        sources=asked.sources,
        reward=reward,
        reward_name=reward_name or NO_REWARD,
        scorers={label(name): scorer for name, scorer in scorers.items()},
        adapter=adapter,
        path=_path(options, model, defaults, asked.evaluated, configuration),
    )


def _flow_choices(options: RunOptions) -> dict[str, str | int | float | bool | None]:
    """What was chosen of a flow model's sampling besides; nothing of what is the model's own."""
    chosen = {"sigmas": options.sigmas, "text_length": options.text_length}
    return {name: value for name, value in chosen.items() if value is not None}


def _adapter(options: RunOptions, family: Family) -> tuple[Path | None, str | None]:
    """The weights that the model has from the start, and their digest."""
    if options.adapter is None:
        return None, None
    adapter = adapter_folder(options.adapter)
    return adapter, family.adapter_digest(adapter)


def _path(
    options: RunOptions, model: Model, defaults: Defaults, evaluated: Sequence[Prompt], configuration: Configuration
) -> Path:
    stem = naming.stem(options, model.name, defaults.reward(evaluated), configuration)
    return options.output / f"{stem}.json"


def _check_algorithm(options: RunOptions, model: Model, algorithm: Algorithm, sampling: Sampling) -> None:
    """Refuse options that this algorithm would have to ignore, and training what is trained already."""
    if options.report_to and not algorithm.trains:
        raise InputError(f"--report-to: {options.algo!r} trains nothing and has no curve to show; leave it out.")
    if options.checkpointing and not algorithm.trains:
        raise InputError(f"--checkpointing: {options.algo!r} trains nothing and keeps no activations; leave it out.")
    if algorithm.trains and (options.adapter is not None or not model.trainable):
        what = f"--model {model.name}" if options.adapter is None else f"--adapter {options.adapter}"
        raise InputError(
            f"{what} is for evaluation, and {options.algo!r} trains; choose --algo base or a test-time method."
        )
    if options.adapter is not None and (model.refiner is not None or model.adapter is not None):
        has = "is two models, and an adapter is of one" if model.refiner else "has an adapter already"
        raise InputError(f"--adapter: {model.name!r} {has}; use --model {model.like}.")
    if options.budget and not isinstance(algorithm, TestTimeAlgorithm):
        why = f"{options.algo!r} {'trains' if algorithm.trains else 'has nothing to choose'}"
        raise InputError(f"--budget: {why}: what an image costs is the model's sampling; leave it out.")
    _check_kernel(options, algorithm, sampling)


def _check_kernel(options: RunOptions, algorithm: Algorithm, sampling: Sampling) -> None:
    """Refuse a kernel that a test-time method would replace by its own, and one that would draw no noise, neither of
    the cell's strength nor of the algorithm's own."""
    fields = dataclasses.asdict(algorithm)  # type: ignore[call-overload]
    if sampling.kernel != "ddim" and "kernel" in fields and not algorithm.trains:
        raise InputError(
            f"--kernel {sampling.kernel}: {options.algo!r} draws with a kernel of its own, {fields['kernel']}; leave "
            "it out, or --set kernel=NAME."
        )
    own = None if "kernel" in fields else fields.get("eta")
    if sampling.kernel in USUAL_NOISE and sampling.eta == 0 and own is None:
        whose = f" for model {options.model!r}" if options.eta is None else ""
        raise InputError(
            f"--kernel {sampling.kernel} draws noise of strength --eta, which is 0{whose}: no noise at all; give "
            f"--eta, such as {USUAL_NOISE[sampling.kernel]}."
        )


def _or_fetch(model: Model) -> str:
    """What else may be done where nothing is known of a model but its place on the hub."""
    of_hub = model.preset == "other" and not Path(model.source).is_absolute()
    return f", or, if its files are not here yet, `alignbench fetch models {model.source}` first" if of_hub else ""


def under_one_name(model: Model, options: Asked) -> Asked:
    """The options with one way of saying that there is no guidance: 1. A denoiser that is told it is told any."""
    if model.guiding == "embedded" or options.guidance is None or not 0 <= options.guidance < UNGUIDED:
        return options
    return options.model_copy(update={"guidance": UNGUIDED})


def sampling_of(model: Model, options: SamplingOptions) -> Sampling:
    """How a model is sampled: as asked, else in its own way. Raises InputError."""
    kernel = options.kernel if isinstance(options, RunOptions) else "ddim"
    if kernel == "exact" and options.eta is not None:
        raise InputError("--kernel exact draws from p(x_s | x_t) itself; --eta has no place in it.")
    either = f"leave it out{_or_fetch(model)}."
    if options.sigmas is not None and model.sigmas is None:
        raise InputError(f"--sigmas {options.sigmas}: model {model.name!r} is no flow model with grids; {either}")
    if options.text_length is not None and model.tokens is None:
        of = f"--text-length {options.text_length}: model {model.name!r}"
        raise InputError(f"{of} has no text of T5 or Qwen of that length; {either}")
    if model.guiding == "none" and options.guidance is not None and guided(options.guidance):
        raise InputError(
            f"--guidance {options.guidance:g}: this model has no guidance ({model.name!r} was distilled without it); "
            "leave it out."
        )
    try:
        return Sampling(
            kernel=kernel,
            steps=model.steps if options.steps is None else options.steps,
            guidance=model.guidance if options.guidance is None else options.guidance,
            eta=model.eta if options.eta is None else options.eta,
            embedded_guidance=model.guiding == "embedded",
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def _scorers(
    options: RunOptions, defaults: Defaults, reward_name: str | None, evaluated: Sequence[Prompt]
) -> dict[str, Reward]:
    """The reward and the held-out scorers that can score these prompts, by name. Raises InputError for one that was
    named and cannot, and for two of one column."""
    plugins.check_columns(options.scorers or ())
    named = {name for name in (options.named_reward, *(options.scorers or ())) if name}
    others = defaults.scorers if options.scorers is None else options.scorers
    first = [reward_name] if reward_name else [] if options.scorers else [defaults.reward(evaluated)]
    chosen, why = {}, ""
    for name in dict.fromkeys([*first, *others]):
        reward = reward_of(name, options.scoring)
        reason = reward.unsupported(evaluated, ())
        if reason is None:
            chosen[name] = reward
        elif name in named:
            raise InputError(f"scorer {name!r} cannot score these prompts: {reason}")
        why = why or (f" ({name}: {reason.rstrip('.')})" if reason else "")
    if not chosen:
        raise InputError(f"nothing would be scored{why}; pass --reward NAME or --scorers NAME (see `alignbench list`).")
    plugins.check_columns(chosen)
    return chosen


def _scored(asked: data.CellPrompts, reward: Reward, reward_name: str | None) -> str | None:
    """The name of the training prompts. Raises InputError where the reward cannot score them."""
    if asked.train_name is not None and (reason := reward.unsupported(asked.training, ())):
        raise InputError(
            f"reward {reward_name!r} cannot score the training prompts of {asked.train_name}: {reason.rstrip('.')}; "
            "choose other --train-prompts or another --reward."
        )
    return asked.train_name


def _code(
    options: RunOptions, kind: Any, rewards: Mapping[str, Reward], prompts: str | None, train_prompts: str | None
) -> dict[str, str] | None:
    """The source of each plug-in that is not alignbench's own, and the content of a file of training prompts, by name;
    None where there is none. What a file of evaluated prompts holds stands in the evaluation."""
    found = {options.algorithm: plugins.source("algorithms", options.algorithm, kind)}
    found |= {name: reward.source for name, reward in rewards.items() if isinstance(reward, Sourced)}
    evaluated = None if prompts is None or prompt_sets.is_file(prompts) else prompts
    found |= {name: prompt_sets.source(name) for name in (evaluated, train_prompts) if name is not None}
    return {name: source for name, source in found.items() if source is not None} or None


def _vae(options: RunOptions, family: Family, model: Model) -> str | None:
    """What the configuration keeps of --vae: of a folder what it holds, of the hub's its name."""
    if options.vae is None or not Path(options.vae).exists():
        return options.vae
    from alignbench.diffusion.loading import autoencoder_digest, find_autoencoder

    embedded = family if isinstance(family, LatentFamily) and family.at_hand else None
    of = model.source if embedded is None else str(embedded.place(model).folder)
    return autoencoder_digest(find_autoencoder(options.vae, of))
