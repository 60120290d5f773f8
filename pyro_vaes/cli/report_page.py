"""One HTML page without anything outside it: style inline, pictures as data URIs."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

__all__ = ["cards", "details", "facts", "figure", "page", "preformatted", "section", "table"]

STYLE = """
:root { --ink: #2b2d33; --soft: #6a6f78; --line: #e3e5e9; --blue: #2f6f9f; --paper: #fff; --wash: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; }
header p { margin: .4rem 0 0; color: var(--soft); }
section { margin-top: 2.6rem; }
h2 { margin: 0 0 .3rem; font-size: 1.3rem; }
section > p { margin: 0 0 1rem; color: var(--soft); max-width: 75ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: .9rem; margin-top: 1.6rem; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.45rem; line-height: 1.25; color: var(--blue);
  font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .86rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(430px, 100%), 1fr));
  gap: 1rem; align-items: start; }
figure { margin: 0; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .9rem; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; max-height: 640px; height: auto; margin: 0 auto; }
figcaption { margin-top: .6rem; color: var(--soft); font-size: .88rem; }
.scroll { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; }
tbody th, thead th:first-child { text-align: left; font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts th { vertical-align: top; }
pre { margin: 0; padding: .9rem 1rem; overflow-x: auto; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: 1rem; }
summary { cursor: pointer; color: var(--blue); margin-bottom: .6rem; }
@media print { body { background: var(--paper); } figure, .card { break-inside: avoid; } }
"""


def page(title: str, subtitle: str, parts: Iterable[str]) -> str:
    """A whole page.

    Arguments:
        title: Plain text, like every text given to the functions here.
        subtitle: Under the title.
        parts: HTML from the functions here.

    Example:
        >>> page("A & B", "", []).split("<title>")[1][:9]
        'A &amp; B'
    """
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n'
        f"<h1>{html.escape(title)}</h1>\n<p>{html.escape(subtitle)}</p>\n</header>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, lead: str, *parts: str) -> str:
    """A heading, a sentence on what to look for, and parts."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n<p>{html.escape(lead)}</p>\n{body}\n</section>"


def cards(numbers: Sequence[tuple[str, str]]) -> str:
    """Large numbers with what they are: `(number, words)`."""
    each = "\n".join(
        f'<div class="card"><b>{html.escape(n)}</b><span>{html.escape(w)}</span></div>' for n, w in numbers
    )
    return f'<div class="cards">\n{each}\n</div>'


def figure(path: Path, caption: str, *, wide: bool = False) -> str:
    """A picture file as a data URI, with its caption."""
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = ' class="wide"' if wide else ""
    said = html.escape(caption)
    return (
        f'<figure{kind}><img src="data:image/png;base64,{data}" alt="{html.escape(caption, quote=True)}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column heads the rows."""
    head = "".join(f'<th scope="col">{html.escape(c)}</th>' for c in columns)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(first)}</th>{"".join(f"<td>{html.escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    body = "\n".join(f'<tr><th scope="row">{html.escape(n)}</th><td>{html.escape(v)}</td></tr>' for n, v in pairs)
    return f'<div class="scroll"><table class="facts">\n<tbody>\n{body}\n</tbody>\n</table></div>'


def preformatted(text: str) -> str:
    """Text as it is, such as a command."""
    return f"<pre>{html.escape(text)}</pre>"


def details(summary: str, *parts: str) -> str:
    """Parts that are folded away until asked for."""
    body = "\n".join(parts)
    return f"<details><summary>{html.escape(summary)}</summary>\n{body}\n</details>"
