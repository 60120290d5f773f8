"""`list`: every name that the command line knows, and which data sets are here."""

from pyro_vaes.data import data_set_states

from .names import TABLES


def listing(root: str | None = None) -> str:
    """All names with one line on each, by kind.

    Arguments:
        root: The folder of data files to look in.

    Example:
        >>> "hierarchical_vae" in listing()
        True
    """
    lines = ["data sets (or a path: .npz, .npy, .mat, a folder of images)"]
    for found in data_set_states(root):
        lines.append(f"  {found.name:<32}{found.state:<34}{found.about}")

    for kind, table in TABLES.items():
        lines += ["", f"--{kind}"]
        for name, entry in table.items():
            lines.append(f"  {name:<32}{entry.about}")

    at_last = "the papers' experiments: type python -m papers in a checkout of the sources"
    return "\n".join([*lines, "", at_last])
