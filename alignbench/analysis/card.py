"""The model card beside the weights that a cell leaves: a README.md with the front matter that the model hub reads.

It says what the result file says, and how the weights compare with the model they were made of, once that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.analysis.formats import Table, markdown, number, p_value, percent, written
from alignbench.analysis.summary import means, versus_base
from alignbench.diffusion import registry
from alignbench.diffusion.adapter_files import LORA
from alignbench.diffusion.hub import HUB_ID
from alignbench.errors import AlignbenchError
from alignbench.files import write_text
from alignbench.printed import one_line
from alignbench.record.listing import WEIGHTS
from alignbench.record.result import Result, read

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from alignbench.analysis.comparison import Versus

CARD = "README.md"
LICENCES = {"CreativeML OpenRAIL-M": "creativeml-openrail-m", "CreativeML OpenRAIL++-M": "openrail++"}  # the hub's ids
OWN_LICENCE = "apache-2.0"  # of the models that come with alignbench


def write_card(path: Path) -> None:
    """Write the card of a complete cell's weights from its result file; nothing where it left none."""
    folder = path.with_suffix("") / WEIGHTS
    if not folder.is_dir() or (result := read(path)).status != "complete":
        return
    try:
        versus, *_ = versus_base(path)
    except AlignbenchError:  # such as a scorer that was another one then
        versus = []
    text = card(result, versus, folder)
    there = folder / CARD
    if not there.is_file() or there.read_text(encoding="utf-8") != text:
        write_text(there, text)


def card(result: Result, versus: Sequence[Versus], folder: Path) -> str:
    """Front matter and Markdown. `versus` is the comparison with the unaligned model, where there is one."""
    c, model = result.configuration, str(result.evaluation.model["name"])
    what = "A LoRA" if (folder / LORA).is_file() else "A denoiser" if (folder / "unet").is_dir() else "A trained part"
    parts = [
        f"---\n{_data(result, versus, folder).to_yaml()}\n---",
        f"# {markdown(c.algorithm)} on {markdown(model)}",
        f"{what} of the diffusion model {markdown(model)}, made by {markdown(c.algorithm)} with alignbench. "
        f"{_aim(result)}",
        _use(result, folder),
        written(Table("What it was made of", ["", "value"], _facts(result)), "markdown"),
        _scores(result, versus),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _data(result: Result, versus: Sequence[Versus], folder: Path) -> ModelCardData:
    """What the hub reads: it links the base model, files the weights under their library, and shows the win rates."""
    from huggingface_hub import EvalResult, ModelCardData

    c, e = result.configuration, result.evaluation
    lora, latent = (folder / LORA).is_file(), len(e.model.get("image_shape", ())) == 3
    base = _hub_id(result)
    rates = [
        EvalResult(
            task_type="text-to-image",
            dataset_type=one_line(e.prompts),
            dataset_name=one_line(e.prompts),
            dataset_split=e.split,
            metric_type="win_rate",
            metric_name=f"{one_line(v.scorer)}: wins over the base model, %",
            metric_value=round(100 * v.rate.rate, 1),
        )
        for v in versus
    ]
    licence, licence_name = _licence(result)
    trained = "lora" if lora else str(c.fields.get("tuning", "full"))
    data = ModelCardData(
        base_model=base,
        library_name="diffusers" if latent else "alignbench",
        license=licence,
        license_name=licence_name,
        pipeline_tag="text-to-image" if latent else None,
        tags=["alignbench", c.algorithm, trained, *(["text-to-image"] if latent else [])],
        model_name=one_line(f"{c.algorithm} on {e.model['name']}") if rates else None,
        eval_results=rates or None,
    )
    if base:
        data["base_model_relation"] = "adapter" if lora else "finetune"
    return data


def _hub_id(result: Result) -> str | None:
    """The base model on the hub; one of a folder has no address there."""
    model = result.evaluation.model
    source = str(model.get("source", ""))
    return source if "revision" in model and HUB_ID.fullmatch(source) else None


def _licence(result: Result) -> tuple[str | None, str | None]:
    """The base model's, which holds for what is made of it: the hub's word for it, and the name of one that the hub has
    no word for."""
    model = registry.named().get(str(result.evaluation.model["name"]))
    if model is None:
        return None, None
    if registry.family_of(model).at_hand:
        return OWN_LICENCE, None
    known = LICENCES.get(model.licence)
    return (known, None) if known else ("other", model.licence or None)


def _aim(result: Result) -> str:
    c = result.configuration
    if not result.trains:
        return f"The weights are those of {markdown(str(result.sampler.get('adapter', 'an adapter')))}, evaluated."
    pairs = ", ".join(f"{name} {value}" for name, value in (c.pairs or {}).items() if value is not None)
    aims = [f"the reward `{_code(c.reward)}`"] if c.reward else []
    aims += [f"preference pairs ({markdown(pairs)})"] if pairs else []
    return f"It was aligned with {' and '.join(aims)}." if aims else ""


def _use(result: Result, folder: Path) -> str:
    """How plain diffusers opens it, where it does."""
    base = _hub_id(result) or "THE BASE MODEL'S FOLDER"
    revision = result.evaluation.model.get("revision")
    at = f', revision="{revision}"' if revision else ""
    ours = f"`alignbench run --algo base --model {_code(str(result.evaluation.model['name']))} --adapter THIS_FOLDER`"
    if (folder / LORA).is_file():
        steps = ['pipeline.load_lora_weights("THIS_FOLDER")']
    elif (folder / "unet").is_dir():
        steps = ['pipeline.unet = UNet2DConditionModel.from_pretrained("THIS_FOLDER", subfolder="unet")']
    else:
        return f"To use it: {ours}."
    names = (
        "DiffusionPipeline" if len(steps) == 1 and "unet" not in steps[0] else "DiffusionPipeline, UNet2DConditionModel"
    )
    code = [
        f"from diffusers import {names}",
        f'pipeline = DiffusionPipeline.from_pretrained("{base}"{at})',
        *steps,
    ]
    return "\n".join(["## Use", "", "```python", *code, "```", "", f"Or {ours}."])


def _facts(result: Result) -> list[list[str]]:
    c, e = result.configuration, result.evaluation
    known = [(name, e.model.get(name)) for name in ("source", "revision", "sha256", "autoencoder_sha256")]
    rows: list[tuple[str, object]] = [
        ("base model", e.model["name"]),
        *((f"base model: {name}", value) for name, value in known if value is not None),
        ("method", c.algorithm),
        *((f"field {name}", value) for name, value in c.fields.items()),
        ("reward", c.reward or "none"),
        ("training prompts", c.train_prompts or "none"),
        ("training seed", "none" if c.seed is None else c.seed),
        ("numbers", c.dtype),
        ("licence", " ".join(part for part in _licence(result) if part) or "the base model's, which is not known here"),
        ("finished", result.finished or "not said"),
        ("commit of alignbench", result.environment.get("commit") or "not known"),
    ]
    return [[label, str(value)] for label, value in rows]


def _scores(result: Result, versus: Sequence[Versus]) -> str:
    """The mean of each scorer, and how often an image beats the base model's for the same prompt and noise."""
    e, images = result.evaluation, len(result.rows)
    sampled = ", ".join(
        f"{name} {value}" for name, value in result.sampler.items() if name in ("steps", "guidance", "eta")
    )
    about = (
        f"{len(result.prompts)} prompts of {e.prompts}/{e.split}, {images} images, {sampled}, "
        f"evaluation {e.fingerprint}"
    )
    won = {v.scorer: v for v in versus}
    rows = [
        [
            name,
            "–" if mean is None else number(mean),
            *(_won(won[name]) if name in won else ["not known", "–"]),
        ]
        for name, mean in means(result).items()
    ]
    header = ["scorer", "mean", "wins over the base model, %", "p"]
    note = (
        "A win is a higher score than the base model's image of the same prompt and noise; ties count half. "
        "This is one training run: interval and p are of it alone, and another seed may come out otherwise."
        if versus
        else "How it compares with the base model is not known yet: run `--algo base` with the same evaluation beside "
        "it, then type this cell's command again."
    )
    return f"{written(Table(f'How it scores: {about}', header, rows), 'markdown')}\n{note}"


def _won(v: Versus) -> Iterable[str]:
    return f"{percent(v.rate.rate)} ({percent(v.rate.low)} to {percent(v.rate.high)})", p_value(v.rate_test.p)


def _code(text: str) -> str:
    """Text from a result file between backticks: one line that ends neither the code nor what stands around it."""
    return one_line(text).replace("`", "'").replace("<", "‹")
