"""Preference pairs from files: read, chosen, encoded once and cached."""
