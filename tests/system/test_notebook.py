"""The notebook in results/ runs on the committed results and draws their curves."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient
from places import ROOT

RESULTS = ROOT / "results"


def test_the_notebook_runs_and_draws_three_figures():
    notebook = nbformat.read(RESULTS / "reward_curves.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(RESULTS)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    printed = "".join(output.get("text", "") for output in outputs)
    for method in ("ddpo reward=shapes_preference", "ddpo reward=shapes_truth"):
        for scorer in ("shapes_preference", "shapes_truth", "shapes_style"):
            assert any(line.startswith(method) and scorer in line for line in printed.splitlines()), (method, scorer)
    assert "(3 seeds)" in printed
