"""Several processes of one command on this machine, under torch's elastic agent, which is what `torchrun` runs."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignbench.children import PARENT, THREADS, command, cores, has_safe_path, set_defaults
from alignbench.errors import warn
from alignbench.processes import LAUNCHER

AGAIN = "the same command continues from the last checkpoint."
PATIENCE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}  # seconds until processes are killed that hang after a signal


def launch(words: Sequence[str], options: Mapping[str, Any], flags: Sequence[str], processes: int) -> int:
    """Run a command of `alignbench` with these options in several processes that form one run. Returns their exit code.

    One that dies ends them all. They end with this process, however it ends: at the first SIGINT within seconds, at a
    second one at once.
    """
    import yaml
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    logging.disable()  # how they end is told in one line below
    folder = tempfile.TemporaryDirectory(prefix="alignbench-", ignore_cleanup_errors=True)
    asked = Path(folder.name, "asked.yaml")
    asked.write_text(yaml.safe_dump(dict(options), allow_unicode=True), encoding="utf-8")
    debug = ["--debug"] if "--debug" in sys.argv else []
    program, *arguments = command([*words, "--config", str(asked), *flags, *debug], has_safe_path())
    threads = dict.fromkeys(THREADS, str(max(1, cores() // processes)))
    set_defaults({**threads, "GLOO_SOCKET_IFNAME": "lo"})
    patience = {name: value for name, value in PATIENCE.items() if name not in os.environ}
    own = {PARENT: str(os.getpid()), LAUNCHER: "1"} | patience

    def interrupted(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, interrupted_again)
        raise SignalException("interrupted", signal.SIGINT)

    def interrupted_again(number: int, frame: object) -> None:
        warn(f"alignbench: ended at once; {AGAIN}")
        folder.cleanup()
        os._exit(128 + number)  # On Linux the processes end with this one. Elsewhere those that hang stay.

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        os.environ |= own
        launch_agent(_config(folder.name, processes), program, arguments)
    except ChildFailedError as error:
        return _ended({rank: failure.exitcode for rank, failure in error.failures.items()}, processes)
    except SignalException as error:
        warn(f"alignbench: ended by {signal.Signals(error.sigval).name}; {AGAIN}")
        return 128 + error.sigval
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)  # None: set by no Python
        logging.disable(logging.NOTSET)
        folder.cleanup()
        for name in own:
            os.environ.pop(name, None)
    return 0


def _config(folder: str, processes: int) -> Any:
    """So many processes on this machine, whose output stays where it is."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=DefaultLogsSpecs(folder),  # torch's own folder would stay
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.5,
        start_method="spawn",
        signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",  # SIGINT, which may come twice, is handled here
    )


def _ended(codes: dict[int, Any], processes: int) -> int:
    """The exit code of a run of which some processes failed: that of the first that ended by itself, or 128 plus the
    signal that ended one, as a shell has it."""
    for rank, code in sorted(codes.items()):
        if code < 0 and -code != signal.SIGTERM:  # the agent's own, once another one has failed
            warn(f"alignbench: process {rank} of {processes} was ended by {signal.Signals(-code).name}; {AGAIN}")
            return 128 - int(code)
    ended = [int(code) for _, code in sorted(codes.items()) if code > 0]
    return ended[0] if ended else 1
