"""The command `vote`: people say which picture is better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from cyclopts import Parameter

from alignbench.cli.flags import Flag, Names, Whole
from alignbench.cli.output import say, typed
from alignbench.errors import InputError, shown
from alignbench.printed import how_many

if TYPE_CHECKING:
    from alignbench.judging.voting_asked import Asked

EACH, HOST, PORT = 100, "127.0.0.1", 8765


def vote(
    *files: Path,
    task: Names = None,
    votes: Path = Path("votes.jsonl"),
    raters: Names = None,
    each: Whole | None = None,
    adaptive: Flag = False,
    seed: Whole | None = None,
    host: str | None = None,
    port: Whole | None = None,
    import_: Annotated[Path | None, Parameter(name="--import")] = None,
) -> int:
    """Open a page on which people vote blindly: two pictures of one prompt and noise, and which is better.

    Every vote is on disk before it is acknowledged. Stopped and typed again, the command goes on with the same log.

    alignbench vote results/base.json results/refl.json --task overall alignment

    Parameters
    ----------
    files: Path
        Result files of one evaluation, with their folders of pictures beside them, or folders of them.
    task: str
        Questions: overall, alignment and appearance are those of the Diffusion-DPO paper; others in your own words.
    votes: Path
        The log, .jsonl. One that is there is continued.
    raters: str
        Who may vote: names, or a number of raters; each gets an address. By default everybody types a name.
    each: int
        Pairs that each rater is shown, checks and repeats among them (default: 100).
    adaptive: bool
        Ask about the methods whose interval is widest, instead of about all alike.
    seed: int
        Decides sides, order, checks and repeats (default 0; of a log that is there, its own).
    host: str
        An address of this machine under which others reach it (default: 127.0.0.1). Any other needs a key in the page's
        address.
    port: int
        Port to listen on; 0 takes a free one (default: 8765).
    import_: Path
        Serve nothing, but make a log of votes that were cast elsewhere: a .csv with the columns prompt, method_a,
        method_b, choice and rater, Label Studio's .json, or a .parquet with Pick-a-Pic's columns.
    """
    _check(files, votes, each, seed, port)
    if import_ is not None:
        several = {"task": task, "raters": raters}
        one = {"each": each, "seed": seed, "host": host, "port": port}
        others = {**several, **{name: None if value is None else (value,) for name, value in one.items()}}
        given = [f"{name} {typed(*values)}" for name, values in others.items() if values is not None]
        return _import(import_, files, votes, [*given, *["adaptive"] * adaptive])
    each, port, host = EACH if each is None else each, PORT if port is None else port, host or HOST
    from alignbench.judging.voting_asked import Asked
    from alignbench.judging.voting_served import is_local, raters_of

    names = raters_of(raters or ())
    _serve(files, Asked(votes, task or (), names, each, seed, adaptive, closed=not is_local(host)), host, port)
    return 0


def _import(source: Path, files: tuple[Path, ...], votes: Path, others: list[str]) -> int:
    """Make a log of votes that were cast elsewhere. Options of the page, such as these `others`, mean nothing then."""
    if others:
        raise InputError(f"--{others[0]}: --import opens no page; leave one of them out.")
    from alignbench.judging.outside_votes import import_votes

    made = import_votes(source, files, votes)
    cast = f"{how_many(made.votes, 'vote')} of {how_many(made.raters, 'rater')}"
    say(f"{cast} in {made.path}: {', '.join(made.questions)}")
    if made.repeats:
        say(f"  {made.repeats} of them on a pair that the rater had judged: for agreement with oneself alone")
    if made.identical:
        say(f"  {how_many(made.identical, 'row')} left out, on one picture of two methods: a tie")
    if made.unused:
        say(f"  columns that are not used: {', '.join(map(shown, made.unused))}")
    say(f"see them with: alignbench compare {typed(*files)} --votes {typed(made.path)}")
    return 0


def _serve(files: tuple[Path, ...], asked: Asked, host: str, port: int) -> None:
    """Say where to vote, and serve until interrupted."""
    from alignbench.judging.voting import begin
    from alignbench.judging.voting_served import bound, served

    with bound(host, port) as listening, served(session := begin(files, asked), listening) as (server, url):
        for name in asked.raters:
            say(f"{name}: {url}/#{session.key_of(name)}:{quote(name, safe='')}")
        if not asked.raters:
            say(f"vote at {url}/" + (f"#{session.key_of('')}" if asked.closed else ""))
        say(f"{session.summary()}; Ctrl-C stops, the same command goes on")
        try:
            server.serve()
        except KeyboardInterrupt:
            seen = f"alignbench compare {typed(*files)} --votes {typed(asked.log)}"
            say("stopped", f"{session.summary()}; see them with: {seen}")


def _check(files: tuple[Path, ...], votes: Path, each: int | None, seed: int | None, port: int | None) -> None:
    if not files:
        raise InputError("name the results to vote on: alignbench vote A.json B.json.")
    if votes.suffix != ".jsonl":
        raise InputError(f"--votes {votes}: expected a .jsonl file.")
    if each is not None and each < 1:
        raise InputError(f"--each {each}: expected at least 1.")
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: expected at least 0, below 2**63.")
    if port is not None and not 0 <= port < 2**16:
        raise InputError(f"--port {port}: expected a port from 0 to 65535.")
