"""What README.md and results/README.md claim: every sentence with a number or a comparison, the files that carry it,
and what has to hold of them. tests/reference/test_claims.py checks both, and that no such sentence is missing here."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from pages import REWARD, SHOWN, TRUTH, Facts, read, stored
from places import ROOT

from alignbench.analysis.plan import Wanted, plans

DDPO = "ddpo reward=shapes_preference"
BEST_OF_SIX = "best_of_n n=6 nfe=240"
RESULTS = "results/tiny-*.json"
SEARCHING = (BEST_OF_SIX, "steering", "svdd", "classifier_guidance", "universal_guidance", "demon")


class Claim(NamedTuple):
    """Words as they stand on the page, in one line, and the files that carry them."""

    text: str
    files: str


def of_readme(facts: Facts) -> Iterator[Claim]:
    marks = {method: facts.versus(method).rate_test.mark for method in SHOWN}
    assert [method for method, mark in marks.items() if mark != "better"] == [DDPO]
    yield Claim("All of them but `ddpo` win on the first.", RESULTS)
    assert marks[DDPO] is None
    assert "seeds" in facts.versus(DDPO).random
    yield Claim("What `ddpo` does there is open: its three runs differ too much.", RESULTS)
    truth = {method: facts.versus(method, TRUTH) for method in SHOWN}
    assert [method for method, row in truth.items() if row.rate_test.mark] == ["demon"]
    assert truth["demon"].loses
    yield Claim("None wins on the second, and `demon` loses there.", RESULTS)
    assert {(row.equivalence, row.margin) for row in truth.values()} == {("equal within", 0.05)}
    yield Claim("The mean of the truth moves by less than 0.05 with each of them.", RESULTS)
    assert {row.family for row in facts.reference.versus} == {20}
    yield Claim("beyond what chance does in a table of 20 methods", RESULTS)
    yield Claim(f"takes {facts.cost('base').image_denoiser:.0f} evaluations of its denoiser", RESULTS)
    assert max(facts.cost(method).alignment_seconds for method in ("refl", "draft")) < 60
    yield Claim("`refl` and `draft` train within a minute", RESULTS)
    cost = [json.loads(path.read_text())["cost"] for path in ROOT.glob("results/tiny-shapes-diffusion_dpo-*.json")]
    assert min(c["pairs_seconds"] / c["alignment_seconds"] for c in cost) > 0.5
    yield Claim(
        "Most of `diffusion_dpo`'s minutes make its preference pairs.", "results/tiny-shapes-diffusion_dpo-*.json"
    )


def of_the_reference_results(facts: Facts) -> Iterator[Claim]:
    yield from _of_gradients(facts)
    yield from _of_preferences(facts)
    yield from _of_searching(facts)
    yield from _of_style_and_truth(facts)
    yield from _of_little_gains(facts)
    yield from _of_what_can_be_shown()
    yield from _of_the_accuracy()


def won(facts: Facts, method: str, scorer: str = REWARD) -> str:
    return f"{100 * facts.versus(method, scorer).rate.rate:.0f}"


def between(facts: Facts, method: str) -> str:
    rate = facts.versus(method).rate
    return f"{won(facts, method)} %, interval {100 * rate.low:.0f} to {100 * rate.high:.0f}"


def _of_gradients(facts: Facts) -> Iterator[Claim]:
    assert facts.versus("draft").wins
    assert facts.versus("refl").wins
    assert max(facts.cost(method).alignment_seconds for method in ("refl", "draft")) < 60
    yield Claim(
        f"`draft` and `refl` win against `base` ({won(facts, 'draft')} and {won(facts, 'refl')} %), after a minute of "
        "training at most.",
        RESULTS,
    )
    rate, mark = facts.duel("refl", DDPO)
    assert mark == "better"
    assert facts.duel("draft", DDPO)[1] is None
    yield Claim(
        f"`refl` wins {100 * rate:.0f} % of its duel with `ddpo`, which uses only the value of the reward; the duel of "
        "`draft` with `ddpo` is open.",
        RESULTS,
    )
    assert facts.versus(DDPO).rate_test.mark is None
    yield Claim(
        f"What `ddpo` itself gains in minutes is open as well ({between(facts, DDPO)}): its three runs differ.", RESULTS
    )


def _of_preferences(facts: Facts) -> Iterator[Claim]:
    files = "results/tiny-shapes-diffusion_dpo-*.json"
    assert won(facts, "diffusion_dpo") == won(facts, "refl")
    contents = [json.loads(path.read_text()) for path in sorted(ROOT.glob(files))]
    pairs = {content["configuration"]["pairs"]["count"] for content in contents}
    assert pairs == {1500}
    yield Claim(
        f"From {min(pairs)} such pairs it wins against `base` as often as `refl` (both {won(facts, 'refl')} %).",
        RESULTS,
    )
    rate, mark = facts.duel("refl", "diffusion_dpo")
    assert mark == "better"
    yield Claim(f"But `refl` wins their duel ({100 * rate:.0f} %).", RESULTS)
    shares = []
    for cost in (content["cost"] for content in contents):  # every picture of a pair costs what one of base costs
        made = cost["alignment"]["decode_forward"] * facts.cost("base").image_denoiser
        shares.append(made / (cost["alignment"]["denoiser_forward"] + cost["alignment"]["denoiser_backward"]))
    minutes = [(c["cost"]["pairs_seconds"] / 60, c["cost"]["alignment_seconds"] / 60) for c in contents]
    assert {round(10 * share) for share in shares} == {8}
    making, whole = (round(statistics.mean(column)) for column in zip(*minutes, strict=True))
    yield Claim(
        f"Most of its cost is making the pairs: four fifths of the evaluations, and {making} of the {whole} minutes.",
        files,
    )
    assert facts.duel("sft", "diffusion_dpo")[1] is None
    yield Claim(f"and wins {won(facts, 'sft')} %.", RESULTS)
    yield Claim("Its duel with `diffusion_dpo` is open.", RESULTS)


def _of_searching(facts: Facts) -> Iterator[Claim]:
    trained = [row.method for row in facts.reference.costs if row.alignment_denoiser > 0]
    trained.remove("ddpo reward=shapes_truth")
    duels = {(one, other): facts.duel(one, other) for one in SEARCHING for other in trained}
    assert {mark for _, mark in duels.values()} == {"better"}
    base = facts.cost("base").image_denoiser
    assert max(facts.cost(method).image_denoiser for method in SEARCHING) == 240 == 6 * base
    assert all(any(facts.duel(m, t)[1] != "better" for t in trained) for m in ("noise_search", "doodl"))
    yield Claim(
        "With 240 evaluations a picture or fewer, six times those of `base`, the best of six, `steering`, `svdd`, both "
        "guidances and `demon` win their duel with every method that was trained for the same reward.",
        RESULTS,
    )
    yield Claim("`noise_search` and `doodl` do not.", RESULTS)
    yield Claim("**At equal compute, searching wins more often than anything trained in minutes", RESULTS)
    assert {facts.duel(method, BEST_OF_SIX)[1] for method in SEARCHING[1:]} == {None}
    yield Claim(
        "Which of the six is best is open: none of the others wins or loses its duel with the best of six.", RESULTS
    )
    assert facts.duel("noise_search", BEST_OF_SIX)[1] == "worse"
    yield Claim("`noise_search` does lose it.", RESULTS)
    rows = [row for row in facts.reference.versus if row.scorer == REWARD]
    assert max(rows, key=lambda row: row.rate.rate).method == "noise_search"
    assert facts.versus("noise_search").difference < min(facts.versus(method).difference for method in SEARCHING)
    yield Claim(
        f"It wins most often against `base` ({won(facts, 'noise_search')} %), and gains less in the mean than the "
        "other six",
        RESULTS,
    )


def _of_style_and_truth(facts: Facts) -> Iterator[Claim]:
    at_equal = {}
    for method in ("refl", "draft", "sft", "svdd"):
        found = facts.versus(method).controlled
        assert found is not None
        assert found.covariate == "shapes_style"
        assert found.rate < found.raw
        at_equal[method] = f"{100 * found.rate:.0f}"
    lowest = facts.versus("sft").controlled
    assert lowest is not None
    assert lowest.low < 0.5 < lowest.high
    yield Claim("**Part of what is gained is style. None of it is seen to be truth.**", RESULTS)
    yield Claim(
        f"`refl` wins {at_equal['refl']} % instead of {won(facts, 'refl')}, `draft` {at_equal['draft']} instead of "
        f"{won(facts, 'draft')}, and `sft` {at_equal['sft']} instead of {won(facts, 'sft')}, which may be nothing.",
        RESULTS,
    )
    yield Claim(f"keep more: `svdd` wins {at_equal['svdd']} % instead of {won(facts, 'svdd')}.", RESULTS)
    truth = [row for row in facts.reference.versus if row.scorer == TRUTH]
    assert not [row.method for row in truth if row.wins or row.difference_test.mark == "better"]
    assert [row.method for row in truth if row.equivalence != "equal within"] == ["sft"]
    yield Claim(
        f"For every method but `sft` the mean truth moves by less than {truth[0].margin:g} "
        f"(`--margin shapes_truth={truth[0].margin:g}`).",
        RESULTS,
    )
    assert [row.method for row in truth if row.loses] == ["demon"]
    yield Claim(f"`demon` loses most pairs on truth (it wins {won(facts, 'demon', TRUTH)} %)", RESULTS)
    trained = facts.versus("ddpo reward=shapes_truth", TRUTH)
    assert (trained.rate_test.mark, trained.rate.prompts) == (None, 200)
    yield Claim("`ddpo`, trained on the truth itself, gains nothing that 200 prompts could show.", RESULTS)
    rows = json.loads((ROOT / "results/tiny-shapes-base.json").read_text())["rows"]
    right = sum(row["scores"][TRUTH] == 1 for row in rows) / len(rows)
    assert right > 0.5
    yield Claim("Most pictures are right already", "results/tiny-shapes-base.json")


def _of_little_gains(facts: Facts) -> Iterator[Claim]:
    dpok = facts.versus("dpok")
    assert dpok.wins
    assert dpok.difference_test.mark is None
    assert min(rate for _, rate in dpok.seeds) >= 0.6
    yield Claim(
        f"`dpok` wins most pairs ({won(facts, 'dpok')} %), and every seed does (60 % and more), but by little: what it "
        "gains in the mean is open. So is its duel with `ddpo`.",
        RESULTS,
    )
    assert facts.duel("dpok", DDPO)[1] is None
    paths = {name: _path_kl(name) for name in ("dpok", "ddpo")}
    first = min(curve[0] for curve in _curves("ddpo"))
    assert max(paths["dpok"]) < min(paths["ddpo"])
    yield Claim("It stays much nearer to the model.", "results/tiny-shapes-dp*.json")
    yield Claim(
        f"its sampling paths were {min(paths['dpok']):.0f} to {max(paths['dpok']):.0f} nats away, those of `ddpo` "
        f"{min(paths['ddpo']):.0f} to {max(paths['ddpo']):.0f} ({first:.0f} or more after one round)",
        "results/tiny-shapes-dpok-*.json, results/tiny-shapes-ddpo-seed*.json",
    )
    assert facts.versus("d3po").rate_test.mark is None
    yield Claim(f"`d3po` is open ({between(facts, 'd3po')}).", RESULTS)
    yield Claim(
        f"from {facts.cost('d3po').alignment_reward:.0f} pictures.",
        "results/tiny-shapes-d3po-*.json",
    )
    weighted = facts.versus("reward_weighted_regression")
    assert weighted.loses
    assert facts.versus("reward_weighted_regression", "shapes_style").rate.rate < weighted.rate.rate
    yield Claim(f"and loses ({won(facts, 'reward_weighted_regression')} %), in style first.", RESULTS)
    yield Claim("**Three methods gain little or lose here.**", RESULTS)


def _curves(algorithm: str) -> list[list[float]]:
    """The divergence of each seed's sampling paths, by round, from the second on: before the first it is 0."""
    files = sorted(ROOT.glob(f"results/tiny-shapes-{algorithm}-seed*.json"))
    curves = [json.loads(path.read_text())["curve"] for path in files]
    return [[line["kl"] for line in curve if "kl" in line][1:] for curve in curves]


def _path_kl(algorithm: str) -> list[float]:
    """Before the last round, of each seed."""
    return [curve[-1] for curve in _curves(algorithm)]


def _of_what_can_be_shown() -> Iterator[Claim]:
    (group,) = plans(sorted(ROOT.glob("results/tiny-*.json")), Wanted(family=1), scorers=[REWARD]).groups
    alone = {row.method: row.rate for row in group.rows}

    def points(share: float) -> int:
        return round(100 * share)

    plan = alone[DDPO]
    assert (plan.size.prompts, plan.size.seeds, plan.first) == (200, 3, "seeds")
    yield Claim(
        f"Alone, its three seeds and 200 prompts show a difference of {points(plan.smallest)} points on its reward.",
        RESULTS,
    )
    yield Claim(f"No number of prompts gets below {points(plan.fixed['seeds'])}.", RESULTS)
    yield Claim(f"Six seeds show {points(plan.doubled['seeds'])} points.", RESULTS)
    plan = alone["refl"]
    assert plan.first == "prompts"
    yield Claim(
        f"200 prompts show {points(plan.smallest)} points, 400 show {points(plan.doubled['prompts'])}.", RESULTS
    )
    yield Claim(f"Six seeds still show {points(plan.doubled['seeds'])}.", RESULTS)


def _of_the_accuracy() -> Iterator[Claim]:
    content = stored("accuracy/tiny-diffusion_dpo")
    files = "results/accuracy/tiny-diffusion_dpo.json"
    found = {row["name"]: row["accuracy"]["half"] for row in content["rows"]}
    seeds = [found[f"tiny-shapes-diffusion_dpo-seed{seed}"] for seed in (1, 2, 3)]
    rates = [100 * accuracy["rate"] for accuracy in seeds]
    begin = 100 * min(accuracy["low"] for accuracy in seeds)
    yield Claim(
        f"agree with {min(rates):.1f} to {max(rates):.1f} % of the labels (the intervals begin at {begin:.0f} %)", files
    )
    yield Claim(f"The style of the picture alone agrees with {100 * found['shapes_style']['rate']:.1f} %", files)


CLAIMS: Mapping[str, Callable[[Facts], Iterator[Claim]]] = {
    "README.md": of_readme,
    "results/README.md": of_the_reference_results,
}

# What a sentence says that may be a claim about results.
CLAIMING = re.compile(
    r"\d|%|\b(wins?|won|loses?|lost|gains?|gained|best|better|worse|more|most|less|least|fewer|often|seldom|nearer|longer|"
    r"open|nothing|half|minutes?)\b",
    re.IGNORECASE,
)


def sentences(page: str) -> list[str]:
    """The sentences of a page's prose, without its tables, code, headings and commands, each in one line."""
    text = re.sub(r"<!-- (\w+): begin -->.*?<!-- \1: end -->", "", read(page), flags=re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^( {4}|\||#).*$", "", text, flags=re.MULTILINE)
    found: list[str] = []
    for block in re.split(r"\n\s*\n|\n(?=- )", text):
        line = " ".join(block.split()).removeprefix("- ")
        found += [part for part in re.split(r"(?<=[.!?])\)?\*{0,2} (?=[A-Z`*(])", line) if part]
    return found
