"""Commands about scorers: `score`, `audit` and `serve`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignbench.cli.flags import Flag, takes
from alignbench.cli.output import PICTURES, check_ending, draw, report, say, say_written
from alignbench.errors import InputError
from alignbench.judging.options import AuditOptions, ScoreOptions, ServeOptions


@takes(ScoreOptions)
def score(
    given: dict[str, Any],
    *places: Path,
    save: Flag = False,
    force: Flag = False,
    json: Flag = False,
    output: Path | None = None,
) -> int:
    """Score pictures that are there already: those of a folder, or of finished cells, whose results get a column more.

    Scores of scorers with weights are kept for the next time.

    alignbench score results/*.json --scorers jpeg_compressibility --save

    Parameters
    ----------
    places: Path
        A folder of pictures, or result files with their folders beside them.
    save: bool
        Write the scores into the result files, as if their runs had named these scorers too.
    force: bool
        With --save: replace columns that are there already.
    json: bool
        Print every row as JSON instead of a summary.
    output: Path
        Also write the JSON to this .json file.
    """
    check_ending("--output", output, (".json",))
    options = ScoreOptions.parse(given)
    of_results = [place for place in places if place.suffix == ".json" and not place.is_dir()]
    _check_places(places, of_results, save, force)
    from alignbench.judging import score as scoring

    if not of_results:
        scored = scoring.score_place(places[0], options, quiet=json)
        report(scoring.as_values(scored), partial(scoring.text, scored), json, output)
        return 0
    from alignbench.judging.added import as_values, score_results, text

    found, alone = score_results(of_results, options, save, force, quiet=json), len(of_results) == 1
    report(as_values(found, alone), partial(text, found, alone), json, output)
    return 0


def _check_places(places: Sequence[Path], of_results: Sequence[Path], save: bool, force: bool) -> None:
    """Raise InputError where these places cannot be scored together, or options would be ignored."""
    if not places:
        raise InputError("name a folder of pictures, or result files: alignbench score PLACE --scorers NAME.")
    if len(places) > 1 and len(of_results) < len(places):
        other = next(place for place in places if place not in of_results)
        raise InputError(f"{other} is no result file; score one folder of pictures, or several results.")
    if save and not of_results:
        raise InputError(f"--save {places[0]}: only a result file can keep scores; use --output FILE.json.")
    if force and not save:
        raise InputError("--force replaces columns of a result; add --save, or leave it out.")


@takes(AuditOptions)
def audit(given: dict[str, Any], *, json: Flag = False, output: Path | None = None, figure: Path | None = None) -> int:
    """What scorers are worth on preference pairs: accuracy, agreement with each other, sensitivity to small changes.

    Parameters
    ----------
    json: bool
        Print JSON instead of tables.
    output: Path
        Also write the JSON to this .json file.
    figure: Path
        Also draw it: .png, .pdf or .svg.
    """
    check_ending("--output", output, (".json",))
    check_ending("--figure", figure, PICTURES)
    options = AuditOptions.parse(given)
    from alignbench.judging import audit_report
    from alignbench.judging.audit import audit as audit_scorers

    found = audit_scorers(options, quiet=json)
    report(audit_report.as_values(found), partial(audit_report.text, found), json, output)
    if figure is not None:
        draw(audit_report.figure(found), figure)
        if not json:
            say_written(figure)
    return 0


@takes(ServeOptions)
def serve(given: dict[str, Any], name: str) -> int:
    """Serve a scorer to other environments of this machine, until interrupted: --reward http://127.0.0.1:8000.

    Parameters
    ----------
    name: str
        A scorer, as in `alignbench run`.
    """
    options = ServeOptions.parse(given)
    from alignbench import plugins
    from alignbench.judging.serving import serve as serve_scorer

    name = plugins.full_name("rewards", name)

    def ready(url: str) -> None:
        say(f"{name} at {url}; use it with: alignbench run --reward {url}")

    try:
        serve_scorer(name, options, ready)
    except KeyboardInterrupt:
        say("stopped")
    return 0
