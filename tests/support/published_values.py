"""What committed results say of published configurations, written anew: `python tests/support/published_values.py`.

A result keeps how it differs from the nearest published configuration. That follows from its configuration and from
what its algorithm keeps of papers; where the latter is mended, so are the files. Nothing else in them changes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from places import ROOT

from alignbench.asking.resolve import Cell, resolve
from alignbench.asking.suite import read_suite
from alignbench.files import canonical_json, write_text

SUITES = {"tiny": "results", "testbed": "results/testbed"}


def cells(suite: str) -> Iterator[Cell]:
    """The cells of a suite whose results are committed."""
    for options in read_suite(ROOT / "benchmarks" / "suites" / f"{suite}.yaml", ROOT / SUITES[suite]):
        if (cell := resolve(options)).path.exists():
            yield cell


def said(cell: Cell) -> dict[str, Any]:
    """What the result of a cell says of published configurations."""
    if cell.beside is None:
        return {"published": None, "differs_from_paper": {}}
    return {"published": str(cell.beside.nearest), "differs_from_paper": cell.beside.differences}


def rewritten(text: str, entries: dict[str, Any]) -> str:
    """A result file with these entries, and the digest that goes with them; all other lines as they are."""
    content = json.loads(text)
    if all(content.get(name) == value for name, value in entries.items()):
        return text
    text = re.sub(r'^ "(published|differs_from_paper)": .*\n', "", text, flags=re.M)
    pairs = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n" for name, value in entries.items())
    lines = "".join(pairs)
    text = re.sub(r'^( "preset": .*\n)', lambda found: found[1] + lines, text, flags=re.M)
    return sealed(text, {**content, **entries})


def sealed(text: str, content: dict[str, Any]) -> str:
    """The text of a result file, its last line but one the digest of this content."""
    digest = hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "digest"}).encode()).hexdigest()
    return re.sub(r'^ "digest": .*\n', "", text, flags=re.M).removesuffix("}\n") + f' "digest": "{digest}"\n}}\n'


if __name__ == "__main__":
    for name in SUITES:
        for cell in cells(name):
            old = cell.path.read_text(encoding="utf-8")
            if (new := rewritten(old, said(cell))) != old:
                write_text(cell.path, new)
                print(cell.path.relative_to(ROOT))
