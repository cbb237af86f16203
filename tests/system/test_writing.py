"""Where output goes that another process holds open, and what a disk without room leaves."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_to_where_it_was_sent_behind_what_was_printed(name, tmp_path):
    code = f"""
from pathlib import Path
from alignbench.files import write_text
print("before")
write_text(Path({name!r}), "it" + chr(10))
print("after")
"""
    with open(tmp_path / "out", "w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nit\nafter\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "before\nit\nafter\n"


def test_a_file_that_may_not_grow_is_a_failed_run(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from alignbench.errors import RunError
from alignbench.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_text(Path({str(tmp_path / "a")!r}), "x" * 5000)
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"cannot write {tmp_path / 'a'}: File too large; choose another place.\n"
    assert list(tmp_path.iterdir()) == []
