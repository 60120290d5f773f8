"""How the package's files read, and a ratchet that keeps each from getting worse.

    python tools/reading.py [FOLDER ...]    print the figures of the folders together
    python tools/reading.py --check         fail where a file reads worse than recorded
    python tools/reading.py --update        record what has improved, and new files

The figures, of code lines unless they say otherwise (docstrings and comments are none):

    bodies          functions whose body has 12 lines and more
    solid           those of them without any blank line or comment
    run             median number of lines between blank lines and comments in bodies
    wide, width     lines of more than 88 characters; 95th percentile of the length
    ternaries, comprehensions, tokens       an f-string is one token in every Python
    raises          lines inside raise statements
    comments, code  comment lines and code lines

A file that is not recorded must have no solid body and no wide line. A recorded one may
not have more of either than it had, nor a longer run (up to 6 is always fine), nor more
ternaries, comprehensions or lines of raise in number and in proportion at once. The rest
is for information. A file that has moved counts as new.
"""

import argparse
import ast
import io
import json
import pathlib
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

ROOT = pathlib.Path(__file__).parent.parent
RECORD = ROOT / "tools" / "reading.json"
FOLDERS = ("pyro_vaes",)

LONG_BODY = 12  # lines
WIDE = 88  # characters
GOOD_RUN = 6.0  # lines; what the code bases that read well stay below

# What may grow with a file, and what it grows with.
IN_PROPORTION = {"ternaries": "tokens", "comprehensions": "tokens", "raises": "code"}

Functions = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
COUNTED = (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)

# Since Python 3.12 an f-string is many tokens, between these two.
FSTRING_START = getattr(tokenize, "FSTRING_START", None)
FSTRING_END = getattr(tokenize, "FSTRING_END", None)


@dataclass(frozen=True)
class Body:
    """The body of a function, without its docstring."""

    where: str
    lines: int
    breaks: int  # blank lines and comments

    @property
    def run(self) -> float:
        return self.lines / (self.breaks + 1)


@dataclass(frozen=True)
class Figures:
    """How one file reads, or several together."""

    bodies: int
    solid: int
    run: float
    wide: int
    width: int
    ternaries: int
    comprehensions: int
    tokens: int
    raises: int
    comments: int
    code: int


@dataclass
class Source:
    """What is counted in one file."""

    lines: list[str]
    code: set[int]  # numbers of lines, from 1
    comments: set[int]
    bodies: list[Body]
    ternaries: int
    comprehensions: int
    tokens: int
    raises: int


def read(path: pathlib.Path, name: str) -> Source:
    """Count what there is to count in a file."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    nodes = list(ast.walk(tree))

    documented = set().union(*map(_docstring_lines, nodes))
    numbered = {n: line.strip() for n, line in enumerate(lines, 1) if line.strip()}
    bare = {n: line for n, line in numbered.items() if n not in documented}
    comments = {n for n, line in bare.items() if line.startswith("#")}
    code = bare.keys() - comments

    raises = [n for n in nodes if isinstance(n, ast.Raise)]
    return Source(
        lines=lines,
        code=code,
        comments=comments,
        bodies=[b for n in nodes for b in _long_body(n, lines, name)],
        ternaries=sum(isinstance(n, ast.IfExp) for n in nodes),
        comprehensions=sum(isinstance(n, COMPREHENSIONS) for n in nodes),
        tokens=sum(line in code for line in _token_lines(text)),
        raises=sum(_last(n) - n.lineno + 1 for n in raises),
    )


def _docstring_lines(node: ast.AST) -> set[int]:
    """The numbers of the lines of a node's docstring."""
    if not isinstance(node, ast.Module | ast.ClassDef | Functions):
        return set()
    if ast.get_docstring(node) is None:
        return set()
    return set(range(node.body[0].lineno, _last(node.body[0]) + 1))


def _long_body(node: ast.AST, lines: list[str], name: str) -> Iterator[Body]:
    """The body of a function if it is a long one."""
    if not isinstance(node, Functions):
        return
    statements = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not statements:
        return

    part = [line.strip() for line in lines[statements[0].lineno - 1 : _last(node)]]
    if len(part) >= LONG_BODY:
        breaks = sum(not line or line.startswith("#") for line in part)
        yield Body(f"{name}:{node.lineno} {node.name}", len(part), breaks)


def _last(node: ast.stmt) -> int:
    """The number of a statement's last line."""
    assert node.end_lineno is not None
    return node.end_lineno


def _token_lines(text: str) -> Iterator[int]:
    """The number of the first line of every token, an f-string being one token."""
    depth = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == FSTRING_START:
            depth += 1
        if depth == 0 and token.type in COUNTED:
            yield token.start[0]
        if token.type == FSTRING_END:
            depth -= 1
            if depth == 0:
                yield token.start[0]


def figures(sources: list[Source]) -> Figures:
    """The figures of some files together."""
    bodies = [body for source in sources for body in source.bodies]
    widths = sorted(len(s.lines[n - 1]) for s in sources for n in s.code)
    return Figures(
        bodies=len(bodies),
        solid=sum(body.breaks == 0 for body in bodies),
        run=round(statistics.median([b.run for b in bodies] or [0]), 2),
        wide=sum(width > WIDE for width in widths),
        width=widths[int(0.95 * len(widths))] if widths else 0,
        ternaries=sum(s.ternaries for s in sources),
        comprehensions=sum(s.comprehensions for s in sources),
        tokens=sum(s.tokens for s in sources),
        raises=sum(s.raises for s in sources),
        comments=sum(len(s.comments) for s in sources),
        code=sum(len(s.code) for s in sources),
    )


def worse(now: Figures, before: Figures | None) -> Iterator[str]:
    """What the ratchet holds against a file; ``before`` is None where it is new."""
    allowed = before or Figures(*[0] * 11)

    if now.solid > allowed.solid:
        found = f"{now.solid} bodies of {LONG_BODY} lines and more"
        yield f"{found} without a blank line or a comment, {allowed.solid} allowed"
    if now.wide > allowed.wide:
        yield f"{now.wide} lines wider than {WIDE}, {allowed.wide} allowed"
    if before is None:
        return

    if now.run > max(before.run, GOOD_RUN):
        yield f"a median run of {now.run} lines in long bodies, {before.run} before"
    for name, whole in IN_PROPORTION.items():
        new, old = getattr(now, name), getattr(before, name)
        share = new / max(getattr(now, whole), 1)
        if new > old and share > old / max(getattr(before, whole), 1):
            yield f"{new} {name} in {getattr(now, whole)} {whole}, {old} before"


def improved(now: Figures, before: Figures) -> Figures:
    """The figures to record for a file that reads no worse than before."""
    return replace(
        now,
        solid=min(now.solid, before.solid),
        wide=min(now.wide, before.wide),
        run=min(now.run, before.run),
    )


def all_sources(folders: tuple[str, ...] | list[str]) -> dict[str, Source]:
    """The files of some folders by their paths below the root of the project."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            found[name] = read(path, name)
    return found


def show(sources: list[Source]) -> None:
    """Print the figures of some files together, and the longest unbroken bodies."""
    f = figures(sources)
    per_token, per_line = 10_000 / f.tokens, 100 / f.code
    with_paragraph = 1 - f.solid / max(f.bodies, 1)

    print(f"files                        {len(sources):8,}")
    print(f"code lines, tokens           {f.code:8,} {f.tokens:8,}")
    print(f"long bodies                  {f.bodies:8,}")
    print(f"  with a paragraph, %        {100 * with_paragraph:8.1f}")
    print(f"  median run, lines          {f.run:8.1f}")

    print(f"comment lines, %             {f.comments * per_line:8.1f}")
    print(f"width, 95 % and wide lines   {f.width:8} {f.wide:8,}")
    print(f"ternaries per 10,000 tokens  {f.ternaries * per_token:8.1f}")
    print(f"comprehensions, likewise     {f.comprehensions * per_token:8.1f}")
    print(f"lines in raise, %            {f.raises * per_line:8.1f}")

    bodies = [body for source in sources for body in source.bodies]
    print("longest runs")
    for body in sorted(bodies, key=lambda b: (-b.run, b.where))[:12]:
        print(f"  {body.run:5.0f}  {body.where}")


def record(rows: dict[str, Figures]) -> None:
    """Write the figures of all files, one a line."""
    lines = []
    for name, row in sorted(rows.items()):
        lines.append(f"{json.dumps(name)}: {json.dumps(asdict(row))}")
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    """Print, check or record the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()

    sources = all_sources(options.folders)
    if not options.check and not options.update:
        show(list(sources.values()))
        return 0

    now = {name: figures([source]) for name, source in sources.items()}
    if options.update and not RECORD.exists():
        record(now)  # the first one takes every file as it is
        return 0

    stored = json.loads(RECORD.read_text(encoding="utf-8"))
    before = {name: Figures(**row) for name, row in stored.items()}
    faults = {name: list(worse(now[name], before.get(name))) for name in now}
    for name, found in faults.items():
        for fault in found:
            print(f"{name}: {fault}")

    if options.update:
        kept = {name: before[name] for name in now if name in before}
        for name, found in faults.items():
            if not found:
                kept[name] = improved(now[name], kept.get(name, now[name]))
        record(kept)

    if any(faults.values()):
        print("Give each thought a paragraph, and let each line say one thing.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
