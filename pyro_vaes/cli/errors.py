"""Mistakes of the user: one paragraph on stderr and exit code 2, no traceback."""

import contextlib
import logging
import re
from collections.abc import Iterator

import typer

from pyro_vaes.infer import NonFiniteError

__all__ = ["in_options", "user_errors"]

logger = logging.getLogger(__name__)

CURES = (
    # data
    (r"(?s)( has '([^']+)' .*give its name), load_data\(\.\.\., key='\.\.\.'\)", r"\1, for instance --key \2"),
    (r"pass root= ", "pass --root "),
    (r"start with load_data\('digits'\)", "start with `pyro-vaes train digits`"),
    (r"call from_tensors\(x\)", "save it as .npz"),
    (r"leave labels=True or .*from_tensors\(x, y\)", "choose --model vae, or label all parts"),
    (r"load_data\('celeba', resize=64\) (.*) For full size.*", r"--resize 64 \1"),
    (r"Pass resize=, for instance resize=64", "Pass --resize, for instance --resize 64"),
    (r"give image_shape=\(C, H, W\)", "give --image-shape C,H,W"),
    (r"but image_shape \(", "but --image-shape ("),
    (r"\bkey(?=(, \w+)* can be given for files of arrays)", "--key"),
    (r"\blabel_key(?=(, \w+)* can be given for files of arrays)", "--label-key"),
    (r"\bimage_shape(?= can be given for files of arrays)", "--image-shape"),
    (r", or pass verify=False to read it all the same", ""),
    (r", or (remove them and )?pass download=True", ""),
    # training
    (r"Choose another batch_size", "Choose another --batch-size"),
    (r"have 4 \* batch_size rows", "have four times as many rows"),
    (r"Use Trace_ELBO, or a top-down guide", "Choose --bound trace, or add --top-down"),
    (r"Use Trace_ELBO\b", "Choose --bound trace"),
    (
        r"a scale with a floor, ClipGradNorm, a smaller learning rate, KLWarmup, or on_nan='skip'",
        "--clip, a smaller --lr, --kl-warmup, or --on-nan skip",
    ),
    (r"Choose a directory of its own, such as .*\.", "Move them elsewhere, or choose another --out."),
    (r"Load (its|the) weights with load_weights\(.*\) and start a new run", "Train again with --overwrite"),
)
"""Cures in Python, as patterns, and what a user of the command line types instead."""


def in_options(message: str) -> str:
    """A message with the cures it proposes as options of the command line.

    Example:
        >>> in_options("one row has no spread. Choose another batch_size, or leave a row out.")
        'one row has no spread. Choose another --batch-size, or leave a row out.'
    """
    for python, typed in CURES:
        message = re.sub(python, typed, message)
    return message


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors by which the package answers bad input into a message and exit code 2.

    With logging at the level DEBUG (`pyro-vaes --debug ...`) the traceback is logged as well.

    Raises:
        typer.Exit: In place of an error that the user can cure.

    Example:
        >>> with user_errors():
        ...     quiet = True
    """
    try:
        yield
    except (ValueError, OSError, TypeError, ImportError, NonFiniteError) as error:
        logger.debug("the error in full", exc_info=True)
        typer.echo(f"Error: {in_options(str(error))}", err=True)
        raise typer.Exit(2) from error
