"""Mistakes of the user: one paragraph on stderr and exit code 2, no traceback."""

import contextlib
import logging
from collections.abc import Iterator

import typer

from pyro_vaes.errors import Cure, message_and_cures, with_cures
from pyro_vaes.infer import NonFiniteError

from .options import flag

logger = logging.getLogger(__name__)

OPTIONS = ("hidden", "image_shape", "key", "label_key", "network", "on_nan", "resize", "root")
"""Parameters of Python that are options of the same name."""

WORDS = {
    "array": "for other formats read the array yourself and save it as .npz",
    "array=labelled": "give labels to all parts",
    "array=transposed": "transpose the array",
    "batch_size": "choose another --batch-size",
    "callbacks=ClipGradNorm": "add --clip",
    "callbacks=KLWarmup": "add --kl-warmup",
    "checkpoint": "move them elsewhere, or choose another --out",
    "data=digits": "start with `pyro-vaes train digits`",
    "guide=AmortizedNormal": "choose --guide amortized_normal",
    "guide=top-down": "add --top-down",
    "image_shape": "pass --image-shape C,H,W",
    "labels=False": "choose --model vae",
    "loss=Trace_ELBO": "choose --bound trace",
    "optim": "choose a smaller --lr",
    "resume=False": "train again with --overwrite",
}
"""What a user of the command line does instead, by parameter or by parameter and value."""

SHARED = ("files", "rows")
"""What all users do in the same way, in the same words."""


def _in_words(cure: Cure) -> str:
    """A cure for users of the command line, empty if it is none for them."""
    if cure.omitted:
        known = [flag(name) for name in cure.omitted if name in OPTIONS]
        return f"leave out {' and '.join(known)}" if known else ""
    if cure.parameter in SHARED:
        return str(cure)

    words = WORDS.get(f"{cure.parameter}={cure.value}") or WORDS.get(cure.parameter)
    if words is None and cure.parameter in OPTIONS:
        value = "" if cure.value is None else f" {cure.value}"
        words = f"pass {flag(cure.parameter)}{value}"
    return f"{words}{cure.detail}" if words else ""


def in_options(error: BaseException) -> str:
    """What an error says, with its cures as options of the command line.

    Example:
        >>> from pyro_vaes.errors import UsageError, use_bound
        >>> in_options(UsageError("This site has no KL.", use_bound(), Cure("sites")))
        'This site has no KL. Choose --bound trace.'
    """
    message, cures = message_and_cures(error)
    return with_cures(message, filter(None, map(_in_words, cures)))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors by which the package answers bad input into a message and exit code 2.

    With logging at the level DEBUG (`pyro-vaes --debug ...`) the traceback is logged as well.

    Raises:
        typer.Exit: In place of an error that the user can cure.

    Example:
        >>> with user_errors():
        ...     number = 1
    """
    try:
        yield
    except (ValueError, OSError, TypeError, ImportError, NonFiniteError) as error:
        logger.debug("the error in full", exc_info=True)
        typer.echo(f"Error: {in_options(error)}", err=True)
        raise typer.Exit(2) from error
