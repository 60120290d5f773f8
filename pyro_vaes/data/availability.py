"""Which named data sets are on this machine: found without reading or downloading any."""

import inspect
import os
from typing import NamedTuple, NoReturn

from .files import Library
from .load import readers


class DataSetState(NamedTuple):
    """A data set by name, where its files are, and what it is.

    Attributes:
        name: The name that `load_data` takes.
        about: What it is, in one line.
        state: Whether its files are here, in words.
    """

    name: str
    about: str
    state: str


class _FilesWanted(Exception):
    """A reader has asked for its files, which are in the state that the message says."""


class _Catalogue(Library):
    """A library that answers where files are instead of handing them out."""

    def require(self, relative: str, name: str) -> NoReturn:
        raise _FilesWanted("here" if self.find(relative) else "not here")

    def obtain(self, name: str, marker: str, read: object) -> NoReturn:
        raise _FilesWanted("here" if self.find(marker) else "not here; downloads on first use")


def data_set_states(root: str | os.PathLike[str] | None = None) -> list[DataSetState]:
    """Every named data set, and whether its files are here.

    Arguments:
        root: The folder to look in, as for `load_data`.

    Example:
        >>> [s.state for s in data_set_states() if s.name == "digits"]
        ['here (bundled)']
    """
    found = []
    for name, reader in readers(resize=64).items():
        about = inspect.getdoc(getattr(reader, "func", reader)) or ""
        state = "here (bundled)"
        try:
            reader(_Catalogue(root, verify=False))
        except _FilesWanted as wanted:
            state = str(wanted)
        found.append(DataSetState(name, about.split("\n")[0], state))
    return found
