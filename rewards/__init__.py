"""Scorers of images for prompts, one file each."""

if __name__ != "alignbench.rewards":
    raise ImportError("import this package as 'alignbench.rewards' (run `pip install -e .` in the repository first)")
