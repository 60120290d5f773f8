"""`list`: every name that the command line knows, and which data sets are here."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyro_vaes.cli.names import BOUNDS, GUIDES, LIKELIHOODS, MODELS, NETWORKS
from pyro_vaes.data import NAMES
from pyro_vaes.data import torchvision_sets as public
from pyro_vaes.data.files import Library
from pyro_vaes.data.load import _READERS

__all__ = ["listing"]

T = TypeVar("T")


class _Asked(Exception):
    """A reader has asked for its files: where they are, and whether they could be downloaded."""

    def __init__(self, path: Path | None, *, download: bool) -> None:
        super().__init__(path)
        self.path, self.download = path, download


@dataclass(frozen=True)
class _Catalogue(Library):
    """A library that answers where files are instead of handing them out, so that nothing is read or downloaded."""

    def require(self, relative: str, name: str) -> Path:
        raise _Asked(self.find(relative), download=False)

    def obtain(self, name: str, marker: str, read: Callable[[str, bool], T]) -> T:
        raise _Asked(self.find(marker), download=True)

    def check(self, path: Path, relative: str) -> None:
        pass


def _data_sets(root: str | None) -> list[tuple[str, str]]:
    # these two take a size and colour as well
    readers: dict[str, Callable[[Library], object]] = {
        **_READERS,
        "celeba": functools.partial(public.read_celeba, resize=64, grey=False),
        "lfw": functools.partial(public.read_lfw, grey=False),
    }
    rows = []
    for name in NAMES:
        try:
            readers[name](_Catalogue(root))
            state = "here (bundled)"
        except _Asked as asked:
            missing = "not here; downloads on first use" if asked.download else "not here"
            state = missing if asked.path is None else "here"
        about = (inspect.getdoc(getattr(readers[name], "func", readers[name])) or "").split("\n")[0]
        rows.append((name, f"{state:<34}{about}"))
    return rows


def listing(root: str | None = None) -> str:
    """All names with one line on each, by kind.

    Arguments:
        root: The folder of data files to look in.

    Example:
        >>> "hierarchical_vae" in listing()
        True
    """
    own = "the guide that comes with the model"
    sections: dict[str, list[tuple[str, str]]] = {
        "data sets (or a path: .npz, .npy, .mat, a folder of images)": _data_sets(root),
        "--model": [(name, about) for name, (_, about) in MODELS.items()],
        "--network": [(name, about) for name, (_, about) in NETWORKS.items()],
        "--likelihood": [(name, entry.about) for name, entry in LIKELIHOODS.items()],
        "--guide": [(name, own if entry is None else entry.about) for name, entry in GUIDES.items()],
        "--bound": [(name, entry.about) for name, entry in BOUNDS.items()],
        "the papers' experiments: type python -m papers in a checkout of the sources": [],
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<32}{about}" for name, about in rows), ""]
    return "\n".join(lines).rstrip()
