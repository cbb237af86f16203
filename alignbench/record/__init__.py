"""What is written down: result files, the pictures of a cell, the environment, and folders that work is resumed in."""
