"""README says what is so: its table is what the command prints, its code runs, its links lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from places import ROOT

from alignbench import plugins
from alignbench.cli.app import run_command_line

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def reference(reference_cells, monkeypatch) -> list[str]:
    """The committed result files, relative to the repository."""
    monkeypatch.chdir(ROOT)
    return sorted(f"results/{cell.path.name}" for cell in reference_cells)


def test_the_table_is_what_compare_prints(reference, capsys):
    assert run_command_line(["compare", *reference]) == 0
    printed = capsys.readouterr().out.split("\n\n")
    shown = re.search(r"<!-- compare: begin -->\n```\n(.*?)```\n<!-- compare: end -->", README, re.S)
    assert shown is not None
    left_out = re.compile(r"\S+: win rate % of row over column\n|Bradley-Terry rank ")  # README names them
    assert shown[1].split("\n\n") == [part for part in printed if not left_out.match(part)]


def test_the_tables_of_the_testbed_are_what_compare_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert run_command_line(["compare", "results/testbed"]) == 0
    printed = capsys.readouterr().out
    shown = re.search(r"<!-- testbed: begin -->\n```\n(.*?)```\n<!-- testbed: end -->", README, re.S)
    assert shown is not None
    parts = shown[1].strip("\n").split("\n\n")
    assert len(parts) == 4  # a heading and a table of two evaluations
    for heading, table in zip(parts[::2], parts[1::2], strict=True):
        own = printed[printed.index(heading) :]
        assert f"\n\n{table}\n\n" in own[: own.find("\nmixture ", 1)]


def test_the_reward_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
    Path("brightness.py").write_text(block)
    (command,) = re.findall(r"^    alignbench (.*brightness.py.*)$", README, re.M)
    assert run_command_line([*command.split(), "--limit", "4", "--steps", "2"]) == 0
    assert "Brightness 0." in capsys.readouterr().out


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert len(targets) >= 6
    for target in targets:
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_two_commands_are_the_first_bash_blocks():
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S)
    assert len(blocks) == 2
    assert "alignbench run --algo ddpo --model tiny" in blocks[0]
    assert "pytest" in blocks[1]
    assert all("pip install" in block for block in blocks)


def shown(rows: str) -> list[list[str]]:
    """The cells of Markdown table rows that begin with this name in backquotes."""
    lines = [line for line in README.splitlines() if line.startswith(f"| `{rows}`")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_what_real_models_took_is_what_the_files_say():
    found = {}
    for name in ("sd15", "sdxl"):
        content = json.loads((ROOT / f"results/timings/{name}.json").read_text())
        found[name] = {row["algorithm"]: row for row in content["rows"] if not row["option"]}
    assert set(found["sd15"]) == set(plugins.own_names("algorithms"))
    for algorithm in found["sd15"]:
        expected = [f"`{algorithm}`"]
        for name in ("sd15", "sdxl"):
            row = found[name].get(algorithm)
            numbers = [row["alignment_seconds"], row["image_seconds"]] if row else []
            expected += [f"{x:.0f}" for x in numbers] + ([f"{row['peak_mib'] / 1024:.1f}"] if row else [""] * 3)
        assert expected in shown(algorithm), algorithm


def test_an_update_against_the_plain_way_is_what_the_file_says():
    content = json.loads((ROOT / "results/timings/dpo_step.json").read_text())
    assert content["gradients_differ_by"] < 1e-4
    for road, found in content["roads"].items():
        expected = [f"`{road}`", f"{content['pairs_an_update'] / found['seconds']:.0f}", f"{found['peak']:.0f}"]
        assert shown(road) == [expected]


def test_what_a_policy_gradient_needs_is_what_the_file_says():
    content = json.loads((ROOT / "results/timings/gradient_noise.json").read_text())
    assert content["baselines"] == ["the prompt's other images", "lookahead"]
    assert [case["guidance"] for case in content["cases"]] == [3, 1]
    printed = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines()]
    for case in content["cases"]:
        earlier, last = case["rows"][:3], case["rows"][3:]
        assert not any(row["signal"] > 2 * row["signal_error"] for row in earlier)
        assert all(row["signal"] > 2 * row["signal_error"] for row in last)
        for k, baseline in enumerate(("the mean of the prompt's other pictures", "that of the picture predicted")):
            needed = [f"{float(f'{images:.2g}'):,.0f}" for images in (row["noise"][k] / row["signal"] for row in last)]
            assert [f"{case['guidance']:g}", baseline, *needed] in printed
    fifth, sixth = content["cosines"]["6"][4:]
    assert f"the last two have a cosine of {fifth:.2f} and {sixth:.2f}" in README


def test_what_the_audit_found_is_what_the_file_says():
    content = json.loads((ROOT / "results/audit/tiny-shapes.json").read_text())
    for name in ("shapes_truth", "shapes_style", "jpeg_compressibility"):
        (cells,) = [row for row in shown(name) if len(row) == 6]
        audit = content["scorers"][name]
        flipped = [audit["sensitivity"][change]["flipped"]["rate"] for change in ("jpeg", "noise", "bilinear")]
        assert cells[3:] == [f"{100 * rate:.1f}" for rate in flipped]
