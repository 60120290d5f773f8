"""What one room takes from another is what that room's ``__all__`` offers."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "pyro_vaes"


def room_of(module: str) -> str | None:
    """The first level below the package, or None for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def imports(module: str, tree: ast.AST, *, is_package: bool = False) -> Iterator[tuple[str, str | None, int]]:
    """Module, name (None for the module as a whole) and line of every import.

    Those inside functions and for the type checker are among them.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno

        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                up = node.level - is_package
                base = module.split(".")[: -up or None]
                source = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield source, alias.name, node.lineno


def offered(room: str) -> set[str]:
    """The names that a room exports; none where it does not say."""
    return set(getattr(importlib.import_module(f"pyro_vaes.{room}"), "__all__", ()))


def taken_without_offer() -> list[str]:
    """The imports across rooms of what is not offered, as ``file:line: module.name``."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE.parent)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))

        for source, name, line in imports(module, tree, is_package=path.stem == "__init__"):
            if source == "pyro_vaes" and name is not None:  # a room as a whole, or the version
                continue
            room = room_of(source) if source.split(".")[0] == "pyro_vaes" else None
            if room in (None, room_of(module)):
                continue
            if name is None or name not in offered(room):
                found.append(f"{relative.as_posix()}:{line}: {source}.{name}")
    return found


def test_rooms_take_from_each_other_what_is_offered():
    found = taken_without_offer()
    assert not found, f"{len(found)} imports:\n" + "\n".join(found)


def test_imports_are_found_wherever_they_stand():
    tree = ast.parse(
        "import pyro_vaes.ops.eager\n"
        "from pyro_vaes.infer import fit\n"
        "def f():\n"
        "    from pyro_vaes.guides.flows import AmortizedIAF as A\n"
        "    from ..nn import MLP\n"
        "    from . import sibling\n"
    )
    assert list(imports("pyro_vaes.models.vae", tree)) == [
        ("pyro_vaes.ops.eager", None, 1),
        ("pyro_vaes.infer", "fit", 2),
        ("pyro_vaes.guides.flows", "AmortizedIAF", 4),
        ("pyro_vaes.nn", "MLP", 5),
        ("pyro_vaes.models", "sibling", 6),
    ]
    inner = ast.parse("from . import vae\n")
    assert list(imports("pyro_vaes.models", inner, is_package=True)) == [("pyro_vaes.models", "vae", 1)]
