"""How much sooner a suite ends with two cells at once: `python tests/timings/suite_jobs.py [ROUNDS]`.

Eight cells of DDPO on the mixture, one thread each: one after another, and two at once. Prints the seconds of each,
their ratio, and how busy the machine was. What both write must be equal.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent / "system")]

from suites import FEW, came_to, finished, write_suite  # noqa: E402


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        cells = [{"algo": "ddpo", "seed": list(range(1, 9)), "set": FEW | {"rounds": rounds}}]
        path = write_suite(Path(folder), cells)
        seconds, found = [], []
        for jobs in (1, 2):
            started = time.monotonic()
            finished(["suite", str(path), "--jobs", str(jobs), "--output", f"{folder}/{jobs}"])
            seconds.append(time.monotonic() - started)
            found.append(came_to(Path(folder, str(jobs))))
            print(
                f"--jobs {jobs}: {seconds[-1]:.1f} s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
                flush=True,
            )
    print(f"ratio {seconds[0] / seconds[1]:.2f}; results {'equal' if found[0] == found[1] else 'DIFFER'}")
    return 0 if found[0] == found[1] else 1


if __name__ == "__main__":
    sys.exit(main())
