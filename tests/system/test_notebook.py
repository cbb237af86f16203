"""The notebook in results/ runs on the committed results, and shows tables, figures and pictures."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient
from places import ROOT

RESULTS = ROOT / "results"


@pytest.mark.slow
def test_the_notebook_runs_and_shows_tables_figures_and_pictures(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(RESULTS / "tour.ipynb", as_version=4)
    stored = [cell.get("outputs", []) for cell in notebook.cells]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(RESULTS)}}).execute()
    fresh = [cell.get("outputs", []) for cell in notebook.cells]
    outputs = [output for cell in fresh for output in cell]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # win rates, curves, a sheet
    tables = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(tables) == 4
    for method in ("best_of_n n=4", "diffusion_dpo", "steering", "ddpo reward=shapes_truth"):
        assert all(method in table for table in tables[1:]), method
    assert not [output for output in outputs if output.output_type in ("stream", "error")]  # no bars, no warnings
    texts = [[o["data"].get("text/plain") for o in cell if "image/png" not in o["data"]] for cell in stored]
    assert texts == [[o["data"].get("text/plain") for o in cell if "image/png" not in o["data"]] for cell in fresh]
