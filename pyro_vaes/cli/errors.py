"""Mistakes of the user: one paragraph on stderr and exit code 2, no traceback."""

import contextlib
import logging
from collections.abc import Iterator

import typer

from pyro_vaes.infer import NonFiniteError

__all__ = ["user_errors"]

logger = logging.getLogger(__name__)


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
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error
