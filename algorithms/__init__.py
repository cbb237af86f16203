"""Alignment algorithms, one file each."""

if __name__ != "alignbench.algorithms":
    raise ImportError("import this package as 'alignbench.algorithms' (run `pip install -e .` in the repository first)")
