"""What a cell is asked to be: options, presets, and what they resolve to."""
