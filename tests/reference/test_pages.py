"""Pages say what is so: their tables and numbers are those of committed files, and their examples run."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import REWARD, TABLES_OF, TRUTH, Facts, between, read, stored
from places import TOY

import alignbench
from alignbench import Key, Prompt, plugins
from alignbench.analysis.compare import Versus
from alignbench.asking.presets import build_algorithm
from alignbench.asking.prompts import take
from alignbench.cli.app import run_command_line
from alignbench.shapes.scene import parse


@pytest.mark.parametrize(("page", "name"), TABLES_OF)
def test_a_table_is_what_its_file_says(page, name, facts):
    """`make pages` writes them anew."""
    assert between(page, name)[0] == TABLES_OF[page, name](facts)


FLOW = (
    "flow_grpo", "diffusion_nft", "awm", "diffusion_dpo", "dpok", "ddpo", "reward_weighted_regression", "draft",
    "diffusion_kto", "mapo", "rollover",
)  # fmt: skip


def of_the_testbed(facts: Facts) -> Iterator[str]:
    def metric(problem: str, scorer: str, method: str, name: str) -> float:
        return facts.standing(problem, scorer, method).metrics[name].value

    short, long = ("ddpo rounds=20", "ddpo rounds=60")
    worst = max(facts.standing("gaussian", "linear", short).metrics["regret"].seeds)
    assert worst < 0.12
    yield "20,480 points bring every seed within 0.12 nats of the optimum"
    yield f"to a KL of {metric('gaussian', 'linear', long, 'kl'):.0f} nats"
    yield f"DRaFT's run to {metric('gaussian', 'linear', 'draft rounds=30', 'kl'):.0f}."
    ran = {name: facts.standing("gaussian", "linear", name).metrics["regret"] for name in (long, "draft rounds=30")}
    apart = [f"{min(regret.seeds):.0f} to {max(regret.seeds):.0f}" for regret in ran.values()]
    yield f"their regrets are {apart[0]}, and {apart[1]}.)"
    yield f"{ran[long].low:.0f} to {ran[long].high:.0f} nats for the 60 rounds of DDPO on `gaussian`"
    sixty = "ddpo rounds=60 samples_per_round=1024 reward=quadratic"
    excess = facts.standing("grid", "quadratic", sixty).metrics["excess_kl"]
    assert f"{excess.value:.1f}" == "0.5"
    yield f"half a nat more than the frontier asks for ({excess.low:.2f} to {excess.high:.2f})"
    paid = [facts.regret("gaussian", "linear", f"dpok rounds={n} future_kl=False") for n in (40, 120)]
    assert {f"{x:.2f}" for x in paid} == {"0.07"}
    yield "It comes as near on `gaussian` (0.07 nats) and is still there after three times the rounds"
    dpok, earned = "dpok rounds=120 future_kl=False", {}
    for method in (dpok, short):
        earned[method] = metric("gaussian", "linear", method, "reward"), metric("gaussian", "linear", method, "path_kl")
    yield f"It then earns {earned[dpok][0]:.2f} with sampling paths {earned[dpok][1]:.1f} nats from the model's"
    yield f"where DDPO earns {earned[short][0]:.2f} at {earned[short][1]:.0f} nats"
    charged, plain = (facts.regret("grid", "quadratic", f"dpok future_kl={on}") for on in (True, False))
    yield f"takes the regret on `grid` from {plain:.2f} to {charged:.2f}"
    with_it, without = (
        facts.standing("grid", "quadratic", f"dpok future_kl={on}").metrics["regret"] for on in (True, False)
    )
    assert without.low < with_it.value < without.value < with_it.high
    yield "The intervals overlap widely"
    yield f"as near on `grid` ({facts.regret('grid', 'quadratic', 'reward_weighted_regression'):.2f})"
    shifted, moved = (facts.regret(p, r, "diffusion_dpo") for p, r in (("gaussian", "linear"), ("grid", "quadratic")))
    yield f"where points have to shift ({shifted:.2f}), not where mass has to change modes ({moved:.1f})"
    four = facts.regret("grid", "quadratic", "steering n=4 interval=20 resample_below=0.5 steps=100")
    yield f"Four particles are too few ({four:.2f})"
    best = facts.standing("grid", "quadratic", "svdd candidates=4 choose=argmax steps=100").metrics
    yield f"earns {best['reward'].value:.3f} for {best['kl'].value:.1f} nats".replace("-", "−")
    yield f"next to where it starts ({facts.regret('grid', 'quadratic', 'doodl updates=10'):.2f})"
    yield f"stays near its first draw ({facts.regret('grid', 'quadratic', 'noise_search'):.1f})"
    equal = "best_of_n n=20 reward=quadratic kind=ddim steps=50 guidance=1.0 eta=1.0 nfe=1000"
    yield f"a regret of {facts.regret('grid', 'quadratic', equal):.2f}"
    proxy, true = (
        metric("grid", "quadratic", f"best_of_n n=64 reward={r} kind=exact steps=5 kernel=exact", "reward")
        for r in ("quadratic_proxy", "quadratic")
    )
    yield f"Best-of-64 earns {proxy:.2f} instead of {true:.2f}".replace("-", "−").replace("Best−of−64", "Best-of-64")
    yield from of_methods_that_do_not_aim(facts)


def of_methods_that_do_not_aim(facts: Facts) -> Iterator[str]:
    """Of the testbed: Diffusion-KTO, MaPO and rollover."""
    rewards = {"gaussian": "linear", "grid": "quadratic", "overlap": "quadratic"}

    def span(problem: str, method: str, name: str = "regret", digits: int = 2) -> str:
        found = facts.standing(problem, rewards[problem], method).metrics[name].seeds
        return " to ".join(dict.fromkeys(f"{end(found):.{digits}f}" for end in (min, max)))

    def mean(problem: str, method: str, name: str, reward: str = "") -> float:
        return facts.standing(problem, reward or rewards[problem], method).metrics[name].value

    kto, half = (f"diffusion_kto desirable_share={share}" for share in (0.8, 0.5))
    rest, winners = (mean("gaussian", method, "kl") for method in (kto, "sft"))
    yield f"on gaussian at a KL of {rest:.2f} (`sft`: {winners:.2f}; p\\*: 0.875)"
    yield f"a regret of {span('gaussian', kto)} nats there"
    others = [span(problem, "diffusion_kto", digits=1) for problem in ("grid", "overlap")]
    yield f"of {others[0]} on grid and {others[1]} on overlap"
    gone, off = mean("gaussian", half, "kl"), span("gaussian", half, "excess_kl")
    yield f"it goes on to a KL of {gone:.1f} on gaussian, where points lie too close: {off} off the frontier"
    assert span("gaussian", half) == off  # all of its regret
    assert mean("gaussian", half, "covariance") < 1
    mapo = [f"mapo rounds={setting}" for setting in ("3 beta=0.02", "20 beta=0.02", "20 beta=0.1")]
    yield f"at a regret of {span('gaussian', mapo[0])} nats on gaussian"
    yield f"{mean('gaussian', mapo[0], 'excess_kl'):.2f} off the frontier"
    yield f"Twenty leave it by {mean('gaussian', mapo[1], 'excess_kl'):.2f}"
    yield f"by {mean('gaussian', mapo[2], 'excess_kl'):.1f} (a regret of {span('gaussian', mapo[2], digits=1)})"
    moved = mean("grid", mapo[2], "regret"), span("grid", mapo[2], "excess_kl")
    yield f"On grid the preset stops at {span('grid', mapo[0], digits=1)}"
    yield f"they come to {moved[0]:.1f}, {moved[1]} off the frontier"
    yield f"On overlap the preset stops at {span('overlap', 'mapo', digits=1)}"
    noises = {
        problem: [
            standing.metrics
            for group in facts.testbed.groups
            if group.evaluation.prompts == problem
            for standing in group.optimality
            if (standing.scorer, standing.method) == ("quadratic", "rollover")
        ]
        for problem in ("grid", "grid64")
    }
    assert [len(found) for found in noises.values()] == [3, 3]
    (first, *_), found = noises["grid"], [m["regret"].value for both in noises.values() for m in both]
    reward, spent = f"{first['reward'].value:.4f}".replace("-", "−"), first["kl"].value
    yield f"whatever it costs ({first['regret'].value:.1f})"
    yield f"earns all that there is ({reward}) for {spent:.1f} nats"
    yield f"a regret of {min(found):.1f} to {max(found):.1f} nats over three noises"
    assert all(f"{m['excess_kl'].value:.1f}" == "0.1" for both in noises.values() for m in both)
    far = [mean(problem, "rollover", "regret", "linear") for problem in ("gaussian", "overlap")]
    yield f"its regret is as large: {far[0]:.1f} on gaussian and {far[1]:.1f} on overlap (linear)"


def of_the_flow_testbed(facts: Facts) -> Iterator[str]:
    def metric(problem: str, method: str, name: str = "regret") -> float:
        reward = {"gaussian": "linear", "grid": "quadratic"}[problem]
        return facts.standing(problem, reward, method, flow=True).metrics[name].value

    both = {name: (metric("gaussian", name), metric("grid", name)) for name in FLOW}
    assert set(sorted(both, key=lambda name: both[name][1])[:2]) == {"flow_grpo", "reward_weighted_regression"}
    assert 0.2 < metric("grid", "flow_grpo", "excess_kl") < 0.3
    yield f"a regret of {both['flow_grpo'][0]:.2f} nats on gaussian, and {both['flow_grpo'][1]:.2f} on grid"
    yield f"a regret of {both['diffusion_nft'][0]:.2f} nats on gaussian"
    yield f"hardly begun on grid after 40 rounds ({both['diffusion_nft'][1]:.1f})"
    yield f"On gaussian it is {both['awm'][0]:.2f} nats from p"
    excess = metric("grid", "awm", "excess_kl")
    yield f"spends {excess:.1f} nats beyond the frontier (a regret of {both['awm'][1]:.1f})"
    pair = both["dpok"], both["reward_weighted_regression"]
    yield f"{pair[0][0]:.2f} and {pair[1][0]:.2f} nats on gaussian, {pair[0][1]:.1f} and {pair[1][1]:.1f} on grid"
    yield f"on the frontier on gaussian ({both['diffusion_dpo'][0]:.2f})"
    yield f"modes ({both['diffusion_dpo'][1]:.1f} on grid)"
    pair = both["ddpo"], both["draft"]
    yield f"({pair[0][0]:.2f} and {pair[1][0]:.2f}) and not far on grid ({pair[0][1]:.1f} and {pair[1][1]:.1f})"
    pair = both["diffusion_kto"], both["mapo"]
    yield f"at a KL of {metric('gaussian', 'diffusion_kto', 'kl'):.2f} on gaussian, a regret of {pair[0][0]:.2f}"
    yield f"on grid it has {pair[0][1]:.1f}"
    winners = facts.standing("gaussian", "linear", "sft").metrics["kl"].value
    yield f"about where the winners are (`sft` of the other testbed has a KL of {winners:.2f})"
    off = [metric(problem, "mapo", "excess_kl") for problem in ("gaussian", "grid")]
    yield f"a regret of {pair[1][0]:.2f} on gaussian, {off[0]:.2f} off the frontier, and {pair[1][1]:.1f} on grid"
    yield f"{off[1]:.1f} off it"
    spent = [metric(problem, "rollover", "kl") for problem in ("grid", "gaussian")]
    yield f"for {spent[0]:.1f} nats on grid, and spends {spent[1]:.1f} on gaussian"
    yield f"regrets of {both['rollover'][0]:.1f} and {both['rollover'][1]:.1f}"


def of_the_scorers(content: dict[str, Any]) -> Iterator[str]:
    """The other numbers stand in tables and paragraphs that tests/support/pages.py writes."""
    assert min(row["ratio"]["least"] for row in content["scorers"].values()) > 1
    (_, small), (_, large) = content["growth"].items()
    assert large < 1.05 * small, "the page says that memory does not grow with the pictures"
    yield f"on {content['images']} pictures, small random networks and one thread"


def of_an_epoch(content: dict[str, Any]) -> Iterator[str]:
    assert content["gradients_differ_by"] < 1e-4
    yield f"a rollout of {content['images']} images in {content['steps']} steps and {content['updates']} updates on it"
    yield f"They took turns, {content['repetitions']} times"
    held = [content["sides"][side] for side in ("ours", "trl")]
    yield f"ours hold {held[0]['peak_mib']:.0f} MiB at most and TRL {held[1]['peak_mib']:.0f}"
    yield f"of these, {held[0]['loaded_mib']:.0f} and {held[1]['loaded_mib']:.0f} before an epoch begins"
    each, peak = (content["roofline"][f"multiplications_{of}"] for of in ("an_image", "a_second"))
    yield f"multiplies {each / 1e9:.1f} thousand million times for an image, and this core {peak / 1e9:.0f} a second"
    made = [100 * content["images"] / statistics.median(side["whole"]) * each / peak for side in held]
    yield f"Ours reach {made[0]:.0f} % of that, TRL {made[1]:.0f} %"


def of_a_cell(content: dict[str, Any]) -> Iterator[str]:
    cell, libraries = content["works"]["cell"], content["libraries"].values()
    yield f"on two idle cores, in {content['turns']} turns"
    own, before = (cell[side]["processor_seconds"]["median"] for side in ("ours", "peer"))
    least = sum(part["processor_seconds"]["median"] for part in libraries)
    yield f"The last two rows are {100 * least / own:.0f} % of the cell's processor seconds"
    yield f"a cell would be {before / least:.2f} times as fast as in that earlier state"
    yield f"It is {cell['ratio_of_processor_seconds']['median']:.2f} times as fast"


def of_growth(content: dict[str, Any]) -> Iterator[str]:
    few, many = content["cells"][1:]
    assert many["processor_seconds"] / few["processor_seconds"] < many["prompts"] / few["prompts"]
    assert many["peak_mib"] < 1.05 * few["peak_mib"]
    sizes = f"From {few['prompts']:,} to {many['prompts']:,} prompts"
    yield f"{sizes} a cell's seconds grow by less than the prompts do, and its memory hardly grows"


def of_the_timings(_: Facts) -> Iterator[str]:
    yield from of_a_cell(stored("timings/start_up"))
    yield from of_the_scorers(stored("timings/scorers"))
    yield from of_an_epoch(stored("timings/ddpo_epoch"))
    yield from of_growth(stored("timings/growth"))
    content = stored("timings/gradient_noise")
    assert [case["guidance"] for case in content["cases"]] == [3, 1]
    errors = []
    for case in content["cases"]:
        earlier, last = case["rows"][:3], case["rows"][3:]
        assert not any(row["signal"] > 2 * row["signal_error"] for row in earlier)
        assert all(row["signal"] > 2 * row["signal_error"] for row in last)
        errors += [100 * row["signal_error"] / row["signal"] for row in last]
    first, *others = errors
    yield f"standard errors of {min(others):.0f} to {max(others):.0f} %, and the first under guidance of {first:.0f} %"
    fifth, sixth = content["cosines"]["6"][4:]
    yield f"the last two have a cosine of {fifth:.2f} and {sixth:.2f}"
    yield f"From {content['images']} pictures"
    large = {row["algorithm"]: row for row in stored("timings/sd35")["rows"]}
    base, dpo = (large[name] for name in ("base", "diffusion_dpo"))
    assert base["status"] == dpo["status"] == "complete"
    assert "--steps 2 " in base["command"]
    assert "--resolution 32 " in dpo["command"]
    yield f"which drew a picture in two steps and needed {base['peak_mib'] / 1024:.1f} GiB for that"
    yield f"and {dpo['peak_mib'] / 1024:.1f} GiB for an update of `diffusion_dpo` on one pair of 32 pixels"
    assert stored("timings/dpo_step")["gradients_differ_by"] < 1e-4
    large = stored("timings/dpo_step_large")
    assert large["gradients_differ_by"] < 1e-3
    two, _, ours = large["roads"].values()
    share = ours["peak"] / two["peak"]
    yield f"ours is {ours['ratio']['median']:.2f} times as fast and needs {share:.2f} of the memory"
    yield "The gradients of both are equal"


def of_the_audit(_: Facts) -> Iterator[str]:
    content = stored("audit/tiny-shapes")
    (pair,) = [row for row in content["agreement"] if row["judges"] == ["shapes_preference", "shapes_truth"]]
    yield f"(95 % interval of τ {pair['low']:.3f} to {pair['high']:.3f})".replace("-", "−")
    turned = {name: found["sensitivity"] for name, found in content["scorers"].items()}
    flips = {name: [found[c]["flipped"]["rate"] for c in ("jpeg", "noise")] for name, found in turned.items()}
    assert [name for name, (jpeg, noise) in flips.items() if jpeg <= noise] == ["jpeg_compressibility"]
    yield "Saving as JPEG turns more decisions than one step of noise in every pixel, except for the scorer that"


def of_the_flow_world(facts: Facts) -> Iterator[str]:
    def row(model: str, method: str, scorer: str) -> Versus:
        (found,) = [r for r in facts.flow[model].versus if (r.method, r.scorer) == (method, scorer)]
        return found

    def rate(model: str, method: str, scorer: str = REWARD) -> float:
        return 100 * row(model, method, scorer).rate.rate

    four = ("diffusion_dpo", "diffusion_nft", "flow_grpo", "refl")
    assert all(row("tiny_flow", method, REWARD).rate_test.mark == "better" for method in four)
    rates = [rate("tiny_flow", method) for method in four]
    (best,) = [
        r.method for r in facts.flow["tiny_flow"].versus if r.method.startswith("best_of_n") and r.scorer == REWARD
    ]
    yield (
        f"win on the learned reward ({min(rates):.0f} to {max(rates):.0f} %), and none of them comes near the best of "
        f"six pictures ({rate('tiny_flow', best):.0f} %)"
    )
    assert all(rate("tiny_flow", method, "shapes_style") > rate("tiny_flow", method, TRUTH) for method in four)
    assert [row("tiny_flow", method, TRUTH).rate_test.mark for method in four] == [None, None, None, "worse"]
    assert all(abs(rate("tiny_flow", method, TRUTH) - 50) < 1 for method in four[:2])
    yield f"`refl` pays with it ({rate('tiny_flow', 'refl', TRUTH):.0f} %, a difference that stands)"
    base = [r["scores"][TRUTH] for r in stored("flow/tiny_flow-shapes-base")["rows"]]
    seeds = []
    for seed in (1, 2, 3):
        own = [r["scores"][TRUTH] for r in stored(f"flow/tiny_flow-shapes-flow_grpo-seed{seed}")["rows"]]
        seeds.append(100 * statistics.mean((a > b) + 0.5 * (a == b) for a, b in zip(own, base, strict=True)))
    yield f"all three seeds of `flow_grpo` ({min(seeds):.0f} to {max(seeds):.0f} %)"
    yield f"on `tiny` ({rate('tiny', 'flow_grpo'):.0f} and {rate('tiny', 'diffusion_nft'):.0f} %)"


def of_the_model_card(_: Facts) -> Iterator[str]:
    """How many of the test captions are drawn wholly right, which the judge grades 1."""
    captions = {prompt.id: parse(prompt.text) for prompt in take("shapes", "test")}
    whole = {}
    for name in ("tiny-shapes-base", "flow/tiny_flow-shapes-base"):
        right: dict[str, list[bool]] = {}
        for row in stored(name)["rows"]:
            right.setdefault(captions[row["prompt"]].kind, []).append(row["scores"]["shapes_truth"] == 1)
        whole[name] = statistics.mean(x for kind in right.values() for x in kind)
        parts = {kind: f"{100 * statistics.mean(x):.0f} % of {len(x)}" for kind, x in right.items()}
        yield (
            f"single things {parts['single']}, pairs {parts['pair']}, counts {parts['count']}, relations "
            f"{parts['relation']}"
        )
    yield f"Of the 200 held-out test captions {100 * whole['tiny-shapes-base']:.1f} % are drawn wholly right"
    yield f"Of the 200 held-out test captions {100 * whole['flow/tiny_flow-shapes-base']:.1f} % are drawn wholly right"


def of_the_electorate(_: Facts) -> Iterator[str]:
    found = stored("statistics/voting")
    settings, votes, pairs, human = (found[name] for name in ("settings", "votes", "pairs", "human"))
    assert not votes["failed checks"]
    yield f"Ten raters cast {votes['cast']} votes"
    yield f"best and worst of {settings['best and worst of']} pictures"
    rate, low, high = (100 * value for value in votes["best preferred to worst"])
    yield f"prefer the best to the worst in {rate:.0f} % (interval of people {low:.0f} to {high:.0f})"
    yield f"agree in {100 * votes['agreement']:.0f} % (Krippendorff's α {votes['alpha']:.2f})"
    yield f"{votes['on new pairs']} of the votes make {pairs['pairs']} pairs, {pairs['ties']} of them ties"
    agree = {name: 100 * rates["half"] for name, rates in found["agree with the labels"].items()}
    yield f"agrees with {agree['Human']:.0f} % of the labels, style alone with {agree['shapes_style']:.0f} %"
    updates = settings["fields"]["rounds"] * settings["fields"]["updates_per_round"]
    yield f"{updates} updates of Diffusion-DPO"
    again = stored("statistics/voting_dev")["human"]
    for one in (human, again):
        seeds = [f"{100 * rate:.1f}" for rate in one["seeds"]]
        yield f"{seeds[0]}, {seeds[1]} and {seeds[2]} %"
        yield f"together {100 * one['win rate']:.1f} % (interval {100 * one['low']:.1f} to {100 * one['high']:.1f})"
    yield f"of the {settings['test prompts']} test prompts against the unaligned model"
    yield f"the mean rises by {human['difference']:.2f}"
    assert again["low"] < 0.5 < again["high"]
    assert human["low"] > 0.5  # what the second trial was to confirm
    yield f"on the {stored('statistics/voting_dev')['settings']['test prompts']} dev prompts"
    yield "They were to say whether the first trial holds, and do not settle it."
    six = stored("statistics/voting_six")["human"]
    seeds = [f"{100 * rate:.1f}" for rate in six["seeds"][3:]]
    yield f"win {seeds[0]}, {seeds[1]} and {seeds[2]} % there"
    low, high = (100 * six[name] for name in ("low", "high"))
    yield f"together {100 * six['win rate']:.1f} % (interval {low:.1f} to {high:.1f}, p = {six['adjusted p']:.3f})"


SAYS: dict[str, Callable[[Facts], Iterator[str]]] = {
    "results/testbed/README.md": of_the_testbed,
    "results/testbed_flow/README.md": of_the_flow_testbed,
    "results/statistics/README.md": of_the_electorate,
    "results/flow/README.md": of_the_flow_world,
    "results/timings/README.md": of_the_timings,
    "rewards/README.md": of_the_audit,
    "alignbench/shapes/weights/MODEL_CARD.md": of_the_model_card,
}


@pytest.mark.parametrize("page", SAYS)
def test_a_sentence_with_numbers_is_what_its_file_says(page, facts):
    text = " ".join(read(page).split())
    wrong = [sentence for sentence in SAYS[page](facts) if sentence not in text]
    assert not wrong


def block(page: str, name: str) -> str:
    """The block of Python in a page that begins with a file's name."""
    found = re.search(rf"^```python\n(# {name}\n.*?)^```$", read(page), re.M | re.S)
    assert found is not None
    return found[1]


def shown(page: str, text: str) -> list[str]:
    """The words of the only command in a page that holds a text."""
    (command,) = re.findall(rf"^ {{4}}alignbench (.*{re.escape(text)}.*)$", read(page), re.M)
    return str(command).split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "file", "run", "plugin"),
    [
        ("rewards/README.md", "brightness.py", "--reward brightness.py", "brightness.py:Brightness"),
        ("algorithms/README.md", "early_choice.py", "--algo early_choice.py", "early_choice.py:EarlyChoice"),
        ("algorithms/README.md", "late_gradient.py", "--algo late_gradient.py", "late_gradient.py:LateGradient"),
    ],
)
def test_the_plugin_of_a_page_runs_as_the_page_says(page, file, run, plugin, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(block(page, file), encoding="utf-8")
    assert run_command_line([*shown(page, run), "--limit", "4", "--steps", "4"]) == 0
    assert f"{plugin.partition(':')[2]} " in capsys.readouterr().out.replace(":", " ") + " "
    assert run_command_line(shown(page, f"check {plugin}")) == 0


@pytest.fixture(scope="module")
def early_choice(tmp_path_factory):
    """The algorithm of the page."""
    path = tmp_path_factory.mktemp("plugins") / "early_choice.py"
    path.write_text(block("algorithms/README.md", "early_choice.py"), encoding="utf-8")
    return plugins.load("algorithms", f"{path}:EarlyChoice")


@pytest.fixture(scope="module")
def toy():
    """A reward: the first coordinate of a point."""
    return plugins.load("rewards", f"{TOY}:FirstCoordinate")()


PROMPTS = [Prompt(f"p{i}", f"point {i}") for i in range(64)]
KEYS = [Key("page", prompt.id) for prompt in PROMPTS]


def test_the_algorithm_of_the_page_is_a_frozen_dataclass_that_survives_json(early_choice):
    algorithm = early_choice(n=3)
    assert early_choice.__dataclass_params__.frozen
    values = json.loads(json.dumps(dataclasses.asdict(algorithm), allow_nan=False))
    assert build_algorithm("early_choice", early_choice, "mixture", values)[0] == algorithm
    with pytest.raises(ValueError, match=r"share in \(0, 1\), got 8 and 1"):
        early_choice(share=1)


def test_the_algorithm_of_the_page_depends_on_the_key_alone(early_choice, make_problem, toy):
    sampler = early_choice(n=3).align(make_problem(toy))
    images = sampler(PROMPTS, KEYS).images
    assert torch.equal(sampler(PROMPTS, KEYS).images, images)
    torch.testing.assert_close(sampler(PROMPTS[5:12], KEYS[5:12]).images, images[5:12], atol=1e-5, rtol=0)
    assert not torch.allclose(sampler(PROMPTS, [key("other") for key in KEYS]).images, images)


def test_the_algorithm_of_the_page_improves_its_reward_and_with_one_picture_is_base(early_choice, make_problem, toy):
    base = plugins.load("algorithms", "base")().align(make_problem(toy))(PROMPTS, KEYS).images
    assert torch.equal(early_choice(n=1).align(make_problem(toy))(PROMPTS, KEYS).images, base)
    gain = early_choice(n=4).align(make_problem(toy))(PROMPTS, KEYS).images[:, 0] - base[:, 0]
    assert gain.mean() > max(0.5, 3 * gain.std() / len(gain) ** 0.5)


@pytest.mark.parametrize("nfe", [40, 100])
def test_the_algorithm_of_the_page_spends_what_it_says_and_no_more_than_its_budget(
    nfe, early_choice, make_problem, toy
):
    problem = make_problem(toy)
    algorithm = early_choice().for_budget({"nfe": nfe}, problem)
    algorithm.align(problem)(PROMPTS[:8], KEYS[:8])
    cost = algorithm.cost(problem)
    assert problem.meter.total.as_dict() == {name: 8 * count for name, count in cost.as_dict().items()}
    assert nfe - 5 < cost.denoiser_forward <= nfe  # one more picture takes five


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(alignbench, "run"), reason="the Python interface is being built")
def test_the_python_of_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```$", read("README.md"), re.M | re.S)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
