"""What scorers, aligned models and reward training are worth on preference pairs and pictures."""
