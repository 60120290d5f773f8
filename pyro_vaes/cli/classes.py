"""Which classes a conditional model is asked for, and how their images are laid out."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vaes.errors import suggest

from .run_directory import Run

MOST_IN_TITLE = 12


class Layout(NamedTuple):
    """The labels of images in whole rows, the number of columns, and a title."""

    labels: Tensor | None = None
    columns: int | None = None
    title: str = "Samples from the model: they should pass for data"


def _class_names(run: Run) -> tuple[str, ...]:
    return run.data.class_names or tuple(map(str, range(run.num_classes)))


def chosen_classes(run: Run, labels: list[str]) -> list[int]:
    """Labels by number or by name as numbers; all classes of a conditional model for none."""
    if not run.num_classes:
        if labels:
            raise ValueError(
                f"--label is for a conditional_vae, but {run.directory} holds a {run.options.model}, which has no "
                "classes: leave it out, or train with --model conditional_vae."
            )
        return []

    names = _class_names(run)
    spelt = ", ".join(name for name in names if not name.isdigit())
    found = []
    for label in labels:
        if label in names:
            found.append(names.index(label))
        elif label.isdigit() and int(label) < len(names):
            found.append(int(label))
        else:
            raise ValueError(
                f"{run.data.name} has no class {label!r}: {suggest(label, names)}The classes are 0 to "
                f"{len(names) - 1}{spelt and f', or by name {spelt}'}."
            )
    return found or list(range(len(names)))


def by_class(run: Run, classes: list[int], num: int) -> Layout:
    """At least so many images of these classes, those of each class in one row or in one column."""
    if not classes:
        return Layout()
    labels, each = torch.tensor(classes), math.ceil(num / len(classes))
    if each < len(classes):  # a picture wider than high, which leaves room for its title
        labels, columns, order = labels.repeat(each), len(classes), "column by column"
    else:
        labels, columns, order = labels.repeat_interleave(each), each, "row by row"

    names = [_class_names(run)[k] for k in classes[:MOST_IN_TITLE]]
    if len(classes) > MOST_IN_TITLE:
        names.append("...")
    return Layout(labels, columns, f"Samples given the class, {order}: {', '.join(names)}")
