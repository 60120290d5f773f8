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
    sections = {
        "data sets (or a path: .npz, .npy, .mat, a folder of images)": [
            (found.name, f"{found.state:<34}{found.about}") for found in data_set_states(root)
        ]
    }
    for kind, table in TABLES.items():
        sections[f"--{kind}"] = [(name, entry.about) for name, entry in table.items()]

    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<32}{about}" for name, about in rows), ""]
    lines.append("the papers' experiments: type python -m papers in a checkout of the sources")
    return "\n".join(lines)
