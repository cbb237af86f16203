"""What every plug-in promises, as checks that run on anybody's: `alignbench check`, and our own tests."""
