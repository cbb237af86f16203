"""The command `plan`: what results can show, and what to add."""

from __future__ import annotations

from pathlib import Path

from alignbench.choices import Format
from alignbench.cli.flags import Flag, Names, Whole
from alignbench.cli.output import note, say_written, screen


def plan(
    *files: Path,
    baseline: str = "base",
    scorer: Names = None,
    prompts: Whole | None = None,
    images: Whole | None = None,
    seeds: Whole | None = None,
    power: float = 0.8,
    family_size: Whole | None = None,
    skip_bad: Flag = False,
    format: Format = "table",
    output: Path | None = None,
) -> int:
    """Say how small a difference results can show, and what to add first: prompts, images or seeds.

    Parameters
    ----------
    files: Path
        Result files, or folders of them (default: results).
    baseline: str
        Algorithm or method the others are compared with.
    scorer: str
        Only these scorers.
    prompts: int
        Plan for so many prompts (default: those of the results).
    images: int
        Plan for so many images of each prompt (default: those of the results).
    seeds: int
        Plan for so many training seeds of a method that has several (default: those of the results).
    power: float
        The probability with which the smallest difference is to be shown.
    family_size: int
        How many tests share the 5 % of false findings (default: the methods beside the baseline).
    skip_bad: bool
        Leave unreadable files out, and say so, instead of stopping.
    format: str
        table (as wide as the terminal, or as COLUMNS says), markdown, csv (its notes go to stderr), latex or json.
    output: Path
        Write to this file instead of the terminal.
    """
    from alignbench.analysis.plan import Wanted, plans
    from alignbench.analysis.plan_tables import notes, render
    from alignbench.files import write_text

    wanted = Wanted(prompts, images, seeds, power, family_size)
    found = plans(files or (Path("results"),), wanted, baseline, scorer or (), skip_bad)
    if output is None:
        print(render(found, format, screen()), end="")
    else:
        write_text(output, render(found, format))
        say_written(output)
    if format == "csv":
        note(*notes(found))
    return 0
