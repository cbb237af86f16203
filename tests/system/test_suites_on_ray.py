"""Suites on a Ray cluster of two nodes, both of them on this machine, whose workers and nodes are killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from suites import (
    came_to,
    cells_with,
    finished,
    kill,
    parent_of,
    processes_with,
    started,
    twelve,
    wait_for,
    write_suite,
)

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.slow
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]
QUIET = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Nodes:
    """A cluster: the processes that hold its nodes, the head first."""

    folder: Path
    address: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")
    holders: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, cpus: int = 2, **environment: str) -> None:
        """Start the head, or another node, and wait until it is there."""
        words = ["start", "--block", f"--num-cpus={cpus}", "--object-store-memory=100000000", "--disable-usage-stats"]
        words += [f"--node-manager-port={free_port()}", f"--object-manager-port={free_port()}"]
        head = ["--head", f"--port={self.address.partition(':')[2]}", "--include-dashboard=false"]
        words += [f"--address={self.address}"] if self.holders else [*head, f"--temp-dir={self.folder}"]
        log = open(self.folder / f"node{len(self.holders)}.txt", "wb")  # noqa: SIM115
        env = {**os.environ, **QUIET, "NODE_UNDER_TEST": f"{self.folder}-{len(self.holders)}", **environment}
        with log:
            self.holders.append(
                subprocess.Popen([*RAY, *words], stdout=log, stderr=log, env=env, start_new_session=True)
            )
        wait_for(lambda: "Ray runtime started" in Path(log.name).read_text(), 180)

    def lose(self, number: int) -> None:
        """Kill a node at once, with all that it has started."""
        for process in processes_with(f"{self.folder}-{number}"):
            with contextlib.suppress(ProcessLookupError):
                kill(process)
        self.holders[number].wait(30)

    def close(self) -> None:
        for number in reversed(range(len(self.holders))):
            self.lose(number)


@pytest.fixture(scope="module")
def token(tmp_path_factory) -> Iterator[None]:
    """A token for this file's clusters, which are nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("token") / "auth_token"
        path.write_text("0123456789abcdef" * 4)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture
def nodes(token) -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # the names of Ray's sockets have to be short
        found = Nodes(Path(folder))
        try:
            found.add()
            yield found
        finally:
            found.close()


def cells_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err + out
    found: list[dict[str, Any]] = json.loads(out)["cells"]
    return found


def test_workers_and_a_node_are_killed_and_all_cells_are_what_a_plain_suite_gives(nodes, tmp_path):
    nodes.add()
    path = write_suite(tmp_path, twelve(rounds=30))
    suite = started(["suite", str(path), "--on", f"ray:{nodes.address}", "--json"])
    wait_for(lambda: list((tmp_path / "results").glob("*-ddpo-*/checkpoint.pt")), 300)
    worker = parent_of(cells_with(f"{nodes.folder}-0")[0])
    assert worker is not None
    kill(worker)  # in the middle of a cell
    time.sleep(3)
    nodes.lose(1)
    cells = cells_of(suite)
    assert [cell["state"] for cell in cells] == ["done"] * 12
    assert 2 <= sum(cell["tries"] - 1 for cell in cells) <= 4  # the killed worker's, and those of the lost node
    finished(["suite", str(path), "--output", str(tmp_path / "plain")])
    expected = came_to(tmp_path / "plain")
    assert len(expected) == 12
    assert came_to(tmp_path / "results") == expected
    assert not list((tmp_path / "results").glob(".suite-*"))


@pytest.mark.parametrize("lost", ["the head's server", "the head's node"])
def test_a_head_that_dies_ends_the_suite_in_a_line_within_a_minute_and_the_same_command_continues(
    lost, nodes, tmp_path
):
    nodes.add()
    path = write_suite(tmp_path, twelve(rounds=30)[2:])
    suite = started(["suite", str(path), "--on", f"ray:{nodes.address}"])
    wait_for(lambda: len(cells_with(str(nodes.folder))) == 4, 300)
    if lost == "the head's node":
        nodes.lose(0)
    else:
        kill(next(p for p, command in processes_with(f"{nodes.folder}-0").items() if "/gcs_server " in command))
    out, err = suite.communicate(timeout=60)
    assert suite.returncode == 1
    line = rf"alignbench: the head of the Ray cluster at {nodes.address} is gone \(.+\); the same command continues\."
    assert re.fullmatch(line, err.strip().splitlines()[-1])
    assert len(out.strip().splitlines()) == 8
    assert out.count(" interrupted (the same command continues it)") == 4
    assert not list((tmp_path / "results").glob(".suite-*"))
    wait_for(lambda: not cells_with(str(nodes.folder)), 90)  # other nodes wait a minute for their head
    finished(["suite", str(path), "--jobs", "2"])


def test_a_cluster_of_this_machine_that_dies_ends_the_suite_and_leaves_no_process(token, tmp_path):
    path = write_suite(tmp_path, twelve(rounds=30)[2:4])
    suite = started(["suite", str(path), "--on", "ray"], SUITE_UNDER_TEST=str(tmp_path))
    wait_for(lambda: cells_with(str(tmp_path)), 300)
    kill(next(p for p, command in processes_with(str(tmp_path)).items() if "/gcs_server " in command))
    _, err = suite.communicate(timeout=60)
    assert suite.returncode == 1
    assert "alignbench: the head of the Ray cluster of this machine is gone (" in err
    wait_for(lambda: not processes_with(str(tmp_path)), 30)


def test_an_interrupted_suite_leaves_nothing_on_the_cluster_and_the_same_command_continues(nodes, tmp_path):
    path = write_suite(tmp_path, twelve(rounds=30)[2:])
    words = ["suite", str(path), "--on", f"ray:{nodes.address}"]
    for number in (signal.SIGINT, signal.SIGTERM):
        suite = started(words)
        wait_for(lambda: len(cells_with(f"{nodes.folder}-0")) == 2, 300)
        suite.send_signal(number)
        suite.communicate(timeout=60)
        assert suite.returncode == 128 + number
        wait_for(lambda: not cells_with(f"{nodes.folder}-0"), 10)
    assert [cell["state"] for cell in cells_of(started([*words, "--json"]))] == ["done"] * 8


def test_a_cluster_of_this_machine_alone_ends_with_its_suite(token, tmp_path):
    path = write_suite(tmp_path, twelve()[:1])
    suite = started(["suite", str(path), "--on", "ray", "--json"], SUITE_UNDER_TEST=str(tmp_path))
    assert [cell["state"] for cell in cells_of(suite)] == ["done"]
    wait_for(lambda: not processes_with(str(tmp_path)), 30)


def test_what_no_node_holds_and_nodes_that_are_not_alike_are_one_line(nodes, tmp_path):
    suite = write_suite(tmp_path, [{"algo": "base", "gpus": 8}])
    words = ["suite", str(suite), "--on", f"ray:{nodes.address}"]
    assert _refused(words).endswith("asks for 8 GPUs and 1 CPUs; the largest node has 0 GPUs.")
    nodes.add(**of_another_torch(tmp_path))
    line = _refused(words)
    assert "has torch 1.0, and this machine" in line
    assert line.startswith("alignbench: node ")
    assert not list((tmp_path / "results").glob("*"))


def test_an_address_where_no_ray_is_and_a_token_that_is_not_the_clusters_are_one_line(nodes, tmp_path, monkeypatch):
    suite = write_suite(tmp_path, [{"algo": "base"}])
    nobody = f"127.0.0.1:{free_port()}"
    assert _refused(["suite", str(suite), "--on", f"ray:{nobody}"]).startswith(
        f"alignbench: --on ray:{nobody}: no Ray answers there"
    )
    expected = "alignbench: --on ray:head: expected HOST:PORT of a head node, such as ray:10.0.0.1:6379."
    assert _refused(["suite", str(suite), "--on", "ray:head"]) == expected
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "fedcba9876543210" * 4)
    assert "the cluster refuses the token of this machine" in _refused(
        ["suite", str(suite), "--on", f"ray:{nodes.address}"]
    )


def of_another_torch(folder: Path) -> dict[str, str]:
    """The environment of a node on which torch seems to be of another version."""
    made = folder / "torch-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def _refused(words: list[str]) -> str:
    """The one line of a command that is refused."""
    process = started(words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 2, err + out
    assert out == ""
    return err.strip().splitlines()[-1]
