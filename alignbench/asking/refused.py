"""What pydantic refuses, in a sentence."""

from __future__ import annotations

from pydantic import ValidationError

EXPECTED = {
    "greater_than_equal": "at least {ge:,}",
    "greater_than": "more than {gt:,}",
    "less_than_equal": "at most {le:,}",
    "less_than": "less than {lt:,}",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
}


def explained(error: ValidationError, where: str | None) -> str:
    """The first problem in a sentence: the key in a file, or the flag; its value; and what was expected."""
    first = error.errors()[0]
    option, *inner = first["loc"]
    key = f"{inner[0]}=" if len(inner) == 1 and isinstance(inner[0], str) else ""  # of a mapping's value
    name = f"{where}: {option}" if where else f"--{str(option).replace('_', '-')}"
    reason = expected(error)
    value = ", ".join(map(str, first["input"])) if isinstance(first["input"], list | tuple) else first["input"]
    return f"{name} {key}{value}: {reason}."


def expected(error: ValidationError) -> str:
    """What the first problem says was expected, as the end of a sentence."""
    first = error.errors()[0]
    if known := EXPECTED.get(first["type"]):
        return f"expected {known.format(**first.get('ctx', {}))}"
    return first["msg"].removeprefix("Value error, ").rstrip(".").replace("Input should be ", "expected ")
