"""`alignbench report`: the page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alignbench.choices import Family
from alignbench.cli.flags import Flag, Names, Paths, Whole
from alignbench.cli.output import check_ending, megabytes, note, say, say_written

if TYPE_CHECKING:
    from alignbench.page.build import Wanted

ENDINGS = (".html", ".htm")


def report(
    *files: Path,
    output: Path = Path("report.html"),
    baseline: str = "base",
    scorer: Names = None,
    images: Whole | None = None,
    open: Flag = False,
    skip_bad: Flag = False,
    family: Family = "scorer",
    margin: Names = None,
    control: str | None = None,
    votes: Paths = None,
) -> int:
    """Write one page to look at: verdict, win rates, tables, costs, training, pictures. It opens without a network.

    Parameters
    ----------
    files: Path
        Result files, or folders of them (default: results). Pictures are taken from the folders beside them.
    output: Path
        Page to write, .html.
    baseline: str
        Algorithm or method the others are compared with.
    scorer: str
        Only these scorers.
    images: int
        How many prompts to show pictures of; 0 for none (default: as many as keep the page under 20 MB).
    open: bool
        Open the page in the browser.
    skip_bad: bool
        Leave unreadable files out, and say so, instead of stopping.
    family: str
        Which p values are adjusted for each other: those of one scorer, of the whole table, or none.
    margin: str
        SCORER=AMOUNT: a difference that does not matter. Says which methods are equal within it, or not worse.
    control: str
        A scorer, such as one of style: also show the win rate at its equal value.
    votes: Path
        Logs of `alignbench vote`: adds win rates by people, what their votes are worth, and votes under pictures.
    """
    from alignbench.page.build import Wanted

    check_ending("--output", output, ENDINGS)
    wanted = Wanted(baseline, scorer or (), images, skip_bad, family, margin or (), control, votes or ())
    write_report(files or (Path("results"),), output, wanted)
    if open:
        import webbrowser

        if not webbrowser.open(output.resolve().as_uri()):
            note(f"no browser could be started; open {output} in one.")
    return 0


def write_report(paths: tuple[Path, ...], output: Path, wanted: Wanted | None = None) -> None:
    """Write the page of these files, and say where it is and what it lacks."""
    from alignbench.files import write_text
    from alignbench.page.build import build

    page = build(paths, output, wanted)
    write_text(output, page.text)
    note(*page.said)
    say_written(output)
    say(f"{megabytes(len(page.text.encode()))}; open it in a browser")
