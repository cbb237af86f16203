"""Printed text: nothing in it is hidden, and every encoding has its characters."""

from __future__ import annotations

import ast
import io
import sys
import unicodedata

import pytest
from places import ROOT

from alignbench.errors import described, said
from alignbench.printed import HIDDEN, SPELLED, drawing, guard, guarded, one_line, spelled, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb", r"a\rb"),
        ("a\r\nb", "a\nb"),
        ("\x00\x7f\x80\x85\x9b", r"\x00\x7f\x80\x85\x9b"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066\u2069\u200e\u200f\u061c", r"\u2066\u2069\u200e\u200f\u061c"),
        ("\u2028\u2029\u200b\ufeff\xad", r"\u2028\u2029\u200b\ufeff\xad"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("a\tb\n c", "a\tb\n c"),
        ("é 猫 नमस्ते می‌خواهم 👩‍🔬 ±–", "é 猫 नमस्ते می‌خواهم 👩‍🔬 ±–"),
    ],
)
def test_what_is_hidden_is_shown_as_its_escape_and_writing_is_left_alone(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_every_control_and_every_mark_of_direction_is_hidden():
    marks = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in marks:
            assert HIDDEN.match(character) or character in "\n\t", hex(code)


def test_a_line_stays_one():
    assert one_line("a\nb\tc\r\nd") == "a b c d"
    assert described(ValueError("a\n\x1b[2J  b\u2028c")) == r"ValueError: a \x1b[2J b\u2028c"
    assert said(OSError("no\x9b such\nfile")) == r"no\x9b such file"


def test_what_an_encoding_lacks_is_spelled_otherwise():
    assert spelled("± ≥ – · λ ½ ── …", "ascii") == "+/- >= - . lambda 1/2 -- ..."
    assert spelled("± ≥ – · λ ½ ── …", "cp1252") == "± >= – · lambda ½ -- …"
    assert spelled("猫 é", "ascii") == r"\u732b \xe9"
    assert spelled("± 猫", "utf-8") == spelled("± 猫", None) == "± 猫"
    assert spelled("±", "no such encoding") == "+/-"


def test_all_that_the_code_says_has_a_spelling():
    """Every character of its strings, which messages, tables and help are made of."""
    lacking = set()
    for folder in ("alignbench", "algorithms", "rewards", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lacking |= {c for c in node.value if not c.isascii() and not HIDDEN.match(c)} - set(SPELLED)
    assert not lacking, "give them a spelling in alignbench/printed.py"
    assert all(spelling.isascii() for spelling in SPELLED.values())


def terminal(monkeypatch) -> io.BytesIO:
    """What is written to a stdout of ASCII from now on."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    return written


def test_whoever_prints_cannot_move_the_cursor(monkeypatch):
    written = terminal(monkeypatch)
    with guarded():
        print("library \x1b[2J ≥ \u202e\udcff")
        sys.stdout.writelines(["a\x9b", "b"])
        sys.stdout.write("\r 50% |#####     |")  # as a progress bar of a library
    assert written.getvalue() == b"library \\x1b[2J >= \\u202e\\udcff\na\\x9bb\r 50% |#####     |"
    print("\x1b", end="")
    assert written.getvalue().endswith(b"|\x1b"), "and afterwards it is as it was"


def test_what_draws_on_the_terminal_may_move_it_and_still_finds_its_characters(monkeypatch):
    written = terminal(monkeypatch)
    with guarded():
        assert guard(sys.stdout) is sys.stdout
        for stream in (drawing(sys.stdout), drawing(drawing(sys.stdout))):
            stream.write("\x1b[1A≥")
    assert written.getvalue() == b"\x1b[1A>=" * 2
