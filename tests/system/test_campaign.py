"""A small share of the campaign of faults, and that the committed counts are those of a whole one without a fault."""

from __future__ import annotations

import json

import campaign
import pytest
from places import ROOT

COUNTS = json.loads((ROOT / "results" / "campaign" / "faults.json").read_text(encoding="utf-8"))
WHOLE = {"kills": 100, "results": 1200, "weights": 60, "pictures": 60, "requests": 60}


@pytest.mark.parametrize("name", WHOLE)
def test_the_committed_campaign_is_whole_and_found_no_fault(name):
    assert COUNTS[name]["tried"] >= WHOLE[name]
    assert sum(COUNTS[name]["ended"].values()) == COUNTS[name]["tried"]
    assert COUNTS[name]["faults"] == []


def test_kills_were_kills():
    killed = [count for ended, count in COUNTS["kills"]["ended"].items() if ended.endswith("killed and continued")]
    assert sum(killed) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_share_of_the_campaign_finds_no_fault(name, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the campaign sets it
    (part,) = campaign.campaign([name], 0.02).values()
    assert part.tried >= 1
    assert part.faults == []
