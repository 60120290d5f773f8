"""Mutants: faults put into the package one at a time, and whether the tests notice.

    python tools/mutants.py --list              show the mutants, run nothing
    python tools/mutants.py                     run the zoo's covering set on each
    python tools/mutants.py --full              then every combination on the survivors
    python tools/mutants.py -- tests/infer -k fit   other tests, as pytest names them

The mutants are drawn with a seed, in turn from each kind of fault (a mask, a scale or a
detach dropped, a sum made a mean, another dimension, another sign ...) and from the
files that have been drawn from least.

First the tests run once on a copy of the tree in which every statement that holds a
mutant notes that it was reached. Then each mutant is put into the copy alone, and those
tests that reach it run until one fails. A mutant that no test reaches survives. What
the covering set kills, the full cross kills too, since it holds all of its tests; so
only the survivors are run again.

Outcomes are written to a JSON file after each mutant. A second run with the same
sources, seed and tests goes on where the first one ended.
"""

import argparse
import ast
import builtins
import hashlib
import json
import os
import pathlib
import platform
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest import Item, TestReport

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGETS = ("pyro_vaes/programs", "pyro_vaes/infer/bounds", "pyro_vaes/guides")
COPIED = ("pyro_vaes", "papers", "tests", "tools", "benchmarks", "notebooks")
RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
ZOO = ("tests/test_zoo.py",)

# Between this script and the part of it that runs inside pytest, as its plug-in.
REACHED = "MUTANTS_REACHED"  # a file for what each test reached
ONLY = "MUTANTS_ONLY"  # a file with the tests to run
HITS = "_mutants_hit"  # a set in builtins: numbers of the statements reached


# Kinds of fault -----------------------------------------------------------------------

Change = tuple[ast.expr, str, str]  # an expression, the kind of fault, its new text

# Names of methods, and of functions that take a dimension.
DIM_CALLS = {
    *("all", "amax", "any", "cat", "chunk", "cumsum", "diagonal", "flatten", "gather"),
    *("index_select", "log_softmax", "logsumexp", "mean", "movedim", "narrow", "norm"),
    *("prod", "select", "softmax", "split", "squeeze", "stack", "sum", "transpose"),
    *("unbind", "unsqueeze", "var"),
}
ELEMENTWISE = {
    *("exp", "expm1", "log", "log1p", "neg", "reciprocal", "sqrt", "square", "tanh"),
}
OTHER_NAME = {"sum": "mean", "mean": "sum", "any": "all", "all": "any"}
OTHER_BUILTIN = {"min": "max", "max": "min", "any": "all", "all": "any"}
OTHER_OPERATOR = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
OPPOSITE = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
NEVER_CHANGED = ast.Raise | ast.Assert | ast.JoinedStr | ast.arguments
UNORDERED = {"cast", "getattr", "hasattr", "isinstance", "issubclass", "setattr", "zip"}


class Faults:
    """All faults that one file can have."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.tree = ast.parse(source)
        self.parents: dict[ast.AST, ast.AST] = {}
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node

    def text(self, node: ast.AST) -> str:
        """An expression as it stands in the file, in parentheses if it needs them."""
        text = ast.get_source_segment(self.source, node) or ""
        simple = ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant
        return text if isinstance(node, simple) else f"({text})"

    def all(self) -> Iterator[Change]:
        """Every change of one expression, in the order of the file."""
        for node in ast.walk(self.tree):
            if not isinstance(node, ast.expr) or not self._may_change(node):
                continue
            if isinstance(node, ast.Call):
                yield from self._of_call(node)
            if isinstance(node, ast.Subscript):
                yield from self._of_entry(node)
            if isinstance(node, ast.BinOp):
                yield from self._of_arithmetic(node)
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                if not isinstance(node.operand, ast.Constant):
                    yield node, "sign flipped", self.text(node.operand)
            if isinstance(node, ast.Compare) and len(node.ops) == 1:
                yield from self._of_comparison(node)
            yield from self._of_condition(node)

    def _may_change(self, node: ast.expr) -> bool:
        """Whether an expression is computed inside a function, and not for an error."""
        inside = False
        child: ast.AST = node
        while child in self.parents:
            parent = self.parents[child]
            if isinstance(parent, NEVER_CHANGED):
                return False
            if isinstance(parent, ast.If) and child is parent.test:
                if all(isinstance(s, ast.Raise) for s in parent.body):
                    return False
            if isinstance(parent, ast.AnnAssign) and child is parent.annotation:
                return False
            if isinstance(parent, ast.FunctionDef):
                if child is parent.returns or child in parent.decorator_list:
                    return False
                inside = True
            child = parent
        return inside

    def _of_call(self, call: ast.Call) -> Iterator[Change]:
        name = _called(call)
        texts = [self.text(argument) for argument in call.args]
        method = isinstance(call.func, ast.Attribute)
        of = self.text(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        of_torch = of == "torch"

        if name == "scale_and_mask" and len(texts) == 3:
            yield call, "scale dropped", f"scale_and_mask({texts[0]}, 1.0, {texts[2]})"
            yield call, "mask dropped", f"scale_and_mask({texts[0]}, {texts[1]}, None)"
        if name == "where" and of_torch and len(texts) == 3:
            yield call, "mask dropped", texts[1]
        if name in ("mask", "masked_fill") and method and of != "poutine":
            yield call, "mask dropped", of
        if name == "scale" and method and of != "poutine":
            yield call, "scale dropped", "1.0"
        if name == "detach" and method:
            yield call, "detach dropped", of
        if name == "no_grad" and of_torch:
            yield call, "detach dropped", "torch.enable_grad()"

        if name in OTHER_NAME and method:
            old, new = f"{of}.{name}", f"{of}.{OTHER_NAME[name]}"
            yield call, "sum and mean", self.text(call).replace(old, new, 1)
        if name in OTHER_BUILTIN and not method:
            yield call.func, "min and max", OTHER_BUILTIN[name]
        if name in ELEMENTWISE and method and not of_torch and not texts:
            yield call, "function dropped", of

        if name in DIM_CALLS and method:
            named = [k.value for k in call.keywords if k.arg in ("dim", "start_dim")]
            for argument in [*call.args, *named]:
                dim = _whole_number(argument)
                if dim is not None:
                    yield argument, "another dim", str(_other_dim(dim))
        if name == "range" and texts:
            yield call.args[-1], "off by one", f"{texts[-1]} - 1"

        two = [a for a in call.args[:2] if isinstance(a, ast.Name | ast.Attribute)]
        if len(two) == 2 and name not in UNORDERED and texts[0] != texts[1]:
            swapped = ", ".join([texts[1], texts[0], *texts[2:]])
            keywords = [f"{k.arg or '**'}={self.text(k.value)}" for k in call.keywords]
            rest = "".join(f", {k}" for k in keywords).replace("**=", "**")
            yield call, "arguments swapped", f"{self.text(call.func)}({swapped}{rest})"

    def _of_entry(self, node: ast.Subscript) -> Iterator[Change]:
        if not isinstance(node.ctx, ast.Load):
            return
        key = node.slice
        if isinstance(key, ast.Constant) and key.value == "mask":
            yield node, "mask dropped", "None"
        if isinstance(key, ast.Constant) and key.value == "scale":
            yield node, "scale dropped", "1.0"
        if isinstance(key, ast.Slice) and key.upper is not None:
            yield key.upper, "off by one", f"({self.text(key.upper)} + 1)"

    def _of_arithmetic(self, node: ast.BinOp) -> Iterator[Change]:
        left, right = self.text(node.left), self.text(node.right)
        sequences = ast.List | ast.Tuple | ast.JoinedStr
        if isinstance(node.left, sequences) or isinstance(node.right, sequences):
            return
        if any(word in left + right for word in ("shape", "keys()")):
            return

        if isinstance(node.op, ast.Add | ast.Sub):
            if _whole_number(node.right) == 1:
                yield node, "off by one", left
            else:
                other = "-" if isinstance(node.op, ast.Add) else "+"
                yield node, "sign flipped", f"({left} {other} {right})"
        if isinstance(node.op, ast.Mult):
            yield node, "factor dropped", left
            yield node, "factor dropped", right
        if isinstance(node.op, ast.Div):
            yield node, "factor dropped", left

    def _of_comparison(self, node: ast.Compare) -> Iterator[Change]:
        (operator,) = node.ops
        left, right = self.text(node.left), self.text(node.comparators[0])
        if type(operator) in OTHER_OPERATOR:
            new = OTHER_OPERATOR[type(operator)]
            yield node, "off by one", f"({left} {new} {right})"
        if type(operator) in OPPOSITE:
            new = OPPOSITE[type(operator)]
            yield node, "condition negated", f"({left} {new} {right})"

    def _of_condition(self, node: ast.expr) -> Iterator[Change]:
        parent = self.parents[node]
        if isinstance(parent, ast.If | ast.IfExp) and node is parent.test:
            if not isinstance(node, ast.Compare):
                yield node, "condition negated", f"(not {self.text(node)})"
        if isinstance(node, ast.BoolOp):
            word = " or " if isinstance(node.op, ast.And) else " and "
            parts = word.join(self.text(value) for value in node.values)
            yield node, "condition negated", f"({parts})"


def _called(call: ast.Call) -> str:
    """The last part of a called function's name."""
    func = call.func
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""


def _whole_number(node: ast.expr) -> int | None:
    """The value of a whole number written as such, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _whole_number(node.operand)
        return None if value is None else -value
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return None


def _other_dim(dim: int) -> int:
    return {0: 1, -1: -2}.get(dim, dim - 1 if dim > 0 else dim + 1)


# Mutants ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutant:
    """One fault: a piece of one file and what stands there instead."""

    file: str
    line: int
    kind: str
    before: str
    after: str
    start: int  # of the piece, in bytes
    end: int
    statement: int  # the line of the statement that holds it
    digest: str  # of the file

    @property
    def key(self) -> str:
        """A name that is the same as long as the file is."""
        parts = (self.file, self.digest, self.kind, self.start, self.after)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants_of(name: str) -> Iterator[Mutant]:
    """Every mutant of a file that is another program."""
    source = (ROOT / name).read_text(encoding="utf-8")
    raw, faults = source.encode(), Faults(source)
    digest = hashlib.sha256(raw).hexdigest()
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    original = ast.dump(faults.tree)

    for node, kind, after in faults.all():
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        statement: ast.AST = node
        while not isinstance(statement, ast.stmt):
            statement = faults.parents[statement]
        before = raw[start:end].decode()
        where = name, node.lineno
        place = start, end, statement.lineno
        mutant = Mutant(*where, kind, before, after, *place, digest)
        try:
            mutated = ast.dump(ast.parse(mutant.apply(raw)))
        except SyntaxError:
            continue
        if mutated != original:
            yield mutant


def choose(folders: Sequence[str], number: int, seed: int) -> list[Mutant]:
    """Draw mutants: in turn from each kind, from the file drawn from least."""
    files = sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))
    names = [path.relative_to(ROOT).as_posix() for path in files]
    by_kind: dict[str, list[Mutant]] = {}
    for name in names:
        for mutant in mutants_of(name):
            by_kind.setdefault(mutant.kind, []).append(mutant)

    rng = random.Random(seed)
    for kind in sorted(by_kind):
        rng.shuffle(by_kind[kind])

    chosen: list[Mutant] = []
    drawn: Counter[str] = Counter()
    while len(chosen) < number and any(by_kind.values()):
        for kind in sorted(by_kind):
            if by_kind[kind] and len(chosen) < number:
                mutant = min(by_kind[kind], key=lambda m: drawn[m.file])
                by_kind[kind].remove(mutant)
                chosen.append(mutant)
                drawn[mutant.file] += 1
    return sorted(chosen, key=lambda m: (m.file, m.start, m.kind))


def instrumented(source: str, statements: dict[int, list[int]]) -> str:
    """The source with a note before each of these statements, given by their lines."""

    class Noting(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            for name in ("body", "orelse", "finalbody"):
                block = getattr(node, name, None)
                if isinstance(block, list):
                    setattr(node, name, list(self._with_notes(block)))
            return node

        def _with_notes(self, block: list[ast.stmt]) -> Iterator[ast.stmt]:
            for statement in block:
                for number in statements.get(statement.lineno, ()):
                    note = f"__import__('builtins').{HITS}.add({number})"
                    yield from ast.parse(note).body
                yield statement

    return ast.unparse(ast.fix_missing_locations(Noting().visit(ast.parse(source))))


# Runs of the tests --------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a mutant under one set of tests."""

    outcome: str  # "killed", "survived", "unreached" or "timeout", which is a kill
    tests: int  # that reach it
    seconds: float
    by: str | None = None  # the test that failed


@dataclass
class Tests:
    """A set of tests, and which of them reach which mutant, by its number."""

    name: str
    command: list[str]
    environment: dict[str, str]
    reached: dict[str, list[int]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def that_reach(self, number: int) -> list[str]:
        return [test for test, numbers in self.reached.items() if number in numbers]


class Tree:
    """A copy of the project in which files are changed and tests are run."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        ignore = shutil.ignore_patterns("results")  # compiled files are of use
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, path / name, ignore=ignore)
        for file in ROOT.iterdir():
            if file.suffix in (".md", ".toml") or file.name in ("Makefile", "LICENSE"):
                shutil.copy(file, path)

    def run(self, tests: Tests, limit: float, **files: pathlib.Path) -> tuple[int, str]:
        """Run the tests; returns pytest's exit code, -1 after the limit, and output."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | tests.environment
        paths = [str(self.path), str(self.path / "tools")]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        environment |= {name: str(path) for name, path in files.items()}
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "mutants"]
        command = [sys.executable, "-m", "pytest", *options, *tests.command]
        try:
            done = subprocess.run(
                command,
                cwd=self.path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return -1, ""
        return done.returncode, done.stdout

    def write(self, name: str, source: bytes) -> None:
        (self.path / name).write_bytes(source)

    def restore(self, name: str) -> None:
        shutil.copy2(ROOT / name, self.path / name)


def find_reach(tests: Tests, mutants: list[Mutant], limit: float) -> None:
    """Run the tests once without a fault, noting what each of them reaches."""
    by_file: dict[str, dict[int, list[int]]] = {}
    for number, mutant in enumerate(mutants):
        statements = by_file.setdefault(mutant.file, {})
        statements.setdefault(mutant.statement, []).append(number)

    with tempfile.TemporaryDirectory() as folder:
        notes = pathlib.Path(folder) / "notes"
        tree = Tree(pathlib.Path(folder) / "tree")

        for name, statements in by_file.items():
            source = (ROOT / name).read_text(encoding="utf-8")
            tree.write(name, instrumented(source, statements).encode())
        code, output = tree.run(tests, limit, **{REACHED: notes})
        if code != 0:
            sys.exit(f"The tests do not pass without a mutant:\n{output[-4000:]}")
        for line in notes.read_text(encoding="utf-8").splitlines():
            test, seconds, numbers = json.loads(line)
            tests.reached[test], tests.seconds[test] = numbers, seconds


def run_mutant(
    tree: Tree,
    tests: Tests,
    mutant: Mutant,
    number: int,
    limit: float,
) -> Outcome:
    """Put one mutant into the tree and run the tests that reach it."""
    selected = tests.that_reach(number)
    if not selected:
        return Outcome("unreached", 0, 0.0)

    usual = sum(tests.seconds[test] for test in selected)
    only = tree.path / "only.json"
    only.write_text(json.dumps(selected), encoding="utf-8")
    tree.write(mutant.file, mutant.apply((ROOT / mutant.file).read_bytes()))
    started = time.perf_counter()
    try:
        code, output = tree.run(tests, min(limit, 60 + 10 * usual), **{ONLY: only})
    finally:
        tree.restore(mutant.file)
    seconds = round(time.perf_counter() - started, 1)

    outcome = {-1: "timeout", 0: "survived"}.get(code, "killed")
    return Outcome(outcome, len(selected), seconds, _first_failure(output))


def _first_failure(output: str) -> str | None:
    """The test that pytest names as failed."""
    for line in output.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" - ")[0].partition(" ")[2]
    return None


# Inside pytest ------------------------------------------------------------------------


def pytest_configure() -> None:
    """Make the set that the noting statements write to."""
    setattr(builtins, HITS, set())


def pytest_collection_modifyitems(items: "list[Item]") -> None:
    """Keep only the tests that reach the mutant."""
    if ONLY in os.environ:
        only = set(json.loads(pathlib.Path(os.environ[ONLY]).read_text("utf-8")))
        items[:] = [item for item in items if item.nodeid in only]


def pytest_runtest_setup() -> None:
    """Forget what the test before has reached."""
    getattr(builtins, HITS).clear()


def pytest_runtest_logreport(report: "TestReport") -> None:
    """Write down what a test has reached and how long it took."""
    if REACHED in os.environ and report.when == "call":
        row = [report.nodeid, report.duration, sorted(getattr(builtins, HITS))]
        with open(os.environ[REACHED], "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


# Results ------------------------------------------------------------------------------


@dataclass
class Results:
    """The outcomes so far, by a mutant's key and the name of a set of tests."""

    path: pathlib.Path
    command: str
    mutants: list[Mutant]
    first: str  # the set of tests that every mutant meets
    outcomes: dict[str, dict[str, Outcome]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        stored = json.loads(self.path.read_text(encoding="utf-8"))
        for row in stored["mutants"]:
            for name, outcome in row["outcomes"].items():
                self.outcomes.setdefault(row["key"], {})[name] = Outcome(**outcome)

    def killed(self, mutant: Mutant, name: str) -> bool:
        outcome = self.outcomes.get(mutant.key, {}).get(name)
        return outcome is not None and outcome.outcome in ("killed", "timeout")

    def survived(self, name: str) -> list[Mutant]:
        known = [m for m in self.mutants if name in self.outcomes.get(m.key, {})]
        return [m for m in known if not self.killed(m, name)]

    def write(self) -> None:
        rows = []
        for mutant in self.mutants:
            row = {"key": mutant.key} | asdict(mutant)
            for name in ("start", "end", "statement", "digest"):
                del row[name]
            found = self.outcomes.get(mutant.key, {})
            row["outcomes"] = {name: asdict(outcome) for name, outcome in found.items()}
            rows.append(row)

        text = {
            "command": self.command,
            "python": platform.python_version(),
            "summary": self.summary(),
            "mutants": rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")

    def summary(self) -> dict[str, dict[str, int]]:
        """How many outcomes of each sort, for each set of tests."""
        counts: dict[str, Counter[str]] = {}
        for mutant in self.mutants:
            for name, outcome in self.outcomes.get(mutant.key, {}).items():
                counts.setdefault(name, Counter())[outcome.outcome] += 1
        if "full" in counts:  # run on the survivors of the first set alone
            both = sum(self.killed(m, self.first) for m in self.mutants)
            counts["full"]["killed before"] = both
        return {name: dict(count) for name, count in counts.items()}

    def show(self) -> None:
        for mutant in self.mutants:
            found = self.outcomes.get(mutant.key, {})
            said = ", ".join(f"{name}: {o.outcome}" for name, o in found.items())
            print(f"{mutant.file}:{mutant.line}  {mutant.kind}  {said}")
            print(f"    {_on_one_line(mutant.before)}")
            print(f"    {_on_one_line(mutant.after)}")
        for name, counts in self.summary().items():
            print(f"{name}: {counts}")


def _on_one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def run_all(
    tests: Tests,
    todo: list[Mutant],
    results: Results,
    options: argparse.Namespace,
) -> None:
    """Run the tests on these mutants, with so many copies of the tree at once."""
    if not todo:
        return
    print(f"{tests.name}: one run without a mutant", flush=True)
    find_reach(tests, todo, options.timeout)

    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Tree] = queue.Queue()
        for job in range(options.jobs):
            trees.put(Tree(pathlib.Path(folder) / str(job)))

        def one(number: int) -> None:
            mutant, tree = todo[number], trees.get()
            try:
                outcome = run_mutant(tree, tests, mutant, number, options.timeout)
            finally:
                trees.put(tree)
            results.outcomes.setdefault(mutant.key, {})[tests.name] = outcome
            results.write()
            where = f"{mutant.file}:{mutant.line}"
            cost = f"{outcome.seconds:.0f} s, {outcome.tests} tests"
            said = f"{where} {mutant.kind}: {outcome.outcome} ({cost})"
            print(f"{tests.name}: {said}", flush=True)

        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, range(len(todo))))


def main() -> None:
    """Draw the mutants, run the tests, write the outcomes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("tests", nargs="*", help="pytest's arguments, after --; the zoo by default")
    add("--folders", nargs="+", default=TARGETS)
    add("--number", type=int, default=72, help="number of mutants")
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="run at most so many mutants in this call")
    add("--jobs", type=int, default=1, help="number of mutants that run at once")
    add("--timeout", type=float, default=7200, help="seconds for one run of the tests")
    add("--full", action="store_true", help="run every combination of the zoo as well")
    add("--list", action="store_true", help="show the mutants and run nothing")
    add("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()

    mutants = choose(options.folders, options.number, options.seed)
    command = " ".join(["python", "tools/mutants.py", *sys.argv[1:]])
    chosen = list(options.tests or ZOO)
    name = " ".join(chosen) if options.tests else "covering"
    results = Results(options.out, command, mutants, name)
    if options.list:
        results.show()
        return

    covering = Tests(name, chosen, {"PYRO_VAES_ZOO": ""})
    todo = [m for m in mutants if name not in results.outcomes.get(m.key, {})]
    run_all(covering, todo[: options.limit], results, options)

    if options.full:
        full = Tests("full", chosen, {"PYRO_VAES_ZOO": "full"})
        survivors = results.survived(name)
        todo = [m for m in survivors if "full" not in results.outcomes[m.key]]
        run_all(full, todo[: options.limit], results, options)
    results.show()


if __name__ == "__main__":
    main()
