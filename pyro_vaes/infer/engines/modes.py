"""The three engines, and which of them a run is meant to use."""

from typing import Literal, get_args

Compile = Literal["auto", "capture"] | bool
EAGER, CAPTURED, COMPILED = "eager", "captured", "compiled"

# Recording takes as long as about a hundred eager steps and saves a third of each.
STEPS_THAT_PAY = 400
# Compiling takes about 10 s and 0.06 s for each operation, and saves about 3 µs of each.
COMPILE_SECONDS = (10.0, 0.06)
SECONDS_SAVED = 3e-6


def as_compile(value: object) -> Compile:
    """The argument ``compile`` of ``fit``, checked.

    Raises:
        ValueError: It is none of the four values.
    """
    if isinstance(value, bool) or value in ("auto", "capture"):
        return value  # type: ignore[return-value]
    wanted = [*get_args(get_args(Compile)[0]), True, False]
    raise ValueError(f"compile must be one of {wanted}, but got {value!r}.")


def recording_pays(steps: float) -> bool:
    """Whether a graph that is run this many times earns back its recording."""
    return steps >= STEPS_THAT_PAY


def compiling_pays(steps: float, num_operations: int) -> bool:
    """Whether a graph of this size that is run this many times earns back its compilation.

    Example:
        >>> compiling_pays(10_000, 200), compiling_pays(100_000, 200)
        (False, True)
    """
    fixed, each = COMPILE_SECONDS
    cost = fixed + each * num_operations
    return steps * num_operations * SECONDS_SAVED > 2 * cost
