"""Results whose long lists lie in a file beside them."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest
from result_files import writer

from alignbench.errors import ResultFileError, RunError
from alignbench.record import apart, listing
from alignbench.record import result as results
from alignbench.record.listing import cells_of

LIKE = {"edge_density": [0.25, 0.5, 0.75]}


@pytest.fixture
def small(monkeypatch):
    """Every result is large."""
    monkeypatch.setattr(apart, "LARGEST_INLINE", 10)


@pytest.fixture
def path(tmp_path, small):
    return writer(tmp_path)("r", [0.1, None, 1 / 3], pictures=LIKE, digests=["0" * 64] * 3)


def rows_of(path):
    (found,) = apart.files_of(path)
    return found


def refused(path, message):
    with pytest.raises(ResultFileError, match=message) as caught:
        results.read(path)
    assert caught.value.exit_code == 2


def rewritten(path, change):
    """The file with the lists, with other lines."""
    lines = gzip.decompress(rows_of(path).read_bytes()).split(b"\n")[:-1]
    rows_of(path).write_bytes(gzip.compress(b"".join(line + b"\n" for line in change(lines))))


def test_what_lies_apart_is_read_back_with_the_digest_of_one_file(path, tmp_path, monkeypatch):
    content, read = json.loads(path.read_text()), results.read(path)
    assert content["schema"] == 3
    assert not {"prompts", "rows", "diversity"} & set(content)
    assert content["apart"] == {"file": rows_of(path).name, "schema": 2, "diversity": 0, "prompts": 3, "rows": 3}
    monkeypatch.setattr(apart, "LARGEST_INLINE", 10**6)
    results.write(tmp_path / "whole.json", read)
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert whole["schema"] == 2
    assert whole["digest"] == content["digest"]
    assert results.read(tmp_path / "whole.json") == read


def test_a_line_is_an_item_and_the_same_result_is_the_same_bytes(path, tmp_path):
    lines = gzip.decompress(rows_of(path).read_bytes()).decode().splitlines()
    assert [json.loads(line).get("id") for line in lines] == ["p0", "p1", "p2", None, None, None]
    assert json.loads(lines[4])["scores"] == {"r": None}
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    results.write(path, results.read(path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_new_content_takes_the_place_of_the_old_and_a_small_one_of_both_files(path, monkeypatch):
    before = rows_of(path)
    other = before.with_name("r.rows-of-somebody.jsonl.gz")
    other.touch()
    results.write(path, results.read(path).model_copy(update={"attempts": 2}))
    assert rows_of(path) != before
    assert results.read(path).attempts == 2
    monkeypatch.setattr(apart, "LARGEST_INLINE", 10**6)
    results.write(path, results.read(path))
    assert apart.files_of(path) == []
    assert other.exists()
    assert len(results.read(path).rows) == 3


def test_a_kill_between_the_two_files_leaves_the_old_result(path, monkeypatch):
    before = results.read(path)

    def killed(*_):
        raise RunError("killed")

    monkeypatch.setattr(results, "write_text", killed)
    with pytest.raises(RunError):
        results.write(path, before.model_copy(update={"attempts": 2}))
    assert results.read(path) == before


def test_a_copy_without_its_rows_says_which_file_to_bring(path, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(path, elsewhere)
    refused(elsewhere / "r.json", rf"its rows are in {rows_of(path).name}, which is not beside it; bring that file")
    shutil.copy(rows_of(path), elsewhere)
    assert results.read(elsewhere / "r.json") == results.read(path)


def test_a_renamed_result_and_a_link_find_their_rows(path, tmp_path):
    known = results.read(path)
    (tmp_path / "links").mkdir()
    os.symlink(path, tmp_path / "links" / "here.json")
    assert results.read(tmp_path / "links" / "here.json") == known
    results.write(tmp_path / "links" / "here.json", known.model_copy(update={"attempts": 2}))
    assert results.read(path).attempts == 2
    assert [file.name for file in (tmp_path / "links").iterdir()] == ["here.json"]
    path.rename(tmp_path / "other.json")
    assert results.read(tmp_path / "other.json").rows == known.rows


def test_changed_rows_are_noticed(path):
    rewritten(path, lambda lines: [line.replace(b"0.1", b"0.9") for line in lines])
    refused(path, "the digest does not match")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "ends too early"),
        (lambda lines: [*lines, b"{}"], "holds more than it should"),
        (lambda lines: [*lines[:-2], lines[-2] + b"," + lines[-1], b""], "no single item|Expecting value"),
        (lambda lines: [*lines[:-1], b"{"], "cannot be taken"),
        (lambda lines: [*lines[:-1], b"[1]"], "rows"),
        (lambda lines: [*lines[:-1], b'{"prompt":[],"sample":0,"scores":{}}'], "prompt"),
    ],
)
def test_a_damaged_file_of_rows_is_refused(path, change, message):
    rewritten(path, change)
    refused(path, message)


def test_what_is_no_archive_is_refused(path):
    rows_of(path).write_bytes(rows_of(path).read_bytes()[:-20])
    refused(path, "cannot be decompressed|ends too early")
    rows_of(path).write_bytes(b"hello")
    refused(path, "cannot be decompressed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../r.rows-000000000000.jsonl.gz"}, "names '../r"),
        ({"file": "rows.txt"}, "which is no file of rows"),
        ({"rows": -1}, "which no alignbench wrote"),
        ({"rows": True}, "which no alignbench wrote"),
        ({"more": 1}, "which no alignbench wrote"),
        ({"schema": 1}, "the digest does not match"),
    ],
)
def test_what_no_alignbench_says_of_its_lists_is_refused(path, change, message):
    content = json.loads(path.read_text())
    content["apart"] |= change
    path.write_text(json.dumps(content))
    refused(path, message)


def test_the_number_of_the_schema_and_the_lists_belong_together(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"schema": 2}))
    refused(path, "schema 2 with or without apart: no alignbench wrote it")
    del content["apart"]
    path.write_text(json.dumps(content))
    refused(path, "schema 3 with or without apart: no alignbench wrote it")


def test_a_listing_counts_both_files(path, tmp_path):
    (cell,) = cells_of(tmp_path)
    assert cell.bytes == path.stat().st_size + rows_of(path).stat().st_size
    assert cell.detail.startswith("3 images")


def test_a_listing_reads_no_rows_that_lie_apart_and_says_what_is_wrong_with_the_head(path, tmp_path, monkeypatch):
    def opened(*_):
        raise AssertionError("the rows were read")

    monkeypatch.setattr(apart, "_opened", opened)
    (cell,) = cells_of(tmp_path)
    assert (cell.state, cell.detail[:8]) == ("complete", "3 images")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "great"}))
    (cell,) = cells_of(tmp_path)
    assert cell.state == "unreadable"
    assert cell.detail.startswith("status: Input should be 'complete', 'partial'")
    path.write_text(json.dumps(content))
    gone = content | {"apart": content["apart"] | {"file": "r.rows-000000000000.jsonl.gz"}}
    seen = [gone, content]  # it is written anew between the two looks
    with monkeypatch.context() as patched:
        patched.setattr(listing, "content_of", lambda _: seen.pop(0))
        (cell,) = cells_of(tmp_path)
    assert (cell.state, seen) == ("complete", [])
    rows_of(path).unlink()
    (cell,) = cells_of(tmp_path)
    assert (cell.state, "bring that file there too" in cell.detail) == ("unreadable", True)
