"""Result files to one HTML page that opens from disk, without a network.

Everything that comes from files is escaped by the template or stands in JSON that nothing runs; the policy of the page
lets through its own script and style alone, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from alignbench.analysis.compare import DEFAULT_BASELINE, compare_loaded
from alignbench.analysis.comparison import Group
from alignbench.analysis.contest_tables import reading, versus_table
from alignbench.analysis.formats import Mark, Table, number
from alignbench.analysis.load import Loaded, Method, Run, load, methods_of, no_garbage_collection
from alignbench.analysis.picture_tables import picture_reading, pictures_table
from alignbench.analysis.tables import costs_table
from alignbench.analysis.vote_tables import vote_reading, vote_tables
from alignbench.choices import Family
from alignbench.errors import InputError
from alignbench.files import sha256_of
from alignbench.page import charts, embedded
from alignbench.page.gallery import BUDGET, Gallery, gallery
from alignbench.page.people import of_votes
from alignbench.page.statements import statements
from alignbench.plugins import label
from alignbench.printed import how_many, visible

FIRST_COLUMNS = ("method", "win rate %", "95 % interval", "difference", "its 95 % interval")
POLICY = (
    "default-src 'none'; img-src data:; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass(frozen=True)
class Wanted:
    """What a report is asked to hold."""

    baseline: str = DEFAULT_BASELINE
    scorers: Sequence[str] = ()
    images: int | None = None  # prompts of the gallery; None: as many as fit
    skip_bad: bool = False
    family: Family = "scorer"
    margin: Sequence[str] = ()
    control: str | None = None
    votes: Sequence[Path] = ()  # logs of what people chose


@dataclass
class Page:
    """The finished page, and what a command says of it."""

    text: str
    said: list[str] = field(default_factory=list)


@no_garbage_collection()
def build(paths: Sequence[Path], output: Path, wanted: Wanted | None = None) -> Page:
    """The page of these files. `output` is where it will lie: full pictures below it are linked."""
    wanted = wanted or Wanted()
    if wanted.images is not None and wanted.images < 0:
        raise InputError(f"--images {wanted.images}: expected 0 or more prompts.")
    loaded = load(paths, wanted.skip_bad)
    if not loaded.groups:
        unfinished = ", ".join(f"{item.path} ({item.status})" for item in [*loaded.unfinished, *loaded.skipped][:3])
        raise InputError(f"no complete results to report: {unfinished}.")
    comparison = compare_loaded(
        loaded,
        wanted.baseline,
        scorers=wanted.scorers,
        family=wanted.family,
        margin=wanted.margin,
        control=wanted.control,
        votes=wanted.votes,
    )
    groups = sorted(comparison.groups, key=lambda group: -len(group.methods))
    runs = [run for group in groups for run in loaded.groups[group.evaluation.fingerprint]]
    places = {run.path: place for place, run in enumerate(runs)}
    files = embedded.embedded([run.path for run in runs])
    sections, data, room = [], [], BUDGET
    for group in groups:
        known = methods_of(loaded.groups[group.evaluation.fingerprint])
        methods = [method for method in known if method.label in group.methods]
        pictures = gallery(group, methods, output, wanted.images, room)
        room -= pictures.bytes
        sections.append(_section(group, methods, pictures))
        data.append(_data(group, methods, pictures, places))
    titles = [section["title"] for section in sections]
    for section in sections:
        if titles.count(section["title"]) > 1:
            section["title"] += f", evaluation {section['id'][1:]}"
    page = _rendered(
        sections=sections,
        files=files,
        notes=[*comparison.notes, *_left_out(loaded), *_counted_logs(wanted.votes)],
        data={"sections": data, "files": embedded.as_values(files)},
        runs=runs,
    )
    return Page(page, [f"{s['title']}: {note}" for s in sections for note in s["gallery"].notes])


def _left_out(loaded: Loaded) -> list[str]:
    """Files that are not in the tables, and why."""
    return [
        f"left out: {item.path}: {item.status}{f' ({item.reason})' if item.reason else ''}"
        for item in [*loaded.unfinished, *loaded.skipped]
    ]


def _counted_logs(votes: Sequence[Path]) -> list[str]:
    """Which logs of votes were counted. They name raters, so that the page carries none of them."""
    return [f"votes are those of {path.name}, SHA-256 {sha256_of(path)}" for path in votes]


def _section(group: Group, methods: Sequence[Method], pictures: Gallery) -> dict[str, Any]:
    """What the template shows of one evaluation."""
    e = group.evaluation
    aims = {m.label: label(reward) if (reward := m.first.configuration.reward) else None for m in methods}
    protocol = {"evaluation": e.fingerprint, **{k: v for k, v in e.model_dump().items() if v is not None}}
    return {
        "id": f"e{e.fingerprint}",
        "title": f"{e.model['name']} on {e.prompts}/{e.split}",
        "baseline": group.baseline,
        "methods": len(group.methods),
        "prompts": max((item.rate.prompts for item in group.versus), default=len(methods[0].first.prompts)),
        "images": sum(len(run.result.rows) for method in methods for run in method.runs),
        "runs": sum(len(method.runs) for method in methods),
        "scorers": group.scorers,
        "verdict": [*of_votes(group), *statements(group, aims)],
        "columns": [*group.scorers, *(column.name for column in group.votes)],
        "short": [*pictures.short, *(column.name for column in group.votes)],
        "votes": [_cells(table, leading=()) for table in vote_tables(group)],
        "asked": [(column.name, column.question) for column in group.votes],
        "vote_reading": vote_reading(group),
        "forest": charts.forest(group),
        "tables": {name: _cells(versus_table(group, name)) for name in group.scorers if group.versus},
        "means": _cells(_means(group)),
        "reading": [*picture_reading(group, table=True), *reading(group)],
        "pictures": _cells(pictures_table(group)) if group.pictures else None,
        "costs": charts.cost_charts(group, methods),
        "cost_table": _cells(costs_table(group)),
        "trainings": charts.trainings(group, methods),
        "gallery": pictures,
        "protocol": {name: _plain(value) for name, value in protocol.items()},
        "samplers": {name: _plain(sampler) for name, sampler in group.samplers.items()},
        "environments": _environments(methods),
        "notes": group.notes,
    }


@dataclass(frozen=True)
class Cell:
    """A cell of a table."""

    text: str
    mark: Mark | None


@dataclass(frozen=True)
class Shown:
    """A table with its most telling columns first."""

    title: str
    header: list[str]
    rows: list[list[Cell]]


def _cells(table: Table, leading: Sequence[str] = FIRST_COLUMNS) -> Shown:
    first = [table.header.index(name) for name in leading if name in table.header]
    order = [*first, *(j for j in range(len(table.header)) if j not in first)]
    rows = [[Cell(row[j], table.marks.get((i, j))) for j in order] for i, row in enumerate(table.rows)]
    return Shown(table.title, [table.header[j] for j in order], rows)


def _means(group: Group) -> Table:
    """What there is to show without a baseline."""
    rows = [[name, *(number(group.means[scorer][name]) for scorer in group.scorers)] for name in group.methods]
    return Table("Mean scores", ["method", *group.scorers], rows)


def _environments(methods: Sequence[Method]) -> list[tuple[str, dict[str, str]]]:
    """What the runs were made with; those that agree stand together."""
    found: dict[str, tuple[dict[str, str], list[str]]] = {}
    for method in methods:
        for run in method.runs:
            values = {name: _plain(value) for name, value in run.result.environment.items() if value is not None}
            found.setdefault(json.dumps(values, sort_keys=True), (values, []))[1].append(run.path.name)
    return [(f"{how_many(len(names), 'result')}, first {names[0]}", values) for values, names in found.values()]


def _plain(value: Any) -> str:
    """A value in a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list | tuple) else str(value)


def _data(group: Group, methods: Sequence[Method], pictures: Gallery, places: Mapping[Path, int]) -> dict[str, Any]:
    """What the script needs of one evaluation: scores and pictures behind the first page, and what to count again."""
    holder = {name: next(m.first.scorers[name] for m in methods if name in m.first.scorers) for name in group.scorers}
    first = {id(card) for card in pictures.first}
    cards = [
        {
            "id": card.prompt,
            "text": card.text,
            "category": card.category,
            "file": card.file,
            "shots": [
                [s.method, None if id(card) in first and s.method in pictures.shown else s.source, s.scores, s.votes]
                for s in card.shots
            ],
        }
        for card in pictures.cards
    ]
    sources = "\n".join(shot.source for card in pictures.cards for shot in card.shots)
    return {
        "scorers": [
            {"name": name, "short": short, "sign": 1 if s.higher_is_better else -1, "ties": s.tie_epsilon}
            for (name, s), short in zip(holder.items(), pictures.short, strict=True)
        ],
        "votes": [column.name for column in pictures.votes],
        "methods": group.methods,
        "runs": [[places[run.path] for run in method.runs] for method in methods],
        "baseline": pictures.baseline,
        "shown": pictures.shown,
        "folders": pictures.folders,
        "draw": pictures.draw,
        "cards": cards,
        "pictures": hashlib.sha256(sources.encode()).hexdigest(),
        "rates": [
            [group.methods.index(item.method), group.scorers.index(item.scorer), round(item.rate.rate, 9)]
            for item in group.versus
            if item.whole and not item.failed and np.isfinite(item.rate.rate)
        ],
    }


def _rendered(
    sections: Sequence[dict[str, Any]],
    files: Sequence[embedded.Embedded],
    notes: Sequence[str],
    data: Mapping[str, Any],
    runs: Sequence[Run],
) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("alignbench.page") / "template"
    read = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FunctionLoader(read.get),
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = POLICY.format(script=_hash(read["page.js"]), style=_hash(read["page.css"]))
    return environment.get_template("page.html").render(
        policy=policy,
        style=Markup(read["page.css"]),
        script=Markup(read["page.js"]),
        data=Markup(_inert(data)),
        sections=sections,
        files=files,
        notes=notes,
        versions=sorted({str(run.result.environment.get("versions", {}).get("alignbench", "?")) for run in runs}),
        charts=charts,
        asdict=asdict,
        how_many=how_many,
        first=sections[0],
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(values: Mapping[str, Any]) -> str:
    """JSON in which no `<` could end the element it stands in, and that is ASCII."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
