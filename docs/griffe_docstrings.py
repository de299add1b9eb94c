"""For the reference: how docstrings are read by the site's generator.

Roles such as ``:class:`Report``` become code. Functions that take the options of a stack by keyword
(``takes_options``) show them with their types and defaults, as ``help()`` does.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":[a-z]+:`([^`]+)`")


def plain(text: str) -> str:
    """``:class:`~a.b.C``` -> ```C```; ``:mod:`.tape``` -> ```tape```; what has no role is left alone."""
    return ROLE.sub(
        lambda m: f"`{m[1].rpartition('.')[2] if m[1].startswith('~') else m[1].lstrip('.')}`", text
    )


class Docstrings(griffe.Extension):
    """Applied to all of the package."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if "_options" in pkg.modules:
            _give(pkg, _options(pkg["_options.StackOptions"]))


def _options(cls: griffe.Class) -> list[griffe.Parameter]:
    found = []
    for name, attribute in cls.attributes.items():
        if "instance-attribute" in attribute.labels or "class-attribute" in attribute.labels:
            default = re.match(r"field\(default=(.+?), metadata=", str(attribute.value), re.S)
            value = default[1] if default else str(attribute.value)
            found.append(
                griffe.Parameter(
                    name,
                    annotation=attribute.annotation,
                    kind=griffe.ParameterKind.keyword_only,
                    default=value,
                )
            )
    return found


def _give(where: Any, options: list[griffe.Parameter]) -> None:
    for member in where.members.values():
        if member.is_alias:
            continue
        if member.is_function and any("takes_options" in str(d.value) for d in member.decorators):
            own = [p for p in member.parameters if p.kind is not griffe.ParameterKind.var_keyword]
            names = {p.name for p in own}
            member.parameters = griffe.Parameters(*own, *(p for p in options if p.name not in names))
        elif member.is_module or member.is_class:
            _give(member, options)
