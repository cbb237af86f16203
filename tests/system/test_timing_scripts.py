"""The scripts of tests/timings that are not run elsewhere: they import what there is, and the one for a GPU runs."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time

import pytest
from places import ROOT, TESTS

FOLDER = TESTS / "timings"
GPU = FOLDER / "gpu.py"
OF_THE_GPU = ("gpu_parts", "gpu_plain")  # imported by gpu.py, for seconds


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in OF_THE_GPU))
def test_a_script_imports_what_there_is(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])  # as Python does for a script
    spec = importlib.util.spec_from_file_location(f"timings_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look
    spec.loader.exec_module(module)


def command(output, *more):
    return [sys.executable, GPU, "--small", "--most", "900", "--budget", "200", "--output", output, *more]


def parts_of(output):
    return json.loads(output.read_text())["parts"] if output.exists() else {}


@pytest.mark.slow
def test_the_script_for_a_gpu_goes_on_where_it_was_killed(tmp_path):
    output = tmp_path / "gpu.json"
    begun = subprocess.Popen(command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    ended = time.monotonic() + 200
    while len(parts_of(output)) < 3 and begun.poll() is None and time.monotonic() < ended:
        time.sleep(0.05)
    begun.send_signal(signal.SIGKILL)
    begun.communicate()  # ends when the part that was running has ended, too
    kept = parts_of(output)
    assert 3 <= len(kept) < 10

    again = subprocess.run(command(output), capture_output=True, text=True, check=True)
    found = parts_of(output)
    listed = subprocess.run(command(output, "--list"), capture_output=True, text=True, check=True)
    assert list(found) == [line.split()[0] for line in listed.stdout.splitlines()]
    assert {name: part["status"] for name, part in found.items()} == dict.fromkeys(found, "complete")
    assert {name: found[name] for name in kept} == kept
    assert all(part["flops"] > 0 and part["seconds"] > 0 for part in found.values())
    said = again.stdout.splitlines()
    assert not any(line.startswith(f"{name}:") for line in said for name in kept)
    assert any("times as fast" in line for line in said)

    short = subprocess.run(
        command(output, "--only", "peak", "--budget", "0.01"), capture_output=True, text=True, check=True
    )
    assert "peak: over its 0.01 seconds" in short.stdout
    assert parts_of(output)["sd15-dpo"] == found["sd15-dpo"]
    spawned = subprocess.run(
        command(output, "--only", "peak", "--start", "spawn"), capture_output=True, text=True, check=True
    )
    assert "TFLOP/s" in spawned.stdout
    late = subprocess.run(command(output, "--only", "peak", "--most", "9"), capture_output=True, text=True, check=True)
    assert "peak: not begun" in late.stdout
    refused = subprocess.run([*command(output)[:2], "--output", output], capture_output=True, text=True)
    assert "is of miniatures; name another --output." in refused.stderr


@pytest.mark.parametrize("folder", ["reference", "support", "system", "unit"])
def test_names_that_nobody_defines_are_found_where_mypy_does_not_look(folder):
    words = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    place = TESTS / folder / "of_nobody.py"
    found = subprocess.run(
        [*words, "--stdin-filename", str(place), "-"], input="print(nobody)\n", text=True, capture_output=True, cwd=ROOT
    )
    assert "F821 Undefined name `nobody`" in found.stdout
