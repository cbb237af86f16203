"""The result file: one cell's configuration, protocol, rows, curve and cost. Imports no torch.

Written atomically as JSON without NaN; read back with unknown keys refused and the digest checked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from alignbench.errors import ResultFileError, shown
from alignbench.files import canonical_json, write_text
from alignbench.reading import json_of
from alignbench.record import apart
from alignbench.record.contents import SCHEMA, SCHEMA_APART, content_of, digest_of

if TYPE_CHECKING:
    from alignbench.interface import RewardInfo

SPARSE: Final = frozenset({"category", "challenge", "failures", "sha256", "picture"})  # left out where they are empty

Status = Literal["complete", "partial", "diverged", "unsupported", "failed"]
PictureStatistic = Literal["edge_density", "colour_entropy", "saturation", "darkness"]  # see `picture_statistics`
Scalar = str | int | float | bool | None
RESOURCES: Final = tuple(f"{of}_{way}" for of in ("denoiser", "decode", "reward") for way in ("forward", "backward"))
LARGEST_COUNT = 2**63 - 1  # what arrays hold
CHUNK = 2000  # rows that are parsed at once
DEEPEST = 20  # of values that nothing else is said about, nested in one another


def _shallow(value: Any, left: int = DEEPEST) -> Any:
    """Refuse what would end every reader that walks it."""
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"is nested more than {DEEPEST} deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _shallow(inner, left - 1)
    return value


def _of_a_model(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse a model without what every table says of it."""
    shape = value.get("image_shape", [])
    if not isinstance(value.get("name"), str) or not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise ValueError("has no name, or an image_shape that is none")
    return value


def _of_every_resource(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse a cost that leaves something out."""
    if absent := [name for name in RESOURCES if name not in value]:
        raise ValueError(f"has no {absent[0]}")
    return value


def _of_a_round(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse a line of a curve that has no place on it."""
    held_out = value.get("held_out", {})
    if not all(_is_count(value.get(name)) for name in ("round", *RESOURCES[:2])) or not _is_number(
        value.get("seconds")
    ):
        raise ValueError("lacks its round, or what was spent")
    if not isinstance(held_out, dict) or not all(score is None or _is_number(score) for score in held_out.values()):
        raise ValueError("has held-out scores that are none")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST_COUNT)


Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Whole = Annotated[int, Field(ge=-LARGEST_COUNT, le=LARGEST_COUNT)]
Plain = Annotated[dict[str, Any], AfterValidator(_shallow)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NotNegative = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_MANY = ConfigDict(extra="forbid", allow_inf_nan=False)
"""Of a record of which a result has as many as prompts or pictures: a model would need more than twice the memory."""


class Configuration(_Record):
    """What was asked for. Equal configurations that differ in the seed alone are pooled by `compare`."""

    algorithm: str
    fields: Plain  # every hyper-parameter
    model: str
    prompts: str
    split: str
    limit: Whole | None
    images_per_prompt: Whole
    reward: str | None
    train_prompts: str | None
    pairs: dict[str, Scalar] | None = None  # what they are, where the algorithm learns from preference pairs
    scorers: list[str]
    sampling: dict[str, Scalar]  # steps, guidance, eta
    dtype: str
    eval_seed: Whole
    seed: Whole | None  # None where the algorithm does not train
    budget: dict[str, float] | None = None  # per image, from which a test-time method chooses its free parameter
    task: dict[str, Scalar] | None = None  # None: images from noise
    adapter: str | None = None  # digest of the adapter that the model had from the start
    vae: str | None = None  # an autoencoder in the place of the model's own
    vae_tiling: bool = False
    resolution: str | None = None  # in pixels; None: the model's own
    code: dict[str, str] | None = None  # what plug-ins that are not alignbench's own are, by name

    @property
    def makers(self) -> dict[str, str]:
        """What the plug-ins are that made the pictures; of scorers, their columns know, and of prompts the
        evaluation."""
        makers = (self.algorithm, self.reward, self.train_prompts)
        return {name: source for name, source in (self.code or {}).items() if name in makers}

    def differences(self, other: Configuration) -> list[str]:
        """The names of the entries in which two configurations differ; hyper-parameters as `fields.<name>`."""
        mine, theirs = self.model_dump(), other.model_dump()
        names = [name for name in mine if name != "fields" and mine[name] != theirs[name]]
        own, others = self.fields, other.fields
        return names + [f"fields.{k}" for k in sorted({*own, *others}) if own.get(k) != others.get(k)]


class Evaluation(_Record):
    """The frozen protocol. Rows pair only between files whose evaluations are equal."""

    model: Annotated[Plain, AfterValidator(_of_a_model)]
    prompts: str
    split: str
    prompts_sha256: str
    eval_seed: Whole
    task: dict[str, Scalar] | None = None  # None: images from noise

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name the protocol: for images from noise, those of before there were tasks."""
        content = self.model_dump(exclude={"task"} if self.task is None else None)
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True, config=_MANY)
class PromptRow:
    """One evaluated prompt."""

    id: str
    text: str
    category: str = ""
    challenge: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, config=_MANY)
class Row:
    """One image: its prompt, its number among the prompt's images, its scores. A failed score is null with a reason.

    A picture has the SHA-256 of its pixels (`alignbench.pictures.pixels_sha256`) and statistics; a point, and a picture
    of an older file, has neither.
    """

    prompt: str
    sample: Count
    scores: dict[str, float | None]
    failures: dict[str, str] = Field(default_factory=dict)  # a plain {} would be copied for each of a million rows
    sha256: Digest | None = None
    picture: dict[PictureStatistic, NotNegative] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, config=_MANY)
class Diversity:
    """How far the pictures of one prompt are apart, and their latents; see `picture_statistics.diversity`."""

    prompt: str
    pictures: NotNegative
    latents: NotNegative | None  # None where a sampler's are not finite


class Scorer(_Record):
    """The identity of a column of scores."""

    id: str
    files: dict[str, str]
    preprocessing: str
    tie_epsilon: float
    range: str
    higher_is_better: bool
    versions: dict[str, str]
    source: str | None = None  # what code a plug-in is; None: alignbench's own, or a file of before this was kept


class Metric(_Record):
    """A number about the whole cell with its 95 % interval. A bound is not an estimate. `value` is None where the
    number is infinite or could not be told; `floor` is what an exact optimum stays below in 95 of 100 cases."""

    value: float | None
    kind: Literal["exact", "estimate", "upper bound"]
    about: str
    low: float | None = None
    high: float | None = None
    floor: float | None = None


class FrontierCurve(_Record):
    """The best mean reward at every divergence from the reference, of a problem whose optimum is known."""

    beta: Annotated[float, Field(gt=0)]  # at which regret is measured
    points: Annotated[list[tuple[float, float, float]], Field(min_length=1)]  # λ = 1/β, mean reward, KL in nats


class Costs(_Record):
    """What alignment cost in all, and what one image costs afterwards."""

    alignment: Annotated[dict[str, Count], AfterValidator(_of_every_resource)]
    alignment_seconds: float
    per_image: Annotated[dict[str, float], AfterValidator(_of_every_resource)]
    per_image_seconds: float
    peak_memory_bytes: int
    forward_batch: int | None = None  # of images while training, where memory allowed fewer than asked for
    pairs_seconds: float = 0.0  # of alignment_seconds, spent on making preference pairs: once for all that use them


class Kept(_Record):
    """What lies in a cell's folder, as SHA-256: so that nobody takes something else for it."""

    pictures: str  # over the names and digests of all: of rows that have one the row's, else of the file
    weights: str | None = None  # of a method that trains, where its family can read them


class Result(_Record):
    """One cell."""

    schema_: Literal[1, 2] = Field(SCHEMA, alias="schema")
    status: Status
    reason: str | None = None
    trains: bool
    configuration: Configuration
    preset: str | None
    published: str | None = None  # the configuration of a paper or its code that is nearest
    differs_from_paper: Plain  # what is not as in that, of fields and sampling
    evaluation: Evaluation
    sampler: Plain
    scorers: dict[str, Scorer]
    prompts: list[PromptRow]
    rows: list[Row]
    diversity: list[Diversity] = Field(default_factory=list)  # of prompts with two pictures or more
    truncated: dict[str, Count] = Field(default_factory=dict)  # evaluated prompts longer than a scorer reads, by scorer
    model_truncated: dict[str, Count] = Field(default_factory=dict)  # prompts longer than the model reads, by their use
    metrics: dict[str, Metric]
    frontiers: dict[str, FrontierCurve] = Field(default_factory=dict)  # by scorer
    curve: list[Annotated[Plain, AfterValidator(_of_a_round)]]
    budget: dict[str, float] | None  # as it was resolved: seconds with what an evaluation takes
    cost: Costs | None
    environment: Plain
    asked: Plain | None = None  # the options of the identity as they were given, from which it is asked again
    kept: Kept | None = None  # None: an older file, or one that is not complete
    origin: str | None = None  # of weights that another cell trained: the name of its result file
    added: dict[str, str] = Field(default_factory=dict)  # columns that came after the run, and when
    attempts: Whole
    started: str
    finished: str | None

    @model_validator(mode="after")
    def _rows_are_of_its_prompts_and_scorers(self) -> Result:
        """What reads rows relies on it."""
        known, scorers = {prompt.id for prompt in self.prompts}, self.scorers.keys()
        if len(known) < len(self.prompts):
            raise ValueError("two prompts have one id")
        for row in self.rows:
            if row.prompt not in known:
                raise ValueError(f"a row is of prompt {shown(row.prompt)}, which is not among the prompts")
            if not row.scores.keys() <= scorers:
                unknown = min(row.scores.keys() - scorers)
                raise ValueError(f"a row has a score of {shown(unknown)}, which is not among the scorers")
        if len({(row.prompt, row.sample) for row in self.rows}) < len(self.rows):
            raise ValueError("two rows are of one image")
        if any(found.prompt not in known for found in self.diversity):
            raise ValueError("it has the diversity of a prompt that is not among the prompts")
        if len({found.prompt for found in self.diversity}) < len(self.diversity):
            raise ValueError("two lines are of one prompt's diversity")
        if self.schema_ == 1 and (self.diversity or any(row.sha256 or row.picture for row in self.rows)):
            raise ValueError("schema 1 says nothing of single pictures")
        if self.status == "complete" and not self.rows:
            raise ValueError("it is complete and has no rows")
        return self


_ITEMS: Final[Mapping[str, TypeAdapter[Any]]] = {
    "diversity": TypeAdapter(list[Diversity]),
    "prompts": TypeAdapter(list[PromptRow]),
    "rows": TypeAdapter(list[Row]),
}


def _items(result: Result, name: str) -> Iterator[dict[str, Any]]:
    """One of the long lists as it is written."""
    items = getattr(result, name)
    for begin in range(0, len(items), CHUNK):
        for plain in _ITEMS[name].dump_python(items[begin : begin + CHUNK], mode="json"):
            yield {k: v for k, v in plain.items() if k not in SPARSE or v}


def write(path: Path, result: Result) -> None:
    """Write a result atomically, one row a line so that files can be compared by eye. Lists that would make it too
    large lie in a file beside it, which is written first: see `alignbench.record.apart`."""
    content = result.model_dump(mode="json", by_alias=True, exclude=set(apart.LISTS))
    if not content["model_truncated"]:  # as in files older than these
        del content["model_truncated"]
    lists = {name: [canonical_json(item).encode() for item in _items(result, name)] for name in apart.LISTS}
    there = {name: lines for name, lines in lists.items() if lines or name != "diversity"}
    digest, file = digest_of(content, there), None
    if sum(len(line) for lines in lists.values() for line in lines) > apart.LARGEST_INLINE:
        file = apart.name_of(path.stem, digest)
        lengths = {name: len(lines) for name, lines in lists.items()}
        content["apart"] = apart.Apart(file, content["schema"], lengths).values()
        content["schema"] = SCHEMA_APART
        apart.write(path, file, lists)
    del lists
    parts = []
    for name in [*(field.alias or key for key, field in Result.model_fields.items()), "apart"]:
        if name in there and file is None:
            parts.append(f"{json.dumps(name)}: {_lines(_items(result, name))}")
        elif name in content:
            written = json.dumps(content[name], ensure_ascii=False, allow_nan=False)
            parts.append(f"{json.dumps(name)}: {_lines(content[name]) if name == 'curve' else written}")
    parts.append(f'"digest": "{digest}"')
    write_text(path, "{\n " + ",\n ".join(parts) + "\n}\n")
    apart.remove_others(path, file)


def _lines(items: Iterable[Any]) -> str:
    """A list, an item a line."""
    body = ",\n".join(f"  {json.dumps(item, ensure_ascii=False, allow_nan=False)}" for item in items)
    return f"[\n{body}\n ]" if body else "[]"


def read(path: Path) -> Result:
    """Read a result file. Raises ResultFileError naming the file, what is wrong with it and what to do."""
    try:
        return _read(path)
    except apart.Absent:  # it may have been written anew between its two files
        return _read(path)


def _read(path: Path) -> Result:
    content = content_of(path)
    lists: dict[str, list[Any]] = {}
    try:
        if "apart" in content:
            genuine, lists = _lists(path, content)
        else:
            genuine = content.get("digest") == digest_of(content)
    except ValidationError as error:
        raise ResultFileError(problem_of(path, error)) from None
    except ResultFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise ResultFileError(f"{path}: the digest cannot be taken ({error}): no alignbench wrote it.") from None
    if not genuine:
        raise ResultFileError(f"{path}: the digest does not match: the file was edited or damaged; run the cell again.")
    for name in ("digest", "apart"):
        content.pop(name, None)
    try:
        return Result.model_validate(content | lists)
    except ValidationError as error:
        raise ResultFileError(problem_of(path, error)) from None


def _lists(path: Path, content: dict[str, Any]) -> tuple[bool, dict[str, list[Any]]]:
    """Whether the digest matches, and the lists that lie apart, in one pass over them; the content gets the schema of
    one that holds them itself. Raises ValueError where their file is damaged."""
    said = apart.Apart.of(content["apart"], path)
    content["schema"] = said.schema
    found: dict[str, list[Any]] = {name: [] for name in apart.LISTS}
    with said.opened(path) as taken:
        lines = {name: _parsed(name, taken[name], found) for name in apart.LISTS}
        there = {name: own for name, own in lines.items() if said.lengths[name] or name != "diversity"}
        return content.get("digest") == digest_of(content, there), found


def _parsed(name: str, lines: Iterable[bytes], found: dict[str, list[Any]]) -> Iterator[bytes]:
    """The lines of a list as they are; what they say is added to what was found."""
    known = {prompt.id: prompt.id for prompt in found["prompts"]}  # one text for all of a prompt's rows
    chunk: list[bytes] = []
    for line in itertools.chain(lines, [None]):
        if chunk and (line is None or len(chunk) == CHUNK):
            items = json_of(b"[" + b",".join(chunk) + b"]")  # together they share the names of their entries
            if len(items) != len(chunk):
                raise ValueError(f"a line of its {name} is no single item")
            for item in items if name == "rows" else ():
                if isinstance(item, dict) and isinstance(item.get("prompt"), str):
                    item["prompt"] = known.get(item["prompt"], item["prompt"])
            found[name] += _ITEMS[name].validate_python(items)
            chunk = []
        if line is not None:
            chunk.append(line)
            yield line


def problem_of(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "result"
    problem = first["msg"].removeprefix("Value error, ")
    return f"{path}: {where}: {problem} ({error.error_count()} problems in all)."


def identity(info: RewardInfo) -> Scorer:
    """What the result file keeps of a reward."""
    content = asdict(info)
    content["files"], content["versions"] = dict(info.files), dict(info.versions)
    return Scorer(**content)
