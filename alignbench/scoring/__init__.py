"""What learned scorers share: checkpoints, preprocessing, encoders whose features are computed once, heads."""
