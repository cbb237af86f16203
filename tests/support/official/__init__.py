"""Our algorithms beside their official code, on small numbers; see README.md."""
