"""Files: what is read has an end, what is written ends up where it was meant, and journals keep their whole lines."""

from __future__ import annotations

import errno
import json
import math
import os
import resource
import stat
import threading
from pathlib import Path

import pytest
import torch

from alignbench import files
from alignbench.errors import InputError, RunError
from alignbench.files import append_line, is_stream, make_folder, remove_leftovers_of, replace_file, write_text
from alignbench.reading import complete_lines, json_of, read_bytes, read_text, records


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


@pytest.mark.parametrize(
    "bad",
    [b"{", b"\x00", b"\xff", b"5", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 9999, b'{"b": 1}', b'{"a": "x"}'],
)  # fmt: skip
def test_a_line_that_cannot_be_read_is_dropped_with_one_word_and_the_others_stay(bad, tmp_path):
    path, said = tmp_path / "journal.jsonl", []
    path.write_bytes(b'{"a": 1}\n' + bad + b'\n{"a": 3}\n{"a": 4')
    assert records(path, lambda line: int(line["a"]), said.append) == [1, 3]
    assert said == [f"{path}: dropped 1 of 3 lines, which cannot be read"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ("[NaN]", "holds NaN"),
        ("[1e999]", "holds '1e999', which is no finite number"),
        ('"\\ud800"', "half of a character"),
        ("9" * 5000, "4300 digits"),
        (b"\xff", "invalid start byte"),
        ("", "Expecting value"),
    ],
)
def test_json_is_refused_for_what_would_end_a_reader_later(text, message):
    with pytest.raises(ValueError, match=message):
        json_of(text)


def test_json_keeps_what_is_allowed():
    content = {"a": [1, -0.0, 5e-324, 2**70, None, True, "\U0001f600 ä"], "b": {"a": {}}}
    assert json_of(json.dumps(content)) == content
    assert json_of(json.dumps(content, ensure_ascii=False).encode()) == content
    assert math.copysign(1, json_of("-0.0")) == -1


def test_what_may_have_no_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path, kind in ((tmp_path / "pipe", "a pipe"), (tmp_path / "link", "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"expected a file, and it is {kind}"):
            read_bytes(path)
    for name in ("none", "x" * 300, "\x00", "none/none"):
        with pytest.raises(InputError):
            read_bytes(tmp_path / name)
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2**40)
    with pytest.raises(InputError, match="has more than 1,000 bytes"):
        read_text(tmp_path / "large", 1000)
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8: .* at byte 0"):
        read_text(tmp_path / "latin")


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "target.json").write_text("old")
    (tmp_path / "between").symlink_to(tmp_path / "far" / "target.json")
    (tmp_path / "link").symlink_to("between")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "far" / "target.json").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere" / "made.json")
    write_text(tmp_path / "dangling", "new")
    assert (tmp_path / "elsewhere" / "made.json").read_text() == "new"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(InputError, match="circle: Too many levels of symbolic links"):
        write_text(tmp_path / "circle", "new")
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["target.json"]


def test_a_device_and_a_pipe_are_written_to_and_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through it")
    reader.join(10)
    assert received == ["through it"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_text(Path("/dev/null"), "into it")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    (tmp_path / "null").symlink_to("/dev/null")
    write_text(tmp_path / "null", "into it")
    assert (tmp_path / "null").is_symlink()
    assert [is_stream(tmp_path / name) for name in ("pipe", "null", "none", ".")] == [True, True, False, False]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["null", "pipe"]


def test_what_dead_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    dead, living = 2**22 + 1, os.getppid()  # the first number that no process has
    kept = [f".a.json.{living}.tmp", f".ab.json.{dead}.tmp", ".a.json.x.tmp", "a.json"]
    for name in (*kept, f".a.json.{dead}.tmp"):
        (tmp_path / name).touch()
    write_text(tmp_path / "a.json", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
    (tmp_path / f".[a].json.{dead}.tmp").touch()  # a name that a pattern would read otherwise
    remove_leftovers_of(tmp_path / "[a].json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("how", ["write", "torch", "safetensors", "append"])
def test_a_full_disk_is_said_and_leaves_what_was_there(how, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    path = tmp_path / "a.json"
    path.write_text("old\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def save() -> None:
        if how == "append":
            append_line(path, "new")
        with replace_file(path) as temporary:
            temporary.write_text("ne")
            if how == "torch":
                torch.save({"a": torch.zeros(10)}, "/dev/full")
            if how == "safetensors":
                raise SafetensorError(
                    'Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'
                )

    if how in ("write", "append"):
        monkeypatch.setattr(files.os, "fsync", full)
    if how == "torch":
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(RunError, match=r"a\.json: the disk is full; free some space, then type the same command again"):
        save()
    assert path.read_text().startswith("old\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    monkeypatch.undo()
    write_text(path, "with room")
    assert path.read_text() == "with room"


@pytest.mark.parametrize("place", ["file/a.json", "x" * 300, "/proc/none/a.json", "folder"])
def test_a_place_that_cannot_be_written_is_wrong_input(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*; choose another place"):
        write_text(tmp_path / place, "new")


def test_a_folder_is_synced_where_its_log_is(tmp_path, monkeypatch):
    """A rename, a new log and a new folder last through a power cut once the folder that names them is written."""
    synced, real = [], os.fsync
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle))
    )
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path / "a"), str(tmp_path)]
    del synced[:]
    append_line(tmp_path / "log", "one")
    append_line(tmp_path / "log", "two")
    assert synced == [str(tmp_path / "log"), str(tmp_path), str(tmp_path / "log")]
    del synced[:]
    write_text(tmp_path / "state", "x")
    assert synced[1:] == [str(tmp_path)]


def test_memory_stays_bounded_where_a_file_has_no_end():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("/dev/zero", "/dev/urandom", "/dev/full"):
        with pytest.raises(InputError, match="a device"):
            read_bytes(Path(name))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
