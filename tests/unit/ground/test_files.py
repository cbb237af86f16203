"""Journals: lines that are whole, whatever a kill left of the last one."""

from __future__ import annotations

import pytest

from alignbench.files import append_line
from alignbench.reading import complete_lines


@pytest.mark.parametrize("torn", ['{"half', "ein halbes Zei\u00e4", "x" * 100_000])
def test_a_line_after_a_torn_one_is_not_written_onto_it(torn, tmp_path):
    path = tmp_path / "journal.jsonl"
    append_line(path, "first")
    append_line(path, "second: ä")
    with open(path, "ab") as handle:
        handle.write(torn.encode()[:-1])  # within a character, where it has several bytes
    assert complete_lines(path) == [b"first", "second: ä".encode()]
    append_line(path, "third")
    assert complete_lines(path) == [b"first", "second: ä".encode(), b"third"]


def test_a_journal_whose_only_line_is_torn_begins_anew(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"torn")
    append_line(path, "first")
    assert path.read_bytes() == b"first\n"
