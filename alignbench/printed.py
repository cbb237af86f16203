"""What is printed: text in which nothing is hidden, in characters that the terminal has.

Names, prompts, messages and answers come from files, servers and other people's code. A character that moves the
cursor, turns the direction of writing or is not seen at all is shown as its escape, such as `\\x1b` or `\\u202e`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO, cast

# Control characters but for line break and tab, marks and overrides of direction, what has no width or breaks lines
# elsewhere, tags, and halves of surrogate pairs. The joiners of emoji and of Indic and Persian writing stay.
HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
DRAWN = re.compile("(\x1b\\[A)+")  # all that a library's progress bar writes beside a return at its beginning

SPELLED = {
    "…": "...", "–": "-", "—": "-", "−": "-", "─": "-", "→": "->", "←": "<-", "▲": "^", "▼": "v", "·": ".", "×": "x",
    "±": "+/-", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~", "∝": "~", "√": "sqrt", "∞": "inf", "‖": "||", "∇": "grad",
    "⊥": "_|_", "⊗": "(x)", "≻": ">", "⪰": ">=", "½": "1/2", "¼": "1/4", "²": "^2", "³": "^3", "⁶": "^6", "¹": "1",
    "⁻": "^-", "₁": "1", "₂": "2", "∂": "d", "ᵀ": "^T", "§": "section ", "\N{COMBINING CIRCUMFLEX ACCENT}": "^",
    "\N{COMBINING TILDE}": "~", "\N{COMBINING MACRON}": "-", "ᾱ": "alpha-bar", "Ĉ": "C^", "Â": "A^",
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "eps", "η": "eta", "θ": "theta", "λ": "lambda",
    "κ": "kappa", "ℓ": "l", "₊": "+", "₋": "-",
    "μ": "mu", "ν": "nu", "û": "u^", "ξ": "xi", "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "ψ": "psi",
    "Δ": "Delta", "Π": "Pi", "Σ": "Sum", "‘": "'", "’": "'", "‹": "<", "“": '"', "”": '"', "°": " degrees", "\xa0": " ",
}  # fmt: skip


class Screen(NamedTuple):
    """Where text will be read."""

    width: int | None = None  # columns; None where lines may be of any length
    encoding: str = "utf-8"


WHOLE = Screen()


def visible(text: str) -> str:
    """Text with its hidden characters as escapes; its line breaks and tabs stay."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Text without line breaks or hidden characters: names and reasons come from outside."""
    return " ".join(re.split("[\n\t]", visible(text)))


def spelled(text: str, encoding: str | None) -> str:
    """Text in characters that the encoding has: ≥ becomes >= where it is missing, what has no spelling an escape."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return "".join(_spelling(character, encoding or "utf-8") for character in text)
    except LookupError:
        return spelled(text, "ascii")
    return text


def _spelling(character: str, encoding: str) -> str:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return SPELLED.get(character) or character.encode("ascii", "backslashreplace").decode()
    return character


class Guarded:
    """A text stream that writes what is visible, in characters that its encoding has; all else is the stream's own.
    With `drawing`, control characters pass: a library draws there, with text that was made visible before."""

    def __init__(self, stream: TextIO, drawing: bool = False) -> None:
        self._stream, self._drawing = stream, drawing

    def write(self, text: str) -> int:
        if not self._drawing and not DRAWN.fullmatch(text):
            start = "\r" if text.startswith("\r") and not text.startswith("\r\n") else ""
            text = start + visible(text[len(start) :])
        self._stream.write(spelled(text, self._stream.encoding))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def drawing(self) -> TextIO:
        """The same stream, for a library that moves the cursor."""
        return cast(TextIO, Guarded(self._stream, drawing=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard(stream: TextIO) -> TextIO:
    """The stream, guarded."""
    return stream if isinstance(stream, Guarded) else cast(TextIO, Guarded(stream))


def drawing(stream: TextIO) -> TextIO:
    """The stream for a library that moves the cursor and sets colours, guarded or not."""
    return (stream if isinstance(stream, Guarded) else Guarded(stream)).drawing()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Whatever is printed within, by whomever, is visible and can be encoded."""
    with contextlib.redirect_stdout(guard(sys.stdout)), contextlib.redirect_stderr(guard(sys.stderr)):
        yield


def how_many(count: int, word: str) -> str:
    """A number of things."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
