"""The application: its commands, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env
from cyclopts.exceptions import UnusedCliTokensError

from alignbench import __version__
from alignbench.errors import AlignbenchError, InputError, UnknownName, said
from alignbench.files import FULL, is_full
from alignbench.printed import drawing, guarded
from alignbench.processes import Lost, has_launcher, refuse_several
from alignbench.quiet import quieten_drawing

if TYPE_CHECKING:
    from rich.console import Console

SHARED = ("run", "evaluate")  # commands that processes of a launcher may share
HELP = {"--help", "-h"}
PREFIX = "ALIGNBENCH_"  # ALIGNBENCH_RUN_MODEL is `run --model`

app = App(
    name="alignbench",
    help="Compare algorithms that align text-to-image diffusion models with preferences and rewards.",
    help_format="plaintext",
    help_epilogue="Every command takes --debug: show a traceback instead of one line when something goes wrong.\n"
    "Every option can be set as an environment variable, such as ALIGNBENCH_RUN_MODEL for run --model.",
    version=__version__,
    config=Env(PREFIX, show=False),
    suppress_keyboard_interrupt=False,
    result_action="return_value",
    default_parameter=Parameter(show_env_var=False),
)
COMMANDS = (
    "cells:run cells:evaluate suites:suite "
    "results:compare report:report plan:plan results:show results:ls results:sheet results:plot results:frontier "
    "votes:vote pairs:pairs pairs:accuracy pairs:train_reward scorers:score scorers:audit scorers:serve "
    "inventory:list_ inventory:fetch inventory:cache inventory:env check:check"
).split()  # imported when they are asked for
for place in COMMANDS:
    app.command(f"alignbench.cli.{place}", name=place.partition(":")[2].strip("_").replace("_", "-"))
app.register_install_completion_command(
    help="Set up completion of commands and options in your shell.", add_to_startup=True
)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every failure is one line on stderr unless --debug is given."""
    with guarded():
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    debug = "--debug" in arguments
    if not arguments or HELP.intersection(arguments):
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        if command is None:
            app.resolved_commands()  # for their summaries
        if command is None or command in app:  # at once: parsing what stands beside it takes a third of the time
            app.help_print([command] if command else [], console=_console())
            return 0
    quieten_drawing()
    try:
        if next((a for a in arguments if not a.startswith("-")), None) not in SHARED:
            refuse_several()
        _check_environment()
        _check_values(arguments)
        code = app([a for a in arguments if a != "--debug"], exit_on_error=False, print_error=False, console=_console())
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        print(f"alignbench: {_not_understood(error)}", file=sys.stderr)
        return 2
    except AlignbenchError as error:
        if debug:
            raise
        if not (isinstance(error, Lost) and error.is_told):
            print(f"alignbench: {said(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as error:  # of a plug-in: no command of ours ends so
        print(f"alignbench: a plug-in ended the program (SystemExit: {said(error)}).", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file or a device, where nobody explained it better
        if debug:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = "the disk is full" if error.errno in FULL else error.strerror or said(error)
        print(f"alignbench: {place}{reason}.", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        if _is_of_interrupt(error):
            return _interrupted()
        if is_full(error, Path()):  # a library that says so in words of its own
            print("alignbench: the disk is full; free some space, then type the same command again.", file=sys.stderr)
            return 1
        kind = type(error).__name__
        print(f"alignbench: unexpected {kind}: {said(error)} (--debug shows where)", file=sys.stderr)
        return 1


def _interrupted() -> int:
    if not has_launcher():
        print("alignbench: interrupted; the same command continues where it stopped.", file=sys.stderr)
    return 130


def _is_of_interrupt(error: BaseException | None) -> bool:
    """Whether an error arose while an interrupt ended things, such as an import that it had cut short."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_of_interrupt(error.__context__))


def _not_understood(error: CycloptsError) -> str:
    """A command line that is wrong; a word that no option takes with what to do about it."""
    if not isinstance(error, UnusedCliTokensError) or not error.unused_tokens:
        return said(error)
    word = error.unused_tokens[0]
    such = ", such as --set before each NAME=VALUE of run" if "=" in word else ""
    return f"{word!r} belongs to no option; expected an option before it{such}; see --help."


def _check_environment() -> None:
    """Refuse a variable that would set an option which no command has, or to nothing: it would be ignored."""
    for variable in os.environ:
        for name in app if variable.startswith(PREFIX) else ():
            start = f"{PREFIX}{name.replace('-', '_').upper()}_"
            if name.startswith("-") or not variable.startswith(start):
                continue
            known = [
                f"{start}{argument.name.removeprefix('--').replace('-', '_').upper()}"
                for argument in app[name].assemble_argument_collection()
            ]
            if variable not in known:
                raise InputError(str(UnknownName(f"option of `{name}` for the environment variable", variable, known)))
            if not os.environ[variable]:
                raise InputError(f"{variable} is set to nothing; say what is meant, or unset it.")


def _check_values(arguments: Sequence[str]) -> None:
    """Refuse empty values, such as a variable of the shell that is not set: a path would mean the folder one is in."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and equals and not value:
            raise InputError(f"{name}: an empty value; say what is meant, or leave the option out.")
        if not argument:
            before = arguments[place - 1] if place else "alignbench"
            what = before if before.startswith("--") else f"what follows {before}"
            raise InputError(f"{what}: an empty value; say what is meant, or leave it out.")


def _console() -> Console:
    """Where help is printed."""
    from rich.console import Console

    return Console(file=drawing(sys.stdout))
