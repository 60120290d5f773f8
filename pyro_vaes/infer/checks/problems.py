"""What may be wrong with a batch and the dry runs of a pair on it, in words.

It looks at sites, shapes, supports, plates and scales.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.programs import (
    Pair,
    is_auxiliary,
    is_enumerated,
    required_arguments,
)

from .program_record import ProgramRecord
from .tables import Args, explain

CASTS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "half",
    torch.bfloat16: "bfloat16",
}
# of torch, where an operation gets two dtypes
DTYPE_ERROR = re.compile(r"dtype|scalar type|should be the same")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, or may be.

    Arguments:
        message: What is wrong.
        fatal: Whether the pair cannot be trained because of it.
        cures: What the user can do about it, one thing or the other.
    """

    message: str
    fatal: bool = True
    cures: tuple[Cure, ...] = ()

    @property
    def text(self) -> str:
        """The message with its cures behind it."""
        return str(UsageError(self.message, *self.cures))


def _named_tensors(args: Args) -> Iterator[tuple[int, str, Tensor]]:
    for position, value in enumerate(args):
        if isinstance(value, Tensor):
            yield position, "x" if position == 0 else f"argument {position + 1}", value


def empty_problems(args: Args) -> Iterator[Problem]:
    """Data that are missing."""
    for _, name, value in _named_tensors(args):
        if value.dim() and len(value) == 0:
            yield Problem(f"The batch is empty: {name} has shape {tuple(value.shape)}. Is the split or filter right?")


def data_problems(args: Args) -> Iterator[Problem]:
    """Data that are not finite, or no floats; a program may handle them itself."""
    for position, name, value in _named_tensors(args):
        if value.is_floating_point() and not value.isfinite().all():
            bad = (~value.isfinite()).sum().item()
            yield Problem(
                f"{name} holds {bad} values that are NaN or infinite (of {value.numel()}). "
                "Drop those rows, or fill them in, for example with torch.nan_to_num."
            )
        # one byte for each datum is a label
        elif value.dtype == torch.uint8 and (position == 0 or value.dim() > 1):
            yield Problem(
                f"{name} has dtype uint8, but networks compute in floats. Divide pixels by "
                "255 (x.float() / 255), or use pyro_vaes.data.from_tensors, which does it "
                "batch by batch."
            )


def failure(pair: Pair, label: str, args: Args, error: Exception) -> Problem:
    """An error of a program, with the cure for a missing argument or another dtype."""
    text = _missing_arguments(pair, args, error) or _other_dtype(pair, args, error)
    if text is not None:
        return Problem(text)
    message, cures = explain(error)
    return Problem(f"The {label} fails on this batch: {message}", cures=cures)


def _missing_arguments(pair: Pair, args: Args, error: Exception) -> str | None:
    """What to say where the data have fewer entries than the model needs."""
    names = required_arguments(pair.model)
    refused = isinstance(error, TypeError) and "required positional argument" in str(error)
    if not refused or len(args) >= len(names):
        return None

    given = " and ".join(names[: len(args)]) + " alone" if args else "nothing"
    x_and_y = "x, y" if len(names) == 2 else ", ".join(names)
    return (
        f"This model takes ({', '.join(names)}), but the data give {given}: "
        f"load_data(..., labels=True), or fit(model, guide, ({x_and_y}))."
    )


def _other_dtype(pair: Pair, args: Args, error: Exception) -> str | None:
    """What to say where the data have another dtype than all networks."""
    if not isinstance(error, RuntimeError) or not DTYPE_ERROR.search(str(error)):
        return None

    networks = set()
    for module in pair.modules.values():
        networks |= {p.dtype for p in module.parameters() if p.is_floating_point()}
    if len(networks) != 1 or not networks <= CASTS.keys():
        return None

    (wanted,) = networks
    for position, value in enumerate(args):
        if not isinstance(value, Tensor) or value.dtype == wanted:
            continue
        if value.dtype not in CASTS and position > 0:  # whole numbers may be labels
            continue

        subject, variable = f"argument {position + 1}", "c"
        if position == 0:
            subject = variable = "x"
        cure = f"{variable}.{CASTS[wanted]}()"
        if value.dtype in CASTS:
            cure += f", or model.{CASTS[value.dtype]}()"
        text = f"{subject} is {value.dtype}, but the networks compute in {wanted}: {cure}."
        return text.replace("torch.", "")
    return None


def site_problems(guide: ProgramRecord, model: ProgramRecord) -> Iterator[Problem]:
    """Sites of one program that the other lacks, or has with other events."""
    if not any(site["is_observed"] for site in model.sites.values()):
        yield Problem("The model observes nothing: give one sample statement the data (obs=x).")

    for name, site in model.drawn.items():
        if name not in guide.sites and not is_enumerated(site):
            yield Problem(f"The model's latent site {name!r} has no counterpart in the guide; sample it there too.")

    for name, site in guide.sites.items():
        if name not in model.sites and not is_auxiliary(site) and not site["is_observed"]:
            yield Problem(
                f"The guide samples {name!r}, which the model does not have. Rename it to "
                f"one of {sorted(model.drawn)}, or mark it infer={{'is_auxiliary': True}}."
            )
        if name not in model.drawn:
            continue

        ours, theirs = (tuple(s["fn"].event_shape) for s in (site, model.drawn[name]))
        if ours != theirs:
            yield Problem(
                f"At {name!r} the guide's events have shape {ours} but the model's have "
                f"{theirs}. Is .to_event(1) missing on one side?"
            )


def support_problems(pair: Pair, model: ProgramRecord) -> Iterator[Problem]:
    """Data outside the support of their distribution, with the likelihood's advice."""
    for name, site in model.sites.items():
        if not site["is_observed"]:
            continue
        fn, value = site["fn"], site["value"]
        try:
            if fn.support.check(value).all():
                continue
        except NotImplementedError:
            continue

        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        kind = type(fn).__name__
        cure = _hint(pair, value)
        if not cure and kind == "Bernoulli":
            cure = "the data are grey but the likelihood is binary: binarise them, or use a continuous Bernoulli."
        low, high = value.min().item(), value.max().item()
        yield Problem(
            f"The observed {name!r} lies outside the support of its {kind} distribution "
            f"(values from {low:g} to {high:g}): "
            f"{cure or 'rescale the data or choose a likelihood for them.'}"
        )


def _hint(pair: Pair, value: Tensor) -> str:
    """What a likelihood of the pair says about data that it cannot score."""
    for module in pair.modules.values():
        for part in module.modules():
            hint = getattr(part, "hint", None)
            text = hint(value) if callable(hint) else None
            if text:
                return str(text)
    return ""


def plate_problems(guide: ProgramRecord, model: ProgramRecord, args: Args) -> Iterator[Problem]:
    """Plates with another size in the guide, and data without a row for each datum."""
    in_guide = _num_data(guide)
    for name, size in _num_data(model).items():
        if in_guide.get(name, size) != size:
            yield Problem(
                f"The plate {name!r} has size {size} in the model but {in_guide[name]} in "
                "the guide. Give both the number of data, len(x) where there is no "
                "subsampling."
            )

    for name, site in model.sites.items():
        value = site["value"]
        rows = max((plate.size for plate in model.plates[name]), default=1)
        # a constant may be observed in each row (soft constraints), but not the data
        is_one_datum = value.dim() == len(site["fn"].event_shape)
        if rows > 1 and is_one_datum and any(value is arg for arg in args):
            yield Problem(
                f"The observed {name!r} has shape {tuple(value.shape)}, which is one datum: "
                f"there is no row for each of the {rows} that its plate holds. Is the batch "
                "dimension missing (x.unsqueeze(0))?"
            )


def _num_data(program: ProgramRecord) -> dict[str, int]:
    """The number of data that each plate stands for."""
    found = {}
    for name in program.sites:
        for plate in program.plates[name]:
            found[plate.name] = plate.num_data
    return found


def scale_problems(guide: ProgramRecord, model: ProgramRecord) -> Iterator[Problem]:
    """Weights that only one of the programs has."""
    for name, site in model.drawn.items():
        if name not in guide.sites:
            continue

        scales = site["scale"], guide.sites[name]["scale"]
        ours, theirs = (torch.as_tensor(scale).mean() for scale in scales)
        if not torch.isclose(ours, theirs, rtol=1e-6):
            yield Problem(
                f"The latent site {name!r} has scale {ours:g} in the model but {theirs:g} in "
                "the guide. A KL weight goes on both sides: scale_latents around the step, "
                "or on both programs.",
                fatal=False,
            )
