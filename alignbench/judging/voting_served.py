"""A session of votes behind its server: who may vote, and at which address of this machine."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Sequence

from alignbench.errors import InputError, shown
from alignbench.judging.voting import Session
from alignbench.record.votes import LONGEST_NAME, folded
from alignbench.remote.server import ScorerServer, listen
from alignbench.remote.vote_server import BACKLOG, make_vote_server

MOST = 1000  # raters with addresses of their own
NUMBER = re.compile(r"[-+]?[0-9][0-9.,e+-]*")  # what is no name


def raters_of(asked: Sequence[str]) -> tuple[str, ...]:
    """Names of raters: those that were given, or as many as a single number says."""
    if len(asked) == 1 and NUMBER.fullmatch(asked[0]):
        if not asked[0].isdigit() or not 1 <= int(asked[0][:9]) <= MOST:
            raise InputError(f"--raters {asked[0]}: expected 1 to {MOST}, or names.")
        return tuple(f"rater-{i}" for i in range(1, int(asked[0]) + 1))
    for name in asked:
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or name != " ".join(name.split()):
            raise InputError(f"--raters: {shown(name)}; expected names of 1 to {LONGEST_NAME} letters.")
    if len(set(map(folded, asked))) < len(asked):
        raise InputError("--raters: one name stands there twice (A and a are one letter).")
    return tuple(asked)


def is_local(host: str) -> bool:
    """Whether an address is this machine's alone. Raises InputError for what is no address, or stands for all."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        raise InputError(f"--host {shown(host)}: expected an IPv4 address of this machine (192.168.0.7).") from None
    if address.is_unspecified or address.is_multicast:
        raise InputError(f"--host {host}: name the one address under which raters reach this machine.")
    return address.is_loopback


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address (0: a free port), had before a session begins: without it no log shall be left. Raises
    InputError where it cannot be had."""
    try:
        return listen(host, port, BACKLOG)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise InputError(
            f"--host {host} --port {port} cannot be used ({why}); stop what is there, or choose others."
        ) from None


@contextlib.contextmanager
def served(session: Session, listening: socket.socket) -> Iterator[tuple[ScorerServer, str]]:
    """The server of a session, not yet running, and its address."""
    host, port = listening.getsockname()
    with contextlib.closing(session), listening:
        yield make_vote_server(session, listening), f"http://{host}:{port}"
