"""Every sentence of README.md and results/README.md with a number or a comparison is carried by files, or by none."""

from __future__ import annotations

import pytest
from claims import CLAIMING, CLAIMS, sentences
from pages import read
from places import ROOT

# Sentences that claim nothing of results: they say what a word means, what to type, or how something was made.
DEFINITIONS = (
    "how good an image is", "checks the results that it carries", "more than one", "honest intervals",
    "Stable Diffusion 1.x", "You need Python",
    "compares four methods", "After the installation it takes", "threads that wait for each other",
    "what won, on what", "**Win rate.", "draw the same prompt", "The higher score wins", "The 95 % interval",
    "Prompts are drawn at random", "run the same cells", "![Images", "*Each column", "start from the same noise",
    "the same command is typed", "Licence:", "have the seeds 1 to 3", "**Pictures** have", "3.6 million parameters",
    "It draws most captions rightly", "The prompts are 600 captions", "A strength is one number", "--by category",
    "after a name means", "**The win rate.", "On each of the 200 test prompts", "So are the seeds",
    "how often a method is", "Each has its own interval", "may win most pairs by little", "20 methods that do nothing",
    "is corrected for that",
    "--family table", "as often against `base` says little", "--margin SCORER", "--control SCORER",
    "most methods were told to raise", "has *gamed* its reward", "Runs that differ in nothing", "Best-of-n pays",
    "the same model, prompts and noise", "How often the intervals cover", "were made on one core",
    "which of two pictures",
    "Four settings differ", "Earlier settings, all under guidance", "With all weights equal", "`alignbench plan` tells",
    "One method may stand alone", "An aligned model is also a judge", "The first command trains", "Nobody can say",
    "With one seed nobody", "and another method may", "Each has its own", "win rates by people",
    "A method *looks hacked* where",
)  # fmt: skip


@pytest.mark.parametrize("page", CLAIMS)
def test_a_claim_is_what_its_files_say_and_stands_on_the_page(page, facts):
    text = " ".join(read(page).split())
    claims = list(CLAIMS[page](facts))
    assert not [claim.text for claim in claims if claim.text not in text]
    assert all(list(ROOT.glob(pattern)) for claim in claims for pattern in claim.files.split(", "))


@pytest.mark.parametrize("page", CLAIMS)
def test_no_sentence_claims_what_no_file_carries(page, facts):
    carried = [claim.text for claim in CLAIMS[page](facts)]
    bare = [
        sentence
        for sentence in sentences(page)
        if CLAIMING.search(sentence)
        and not any(_overlap(sentence, text) for text in carried)
        and not any(words in sentence for words in DEFINITIONS)
    ]
    assert not bare


@pytest.mark.parametrize("page", CLAIMS)
def test_a_sentence_with_a_made_up_number_is_found_bare(page, facts):
    """The check can fail: another number in a claim's sentence is no longer carried."""
    carried = [claim.text for claim in CLAIMS[page](facts)]
    changed = [text.replace("4", "5") for text in carried if "4" in text]
    assert changed
    assert not [text for text in changed if any(_overlap(text, claim) for claim in carried)]


def _overlap(sentence: str, claim: str) -> bool:
    """Whether the claim stands in the sentence, or the sentence is part of the claim."""
    return claim in sentence or sentence.removesuffix(".").rstrip("*") in claim or sentence in claim
