"""An algorithm described: where it comes from, its fields with their defaults, and what presets change."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any, get_type_hints

from alignbench import plugins
from alignbench.asking.presets import preset_names, preset_of


def as_values(name: str) -> dict[str, Any]:
    """Headline, docstring and fields of an algorithm, by name, file or package. Raises UnknownName, InputError."""
    kind = plugins.load("algorithms", name)
    plain = plugins.full_name("algorithms", name)
    hints = get_type_hints(kind)
    fields = [
        {
            "name": field.name,
            "type": _shown(hints[field.name]),
            "default": None if field.default is dataclasses.MISSING else field.default,
            "presets": {
                preset: preset_of(preset)[plain][field.name]
                for preset in preset_names()
                if field.name in preset_of(preset).get(plain, {})
            },
        }
        for field in dataclasses.fields(kind)
    ]
    header = ast.get_docstring(ast.parse(plugins.source_of(kind))) or ""
    return {"name": plain, "trains": kind.trains, "header": header, "fields": fields}


def text(name: str) -> str:
    """The same for people."""
    found = as_values(name)
    width = max([len(field["name"]) for field in found["fields"]], default=0)
    lines = [f"{found['name']} ({'trains' if found['trains'] else 'at test time'})", "", found["header"], ""]
    lines.append("fields, with the paper's or its code's values as defaults" if found["fields"] else "no fields")
    for field in found["fields"]:
        presets = "".join(f"   {preset}: {value}" for preset, value in field["presets"].items())
        lines.append(f"  {field['name']:{width}} = {field['default']}{presets}")
    return "\n".join(lines) + "\n"


def _shown(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
