"""What a preprocessing step is, and how a row of steps is applied and fitted."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Generator, Tensor

from ..noise import fixed_uniform

CHUNK = 4096  # images changed at a time, to bound the memory of float intermediates


class PixelInfo(NamedTuple):
    """The range of pixels between two steps, and their number of equidistant levels, None if continuous."""

    low: float
    high: float
    levels: int | None


@dataclass(frozen=True, eq=False)
class Step:
    r"""One preprocessing step: a callable :math:`y = f(x)` on batches of images.

    A step of your own is a frozen dataclass derived from this class with a `transform` (or a `__call__`, if it is
    random), a `space`, and, where the map is a bijection, an `inverse` and a `log_abs_det_jacobian`, or a `log_slope`.

    Example:
        >>> from pyro_vaes.data import Threshold
        >>> Threshold(0.5)(torch.tensor([[[[0.2, 0.7]]]])).flatten().tolist()
        [0.0, 1.0]
    """

    random: ClassVar[bool] = False

    @property
    def space(self) -> str:
        """The result in words."""
        return repr(self)

    @property
    def log_slope(self) -> float | None:
        """log |dy / dx| in nats, where it is the same at every pixel; None for all other steps."""
        return None

    def transform(self, x: Tensor) -> Tensor:
        """The new images of a step that is not random.

        Arguments:
            x: Images, with shape `(B, C, H, W)`.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither transform nor __call__.")

    def __call__(self, x: Tensor, generator: Generator | None = None, rows: Tensor | None = None) -> Tensor:
        """Applies the step.

        Arguments:
            x: Images, with shape `(B, C, H, W)`.
            generator: Where random steps draw fresh noise, on the device of `x`. With None the noise is
                fixed.
            rows: The row numbers that fixed noise belongs to, with shape `(B,)`. 0 to B - 1 with None.

        Returns:
            The new images, with shape `(B, C', H', W')`.
        """
        return self.transform(x)

    def fit(self, chunks: Iterable[Tensor], info: PixelInfo) -> "Fitted":
        """Checks the input and fills in what is learned from it.

        Arguments:
            chunks: The training images as the steps before leave them, in chunks of shape `(B, C, H, W)`.
            info: What is known about their pixel values.

        Returns:
            The fitted step and what is known about the pixel values of its output.

        Raises:
            ValueError: If the step cannot work on such pixels.
        """
        return self, info

    def inverse(self, y: Tensor) -> Tensor:
        """The images that are mapped to `y`; where the step loses information, `y` itself, a picture too."""
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r"""The logarithm of :math:`|\det \partial y / \partial x|` in nats.

        Arguments:
            x: The input, with shape `(B, ...)`.
            y: The output for this input, with shape `(B, ...)`.

        Returns:
            One number per image, with shape `(B,)`.

        Raises:
            ValueError: If the step is no bijection, so that densities cannot be carried over.
        """
        if self.log_slope is not None:
            total = self.log_slope * math.prod(y.shape[1:])
            return y.new_full(y.shape[:1], total, dtype=floating(y.dtype))
        raise ValueError(
            f"{type(self).__name__} is no bijection, so nats cannot be carried over to the space before it: "
            f"report them in the space they are in ({self.space}), or leave the step out (size and colour "
            "can be changed once for all at load time, with load_data(..., resize=, grey=), which then defines "
            "the pixel space)."
        )

    def to(self, device: torch.device | str) -> "Step":
        """The same step with its tensors on a device."""
        return self


Fitted = tuple[Step, PixelInfo]
"""A step with what it learned, and what is known about the pixels after it."""


def as_steps(given: Sequence[Step] | Step, example: str = "[ToUnit(), Binarize()]") -> tuple[Step, ...]:
    """The preprocessing steps, of which there may be one alone.

    Arguments:
        given: The steps.
        example: What the error message proposes.

    Raises:
        ValueError: If something else is given, or among them.

    Example:
        >>> from pyro_vaes.data import ToUnit
        >>> as_steps(ToUnit())
        (ToUnit(low=None, high=None),)
    """
    if isinstance(given, Step):
        return (given,)
    several = isinstance(given, Sequence) and not isinstance(given, str)
    for step in given if several else (given,):
        if not isinstance(step, Step):
            verb = "holds" if several else "is"
            if isinstance(step, type) and issubclass(step, Step):
                name = step.__name__
                raise ValueError(f"preprocess {verb} the class {name}; an instance is wanted: {name}(...).")
            raise ValueError(f"preprocess {verb} a {type(step).__name__}; steps are wanted, such as {example}.")
    return tuple(given)


def apply_steps(
    steps: Sequence[Step], x: Tensor, generator: Generator | None = None, rows: Tensor | None = None
) -> Tensor:
    """Applies the steps one after the other.

    Arguments:
        steps: The steps.
        x: Raw images, with shape `(B, C, H, W)`.
        generator: Where random steps draw fresh noise, on the device of `x`. With None the noise is fixed.
        rows: The row numbers that fixed noise belongs to, with shape `(B,)`. 0 to B - 1 with None.

    Returns:
        The preprocessed images, with shape `(B, C', H', W')`.

    Example:
        >>> from pyro_vaes.data import Threshold, ToUnit
        >>> apply_steps([ToUnit(0, 16), Threshold(0.5)], torch.tensor([[[[4, 12]]]])).flatten().tolist()
        [0.0, 1.0]
    """
    for step in steps:
        x = step(x, generator, rows)
    return x


def fit_steps(steps: Sequence[Step], images: Tensor, info: PixelInfo) -> tuple[tuple[Step, ...], PixelInfo]:
    """Fits the steps to the training images, each on what the steps before leave.

    Arguments:
        steps: The steps.
        images: The raw training images, with shape `(N, C, H, W)`.
        info: What is known about their pixels.

    Returns:
        The fitted steps, and what is known about the pixels after the last one.

    Raises:
        ValueError: If a step cannot work on what the steps before leave.

    Example:
        >>> from pyro_vaes.data import ToUnit
        >>> fit_steps([ToUnit()], torch.tensor([[[[4, 12]]]]), PixelInfo(0, 16, 17))
        ((ToUnit(low=0, high=16),), PixelInfo(low=0.0, high=1.0, levels=17))
    """
    fitted: tuple[Step, ...] = ()
    for step in steps:
        step, info = step.fit(_preprocessed(fitted, images), info)
        fitted = (*fitted, step)
    return fitted, info


def _preprocessed(steps: Sequence[Step], images: Tensor) -> Iterator[Tensor]:
    """The images in chunks, lazily: most steps look at none of them."""
    rows = torch.arange(len(images), device=images.device)
    for x, r in zip(images.split(CHUNK), rows.split(CHUNK), strict=True):
        yield apply_steps(steps, x, None, r)


def floating(dtype: torch.dtype) -> torch.dtype:
    """The dtype itself if it is floating point, torch's default otherwise."""
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def want_unit(step: Step, info: PixelInfo) -> None:
    """Refuses pixels outside [0, 1]."""
    if info.low < 0 or info.high > 1:
        raise ValueError(
            f"{type(step).__name__} got pixels in [{info.low:g}, {info.high:g}], but it works on pixels in "
            "[0, 1]: put ToUnit() before it."
        )


def uniform(x: Tensor, generator: Generator | None, rows: Tensor | None, seed: int, stream: int) -> Tensor:
    """Noise in [0, 1) like x: fresh from the generator, or that which belongs to the rows."""
    if generator is not None:
        return torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=generator)
    if rows is None:
        rows = torch.arange(len(x), device=x.device)
    return fixed_uniform(rows, tuple(x.shape[1:]), seed, stream).to(x.dtype)
