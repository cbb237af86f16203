"""Commands about scorers: `score`, `audit` and `serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignbench.cli.flags import Flag, takes
from alignbench.cli.output import PICTURES, check_ending, draw, report, say_written
from alignbench.judging.options import AuditOptions, ScoreOptions, ServeOptions


@takes(ScoreOptions)
def score(given: dict[str, Any], place: Path, *, json: Flag = False, output: Path | None = None) -> int:
    """Score pictures that are there already. Typed again, it continues; scores are kept for the next time.

    Parameters
    ----------
    place: Path
        A folder of pictures, or a result file with its folder beside it.
    json: bool
        Print every row as JSON instead of a summary.
    output: Path
        Also write the JSON to this .json file.
    """
    check_ending("--output", output, (".json",))
    options = ScoreOptions.parse(given)
    from alignbench.judging import score as scoring

    scored = scoring.score_place(place, options, quiet=json)
    report(scoring.as_values(scored), scoring.text(scored), json, output)
    return 0


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
    report(audit_report.as_values(found), audit_report.text(found), json, output)
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
        print(f"{name} at {url}; use it with: alignbench run --reward {url}", flush=True)

    try:
        serve_scorer(name, options, ready)
    except KeyboardInterrupt:
        print("stopped", flush=True)
    return 0
