"""Committed results say of published configurations what follows from them today."""

from __future__ import annotations

import json

import pytest
from published_values import SUITES, cells, rewritten, said
from result_files import writer

from alignbench.record import result as results


@pytest.mark.parametrize("suite", [pytest.param(n, marks=pytest.mark.slow if n == "testbed" else ()) for n in SUITES])
def test_committed_results_say_what_differs_from_what_was_published(suite):
    """Where this fails, `python tests/support/published_values.py` writes them anew."""
    wrong, count = [], 0
    for cell in cells(suite):
        found, count = results.read(cell.path), count + 1
        kept = {"published": found.published, "differs_from_paper": found.differs_from_paper}
        wrong += [cell.path.name] if kept != said(cell) else []
    assert not wrong
    assert count > 30


def test_only_these_entries_and_the_digest_of_a_file_are_written_anew(tmp_path):
    path = writer(tmp_path)("old", [1.0, 2.0])
    content = json.loads(path.read_text())
    del content["published"]
    entries = {"published": "small (somewhere)", "differs_from_paper": {"n": {"value": 4, "paper": 2}}}
    new = rewritten(path.read_text(), entries)
    path.write_text(new)
    found = results.read(path)  # the digest holds
    assert (found.published, found.differs_from_paper) == ("small (somewhere)", {"n": {"value": 4, "paper": 2}})
    assert rewritten(new, entries) == new
    kept = {name: value for name, value in json.loads(new).items() if name not in ("digest", *entries)}
    assert kept == {name: value for name, value in content.items() if name not in ("digest", *entries)}
