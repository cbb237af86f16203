"""Commands that read results: `compare`, `show`, `ls`, `plot`, `frontier` and `sheet`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alignbench.choices import Breakdown, CurveAxis, Family, Format
from alignbench.cli.flags import Flag, Names, Paths, Whole
from alignbench.cli.output import (
    PICTURES,
    check_ending,
    draw,
    listing,
    megabytes,
    note,
    print_json,
    say,
    say_written,
    screen,
    typed,
)
from alignbench.errors import InputError


def compare(
    *files: Path,
    baseline: str = "base",
    by: Breakdown | None = None,
    scorer: Names = None,
    skip_bad: Flag = False,
    published: Flag = False,
    family: Family = "scorer",
    duels: Flag = False,
    margin: Names = None,
    control: str | None = None,
    votes: Paths = None,
    pictures: Flag = False,
    format: Format = "table",
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
    family: str
        Which p values are adjusted for each other: those of one scorer, of the whole table, or none.
    duels: bool
        Also show every two methods against each other, with interval and p. JSON has them of up to 40 methods anyway.
    margin: str
        SCORER=AMOUNT: a difference that does not matter. Says which methods are equal within it, or not worse.
    control: str
        A scorer, such as one of style: also show the win rate at its equal value.
    votes: Path
        Logs of `alignbench vote`: adds win rates by people, and what their votes are worth.
    pictures: bool
        Also show what pictures are like without a scorer: edges, colours, darkness, diversity.
    format: str
        table (as wide as the terminal, or as COLUMNS says), markdown, csv (its notes go to stderr), latex or json.
    output: Path
        Write to this file instead of the terminal.
    """
    from alignbench.analysis.compare import compare as compare_files
    from alignbench.analysis.tables import notes, render
    from alignbench.files import write_text

    places, all_duels = files or (Path("results"),), duels or (None if format == "json" else False)
    comparison = compare_files(
        places, baseline, by, scorer or (), skip_bad, published, family, all_duels, margin or (), control, votes or ()
    )
    if output is None:
        print(render(comparison, format, screen(), pictures), end="")
    else:
        write_text(output, render(comparison, format, pictures=pictures))
        say_written(output)
    if format == "csv" and (remarks := notes(comparison, pictures)):
        note(*remarks)
    return 0


def show(what: str, *, json: Flag = False) -> int:
    """Show one result file, or a plug-in: of an algorithm its paper, fields, defaults and what presets change.

    Parameters
    ----------
    what: str
        A result file, or an algorithm, reward or prompt set by name, path/file.py:Name or package.module:Name.
    json: bool
        As JSON.
    """
    file = Path(what)
    if file.suffix == ".json" or file.exists():
        from alignbench.analysis import summary
        from alignbench.record.result import read

        result = read(file)
        if json:
            print_json(summary.as_values(result, file))
        else:
            listing(*summary.text(result, file, details=True).splitlines())
        return 0
    from alignbench.asking import description

    if json:
        print_json(description.as_values(what))
    else:
        listing(*description.text(what).splitlines())
    return 0


def ls(folder: Path = Path("results"), *, json: Flag = False) -> int:
    """List the cells of a folder: how far each is, how large, and what can be continued.

    Rows that lie apart from a result are not read; `alignbench show FILE` checks them.

    Parameters
    ----------
    folder: Path
        A folder of results.
    json: bool
        As JSON.
    """
    from alignbench.record.listing import cells_of, folders_below

    cells = cells_of(folder)
    if json:
        print_json({"folder": str(folder), "cells": [vars(cell) for cell in cells]})
        return 0
    for cell in cells:
        more = "  (type its command again to continue)" if cell.can_continue else ""
        detail = " ".join(cell.detail.split())
        listing(f"{cell.name:60} {cell.state:11} {megabytes(cell.bytes):>10}  {detail}{more}")
    say(f"{len(cells)} cells, {megabytes(sum(cell.bytes for cell in cells)).strip()} in {folder}")
    for below in folders_below([folder]):
        say(f"more in {below}: alignbench ls {typed(below)}")
    return 0


def sheet(
    *files: Path,
    prompts: Whole | None = None,
    method: Names = None,
    output: Path | None = None,
    sprite: Flag = False,
) -> int:
    """Draw pictures of several methods side by side: a row a method, a column a prompt, all from the same noise.

    Parameters
    ----------
    files: Path
        Result files whose folders of pictures lie beside them, or folders of them (default: results).
    prompts: int
        How many prompts (default: 6; of a sprite all).
    method: str
        Only these methods, in this order.
    output: Path
        Picture to write, .png (default: sheet.png).
    sprite: bool
        Instead keep each result's small pictures as one file beside it, which `report` and `sheet` read where the
        folder is gone.
    """
    from alignbench.analysis.sheet import draw as draw_sheet
    from alignbench.analysis.sheet import write_sprites
    from alignbench.files import replace_file

    check_ending("--output", output, (".png",))
    if prompts is not None and prompts < 1:
        raise InputError(f"--prompts {prompts}: expected at least 1.")
    if sprite and method:
        raise InputError("--method: a sprite is of one result; name the files instead.")
    if sprite and output:
        raise InputError(f"--output {output}: a sprite is written beside its result; leave one of them out.")
    if sprite:
        for made in write_sprites(files or (Path("results"),), prompts):
            say_written(made)
        return 0
    drawn, output = draw_sheet(files or (Path("results"),), prompts or 6, method or ()), output or Path("sheet.png")
    with replace_file(output) as temporary:
        drawn.save(temporary, format="PNG", optimize=True)
    say_written(output)
    return 0


def plot(
    *files: Path,
    against: CurveAxis = "rounds",
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

    check_ending("--output", output, PICTURES)
    draw(reward_curves(files or (Path("results"),), against, scorer or ()), output)
    say_written(output)
    return 0


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
    from alignbench.analysis.frontier import as_csv, panels
    from alignbench.analysis.frontier_plot import drawn, frontier_figure
    from alignbench.files import write_text

    if format == "figure":
        output = output or Path("frontier.png")
        check_ending("--output", output, PICTURES)
    elif output is not None and output.suffix in PICTURES:
        raise InputError(f"--output {output}: --format csv is text; name a .csv file.")
    found = panels(files or (Path("results/testbed"),), scorer or ())
    if output is None:
        print(as_csv(found), end="")
        return 0
    if format == "csv":
        write_text(output, as_csv(found))
    else:
        draw(frontier_figure(found), output)
        lacking = {
            (p.problem, s.method): s.missing.get("kl", "") for p in found for s in p.standings if "kl" not in s.metrics
        }
        for (problem, method), why in lacking.items():
            say(f"not drawn on {problem}: {method} ({why or 'it has no KL'})")
        if (others := len(found) - len(drawn(found))) > 0:
            say(f"not drawn: {others} more evaluations or rewards, which fewer methods or none were aligned with")
    say_written(output)
    return 0
