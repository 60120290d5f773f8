"""Shapes that do not fit, in words: values, plates, dimensions without a plate."""

from collections.abc import Iterator

import torch
from pyro.poutine.runtime import Message

from .problems import Problem
from .program_record import ProgramRecord


def shape_problems(
    program: ProgramRecord,
    max_plate_nesting: float,
) -> Iterator[Problem]:
    """Values that do not fit their distribution, and dimensions that no plate declares.

    What Pyro's validation lets pass is no problem: dimensions between those of the
    plates, and those to the left of the bound's ``max_plate_nesting``.

    Arguments:
        program: The program.
        max_plate_nesting: That of the bound; infinity where it is not known.
    """
    for name, site in program.sites.items():
        batch_shape = _batch_shape(site)
        if batch_shape is None:
            yield _no_fit(name, program.label, site)
            continue

        is_bare = program.label == "model" and not program.enclosing[name]
        if is_bare and site["is_observed"] and batch_shape.numel() > 1:
            yield Problem(
                f"The observed site {name!r} lies in no plate, so its data do not "
                "count as independent. Put it into `with pyro.plate('data', len(x)):`."
            )

        around = {plate.dim: plate for plate in program.plates[name]}
        leftmost = min(around, default=0)
        for dim, size in enumerate(batch_shape, -len(batch_shape)):
            plate = around.get(dim)
            if plate is not None and size not in (1, plate.size):
                yield Problem(
                    f"At {name!r} the {program.label}'s batch dimension {dim} has size "
                    f"{size} but the plate {plate.name!r} has {plate.size}. Does the "
                    "plate's size follow len(x)?"
                )

            elif size > 1 and -max_plate_nesting <= dim < leftmost:
                number = len(batch_shape) - len(around)
                yield Problem(
                    f"At {name!r} the {program.label} has batch shape "
                    f"{tuple(batch_shape)}, whose dimension {dim} of size {size} no "
                    "plate declares. If it belongs to one datum, call "
                    f".to_event({number}) on the distribution; else open a plate "
                    "for it."
                )
                break


def _batch_shape(site: Message) -> torch.Size | None:
    """The batch shape of distribution and value; None where they do not fit."""
    fn, shape = site["fn"], site["value"].shape
    events_from = len(shape) - len(fn.event_shape)
    try:
        torch.broadcast_shapes(fn.event_shape, shape[events_from:])
        return torch.broadcast_shapes(fn.batch_shape, shape[:events_from])
    except RuntimeError:
        return None


def _no_fit(name: str, label: str, site: Message) -> Problem:
    fn, shape = site["fn"], tuple(site["value"].shape)
    return Problem(
        f"At {name!r} the {label}'s distribution has shape {tuple(fn.batch_shape)} + "
        f"{tuple(fn.event_shape)} but the value has {shape}. Does the decoder's last "
        "layer, or the plate's size, follow the data?"
    )
