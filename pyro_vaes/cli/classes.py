"""Which classes a conditional model is asked for, and how their images are laid out."""

import torch

from pyro_vaes.cli.names import suggest
from pyro_vaes.cli.run_directory import Run

__all__ = ["by_class", "chosen_classes"]


def chosen_classes(run: Run, labels: list[str]) -> list[int]:
    """Labels by number or by name as numbers; all classes of a conditional model for none."""
    if run.options.model != "conditional_vae":
        if labels:
            raise ValueError(
                f"--label is for a conditional_vae, but {run.directory} holds a {run.options.model}, which has no "
                "classes: leave it out, or train with --model conditional_vae."
            )
        return []
    number = run.data.num_classes or 0
    names = run.data.class_names or tuple(map(str, range(number)))
    spelt = [name for name in names if not name.isdigit()]
    found = []
    for label in labels:
        if label in names:
            found.append(names.index(label))
        elif label.isdigit() and int(label) < number:
            found.append(int(label))
        else:
            raise ValueError(
                f"{run.data.name} has no class {label!r}: {suggest(label, names)}The classes are 0 to {number - 1}"
                f"{', or by name ' + ', '.join(spelt) if spelt else ''}."
            )
    return found or list(range(number))


def by_class(run: Run, classes: list[int], num: int) -> tuple[torch.Tensor, int, str]:
    """Labels of at least so many images in whole rows, the number of columns, and the title."""
    each = -(-num // len(classes))
    if each < len(classes):  # a picture wider than high, which leaves room for its title
        labels, columns, order = torch.tensor(classes).repeat(each), len(classes), "column by column"
    else:
        labels, columns, order = torch.tensor(classes).repeat_interleave(each), each, "row by row"
    names = run.data.class_names or tuple(map(str, range(run.data.num_classes or 0)))
    more = ", ..." if len(classes) > 12 else ""
    return labels, columns, f"Samples given the class, {order}: {', '.join(names[k] for k in classes[:12])}{more}"
