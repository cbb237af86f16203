"""Comparisons as text: every format says the same, and no name breaks a table."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from markdown_it import MarkdownIt
from result_files import writer
from rich.cells import cell_len

from alignbench.analysis.compare import compare
from alignbench.analysis.formats import Table, csv_text, markdown, number, p_value, percent, plain
from alignbench.analysis.tables import render
from alignbench.printed import Screen

WINS = [1.0] * 12
ODD = 'a|b\\|c_d%e&f#g$h{i}j~k^l<m>"n", ü 猫\nsecond line'  # once around the keyboard


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A significant winner, a significant loser, a winner of too few prompts to tell, and a run that failed."""
    few, make_result = [1.0, 1.0, 1.0, *[0.0] * 9], writer(tmp_path_factory.mktemp("tables"))
    return [
        make_result("base", {"r": [0.0] * 12, "s": [0.0] * 12}),
        make_result("best", {"r": WINS, "s": few}, "best_of_n"),
        make_result("sds", {"r": [-x for x in WINS], "s": [-x for x in WINS]}, "sds"),
        make_result("ddpo0", {"r": few, "s": few}, "ddpo", seed=0),
        make_result("ddpo1", {"r": WINS, "s": few}, "ddpo", seed=1),
        make_result("dpo", {"r": few, "s": few}, "dpo", seed=0, status="failed", reason="out of memory"),
    ]


@pytest.fixture(scope="module")
def comparison(paths):
    return compare(paths)


AGAINST_R = "r: against base (12 prompts; random: prompts, seeds where there are several; m = 3)"
STRENGTH = "Strength in this pool (Bradley-Terry, log odds over base; 95 % intervals)"


def blocks(text):
    """CSV text as tables: lists of rows, by title."""
    rows = list(csv.reader(io.StringIO(text)))
    found, current = {}, []
    for row in [*rows, []]:
        if row:
            current.append(row)
        elif current:
            found[current[1][1]] = current
            current = []
    return found


def refuse(constant):
    raise AssertionError(f"JSON holds {constant}")


def markdown_tables(text):
    """The cells of every table, as GitHub's specification reads them: a pipe divides unless a backslash escapes it."""
    tables, current = [], []
    for line in [*text.split("\n"), ""]:
        if line.startswith("| "):
            cells = re.findall(r"((?:\\.|[^|\\])*)\|", line[1:])
            current.append([html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell)).strip() for cell in cells])
        elif current:
            tables.append(current)
            current = []
    return tables


def latex_rows(text):
    """The cells of every row between the rules."""
    rows = [line.removesuffix(" \\\\") for line in text.split("\n") if line.endswith(" \\\\")]
    return [re.split(r"(?<!\\) & ", row) for row in rows]


def test_numbers_have_four_digits_and_a_suffix():
    assert [number(x) for x in (0.0, 0.12344, 12.3456, 1234.0, 9999.0, -1.5)] == [
        "0", "0.1234", "12.35", "1234", "9999", "-1.5"
    ]  # fmt: skip
    assert [number(x) for x in (9999.6, 12_340.0, 123_456.0, 2.5e6, 3.21e9, -45_600.0)] == [
        "10k", "12.34k", "123.5k", "2.5M", "3.21G", "-45.6k"
    ]  # fmt: skip
    assert number(0.000012345) == "1.234e-05"
    assert number(float("nan")) == "–"


def test_percents_have_one_decimal():
    assert [percent(x) for x in (0.0, 0.5, 0.12345, 1.0, float("nan"))] == ["0.0", "50.0", "12.3", "100.0", "–"]


def test_p_values_below_a_thousandth_are_not_given_digits():
    assert [p_value(x) for x in (0.0001, 0.00099, 0.001, 0.0314, 1.0)] == [
        "<0.001",
        "<0.001",
        "0.001",
        "0.031",
        "1.000",
    ]


def test_the_csv_reads_back_to_the_numbers_of_the_comparison(comparison):
    (group,) = comparison.groups
    header, *rows = blocks(render(comparison, "csv"))[AGAINST_R]
    assert header[:3] == ["evaluation", "table", "method"]
    assert len(set(header)) == len(header), "columns of one name cannot be told apart"
    read = {row[2]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(read) == ["base", "best_of_n", "sds", "ddpo"]
    for versus in (v for v in group.versus if v.scorer == "r"):
        row = read[versus.method]
        assert row["evaluation"] == group.evaluation.fingerprint
        assert row["mean"] == number(versus.mean)
        assert float(row["win rate %"]) == pytest.approx(100 * versus.rate.rate, abs=0.05)
        low, high = map(float, row["95 % interval"].split(" to "))
        assert (low, high) == pytest.approx((100 * versus.rate.low, 100 * versus.rate.high), abs=0.05)
        assert float(row["ties %"]) == pytest.approx(100 * versus.rate.ties, abs=0.05)
        assert float(row["difference"]) == pytest.approx(versus.difference, rel=1e-3)
        if np.isnan(versus.difference_low):
            assert row["its 95 % interval"] == "–"
        else:
            low, high = map(float, row["its 95 % interval"].split(" to "))
            assert (low, high) == pytest.approx((versus.difference_low, versus.difference_high), rel=1e-3)
        assert (row["p"], row["p adj."]) == tuple(map(p_value, versus.rate_test[:2]))
        assert (row["its p"], row["its p adj."]) == tuple(map(p_value, versus.difference_test[:2]))
        assert row["mark of win rate %"] == (versus.rate_test.mark or "")
    assert read["ddpo"]["seeds %"] == "62.5 100.0"
    assert read["best_of_n"]["seeds %"] == ""


def test_every_csv_block_is_rectangular(comparison):
    found = blocks(render(comparison, "csv"))
    assert list(found) == [
        AGAINST_R,
        AGAINST_R.replace("r:", "s:"),
        "r: win rate % of row over column",
        "s: win rate % of row over column",
        STRENGTH,
        "Cost (NFE: denoiser evaluations, forward and backward; mean over runs)",
        "Not in the tables",
    ]
    for title, rows in found.items():
        assert len({len(row) for row in rows}) == 1, title
        assert {row[1] for row in rows[1:]} == {title}


def test_the_json_reads_back_to_the_comparison_in_full(comparison):
    (group,) = comparison.groups
    read = json.loads(render(comparison, "json"), parse_constant=refuse)
    (one,) = read["groups"]
    assert one["methods"] == group.methods
    assert one["evaluation"] == group.evaluation.model_dump()
    assert one["means"] == group.means
    assert one["notes"] == group.notes
    for row, versus in zip(one["versus"], group.versus, strict=True):
        assert row["rate"] == versus.rate._asdict()
        assert row["seeds"] == [list(pair) for pair in versus.seeds]
        for name in ("method", "scorer", "difference", "this_run", "random", "family", "failed", "wins", "loses"):
            assert row[name] == getattr(versus, name)
        assert row["rate_test"] == versus.rate_test._asdict()
    assert one["ranks"]["r"]["strength"] == group.ranks["r"].strength.tolist()
    assert one["costs"][0]["memory_bytes"] == 2**20
    assert read["unfinished"] == [
        {"path": str(comparison.unfinished[0].path), "status": "failed", "reason": "out of memory"}
    ]


def test_what_is_not_a_number_is_null_in_json(make_result):
    base = make_result("base", [0.0, 0.0], cost=None)
    best = make_result("best", [None, None], "best_of_n")
    text = render(compare([base, best]), "json")
    (group,) = json.loads(text, parse_constant=refuse)["groups"]
    assert group["means"]["r"]["best_of_n"] is None
    assert group["pairwise"]["r"] == [[None, None], [None, None]]
    assert group["ranks"]["r"] is None
    assert group["costs"][0]["alignment_seconds"] is None


def test_marks_stand_on_their_own_columns_in_plain_text(comparison):
    text = render(comparison, "table")
    table = text[text.index(AGAINST_R) :].split("\n\n")[0].splitlines()[3:]
    marked = {line.split()[0]: [word for word in line.split() if word[-1] in "▲▼"] for line in table}
    assert marked == {"base": [], "best_of_n": ["100.0▲", "+1▲"], "sds": ["0.0▼", "-1▼"], "ddpo": []}


def test_what_is_better_is_bold_in_markdown(comparison):
    against_r, against_s, *others = markdown_tables(render(comparison, "markdown"))
    place = against_r[0].index("win rate %")
    assert [row[0] for row in against_r[2:]] == ["base", "**best_of_n**", "sds", "ddpo"]
    assert [row[place] for row in against_r[2:]] == ["–", "**100.0▲**", "0.0▼", "81.2"]
    assert [row[0] for row in against_s[2:]] == ["base", "best_of_n", "sds", "ddpo"]
    assert not [cell for table in others for row in table for cell in row if "**" in cell]


def test_what_is_better_is_bold_in_latex(comparison):
    text = render(comparison, "latex")
    up = "$\\bigtriangleup$"
    assert re.findall(r"\\textbf\{(.*?)\}", text) == ["best\\_of\\_n", f"100.0{up}", f"+1{up}"]
    assert "0.0$\\bigtriangledown$" in text


def test_many_wins_that_lose_in_the_mean_have_both_marks(make_result):
    base = make_result("base", [0.0] * 300)
    best = make_result("best", [1.0, 1.0, -10.0] * 100, "best_of_n")
    (table, *_) = markdown_tables(render(compare([base, best]), "markdown"))
    row = dict(zip(table[0], table[3], strict=True))
    assert (row["win rate %"], row["difference"]) == ("**66.7▲**", "-2.667▼")


def test_the_baselines_row_has_its_mean_and_nothing_else(comparison):
    (table, *_) = markdown_tables(render(comparison, "markdown"))
    assert table[2][:3] == ["base", "0", "–"]
    assert set(table[2][3:]) == {""}


def test_columns_of_plain_text_line_up(comparison):
    text = render(comparison, "table")
    start = text.index("r: against base")
    table = text[start : text.index("\n\n", start)].split("\n")
    assert table[2] == "─" * len(table[2])
    assert {len(line) for line in table[1:-1]} == {len(table[2])}
    assert table[1].split("  ")[0].startswith("method")


@pytest.mark.parametrize("form", ["table", "markdown", "latex"])
def test_texts_for_people_say_what_was_compared_and_how_to_read_it(comparison, form):
    (group,) = comparison.groups
    text = render(comparison, form)
    heading = f"tiny (32x32) on shapes/test, noise seed 0, evaluation {group.evaluation.fingerprint}"
    assert text.splitlines()[0].endswith(heading)
    assert "base, best_of_n, sds, ddpo: kind=ddim steps=20" in text
    assert "Tango's score interval" in text
    assert "Holm over the rows of one scorer, m of them" in text
    assert "seeds where there are several; m = 3" in text


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex", "json"])
def test_every_format_lists_what_is_not_in_the_tables(comparison, form):
    text = render(comparison, form)
    line = next(line for line in text.splitlines() if "dpo.json" in line and "ddpo" not in line)
    block = text[text.index(line) :]
    assert "failed" in block
    assert "out of memory" in block


@pytest.mark.parametrize("form", ["table", "markdown", "latex"])
def test_skipped_files_and_protocol_notes_are_shown(make_result, tmp_path, form):
    make_result("base", [0.0])
    make_result("other", [0.0], evaluation={"eval_seed": 7})
    (tmp_path / "bad.json").write_text("{")
    text = render(compare([tmp_path], skip_bad=True), form)
    assert re.search(r"skipped: .*bad\.json: not valid JSON", text)
    assert "they differ in eval_seed (0 and 7)" in text


@pytest.mark.parametrize("form", ["table", "markdown", "csv", "latex"])
def test_parts_are_shown_as_exploratory(make_result, form):
    prompts = [{"id": f"p{i}", "text": "", "category": kind} for i, kind in enumerate(["animals", "animals", "cars"])]
    base = make_result("base", [0.0] * 3, prompts=prompts)
    best = make_result("best", [1.0, 0.0, -1.0], "best_of_n", prompts=prompts)
    text = render(compare([base, best], by="category"), form)
    assert "r: by part, against base (exploratory, not corrected)" in text
    rows = [[c.strip() for c in re.split(r"\|| & |,|\s{2,}", line)] for line in text.splitlines()]
    cells = [c for row in rows if any("animals" in cell for cell in row) for c in row]
    assert "2" in cells
    assert "75.0" in cells


def test_the_matrix_table_by_hand(make_result):
    paths = [make_result(name, [float(k), 0.0], name) for k, name in enumerate(["base", "m1", "m2"])]
    rows = blocks(render(compare(paths), "csv"))["r: win rate % of row over column"]
    assert [row[2:] for row in rows] == [
        ["", "base", "m1", "m2"],
        ["base", "·", "25.0", "25.0"],
        ["m1", "75.0", "·", "25.0"],
        ["m2", "75.0", "75.0", "·"],
    ]


def test_the_ranks_table_gives_places_in_order_of_strength(make_result):
    paths = [make_result(name, [float(k), 0.0], name) for name, k in (("base", 1), ("m1", 2), ("m2", 0))]
    comparison = compare(paths)
    cells = {row[2]: row[3:5] for row in blocks(render(comparison, "csv"))[STRENGTH][1:]}
    strength = comparison.groups[0].ranks["r"].strength
    assert [cells[name][0][:3] for name in ("base", "m1", "m2")] == ["2 (", "1 (", "3 ("]
    assert cells["base"][1] == "+0.00"
    assert cells["m1"][1].startswith(f"'{strength[1]:+.2f} (")  # quoted: a spreadsheet would compute it
    assert cells["m2"][1].startswith(f"'{strength[2]:+.2f} (")


def test_methods_that_never_met_are_not_ranked(make_result):
    paths = [make_result("base", [0.0]), make_result("best", [0.0], "best_of_n", pairs=[("q", 0)])]
    assert render(compare(paths), "table").count("not identifiable") == 2


def test_a_matrix_of_more_than_twelve_methods_is_in_the_json_alone(make_result):
    paths = [make_result(f"m{k:02}", [float(k), 0.0], f"m{k:02}") for k in range(13)]
    wide, narrow = compare(paths), compare(paths[:12])
    assert "row over column" not in render(wide, "table")
    assert "row over column" in render(narrow, "table")
    assert len(json.loads(render(wide, "json"))["groups"][0]["pairwise"]["r"]) == 13


def test_without_a_baseline_there_is_one_table_of_means(make_result):
    paths = [make_result("best", {"r": [1.0], "s": [2.0]}, "best_of_n")]
    rows = blocks(render(compare(paths), "csv"))["Mean scores"]
    assert [row[2:] for row in rows] == [["method", "r", "s"], ["best_of_n", "1", "2"]]


def test_costs_are_shown_in_the_units_of_the_header(make_result):
    cost = {"alignment_seconds": 12_345.0, "peak_memory_bytes": 3 * 2**20}
    rows = blocks(render(compare([make_result("base", [0.0], cost=cost)]), "csv"))
    header, row = rows["Cost (NFE: denoiser evaluations, forward and backward; mean over runs)"]
    shown = dict(zip(header, row, strict=True))
    assert shown["align s"] == "12.35k"
    assert shown["peak MiB"] == "3"
    assert shown["NFE/image"] == "2"


def test_only_unfinished_results_still_make_a_table(make_result):
    comparison = compare([make_result("base", [], status="partial", reason="killed")])
    assert "killed" in render(comparison, "table")
    assert blocks(render(comparison, "csv"))["Not in the tables"][1][3:] == ["partial", "killed"]


@pytest.fixture
def odd(make_result):
    """Every name that comes from outside is odd: algorithms, fields, prompt set, scorer, parts and a reason."""
    prompts = [{"id": f"p{i}", "text": ODD, "category": ODD} for i in range(12)]
    both = {"evaluation": {"prompts": ODD}, "prompts": prompts, "sampler": {"kind": ODD}}
    return compare(
        [
            make_result("base", {ODD: [0.0] * 12}, **both),
            make_result("one", {ODD: WINS}, ODD, {"text": ODD}, **both),
            make_result("two", {ODD: WINS}, ODD, {"text": "plain"}, **both),
            make_result("three", {ODD: WINS}, "x", status="failed", reason=ODD, **both),
        ],
        by="category",
    )


def flat(text):
    return text.replace("\n", " ")


def test_odd_names_do_not_break_markdown_tables(odd):
    text = render(odd, "markdown")
    tables = markdown_tables(text)
    assert len(tables) == 6
    for table in tables:
        assert len({len(row) for row in table}) == 1
        assert set(table[1]) <= {"---", "---:"}
    assert tables[0][3][0] == flat(f"**{ODD} text={ODD}**")
    assert tables[-1][2][2] == flat(ODD)
    outside = [line for line in text.splitlines() if line and not line.startswith("| ")]
    assert all(line.startswith(("## ", "Samplers. ", "**", "- ")) for line in outside)


HOSTILE = "<img src=x onerror=a()>|[a](javascript:b)![c](http://d.example)`e`*f*_g_&lt;$h$ www.i.example ~~j~~ k@l.m"
TAGS = {"h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "em"}


def named(make_result, name, **more):
    """A comparison in which everything that comes from outside is this."""
    prompts = [{"id": f"p{i}", "text": name, "category": name} for i in range(12)]
    both = {"evaluation": {"prompts": name}, "prompts": prompts, "sampler": {"kind": name}}
    paths = [
        make_result("base", {name: [0.0] * 12}, **both),
        make_result("one", {name: WINS}, "x", {"text": name}, **both),
        make_result("two", {name: WINS}, "y", {"text": name}, **both),
        make_result("three", {name: WINS}, "x", status="failed", reason=name, **both),
    ]
    return compare(paths, by="category")


def test_markdown_makes_no_html_no_link_and_no_code_of_a_name(make_result):
    text = render(named(make_result, HOSTILE), "markdown")
    shown = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    assert set(re.findall(r"<(\w+)", shown)) <= TAGS - {"em"}
    assert html.escape(HOSTILE, quote=False) in shown
    assert "http://" not in text
    assert "www." not in text


def test_markdown_leaves_the_numbers_and_names_of_the_house_alone():
    for text in ("<0.001", "+0.1 to +0.3", "0.031*", "best_of_n n=2", "-1.2", "1. +0.20 (+0.1 to +0.3)", "–", "a-b"):
        assert markdown(text) == text


HIDDEN = [
    "\x1b[31m",
    "\x07",
    "\r",
    "\x7f",
    "\x85",
    "\x9b",
    "\u202e",
    "\u2066",
    "\u200f",
    "\u061c",
    "\u200b",
    "\ufeff",
    "\u2028",
]


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "csv", "json"])
def test_nothing_in_a_name_is_hidden_in_any_format(make_result, form):
    text = render(named(make_result, f"a{HIDDEN}b"), form)
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    escapes = {"latex": r"\textbackslash{}u202e", "markdown": r"\\\\u202e"}
    assert escapes.get(form, r"\u202e").replace(r"\\", "\\") in text


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"), ("\r=1", "'\\r=1"), (" =1", "' =1"), ("\uff1d1", "'\uff1d1"), ("--x", "'--x"),
        ("-1.2", "-1.2"), ("+0.3", "+0.3"), ("-1e-05", "-1e-05"), ("-45.6k", "-45.6k"),
        ("-0.1 to +0.3", "-0.1 to +0.3"),
        ("-0.031*", "'-0.031*"), ("–", "–"), ("1=2", "1=2"), ("", ""),
    ],
)  # fmt: skip
def test_a_spreadsheet_computes_no_cell_and_reads_every_number(cell, written):
    assert next(csv.reader(io.StringIO(csv_text([[cell, -1.5]])))) == [written, "-1.5"]


def test_formulas_are_quoted_in_the_header_and_the_title_as_well(make_result):
    text = render(named(make_result, "=HYPERLINK(1)"), "csv")
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    assert "'=HYPERLINK(1)" in cells
    assert not [cell for cell in cells if cell.startswith("=")]


def screens(text):
    return max(cell_len(line) for line in text.splitlines())


@pytest.mark.parametrize("width", [24, 40, 60, 80, 120])
def test_a_comparison_is_as_wide_as_the_screen(comparison, odd, width):
    for of in (comparison, odd):
        assert screens(render(of, "table", Screen(width))) <= width


def test_a_table_that_is_too_wide_stands_in_groups_that_begin_with_the_same_column():
    rows = [["one", "1.5", "22.22", "333.333"], ["two", "-1.5", "2", "3"]]
    table = Table("title", ["method", "a", "b", "c"], rows, {(1, 2): "better"})
    assert plain(table, Screen(21)).splitlines() == [
        "title",
        "method     a      b",
        "───────────────────",
        "one      1.5  22.22",
        "two     -1.5     2▲",
        "method        c",
        "───────────────",
        "one     333.333",
        "two           3",
    ]
    assert plain(table, Screen(14)).splitlines() == [
        "title", "one", "  a  1.5", "  b  22.22", "  c  333.333", "two", "  a  -1.5", "  b  2▲", "  c  3",
    ]  # fmt: skip
    assert plain(table) == plain(table, Screen(80))


def test_letters_that_are_two_columns_wide_keep_the_columns_straight():
    lines = plain(Table("t", ["m", "a"], [["猫猫", "1"], ["ab", "2"]])).splitlines()
    assert len({cell_len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_tables_line_up_in_every_encoding(comparison, encoding):
    text = render(comparison, "table", Screen(None, encoding))
    start = text.index("r: against base")
    table = text[start : text.index("\n\n", start)].encode(encoding).decode(encoding).split("\n")
    assert {len(line) for line in table[1:-1]} == {len(table[2])}


def test_odd_names_are_escaped_in_latex(odd):
    text = render(odd, "latex")
    rows = latex_rows(text)
    assert rows[1][0] == "base"
    expected = (
        'a|b\\textbackslash{}|c\\_d\\%e\\&f\\#g\\$h\\{i\\}j\\textasciitilde{}k\\textasciicircum{}l$<$m$>$"n", ü 猫 '
        "second line"
    )
    assert rows[2][0] == f"\\textbf{{{expected} text={expected}}}"
    kinds = ("% ", "\\begin{tabular}", "\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}")
    for line in text.splitlines():
        assert not line or line.startswith(kinds) or line.endswith(" \\\\"), line
    assert rows[-1][2] == expected


def test_odd_names_do_not_break_lines_of_plain_text(odd):
    text = render(odd, "table")
    assert sum(line.startswith("second line") for line in text.splitlines()) == 0
    assert flat(f"{ODD} text=plain") in text
    assert flat(ODD) in next(line for line in text.splitlines() if "three.json" in line)


def test_odd_names_survive_csv_and_json(odd):
    found = blocks(render(odd, "csv"))
    against = next(rows for title, rows in found.items() if title.startswith(f"{ODD}: against base"))
    assert [row[2] for row in against] == [
        "method", "base", f"{ODD} text={ODD}", f"{ODD} text=plain"
    ]  # fmt: skip
    assert all(len({len(row) for row in rows}) == 1 for rows in found.values())
    read = json.loads(render(odd, "json"), parse_constant=refuse)
    assert read["groups"][0]["scorers"] == [ODD]
    assert read["unfinished"][0]["reason"] == ODD


def test_the_same_comparison_is_written_the_same_twice(paths):
    one, other = compare(paths), compare(paths)
    for form in ("table", "markdown", "csv", "latex", "json"):
        assert render(one, form) == render(other, form)


def test_numbers_of_numpy_are_plain_in_json(comparison):
    read = json.loads(render(comparison, "json"))["groups"][0]
    (group,) = comparison.groups
    off = ~np.eye(4, dtype=bool)
    assert np.array(read["pairwise"]["s"], dtype=float)[off].tolist() == group.pairwise["s"][off].tolist()
    assert all(read["pairwise"]["s"][i][i] is None for i in range(4))
