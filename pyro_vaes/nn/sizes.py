"""The sizes that networks and likelihoods are built with."""


def check_sizes(owner: object, *, least: int = 1, **sizes: int) -> None:
    """Refuse sizes that are no whole numbers of at least ``least``.

    Arguments:
        owner: What is built, whose class the error message names.
        least: The smallest size.
        sizes: The sizes by the names of the arguments.

    Raises:
        ValueError: One of the sizes is no such number.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < least:
            wanted = f"{type(owner).__name__} needs whole numbers of at least {least}"
            raise ValueError(f"{wanted} as sizes, but got {name}={size!r}.")
