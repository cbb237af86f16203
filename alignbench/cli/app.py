"""The application: its commands, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from alignbench import __version__
from alignbench.errors import AlignbenchError, InputError, UnknownName
from alignbench.files import FULL, is_full
from alignbench.quiet import quieten_drawing

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
    "cells:run cells:suite results:compare results:show results:ls results:sheet results:plot results:frontier "
    "pairs:pairs pairs:accuracy pairs:train_reward scorers:score scorers:audit scorers:serve "
    "inventory:list_ inventory:fetch inventory:cache inventory:env check:check"
).split()  # imported when they are asked for
for place in COMMANDS:
    app.command(f"alignbench.cli.{place}", name=place.partition(":")[2].strip("_").replace("_", "-"))
app.register_install_completion_command(
    help="Set up completion of commands and options in your shell.", add_to_startup=True
)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every failure is one line on stderr unless --debug is given."""
    debug = "--debug" in arguments
    if not arguments or HELP.intersection(arguments):
        command = next((argument for argument in arguments if not argument.startswith("-")), None)
        if command is None:
            app.resolved_commands()  # for their summaries
        if command is None or command in app:  # at once: parsing what stands beside it takes a third of the time
            app.help_print([command] if command else [])
            return 0
    quieten_drawing()
    try:
        _check_environment()
        code = app([a for a in arguments if a != "--debug"], exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except CycloptsError as error:
        print(f"alignbench: {_one_line(error)}", file=sys.stderr)
        return 2
    except AlignbenchError as error:
        if debug:
            raise
        print(f"alignbench: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("alignbench: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except OSError as error:  # of a file or a device, where nobody explained it better
        if debug:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        reason = "the disk is full" if error.errno in FULL else error.strerror or _one_line(error)
        print(f"alignbench: {place}{reason}.", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        if is_full(error, Path()):  # a library that says so in words of its own
            print("alignbench: the disk is full; free some space, then type the same command again.", file=sys.stderr)
            return 1
        kind = type(error).__name__
        print(f"alignbench: unexpected {kind}: {_one_line(error)} (--debug shows where)", file=sys.stderr)
        return 1


def _check_environment() -> None:
    """Refuse a variable that would set an option which no command has: it would be ignored."""
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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
