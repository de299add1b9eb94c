"""The page of ``revstep verify --html``, one HTML file that asks nothing of anybody else, and its figures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from revstep._files import write_atomic


@dataclass(frozen=True)
class Picture:
    """A PNG with what a reader who does not see it has to know.

    Attributes:
        id: of the page's ``<img>``; checks look for it.
        alt: the picture in words. caption: how it was measured.
        width, height: in CSS pixels; the PNG has twice as many.
        data: the numbers drawn, plain JSON values.
    """

    id: str
    alt: str
    caption: str
    png: bytes
    width: int
    height: int
    data: dict[str, Any]


def picture(fig: Any, id: str, alt: str, caption: str, data: dict[str, Any]) -> Picture:
    """The figure rendered at twice the page's resolution: 96 CSS pixels an inch."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=192)
    width, height = (round(96 * inches) for inches in fig.get_size_inches())
    return Picture(id, alt, caption, buffer.getvalue(), width, height, data)


# ---- the page ----

_STYLE = """
:root {
  color-scheme: light; --ink: #22262b; --soft: #6b7280; --line: #e3e6ea; --good: #00664b; --bad: #b3261e;
  --tint: #f6f7f9
}
* { box-sizing: border-box }
body {
  margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif
}
main { max-width: 1152px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px }
h2 { font-size: 19px; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line) }
p { margin: 6px 0; max-width: 92ch } p.soft, figcaption { color: var(--soft); font-size: 13.5px }
.verdict {
  display: inline-block; margin: 10px 0 4px; padding: 5px 12px; border-radius: 6px; font-weight: 600;
  color: #fff; background: var(--good)
}
.verdict.fails { background: var(--bad) }
figure { margin: 22px 0; padding: 0 }
img { display: block; max-width: 100%; height: auto }
figcaption { margin-top: 4px; max-width: 100ch }
.scroll { overflow-x: auto; margin-top: 10px }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums }
th, td {
  text-align: left; padding: 4px 8px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap
}
th { color: var(--soft); font-weight: 600 }
td.good { color: var(--good) }
td.bad { color: #fff; background: var(--bad); padding-left: 6px; font-weight: 600 }
td.none { color: #b3b8bf }
ul.failures li { color: var(--bad) }
code {
  font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; background: var(--tint);
  padding: 1px 4px; border-radius: 3px
}
details { margin-top: 10px; font-size: 13px }
details pre {
  overflow-x: auto; font-size: 12px; line-height: 1.45; background: var(--tint); padding: 10px;
  border-radius: 6px
}
"""


@dataclass(frozen=True)
class Cell:
    """``kind``: "good" (a claim that holds), "bad" (one that fails), "" (a measurement or a name), "none"
    (does not apply). ``words``: shown on hover.
    """

    text: str
    kind: str = ""
    words: str = ""


@dataclass
class Section:
    """A heading, a paragraph, and what there is of a table, pictures and single measurements
    (shown folded).
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    pictures: Sequence[Picture] = ()
    details: Sequence[str] = ()


@dataclass
class Page:
    """All of it. ``environment``: device, date, versions; ``command``: what made the page; ``failures``: a
    sentence each.
    """

    environment: dict[str, Any]
    command: str
    claims: int
    failures: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def html(self) -> str:
        """The document."""
        held = self.claims - len(self.failures)
        verdict = f"{held:,} of {self.claims:,} claims hold" + (
            f"; {len(self.failures)} fail" if self.failures else ""
        )
        failures = "".join(f"<li>{_text(f)}</li>" for f in self.failures)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport"'
            f' content="width=device-width, initial-scale=1">\n'
            f"<title>revstep verify: {_text(verdict)}</title>\n"
            f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:;'
            f" style-src 'unsafe-inline'\">\n"
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>revstep: every claim, measured on this"
            " machine</h1>\n"
            f'<p class="soft" id="environment">{_text(environment_line(self.environment))}<br>made by'
            f" <code>{_text(self.command)}</code></p>\n"
            f'<p class="verdict{" fails" if self.failures else ""}" id="verdict">{_text(verdict)}</p>\n'
            + (f'<ul class="failures">{failures}</ul>\n' if failures else "")
            + "".join(_section(s) for s in self.sections)
            + "</main>\n</body>\n</html>\n"
        )

    def write(self, folder: Path) -> Path:
        """``folder/index.html``, whole or not at all. Raises OSError as ``open`` does."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "index.html"
        write_atomic(path, self.html().encode("utf-8", "backslashreplace"))
        return path


def environment_line(environment: dict[str, Any]) -> str:
    """``device, 2 threads, date, revstep 0.1.0, torch 2.13, python 3.11, commit abc``."""
    e = dict(environment)
    threads = e.pop("threads", "?")
    front = [
        str(e.pop("device", "")),
        f"{threads} thread{'' if threads == 1 else 's'}",
        str(e.pop("date", "")),
    ]
    return ", ".join(
        [part for part in front if part] + [f"{name} {value}" for name, value in e.items() if value]
    )


def _text(words: Any) -> str:
    return html.escape(str(words), quote=True)


def _section(s: Section) -> str:
    parts = [f"<h2>{_text(s.title)}</h2>\n", f"<p>{_text(s.text)}</p>\n" if s.text else ""]
    parts += [_figure(p) for p in s.pictures]
    if s.rows:
        head = "".join(f"<th>{_text(h)}</th>" for h in s.header)
        body = "".join("<tr>" + "".join(_cell(c) for c in row) + "</tr>\n" for row in s.rows)
        parts.append(
            f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}</tbody></table></div>\n"
        )
    if s.details:
        parts.append(
            f"<details><summary>all {len(s.details):,}"
            f" measurements</summary><pre>{_text(chr(10).join(s.details))}</pre></details>\n"
        )
    return "".join(parts)


def _cell(c: Cell) -> str:
    attributes = (f' class="{c.kind}"' if c.kind else "") + (f' title="{_text(c.words)}"' if c.words else "")
    return f"<td{attributes}>{_text(c.text)}</td>"


def _figure(p: Picture) -> str:
    source = "data:image/png;base64," + base64.b64encode(p.png).decode("ascii")
    return (
        f'<figure><img id="{_text(p.id)}" alt="{_text(p.alt)}" width="{p.width}" height="{p.height}"'
        f' src="{source}"><figcaption>{_text(p.caption)}</figcaption></figure>\n'
    )
