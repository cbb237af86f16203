"""What learned scorers share: weights, preprocessing, features that are computed once, heads, and bases of scorers."""
