"""What pages say that comes from result files: tables between markers, and sentences with numbers.

`make pages` (`python tests/support/pages.py`) writes the tables of all pages anew. Sentences are checked by
tests/reference/test_pages.py and mended by hand, since another number may need another sentence.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import speed_tables
from growth_rows import growth_rows
from places import ROOT
from simulated import exceptions_table, summary_table

import alignbench
from alignbench.analysis.compare import Comparison, Group, Versus, compare
from alignbench.analysis.costs import CostRow
from alignbench.analysis.formats import MARKS, Mark
from alignbench.analysis.frontier import Standing
from alignbench.analysis.tables import render

PAGES = (
    "README.md", "CONTRIBUTING.md", "alignbench/README.md", "algorithms/README.md", "rewards/README.md",
    "benchmarks/README.md", "results/README.md", "results/statistics/README.md", "results/testbed/README.md",
    "results/testbed_flow/README.md", "results/flow/README.md", "results/timings/README.md", "tests/README.md",
)  # fmt: skip

# The rows of README's table: a method as `compare` names it, and what it does.
SHOWN = {
    "best_of_n n=6 nfe=240": "keeps the best of six images",
    "steering": "resamples several images on the way",
    "classifier_guidance": "follows the reward's gradient",
    "demon": "mixes several noises at each step",
    "refl": "learns from the reward's gradient",
    "draft": "learns from the reward's gradient",
    "diffusion_dpo": "learns from preference pairs",
    "ddpo reward=shapes_preference": "learns from the reward's value",
}
REWARD, TRUTH = "shapes_preference", "shapes_truth"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def stored(name: str) -> dict[str, Any]:
    """A committed JSON file below results/."""
    content: dict[str, Any] = json.loads(read(f"results/{name}.json"))
    return content


class Facts:
    """The comparisons that pages are about, each made once."""

    @functools.cached_property
    def comparison(self) -> Comparison:
        return compare(reference_files(), duels=True, margin=["shapes_truth=0.05"], control="shapes_style")

    @functools.cached_property
    def printed(self) -> Comparison:
        """As it is without options."""
        return compare(reference_files())

    @functools.cached_property
    def testbed(self) -> Comparison:
        return compare([ROOT / "results" / "testbed"])

    @functools.cached_property
    def testbed_flow(self) -> Comparison:
        return compare([ROOT / "results" / "testbed_flow"])

    @functools.cached_property
    def flow(self) -> dict[str, Group]:
        """Of the embedded flow model and of the embedded UNet, by the model's name."""
        names = ("base", "best_of_n-7f3a1b", "diffusion_dpo-seed*", "refl-seed*")
        unet = [path for name in names for path in sorted((ROOT / "results").glob(f"tiny-shapes-{name}.json"))]
        groups = compare([ROOT / "results" / "flow", *unet]).groups
        return {str(group.evaluation.model["name"]): group for group in groups}

    @property
    def reference(self) -> Group:
        (group,) = self.comparison.groups
        return group

    def versus(self, method: str, scorer: str = REWARD) -> Versus:
        (row,) = [row for row in self.reference.versus if (row.method, row.scorer) == (method, scorer)]
        return row

    def duel(self, method: str, against: str, scorer: str = REWARD) -> tuple[float, Mark | None]:
        """The win rate of one method over another, and its mark."""
        for row in self.reference.duels:
            if (row.method, row.against, row.scorer) == (method, against, scorer):
                return row.rate.rate, row.rate_test.mark
            if (row.method, row.against, row.scorer) == (against, method, scorer):
                turned: dict[Mark, Mark] = {"better": "worse", "worse": "better"}
                return 1 - row.rate.rate, turned[row.rate_test.mark] if row.rate_test.mark else None
        raise KeyError(method, against, scorer)

    def cost(self, method: str) -> CostRow:
        (row,) = [row for row in self.reference.costs if row.method == method]
        return row

    def standing(self, problem: str, scorer: str, method: str, flow: bool = False) -> Standing:
        """A method's place against the optimum of a problem of the testbed, or of it as a flow model."""
        comparison = self.testbed_flow if flow else self.testbed
        (group,) = [
            group
            for group in comparison.groups
            if (group.evaluation.prompts, group.evaluation.eval_seed) == (problem, 0)
        ]
        (found,) = [s for s in group.optimality if (s.scorer, s.method) == (scorer, method)]
        return found

    def regret(self, problem: str, scorer: str, method: str) -> float:
        return self.standing(problem, scorer, method).metrics["regret"].value


def reference_files() -> list[Path]:
    """The reference results of the embedded model: those that .gitignore lets in."""
    patterns = re.findall(r"^!/(results/tiny-[^/\n]*\.json)$", read(".gitignore"), re.M)
    return sorted({path for pattern in patterns for path in ROOT.glob(pattern)})


def markdown(header: str, rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a column whose name ends in a colon is of numbers."""
    names = [name.strip() for name in header.split("|")]
    rule = ["--:" if name.endswith(":") else "---" for name in names]
    lines = [[name.removesuffix(":") for name in names], rule, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fenced(text: str) -> str:
    """A block of plain text, without the spaces that only pad its lines."""
    return "```\n" + "".join(f"{line.rstrip()}\n" for line in text.rstrip("\n").split("\n")) + "```\n"


def interval(row: Versus) -> str:
    mark = MARKS[row.rate_test.mark] if row.rate_test.mark else ""
    return f"{100 * row.rate.rate:.1f}{mark} ({100 * row.rate.low:.1f}–{100 * row.rate.high:.1f})"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def small_table(facts: Facts) -> str:
    rows = []
    for method, about in SHOWN.items():
        cost, name = facts.cost(method), method.split()[0]
        trains = cost.alignment_seconds > 0
        rows.append(
            [
                f"`{name}` {about}",
                "trains" if trains else "test time",
                interval(facts.versus(method)),
                interval(facts.versus(method, TRUTH)),
                f"{cost.image_denoiser:.0f}",
                duration(cost.alignment_seconds) if trains else "none",
            ]
        )
    header = "method|kind|wins on the learned reward, %:|wins on the truth, %:|evaluations per image:|training:"
    return markdown(header, rows)


LEFT_OUT = re.compile(r"Strength in this pool ")  # results/README.md names it


def reference_tables(facts: Facts) -> str:
    parts = render(facts.printed, "table").split("\n\n")
    return fenced("\n\n".join(part for part in parts if not LEFT_OUT.match(part)))


def marks_before_and_after(facts: Facts) -> str:
    """Every row of the reference tables whose marks came or went with the inference of today, and why."""
    before = {(row["scorer"], row["method"]): row for row in stored("statistics/marks_before")["rows"]}
    rows = []
    for row in facts.printed.groups[0].versus:
        old = before[row.scorer, row.method]
        marks = [MARKS[test.mark] if test.mark else "" for test in (row.rate_test, row.difference_test)]
        rows.append(
            [
                row.scorer,
                f"`{row.method}`",
                f"{100 * old['low']:.1f}–{100 * old['high']:.1f}{' *' if old['star'] else ''}",
                f"{100 * row.rate.low:.1f}–{100 * row.rate.high:.1f} {marks[0]}".rstrip(),
                f"{old['difference_low']:+.3g} to {old['difference_high']:+.3g}",
                f"{row.difference_low:+.3g} to {row.difference_high:+.3g} {marks[1]}".rstrip(),
                why_marks_changed(row, bool(old["star"])),
            ]
        )
    header = "scorer|method|win rate, before:|now:|difference, before:|now:|what changed"
    return markdown(header, rows)


def why_marks_changed(row: Versus, starred: bool) -> str:
    """What became of a star: it stood on win rates above a half, tested the mean, and was corrected for 60 rows."""
    rate, difference = row.rate_test.mark, row.difference_test.mark
    if starred:
        if rate == difference == "better":
            return ""
        lost = [name for name, mark in (("win rate", rate), ("difference", difference)) if mark is None]
        seeds = "its seeds differ" if "seeds" in row.random else "it has a test of its own"
        return f"the {' and the '.join(lost)} {'loses' if len(lost) == 1 else 'lose'} the mark: {seeds}"
    why = []
    if rate == "better":
        why.append("the win rate gets a mark: it has a test of its own")
    if rate == "worse":
        why.append("worse rows get marks as well")
    if difference is not None and rate is None:
        why.append("the difference gets a mark: 20 rows are corrected for, not 60")
    return "; ".join(why)


# The tables of the testbed that its page shows: a problem and a reward.
TABLES = (("gaussian", "linear"), ("grid", "quadratic"))


def testbed_tables(comparison: Comparison, model: str) -> str:
    printed = render(comparison, "table")
    shown = []
    for problem, scorer in TABLES:
        begin = printed.index(f"{model} (points) on {problem}/test, noise seed 0,")
        heading, *tables = printed[begin:].split("\n\n")
        shown += [
            heading.splitlines()[0],
            next(t for t in tables if t.startswith(f"{scorer}: distance from the optimum")),
        ]
    return fenced("\n\n".join(shown))


def flow_world(facts: Facts) -> str:
    """Win rates of every method on both models, and what they cost: a training's evaluations over the 200 pictures."""
    rows = []
    for model, group in sorted(facts.flow.items(), reverse=True):
        rates = {(row.method, row.scorer): row for row in group.versus}
        for cost in group.costs:
            if cost.method == "base":
                continue
            own = [interval(rates[cost.method, scorer]) for scorer in (REWARD, TRUTH, "shapes_style")]
            trained = duration(cost.alignment_seconds) if cost.alignment_seconds else ""
            evaluations = f"{cost.image_denoiser + cost.alignment_denoiser / 200:.0f}"
            rows.append([f"`{model}`", f"`{cost.method}`", *own, trained, evaluations])
    header = "model|method|wins on the learned reward, %:|on the truth, %:|on style, %:|training:|evaluations:"
    return markdown(header, rows)


def real_models(_: Facts) -> str:
    measured = {
        name: {row["algorithm"]: row for row in stored(f"timings/{name}")["rows"] if not row["option"]}
        for name in ("sd15", "sdxl")
    }
    rows = []
    for algorithm in sorted(measured["sd15"]):
        line = [f"`{algorithm}`"]
        for name in ("sd15", "sdxl"):
            row = measured[name].get(algorithm)
            line += (
                [f"{row['alignment_seconds']:.0f}", f"{row['image_seconds']:.0f}", f"{row['peak_mib'] / 1024:.1f}"]
                if row
                else [""] * 3
            )
        rows.append(line)
    header = "algorithm|SD1.5: alignment s:|s/image:|peak GiB:|SDXL: alignment s:|s/image:|peak GiB:"
    return markdown(header, rows)


OPTIONS = {
    "four pairs in a forward pass": "four pairs in a forward pass",
    "checkpointing": "`--checkpointing`",
    "one pair, accumulated": "`batch=1`, accumulated",
    "through the decoder": "four images through the decoder",
    "through the decoder, checkpointing": "`--checkpointing`",
    "through the decoder, one image": "`batch=1`, accumulated",
    "four images decoded": "four images decoded",
    "sliced": "`--vae-slicing`",
    "one large image decoded": "one large image decoded",
    "tiled": "`--vae-tiling`",
}


def memory(_: Facts) -> str:
    rows = []
    for row in stored("timings/sd15")["rows"]:
        if row["option"]:
            pixels = re.search(r"--resolution (\d+)", row["command"])
            assert pixels is not None
            seconds = row["alignment_seconds"] or row["image_seconds"] * (
                4 if "--images-per-prompt 4" in row["command"] else 1
            )
            rows.append(
                [
                    f"`{row['algorithm']}`, {pixels[1]} pixels",
                    OPTIONS[row["option"]],
                    f"{row['peak_mib'] / 1024:.1f}",
                    f"{seconds:.0f}",
                ]
            )
    return markdown("run|with|peak GiB:|seconds:", rows)


def dpo_step(_: Facts) -> str:
    rows = []
    for file, model in (("dpo_step", "`tiny`"), ("dpo_step_large", "half of SD1.5")):
        content = stored(f"timings/{file}")
        for road, found in content["roads"].items():
            ratio = "{median:.2f} ({least:.2f} to {most:.2f})".format(**found["ratio"])
            pairs = content["pairs_an_update"] / found["seconds"]
            speed = f"{pairs:.0f}" if pairs > 99 else f"{pairs:.2g}"
            memory = [f"{found['peak']:.0f}", f"{found['peak'] - found['loaded']:.0f}"]
            rows.append([model, f"`{road}`", speed, ratio, *memory])
    return markdown("model|way|pairs/s:|times as fast:|peak MiB:|of it in updates:", rows)


def ddpo_epoch(_: Facts) -> str:
    content = stored("timings/ddpo_epoch")
    sides = [content["sides"][side] for side in ("ours", "trl")]
    rows = []
    for name, label in (("whole", "an epoch"), ("rollout", "its rollout"), ("update", "its updates")):
        speeds = [f"{content['images'] / statistics.median(side[name]):.2f}" for side in sides]
        rows.append([label, *speeds, "{median:.2f} ({least:.2f} to {most:.2f})".format(**content["ratio"][name])])
    return markdown("images a processor second|ours:|TRL:|ratio:", rows)


def gradient_noise(_: Facts) -> str:
    content = stored("timings/gradient_noise")
    assert content["baselines"] == ["the prompt's other images", "lookahead"]
    rows = []
    for case in content["cases"]:
        for k, baseline in enumerate(("the mean of the prompt's other pictures", "that of the picture predicted")):
            needed = [row["noise"][k] / row["signal"] for row in case["rows"][3:]]
            rows.append([f"{case['guidance']:g}", baseline, *(f"{float(f'{n:.2g}'):,.0f}" for n in needed)])
    return markdown("guidance:|A is the reward less|action 4:|5:|6 of 6:", rows)


def two_processes(_: Facts) -> str:
    content = stored("timings/two_processes")
    rows = [
        [
            f"`{name}`" if name.isidentifier() and name != "generation" else name,
            f"{found['one']:.1f}",
            f"{found['two']:.1f}",
            f"{statistics.median(found['ratios']):.2f} ({found['ratios'][0]:.2f} to {found['ratios'][-1]:.2f})",
            "–" if found["exchanging"] is None else f"{100 * found['exchanging']:.0f}",
        ]
        for name, found in content.items()
        if name != "machine"
    ]
    return markdown("work|one process, s:|two, s:|times as fast:|exchanging and waiting, %:", rows)


def growth(_: Facts) -> str:
    return markdown("what|size:|processor, most memory:|file:", growth_rows(stored("timings/growth")))


def several_processes(_: Facts) -> str:
    """By algorithm, how far the weights of several processes are from those of one."""
    content = stored("timings/processes")
    cases = [("mixture", "2"), ("mixture", "3"), ("mixture_flow", "2"), ("mixture_flow", "3")]
    cases += [("tiny", "2"), ("tiny", "3")]
    assert all(found["cost"] for by_name in content.values() for found in by_name.values())
    rows = [
        [f"`{name}`", *(f"{content[toy][name][number]['weights']:.0e}" for toy, number in cases)]
        for name in content["tiny"]
    ]
    return markdown("algorithm|`mixture`, 2:|3:|`mixture_flow`, 2:|3:|`tiny`, 2:|3:", rows)


def scaling(_: Facts) -> str:
    """A line for each algorithm and model: how many times as fast as one GPU, and what most of the rest is."""
    rows: dict[tuple[str, str], list[str]] = {}
    for row in stored("timings/scaling")["rows"]:
        line = rows.setdefault((row["algorithm"], row["model"]), [f"`{row['algorithm']}`", row["model"]])
        line += [f"{row['speed-up']:.0f}", row["most of the rest"]]
    return markdown("algorithm|model|8 GPUs:|then|64:|then|512:|then", list(rows.values()))


def audit(_: Facts) -> str:
    content = stored("audit/tiny-shapes")
    tau = {row["judges"][1]: row["tau"] for row in content["agreement"] if row["judges"][0] == "labels"}
    rows = []
    for name, found in content["scorers"].items():
        turned = [found["sensitivity"][change]["flipped"]["rate"] for change in ("jpeg", "noise", "bilinear")]
        made = ", which labelled them" if found["accuracy"]["rate"] == 1 else ""
        numbers = [f"{100 * found['accuracy']['rate']:.1f}", f"{tau[name]:.3f}".replace("-", "−")]
        rows.append([f"`{name}`{made}", *numbers, *(f"{100 * rate:.1f}" for rate in turned)])
    header = "scorer|accuracy %:|τ with the labels:|decisions turned by JPEG %:|by ±1/255 %:|by bilinear resizing %:"
    return markdown(header, rows)


CELL = str.maketrans({"\\": "\\\\", "|": "\\|"})


def parity(_: Facts) -> str:
    """Our algorithms beside their official code, measured now."""
    from official.table import rows

    header = "algorithm|quantity|official code|cases:|largest difference|verdict"
    return markdown(header, [[cell.translate(CELL) for cell in row] for row in rows()])


def public_names(facts: Facts) -> str:
    """What `from alignbench import …` has, by the file that defines it."""
    homes: dict[str, list[str]] = {}
    for name in alignbench.__all__:
        homes.setdefault(alignbench._HOME_OF[name], []).append(name)
    rows = []
    for module, names in sorted(homes.items()):
        path = f"{module.replace('.', '/')}.py"
        headline = (ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "").split("\n")[0]
        listed = ", ".join(f"`{name}`" for name in names)
        rows.append(f"| [{module.removeprefix('alignbench.')}](../{path}) | {headline.translate(CELL)} | {listed} |")
    return "\n".join(["| file | what it is about | names |", "| --- | --- | --- |", *rows]) + "\n"


TABLES_OF: Mapping[tuple[str, str], Callable[[Facts], str]] = {
    ("README.md", "table"): small_table,
    ("results/README.md", "compare"): reference_tables,
    ("results/testbed/README.md", "testbed"): lambda facts: testbed_tables(facts.testbed, "mixture"),
    ("results/testbed_flow/README.md", "testbed"): lambda facts: testbed_tables(facts.testbed_flow, "mixture_flow"),
    ("results/flow/README.md", "flow world"): flow_world,
    ("results/statistics/README.md", "summary"): lambda _: summary_table(),
    ("results/statistics/README.md", "exceptions"): lambda _: exceptions_table(),
    ("results/statistics/README.md", "marks"): marks_before_and_after,
    ("results/timings/README.md", "real models"): real_models,
    ("results/timings/README.md", "memory"): memory,
    ("results/timings/README.md", "dpo step"): dpo_step,
    ("results/timings/README.md", "ddpo epoch"): ddpo_epoch,
    ("results/timings/README.md", "gradient noise"): gradient_noise,
    ("results/timings/README.md", "scorers"): lambda _: markdown(*speed_tables.scorers()),
    ("results/timings/README.md", "scorers together"): lambda _: speed_tables.scorers_together(),
    ("results/timings/README.md", "scorers' memory"): lambda _: speed_tables.scorers_memory(),
    ("results/timings/README.md", "scorers of the published sizes"): lambda _: (
        markdown(*speed_tables.full_scorers()) + speed_tables.full_scorers_shared()
    ),
    ("results/timings/README.md", "options"): lambda _: markdown(*speed_tables.options()),
    ("results/timings/README.md", "generation"): lambda _: markdown(*speed_tables.generation()),
    ("results/timings/README.md", "start-up"): lambda _: markdown(*speed_tables.start_up()),
    ("results/timings/README.md", "two processes"): two_processes,
    ("results/timings/README.md", "several processes"): several_processes,
    ("results/timings/README.md", "scaling"): scaling,
    ("results/timings/README.md", "growth"): growth,
    ("rewards/README.md", "audit"): audit,
    ("algorithms/README.md", "parity"): parity,
    ("algorithms/README.md", "names"): public_names,
}


def between(page: str, name: str) -> re.Match[str]:
    """The part of a page between the markers of this name."""
    text = read(page)
    found = re.search(rf"(?<=<!-- {name}: begin -->\n)(.*?)(?=<!-- {name}: end -->)", text, re.S)
    if found is None:
        raise ValueError(f"{page} has no place marked `{name}`.")
    return found


def write(facts: Facts) -> None:
    """Write every table into its page."""
    for (page, name), make in TABLES_OF.items():
        found = between(page, name)
        text = found.string[: found.start()] + make(facts) + found.string[found.end() :]
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Facts())
