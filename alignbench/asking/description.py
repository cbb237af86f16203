"""A plug-in described: where it comes from; of an algorithm its fields, their defaults and what presets change."""

from __future__ import annotations

import ast
import dataclasses
import textwrap
from typing import Any, get_type_hints

from alignbench import plugins
from alignbench.asking.presets import preset_names, preset_of
from alignbench.errors import InputError


def as_values(name: str) -> dict[str, Any]:
    """Headline, docstring and fields of an algorithm, docstring of a reward or a prompt set; by name, file or package.
    Raises UnknownName, InputError."""
    group, kind = plugins.find(name)
    header = ast.get_docstring(ast.parse(plugins.text_of(kind))) or ""
    if group != "algorithms":
        return {"name": plugins.full_name(group, name), "kind": plugins.KINDS[group], "header": header}
    if not dataclasses.is_dataclass(kind):
        raise InputError(f"algorithm {name!r} is no dataclass; expected one, with its hyper-parameters as fields.")
    plain = plugins.full_name("algorithms", name)
    hints = get_type_hints(kind)
    fields = [
        {
            "name": field.name,
            "type": _shown(hints[field.name]),
            "default": _default(field),
            "presets": {
                preset: preset_of(preset)[plain][field.name]
                for preset in preset_names()
                if field.name in preset_of(preset).get(plain, {})
            },
        }
        for field in dataclasses.fields(kind)
    ]
    return {
        "name": plain,
        "kind": plugins.KINDS[group],
        "trains": bool(getattr(kind, "trains", False)),
        "header": header,
        "fields": fields,
        "published": [dataclasses.asdict(published) for published in getattr(kind, "paper", ())],
    }


def text(name: str) -> str:
    """The same for people."""
    found = as_values(name)
    if "fields" not in found:
        return f"{found['name']} ({found['kind']})\n\n{found['header'] or 'its file says nothing about it'}\n"
    width = max([len(field["name"]) for field in found["fields"]], default=0)
    header = found["header"] or "its file says nothing about it"
    lines = [f"{found['name']} ({'trains' if found['trains'] else 'at test time'})", "", header, ""]
    lines.append("fields, with their defaults" if found["fields"] else "no fields")
    for field in found["fields"]:
        presets = "".join(f"   {preset}: {value}" for preset, value in field["presets"].items())
        default = "none" if field["default"] is None else field["default"]
        lines.append(f"  {field['name']:{width}} = {default}{presets}")
    if found["published"]:
        lines += ["", "published; the defaults are the first's, but for what Departures names"]
    for published in found["published"]:
        lines.append(f"  {published['name']} ({published['source']})")
        for what in ("fields", "sampling"):
            said = ", ".join(f"{name}={value}" for name, value in published[what].items())
            lines += textwrap.wrap(said, 110, initial_indent=f"    {what:10}", subsequent_indent=" " * 14)
    return "\n".join(lines) + "\n"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
