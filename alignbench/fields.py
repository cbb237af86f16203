"""Checks of hyper-parameters, for a `__post_init__`."""

from __future__ import annotations


def at_least_one(algorithm: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is below one."""
    for name in names:
        if getattr(algorithm, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(algorithm, name)}.")


def positive(algorithm: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is not positive."""
    for name in names:
        if not getattr(algorithm, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(algorithm, name)}.")


def not_negative(algorithm: object, *names: str) -> None:
    """Raise ValueError naming the first of these fields that is negative."""
    for name in names:
        if getattr(algorithm, name) < 0:
            raise ValueError(f"{name} must not be negative, got {getattr(algorithm, name)}.")
