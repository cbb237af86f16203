"""The command that runs many cells: `suite`."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.cli.flags import Flag, Whole
from alignbench.cli.output import listing, note, print_json, say, typed
from alignbench.cli.report import write_report
from alignbench.errors import AlignbenchError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alignbench.suites.local import Engine
    from alignbench.suites.plan import Row

HERE, RAY = "local", "ray"
INTERRUPTED = 128  # exit codes from here on are 128 and the signal


def suite(
    name: str | None = None,
    /,
    *,
    on: str = HERE,
    jobs: Whole | None = None,
    only: str | None = None,
    shard: str | None = None,
    output: Path | None = None,
    report: Flag = False,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Run the cells of a suite, each in a process of its own; finished ones are not run again.

    Every cell has a log beside its result. A cell whose process or machine dies is tried again from its checkpoint,
    twice. Typed again, the same command continues; several of them on one folder share the work. Ends with what came
    out; the exit code is 0 once every cell is done, or is a row that says why it cannot be.

    alignbench suite quick --jobs 2

    alignbench suite mine.yaml --on ray:head:6379

    Parameters
    ----------
    name: str
        A shipped suite, such as quick or tiny, or a YAML file with `defaults` and `cells`, whose keys are the options
        of `alignbench run`, and `gpus`: how many a cell takes (1 where its model uses one).
    on: str
        Where cells run: local, this machine; ray, a Ray cluster that is started here and ends with the suite; or
        ray:HOST:PORT, one that is running (the extra `ray`).
    jobs: int
        Cells at once. By default one for each GPU, or one; several on processors alone divide the threads. On Ray by
        default as many as the cluster holds.
    only: str
        Only cells whose algorithm, or result's name, matches this pattern, such as ddpo or '*-seed1'.
    shard: str
        Only the i-th of n parts, as i/n: for a job array, one part a job.
    output: Path
        Folder for the results, in the place of the one that the suite names.
    report: bool
        Also write report.html there, the page of `alignbench report`.
    dry_run: bool
        Only list the cells, their result files, and what they would cost together.
    json: bool
        Print what came of the cells as JSON.
    """
    from alignbench.asking.suite import find_suite, suite_cells, suite_names

    if name is None:
        raise InputError(f"name a suite: {', '.join(suite_names())}, or a YAML file.")
    _check(on, jobs, shard)
    path = find_suite(name)
    asked, before = suite_cells(path, output), _digest(path)
    from alignbench.suites.plan import planned

    rows = planned(asked, only, shard)
    if dry_run or not rows:
        return _show_plan(rows, json) if rows else _show_nothing(shard, json)
    code = _run(rows, on, jobs, json)
    if _digest(path) != before:
        note(f"{path} has changed since its cells were read; type the same command for what is new.")
    _show(rows, json, report and code < INTERRUPTED, conclude=code < INTERRUPTED)
    return code


def _show_nothing(shard: str | None, json: bool) -> int:
    """No error: an array of jobs may have more of them than there are cells."""
    note(f"--shard {shard}: there are fewer cells than shards, and none for this one.")
    _show((), json, report=False, conclude=False)
    return 0


def _check(on: str, jobs: int | None, shard: str | None) -> None:
    """Refuse what can be refused before anything is loaded."""
    from alignbench.asking.suite import shard_of

    kind, colon, address = on.partition(":")
    if kind not in (HERE, RAY) or (colon and (kind == HERE or not address)):
        raise InputError(f"--on {on}: expected {HERE}, {RAY}, or {RAY}:HOST:PORT of a cluster that is running.")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: expected at least 1.")
    if shard is not None:
        shard_of((), shard)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # it is gone
        return None


def _run(rows: Sequence[Row], on: str, jobs: int | None, quiet: bool) -> int:
    """Run the rows; the exit code."""
    from alignbench.suites.board import Board, counts
    from alignbench.suites.child import Gone
    from alignbench.suites.run import Terminated, run_rows, terminating

    try:
        # Ray tells of workers that died on stdout, which is for what came of the cells.
        with terminating(), contextlib.redirect_stdout(sys.stderr):
            engine = _engine(rows, on, jobs)
            with Board(rows, quiet) as board:
                board.say(f"{counts(rows)}; {engine.describe()}; each cell has a log beside its result")
                run_rows(rows, engine, board.told, board.looked)
    except KeyboardInterrupt as error:
        note("alignbench: interrupted; the same command continues where it stopped.")
        return 143 if isinstance(error, Terminated) else 130
    except Gone as error:  # what came of the cells until then is still to be shown
        note(f"alignbench: {error}")
        return 1
    return 0 if all(row.state in ("done", "unsupported") for row in rows) else 1


def _engine(rows: Sequence[Row], on: str, jobs: int | None) -> Engine:
    from alignbench.suites.orders import Orders

    if on == HERE:
        from alignbench.suites.local import Local

        return Local(Orders.from_here(), jobs)
    from alignbench.suites.cluster import Cluster

    return Cluster(Orders.from_here(), on.partition(":")[2] or None, jobs, [row.job for row in rows if row.job])


def _show_plan(rows: Sequence[Row], json: bool) -> int:
    """The cells, and what those that are left would cost together; the exit code: see `_of_failed`."""
    from alignbench.analysis.formats import number
    from alignbench.suites.plan import look, total

    look(rows)
    for row in rows if not json else ():
        there = f" (already {'complete' if row.state == 'done' else row.state})" if row.was_there else ""
        wrong = row.state == "failed" and not row.was_there
        say(f"{row.text}: {row.state}: {row.reason}" if wrong else f"{row.text}  ->  {row.path}{there}")
    note("counting what they cost together")
    whole = total(rows)
    cost = whole.cost.as_dict()
    if json:
        values = {"cells": whole.cells, "cost": cost, "seconds": whole.seconds, "unknown": whole.unknown}
        print_json({"cells": [row.as_values() for row in rows], "total": values})
        return _of_failed(rows)
    names = {"denoiser_forward": "denoiser evaluations forward", "denoiser_backward": "backward"}
    names["reward_forward"] = "reward evaluations"
    parts = [f"{number(cost[name])} {words}" for name, words in names.items()]
    time = f"; about {whole.seconds / 60:.1f} minutes on this machine" if whole.seconds is not None else ""
    unknown = f"; and {whole.unknown} whose cost is not known before they run" if whole.unknown else ""
    say(f"cells to run: {whole.cells}; together {', '.join(parts)}{time}{unknown}")
    return _of_failed(rows)


def _of_failed(rows: Sequence[Row]) -> int:
    """Say which rows cannot be run; the exit code of a dry run, 2 where one is wrong input."""
    failed = [row for row in rows if row.state == "failed" and not row.was_there]
    for row in failed:
        note(f"alignbench: {row.text}: {row.reason}")
    return 2 if any(row.wrong_input for row in failed) else int(bool(failed))


def _show(rows: Sequence[Row], json: bool, report: bool, conclude: bool) -> None:
    """What came of the rows, and what they say together."""
    from alignbench.suites.board import what

    paths = [row.path for row in rows if row.state == "done" and row.path is not None]
    if json:
        print_json({"cells": [row.as_values() for row in rows]})
    else:
        for row in rows:
            listing(f"{row.text:60} {what(row)}")
        if len(paths) > 1 and conclude:
            _conclude(paths)
    if report and paths:
        _report(paths)


def _conclude(paths: list[Path]) -> None:
    """What the cells of a suite say together, and where to look further."""
    from alignbench.analysis.verdict import sentences

    try:
        say("", *sentences(paths))
    except AlignbenchError as error:  # such as one configuration under two names
        say("", f"no comparison: {error}")
    folders = typed(*dict.fromkeys(path.parent for path in paths))
    say(f"all tables: alignbench compare {folders}; pictures: alignbench sheet {folders}")


def _report(paths: list[Path]) -> None:
    """The page of a suite's results, beside the first of them."""
    try:
        write_report(tuple(paths), paths[0].parent / "report.html")
    except AlignbenchError as error:  # the results are there all the same
        say(f"no report: {error}")
