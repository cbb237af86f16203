"""The application: its commands, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Env

from alignbench import __version__
from alignbench.cli import cells, check, inventory, pairs, results, scorers
from alignbench.errors import AlignbenchError, InputError, UnknownName

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
for command in (cells.run, cells.suite, results.compare, results.show, results.ls, results.sheet):
    app.command(command)
for command in (results.plot, results.frontier):
    app.command(command)
for command in (pairs.pairs, pairs.accuracy, pairs.train_reward, scorers.score, scorers.audit, scorers.serve):
    app.command(command)
app.command(inventory.list_, name="list")
for command in (check.check, inventory.fetch, inventory.cache, inventory.env):
    app.command(command)
app.register_install_completion_command(
    help="Set up completion of commands and options in your shell.", add_to_startup=True
)


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; every failure is one line on stderr unless --debug is given."""
    debug = "--debug" in arguments
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
    except Exception as error:
        if debug:
            raise
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
