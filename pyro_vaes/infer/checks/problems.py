"""What may be wrong with a batch and the traces of a pair on it, in words: sites, shapes, supports, plates, scales."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError
from pyro_vaes.infer.checks.tables import explain
from pyro_vaes.programs import (
    Pair,
    Sites,
    is_auxiliary,
    is_enumerated,
    is_latent,
    plates,
    required_arguments,
)

__all__ = [
    "Problem",
    "data_problems",
    "failure",
    "plate_problems",
    "raise_if_fatal",
    "scale_problems",
    "shape_problems",
    "site_problems",
    "support_problems",
]

CASTS = {torch.float32: "float", torch.float64: "double", torch.float16: "half", torch.bfloat16: "bfloat16"}
DTYPE_ERROR = re.compile(r"dtype|scalar type|should be the same")  # of torch, where an operation gets two dtypes
Hint = Callable[[Tensor], str | None]  # what a likelihood says about data that it cannot score


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


def raise_if_fatal(problems: Iterable[Problem], before: str = "") -> None:
    """Raise an error that holds the fatal problems, if there are any, and their cures.

    Arguments:
        problems: What was found.
        before: What to say first.
    """
    fatal = [problem for problem in problems if problem.fatal]
    if fatal:
        text = " ".join(problem.message for problem in fatal)
        cures = dict.fromkeys(cure for problem in fatal for cure in problem.cures)
        raise UsageError(before + text, *cures)


def data_problems(args: tuple[object, ...]) -> Iterator[Problem]:
    """Data that are missing, not finite, or no floats."""
    for position, value in enumerate(args):
        name = "x" if position == 0 else f"argument {position + 1}"
        if not isinstance(value, Tensor):
            continue
        if value.dim() and len(value) == 0:
            yield Problem(f"The batch is empty: {name} has shape {tuple(value.shape)}. Is the split or filter right?")
        elif value.is_floating_point() and not value.isfinite().all():
            bad = (~value.isfinite()).sum().item()
            yield Problem(
                f"{name} holds {bad} values that are NaN or infinite (of {value.numel()}). Drop those rows, or fill "
                "them in, for example with torch.nan_to_num."
            )
        elif value.dtype == torch.uint8 and (position == 0 or value.dim() > 1):  # one byte for each datum is a label
            yield Problem(
                f"{name} has dtype uint8, but networks compute in floats. Divide pixels by 255 (x.float() / 255), or "
                "use pyro_vaes.data.from_tensors, which does it batch by batch."
            )


def failure(pair: Pair, label: str, args: tuple[object, ...], error: Exception) -> Problem:
    """An error of one of the programs, with the cure where the batch lacks an argument or has another dtype."""
    text = _missing_arguments(pair, args, error) or _other_dtype(pair, args, error)
    if text is not None:
        return Problem(text)
    message, cures = explain(error)
    return Problem(f"The {label} fails on this batch: {message}", cures=cures)


def _missing_arguments(pair: Pair, args: tuple[object, ...], error: Exception) -> str | None:
    """What to say where the data have fewer entries than the model needs."""
    names = required_arguments(pair.model)
    if not isinstance(error, TypeError) or "required positional argument" not in str(error) or len(args) >= len(names):
        return None
    given = " and ".join(names[: len(args)]) + " alone" if args else "nothing"
    x_and_y = "x, y" if len(names) == 2 else ", ".join(names)
    return (
        f"This model takes ({', '.join(names)}), but the data give {given}: load_data(..., labels=True), or "
        f"fit(model, guide, ({x_and_y}))."
    )


def _other_dtype(pair: Pair, args: tuple[object, ...], error: Exception) -> str | None:
    """What to say where an operation fails because the data have another dtype than all networks."""
    networks = {p.dtype for m in pair.modules.values() for p in m.parameters() if p.is_floating_point()}
    if not isinstance(error, RuntimeError) or not DTYPE_ERROR.search(str(error)) or len(networks) != 1:
        return None
    (wanted,) = networks
    for position, value in enumerate(args):
        if not isinstance(value, Tensor) or value.dtype == wanted or wanted not in CASTS:
            continue
        if value.dtype not in CASTS and position > 0:  # whole numbers may be labels
            continue
        subject, variable = ("x", "x") if position == 0 else (f"argument {position + 1}", "c")
        cure = f"{variable}.{CASTS[wanted]}()"
        if value.dtype in CASTS:
            cure += f", or model.{CASTS[value.dtype]}()"
        got, theirs = (str(dtype).removeprefix("torch.") for dtype in (value.dtype, wanted))
        return f"{subject} is {got}, but the networks compute in {theirs}: {cure}."
    return None


def site_problems(guide: Sites, model: Sites) -> Iterator[Problem]:
    """Sites of one program that the other lacks, or has with other events."""
    latents = {n: s for n, s in model.items() if is_latent(s)}
    if not any(s["is_observed"] for s in model.values()):
        yield Problem("The model observes nothing: give one sample statement the data (obs=x).")
    for name, site in latents.items():
        if name not in guide and not is_enumerated(site):
            yield Problem(f"The model's latent site {name!r} has no counterpart in the guide; sample it there too.")
    for name, site in guide.items():
        if name not in model and not is_auxiliary(site) and not site["is_observed"]:
            yield Problem(
                f"The guide samples {name!r}, which the model does not have. Rename it to one of "
                f"{sorted(latents)}, or mark it infer={{'is_auxiliary': True}}."
            )
        elif name in latents and site["fn"].event_shape != latents[name]["fn"].event_shape:
            yield Problem(
                f"At {name!r} the guide's events have shape {tuple(site['fn'].event_shape)} but the model's have "
                f"{tuple(latents[name]['fn'].event_shape)}. Is .to_event(1) missing on one side?"
            )


def shape_problems(found: Sites, label: str) -> Iterator[Problem]:
    """Values that do not fit their distribution, and batch dimensions that do not fit the plates."""
    for name, site in found.items():
        frames = {plate.dim: plate for plate in plates(site)}
        if not frames and label == "model" and site["is_observed"]:
            yield Problem(
                f"The observed site {name!r} lies in no plate, so its data do not count as independent. Put it into "
                "`with pyro.plate('data', len(x)):`."
            )
        fn, value = site["fn"], site["value"]
        try:
            torch.broadcast_shapes(fn.event_shape, value.shape[value.dim() - len(fn.event_shape) :])
            batch_shape = torch.broadcast_shapes(fn.batch_shape, value.shape[: value.dim() - len(fn.event_shape)])
        except RuntimeError:
            yield Problem(
                f"At {name!r} the {label}'s distribution has shape {tuple(fn.batch_shape)} + {tuple(fn.event_shape)} "
                f"but the value has {tuple(value.shape)}. Does the decoder's last layer, or the plate's size, follow "
                "the data?"
            )
            continue
        for dim in range(-len(batch_shape), 0):
            size = batch_shape[dim]
            if dim in frames and size not in (1, frames[dim].size):
                yield Problem(
                    f"At {name!r} the {label}'s batch dimension {dim} has size {size} but the plate "
                    f"{frames[dim].name!r} has {frames[dim].size}. Does the plate's size follow len(x)?"
                )
            elif dim not in frames and size > 1:
                yield Problem(
                    f"At {name!r} the {label} has batch shape {tuple(batch_shape)}, whose dimension {dim} of size "
                    f"{size} no plate declares. If it belongs to one datum, call "
                    f".to_event({len(batch_shape) - len(frames)}) on the distribution; else open a plate for it."
                )
                break


def support_problems(pair: Pair, found: Sites) -> Iterator[Problem]:
    """Data outside the support of their distribution, with the likelihood's advice where it has some."""
    modules = [m for module in pair.modules.values() for m in module.modules()]
    hints = cast(list[Hint], [m.hint for m in modules if callable(getattr(m, "hint", None))])
    for name, site in found.items():
        if not site["is_observed"]:
            continue
        try:
            inside = bool(site["fn"].support.check(site["value"]).all())
        except NotImplementedError:
            continue
        if not inside:
            hint = next(filter(None, (find(site["value"]) for find in hints)), None)
            value, fn = site["value"], site["fn"]
            while hasattr(fn, "base_dist"):
                fn = fn.base_dist
            cure = hint or (
                "the data are grey but the likelihood is binary: binarise them, or use a continuous Bernoulli."
                if type(fn).__name__ == "Bernoulli"
                else "rescale the data or choose a likelihood for them."
            )
            yield Problem(
                f"The observed {name!r} lies outside the support of its {type(fn).__name__} distribution (values from "
                f"{value.min().item():g} to {value.max().item():g}): {cure}"
            )


def _plate_sizes(found: Sites) -> dict[str, int]:
    """The number of data that each plate stands for."""
    sizes: dict[str, int] = {}
    for site in found.values():
        sizes |= {plate.name: plate.num_data for plate in plates(site)}
    return sizes


def plate_problems(guide: Sites, model: Sites, args: tuple[object, ...]) -> Iterator[Problem]:
    """Plates with another size in the guide, and data without a row for each datum."""
    in_guide = _plate_sizes(guide)
    for name, size in _plate_sizes(model).items():
        if in_guide.get(name, size) != size:
            yield Problem(
                f"The plate {name!r} has size {size} in the model but {in_guide[name]} in the guide. Give both the "
                "number of data, len(x) where there is no subsampling."
            )
    for name, site in model.items():
        value, sizes = site["value"], [plate.size for plate in plates(site)]
        # a constant may be observed in each row (soft constraints), but not the data themselves
        if max(sizes, default=1) > 1 and value.dim() == len(site["fn"].event_shape) and any(value is a for a in args):
            yield Problem(
                f"The observed {name!r} has shape {tuple(value.shape)}, which is one datum: there is no row for each "
                f"of the {max(sizes)} that its plate holds. Is the batch dimension missing (x.unsqueeze(0))?"
            )


def scale_problems(guide: Sites, model: Sites) -> Iterator[Problem]:
    """Weights that only one of the programs has."""
    for name, site in model.items():
        if is_latent(site) and name in guide:
            ours, theirs = torch.as_tensor(site["scale"]).mean(), torch.as_tensor(guide[name]["scale"]).mean()
            if not torch.isclose(ours, theirs, rtol=1e-6):
                yield Problem(
                    f"The latent site {name!r} has scale {ours:g} in the model but {theirs:g} in the guide. A KL "
                    "weight goes on both sides: scale_latents around the step, or on both programs.",
                    fatal=False,
                )
