"""What only another process can show: what an import loads, who holds a folder, what a kill leaves."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from places import ROOT

from alignbench.preferences.cache import TensorCache
from alignbench.record.resumable import Resumable

GROUPS = ("algorithms", "rewards", "benchmarks")


def test_keys_need_no_torch_until_a_tensor_is_drawn():
    code = (
        "import sys; from alignbench.keys import Key; Key('a').generator().random(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        f"import sys\nfrom alignbench.cli.app import run_command_line\nrun_command_line({arguments})\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'scipy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    return set(out.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import alignbench",
        "import alignbench.cli.app, alignbench.asking.options, alignbench.judging.options",
        "import alignbench.analysis.compare, alignbench.analysis.tables, alignbench.analysis.plots, "
        "alignbench.analysis.summary, alignbench.record.result",
        "import alignbench.diffusion.registry as r; r.named()",
    ],
)
def test_importing_it_loads_no_torch(statement):
    assert "torch" not in loaded_by(statement)


INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r}:
            sys.meta_path.remove(self)
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["compare", "nowhere"]
from alignbench.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["alignbench.cli.app", "cyclopts", "alignbench.cli.results", "numpy"])
def test_an_interrupt_at_any_import_is_one_line(module):
    code = INTERRUPTED.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (130, -signal.SIGINT)
    (line,) = done.stderr.splitlines()
    assert line.startswith("alignbench: interrupted; ")


def test_several_processes_leave_no_temporary_folder_and_no_time_limit(tmp_path):
    code = "import os, sys; from alignbench.launch import launch; code = launch(['nobody'], {'limit': 1}, [], 2); "
    code += "assert 'TORCH_ELASTIC_SHUTDOWN_TIMEOUT' not in os.environ; sys.exit(code)"
    surroundings = os.environ | {"TMPDIR": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path.parent / "inductor")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 2
    assert "several processes share" in done.stderr  # of a command that none may share: soon over
    assert list(tmp_path.iterdir()) == []


ABORTING = """
import os, sys
class Connection:
    def __del__(self):
        os.abort()
kept = Connection()
sys.argv[1:] = ["compare", "nowhere"]
from alignbench.__main__ import main
main()
"""


def test_one_of_several_processes_ends_with_its_own_exit_code_and_takes_no_connection_apart():
    """A library aborts where it is taken apart while its threads use a connection, as after a run that has failed."""
    surroundings = os.environ | {"WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run([sys.executable, "-c", ABORTING], capture_output=True, text=True, env=surroundings)
    assert done.returncode == 2
    assert "several processes share" in done.stderr


@pytest.mark.parametrize("group", GROUPS)
def test_a_bare_import_of_a_plugin_folder_says_what_to_import(group):
    done = subprocess.run([sys.executable, "-c", f"import {group}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0
    assert f"import this package as 'alignbench.{group}'" in done.stderr


def test_no_window_system_is_asked_for(make_result, tmp_path):
    """pyplot would choose a back end and keep every figure."""
    spent = {"denoiser_forward": 1, "denoiser_backward": 0, "seconds": 1.0}
    curve = [{"round": i, "reward": 1.0, "held_out": {"r": 1.0}, **spent} for i in (1, 3)]
    path = make_result("one", [1.0, 2.0], "ddpo", seed=0, curve=curve)
    code = (
        "import sys; from pathlib import Path; from alignbench.analysis.plots import reward_curves; "
        f"reward_curves([Path({str(path)!r})]).savefig({str(tmp_path / 'x.png')!r}); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def work(folder: Path) -> Resumable:
    return Resumable(folder, {"seed": 0}, "cell.json", "choose another --output", "use --force to replace it", None)


def _hold(folder: str, ready, leave) -> None:
    with work(Path(folder)).held():
        ready.set()
        leave.wait(20)


def test_one_process_at_a_time_and_another_waits_and_says_for_whom(tmp_path, capfd):
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    child = context.Process(target=_hold, args=(str(tmp_path), ready, leave))
    child.start()
    assert ready.wait(20)
    try:
        threading.Timer(0.5, leave.set).start()
        with work(tmp_path).held() as attempt:
            assert leave.is_set()
            assert attempt == 2
    finally:
        leave.set()
        child.join()
    said = capfd.readouterr().err
    assert re.fullmatch(rf"{tmp_path} is in use by process {child.pid} on \S+ since 2\S+; waiting for it\n", said)


def test_a_killed_writer_leaves_a_sound_file(tmp_path):
    path = tmp_path / "t.sqlite"
    script = f"""
import itertools, torch
from pathlib import Path
from alignbench.preferences.cache import TensorCache
cache = TensorCache(Path({str(path)!r}), 2**22)
for n in itertools.count():
    cache.put_many({{b"%d" % (8 * n + k): {{"x": torch.full((4096,), float(8 * n + k))}} for k in range(8)}})
    print(n, flush=True)
"""
    writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    for line in writer.stdout:
        if int(line) == 60:  # past the limit: it evicts as well
            time.sleep(0.003)
            break
    os.kill(writer.pid, signal.SIGKILL)
    last = int([line, *writer.communicate()[0].split()][-1])
    cache = TensorCache(path, 2**22, say=lambda said: pytest.fail(said))
    found = cache.get_many([b"%d" % number for number in range(8 * last + 16)])
    assert {b"%d" % (8 * last + k) for k in range(8)} <= found.keys()
    assert all(torch.equal(value["x"], torch.full((4096,), float(int(key)))) for key, value in found.items())
    cache.close()
