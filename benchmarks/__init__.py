"""Prompt sets, one file each; suites/ holds grids of cells."""

if __name__ != "alignbench.benchmarks":
    raise ImportError("import this package as 'alignbench.benchmarks' (run `pip install -e .` in the repository first)")
