"""`list`: every name that the command line knows, and which data sets are here."""

from pyro_vaes.cli.names import BOUNDS, EXPERIMENTS, GUIDES, LIKELIHOODS, MODELS, NETWORKS
from pyro_vaes.data import data_set_states

__all__ = ["listing"]


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
        "data sets (or a path: .npz, .npy, .mat, a folder of images)": [
            (found.name, f"{found.state:<34}{found.about}") for found in data_set_states(root)
        ],
        "--model": [(name, about) for name, (_, about) in MODELS.items()],
        "--network": [(name, about) for name, (_, about) in NETWORKS.items()],
        "--likelihood": [(name, entry.about) for name, entry in LIKELIHOODS.items()],
        "--guide": [(name, own if entry is None else entry.about) for name, entry in GUIDES.items()],
        "--bound": [(name, entry.about) for name, entry in BOUNDS.items()],
        "experiments, for reproduce": [(name, entry.about) for name, entry in EXPERIMENTS.items()],
    }
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<32}{about}" for name, about in rows), ""]
    return "\n".join(lines).rstrip()
