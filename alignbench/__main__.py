"""`python -m alignbench` and the `alignbench` command."""

from __future__ import annotations

import os
import sys
import traceback


def main() -> None:
    """Run the command line; the exit code is 0, 1 for a failed run, 2 for wrong input, 130 when interrupted."""
    try:
        from alignbench.children import follow_parent
        from alignbench.cli.app import run_command_line
        from alignbench.processes import silence

        follow_parent()
        silence()
        code = run_command_line(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:  # before the command line has begun, or as it ended
        from alignbench.processes import has_launcher

        if not has_launcher():
            print("alignbench: interrupted; type the same command again.", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of a pipe has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # such as a full disk below the file that standard output goes to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"alignbench: what is printed cannot be written: {error.strerror or error}.", file=sys.stderr)
        code = 1
    except Exception:  # under --debug
        from alignbench.printed import guarded

        with guarded():
            traceback.print_exc()
        code = 1
    from alignbench.processes import leave

    leave(code)


if __name__ == "__main__":
    main()
