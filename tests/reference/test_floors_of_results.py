"""Committed results of the testbed hold the floors that follow from them today."""

from __future__ import annotations

import json

import floors_of_results
import pytest
from floors_of_results import rewritten, with_floors
from places import ROOT

from alignbench.record import result as results

FOLDER = ROOT / "results" / "testbed"
ANOTHER = {"value": 1.0, "kind": "estimate", "about": "–", "low": None, "high": None, "floor": 0.5}
KINDS = ("gaussian-best_of_n-57b2c8", "gaussian-ddpo-seed1", "grid64-svdd-0f69d1")  # exact, by neighbours, in a plane
EVERY = 80  # file, of those that are looked at beside: all take nine minutes


@pytest.mark.parametrize(
    "stems",
    [KINDS[:1], *(pytest.param(stems, marks=pytest.mark.slow) for stems in (KINDS[1:], None))],
    ids=["exact", "of other kinds", "one of eighty"],
)
def test_committed_floors_are_those_of_today(stems):
    """Where this fails, `python tests/support/floors_of_results.py` writes them anew."""
    paths = (
        sorted(FOLDER.glob("*.json"))[::EVERY] if stems is None else [FOLDER / f"mixture-{stem}.json" for stem in stems]
    )
    for path in paths:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = with_floors(content["metrics"], content["evaluation"]["prompts"], len(content["rows"]))
        for name, metric in content["metrics"].items():
            floor = metric["floor"] if metric["floor"] is None else pytest.approx(metric["floor"], rel=1e-6, abs=1e-9)
            assert found[name] == metric | {"floor": floor}, (path.name, name)


def test_only_floors_and_the_range_of_covariances_are_found_anew():
    content = json.loads((FOLDER / f"mixture-{KINDS[0]}.json").read_text(encoding="utf-8"))
    old = content["metrics"]
    spoiled = {
        name: metric | ({"floor": 9.0} if metric["floor"] is not None else {}) | {"about": f"{metric['about']}!"}
        for name, metric in old.items()
    }
    found = with_floors(spoiled, "gaussian", 1000)
    for name, metric in spoiled.items():
        changed = {key for key in metric if found[name][key] != metric[key]}
        of = name.rpartition(".")[2]
        assert changed == {"regret": {"floor"}, "excess_kl": {"floor"}, "mode_tv": {"floor"}}.get(
            of, {"about"} if of == "covariance" else set()
        )


def test_a_file_is_written_anew_in_its_metrics_and_its_digest_alone(tmp_path, monkeypatch):
    old = (FOLDER / f"mixture-{KINDS[0]}.json").read_text(encoding="utf-8")
    monkeypatch.setattr(floors_of_results, "with_floors", lambda metrics, *_: metrics | {"kl": ANOTHER})
    path = tmp_path / "again.json"
    path.write_text(rewritten(old), encoding="utf-8")
    assert results.read(path).metrics["kl"].floor == 0.5  # the digest holds
    pairs = zip(old.split("\n"), path.read_text(encoding="utf-8").split("\n"), strict=True)
    assert [one.split(":")[0] for one, other in pairs if one != other] == [' "metrics"', ' "digest"']
    monkeypatch.setattr(floors_of_results, "with_floors", lambda metrics, *_: metrics)
    assert rewritten(old) == old
