"""Input that no program of ours wrote: strategies for tests, and what held commands up before."""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from alignbench.cli.app import run_command_line
from alignbench.files import canonical_json

# Values that readers trip over: numbers beyond what arrays hold, text that no encoding or file system takes.
AWKWARD: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, -(2**70), 10**30, 1e308, 5e-324, -0.0, "", "\x00", "\x1b[2J", "a" * 5000,
    "../../etc/passwd", "\u202e", "none", "[", [], {}, [[]], {"": {}}, [None], "=cmd|' /C calc'!A0", "NaN", "1e999",
)  # fmt: skip
BYTES: tuple[bytes, ...] = (
    b"", b"\xff\xfe", b"\x00" * 100, b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"NaN", b"[1e999]", b'"\\ud800"',
    b'{"schema": 1, "schema": 1}', b"[]", b"null", b'"x"', b'{"schema": 1', b"\xef\xbb\xbf{}",
    b"PK\x03\x04", b"{}\n{}\n",
)  # fmt: skip

texts = st.one_of(st.text(max_size=40), st.sampled_from([value for value in AWKWARD if isinstance(value, str)]))
values = st.one_of(
    st.sampled_from(AWKWARD),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), texts),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    ),
)
contents = st.one_of(st.sampled_from(BYTES), st.binary(max_size=200), st.text(max_size=200).map(str.encode))


def places(content: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all values within a value of JSON."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in inner:
        yield (*above, name)
        yield from places(value, (*above, name))


@st.composite
def changed(draw: st.DrawFn, content: Any) -> Any:
    """A value of JSON in which one to three values are replaced, taken away or repeated under another name."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        known = sorted(places(content), key=str)
        if not known:
            break
        *above, name = draw(st.sampled_from(known))
        place = content
        for part in above:
            place = place[part]
        match draw(st.sampled_from(("replace", "remove", "repeat"))):
            case "replace":
                place[name] = draw(values)
            case "remove":
                del place[name]
            case "repeat" if isinstance(place, list):
                place.append(place[name])
            case "repeat":
                place[draw(texts)] = place[name]
    return content


def signed(content: Any) -> Any:
    """A result with the digest of what it says, where one can be taken."""
    if not isinstance(content, dict):
        return content
    bare = {name: value for name, value in content.items() if name != "digest"}
    try:
        return {**bare, "digest": hashlib.sha256(canonical_json(bare).encode()).hexdigest()}
    except ValueError:
        return content


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def said(arguments: Sequence[str | Path]) -> tuple[int, str]:
    """What a command returns and says on stderr. Fails where it does not end in what was foreseen: one line."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run_command_line([str(argument) for argument in arguments])
    lines = [line for line in err.getvalue().split("\n") if line.startswith("alignbench: ")]
    shown = err.getvalue()[:2000]
    assert "alignbench: unexpected" not in shown, shown
    assert "Traceback" not in shown, shown
    assert code in (0, 1, 2), shown
    assert len(lines) == (0 if code == 0 else 1), (code, shown, out.getvalue()[-500:])
    return code, err.getvalue()
