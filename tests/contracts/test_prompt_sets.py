"""The contracts of every prompt set of ours, on files of their formats in full number."""

from __future__ import annotations

import pytest

from alignbench import plugins
from alignbench.contracts.prompts import CONTRACTS


@pytest.mark.parametrize("name", plugins.own_names("benchmarks"))
def test_a_prompt_set_keeps_its_contracts(name, captions, request):
    if name == "parti":  # the published file: it is known by its hash
        (captions / "PartiPrompts.tsv").symlink_to(request.getfixturevalue("real_data") / "PartiPrompts.tsv")
    prompt_set = plugins.load("benchmarks", name)()
    for contract in CONTRACTS:
        contract.check(prompt_set)
