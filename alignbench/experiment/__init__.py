"""Running one cell: the problem an algorithm meets, resumable rounds, generation, scoring, the result file."""
