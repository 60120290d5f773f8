"""A data set of images: its parts, what is known about them, and where they are from."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError

from .partition import Partition
from .split import Split
from .steps.base import PixelInfo, Step, as_steps, fit_steps
from .types import ImageShape, ValueRange


@dataclass(frozen=True)
class Provenance:
    """Where a data set is from.

    Arguments:
        source: What it is and where it was read.
        licence: What is known about its licence.
        remark: What to know before reporting numbers: subset, re-encoded, transposed, inverted.
        sha256: Hashes of the files read, by path.
    """

    source: str
    licence: str = "not stated"
    remark: str = ""
    sha256: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        known = ""
        for path, digest in self.sha256.items():
            known = f"{path} has the SHA-256 {digest[:12]}..."
        if len(self.sha256) > 1:
            known = f"SHA-256 of {len(self.sha256)} files on record"

        words = self.source, f"Licence: {self.licence}", self.remark, known
        return ". ".join(filter(None, words))


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """Images in memory, split into training, validation and test part. Made by `load_data` and `from_tensors`.

    Arguments:
        name: The name of the data set.
        train: The training part.
        valid: The validation part, or None.
        test: The test part, or None.
        raw: What is known about the raw pixels: range and number of integer levels.
        info: What is known about the pixels of batches, after preprocessing.
        splits: The record of how the rows were split.
        provenance: Where the data are from.
        class_names: The names of the labels 0, 1, ..., if known.

    Example:
        >>> from pyro_vaes.data import load_data
        >>> digits = load_data("digits")
        >>> digits.image_shape, digits.value_range, digits.num_classes
        ((1, 8, 8), (0.0, 1.0), 10)
    """

    name: str
    train: Split
    valid: Split | None
    test: Split | None
    raw: PixelInfo
    info: PixelInfo
    splits: Partition
    provenance: Provenance
    class_names: tuple[str, ...] | None = None

    @property
    def parts(self) -> dict[str, Split]:
        """The parts that there are, by name."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None}

    @property
    def steps(self) -> tuple[Step, ...]:
        """The fitted preprocessing steps."""
        return self.train.steps

    @property
    def image_shape(self) -> ImageShape:
        """The shape `(C, H, W)` of preprocessed images, also where batches are flattened."""
        return self.train.image_shape

    @property
    def value_range(self) -> ValueRange:
        """The range in which the pixels of batches lie, after preprocessing."""
        return self.info.low, self.info.high

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels, or with several labels per image."""
        labels = [part.labels for part in self.parts.values() if part.labels is not None]
        if not labels or labels[0].dim() > 1:
            return None
        return len(self.class_names) if self.class_names else 1 + max(int(y.max()) for y in labels)

    @property
    def space(self) -> str:
        """The space, in words, in which log-likelihoods of the batches are."""
        kind = "continuous" if self.raw.levels is None else f"{self.raw.levels} levels"
        stored = f"pixels as stored ({self.raw.low:g} to {self.raw.high:g}, {kind})"
        return ", ".join(["nats of " + stored, *(step.space for step in self.steps)])

    def _each(self, change: Callable[[str, Split], Split]) -> "ImageData":
        """The same data set after a change of its parts, which is told their names."""
        changed: dict[str, Any] = {name: change(name, part) for name, part in self.parts.items()}
        return replace(self, **changed)

    def with_labels(self) -> "ImageData":
        """A view of the same images whose batches are `(x, y)`.

        Raises:
            ValueError: If the data set has no labels.

        Example:
            >>> from pyro_vaes.data import load_data
            >>> x, y = load_data("digits").with_labels().train.batch(slice(0, 3))
            >>> x.shape, y.shape
            (torch.Size([3, 64]), torch.Size([3]))
        """
        for name, part in self.parts.items():
            if part.labels is None:
                bare = Cure("labels", False, words="leave out labels=True or with_labels()")
                give = Cure("array", "labelled", words="give labels to all parts, from_tensors(x, y)")
                found = f"{self.name} has no labels in its {name} part"
                raise UsageError(f"{found}, so batches (x, y) cannot be made.", bare, give)
        return self._each(lambda _, part: replace(part, labelled=True))

    def completion(self, observed: str = "bottom_left") -> "ImageData":
        """A view for image completion whose batches are `(target, covariate)`, as from `complete`.

        Arguments:
            observed: The part that is given: a quarter (`bottom_left`, ...) or a half (`top`, ...).

        Raises:
            ValueError: If there is no such part.

        Example:
            >>> from pyro_vaes.data import load_data
            >>> target, covariate = load_data("digits").completion("bottom_left").train.batch(slice(0, 3))
            >>> target.shape, covariate.shape
            (torch.Size([3, 48]), torch.Size([3, 16]))
        """
        view = self._each(lambda _, part: replace(part, observed=observed))
        view.train.batch(slice(0, 1))
        return view

    def preprocess(self, *steps: Step) -> "ImageData":
        """A view of the same images with other preprocessing steps, fitted to the training part.

        Arguments:
            steps: The steps in their order, in place of all of the present ones.

        Raises:
            ValueError: If a step cannot work on what the steps before leave.

        Example:
            >>> from pyro_vaes.data import Binarize, ToUnit, load_data
            >>> load_data("digits").preprocess(ToUnit(), Binarize()).train[:100].unique()
            tensor([0., 1.])
        """
        steps = as_steps(steps, "preprocess(ToUnit(), Binarize())")
        fitted, info = fit_steps(steps, self.train.images, self.raw)
        view = self._each(lambda _, part: replace(part, steps=fitted))
        return replace(view, info=info)

    def take(
        self, train: int, valid: int | None = None, test: int | None = None, *, seed: int | None = None
    ) -> "ImageData":
        """A view of the first rows of each part, or of rows at random, for a quick look.

        Parts that are drawn from the training rows are in random order, but parts that come with the data keep their
        own: the test rows of `binarized_mnist` are sorted by digit, those of `omniglot` and `omniglot28` by character,
        those of `lfw64` by person. The first of them show few classes, and averages over them are those of these
        classes: give a `seed`.

        Arguments:
            train: How many training rows to keep.
            valid: How many validation rows to keep, all with None.
            test: How many test rows to keep, all with None.
            seed: Takes rows of each part at random instead, reproducibly; see `Split.take`.

        Example:
            >>> from pyro_vaes.data import load_data
            >>> len(load_data("digits").take(100).train)
            100
            >>> len(load_data("digits").take(100, test=50, seed=0).test.labels.unique())
            10
        """
        counts = {"train": train, "valid": valid, "test": test}
        given = {name: count for name, count in counts.items() if count is not None}
        for name, count in given.items():
            if count < 1:
                raise ValueError(f"{name} is {count}, but at least one row has to be kept: give a count >= 1.")
        return self._each(lambda name, part: part.take(given[name], seed) if name in given else part)

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data set with its tensors on a device."""
        return self._each(lambda _, part: part.to(device))

    def nats_in_pixel_space(self, log_likelihood: Tensor, x: Tensor) -> Tensor:
        r"""Carries log-densities of preprocessed images over to the space of the raw pixels.

        .. math:: \log p(r) = \log p(f(r)) + \log |\det \partial f / \partial r|

        For dequantised images the result is, on average over the noise, a lower bound on the log-probability
        of the integer pixels; divide by `-D log 2` for bits per dimension.

        Arguments:
            log_likelihood: Log-densities of the images in nats, with shape `(..., B)`.
            x: The images as the model saw them, with shape `(B, C * H * W)` or `(B, C, H, W)`.

        Returns:
            Log-densities with respect to raw pixels in nats, with shape `(..., B)`.

        Raises:
            ValueError: If a step is no bijection.

        References:
            | A note on the evaluation of generative models (Theis et al., 2016)
            | https://arxiv.org/abs/1511.01844

        Example:
            >>> from pyro_vaes.data import load_data
            >>> digits = load_data("digits")  # ToUnit: 64 pixels, 16 times as dense in [0, 1]
            >>> digits.nats_in_pixel_space(torch.zeros(1), digits.train[:1])
            tensor([-177.4457])
        """
        y = self._shaped(x)
        for step in reversed(self.steps):
            before = step.inverse(y)
            log_likelihood = log_likelihood + step.log_abs_det_jacobian(before, y)
            y = before
        return log_likelihood

    def to_images(self, x: Tensor) -> Tensor:
        """Undoes the preprocessing for looking at images or samples of a model.

        Arguments:
            x: Images in the space of the batches, with shape `(..., C * H * W)` or `(..., C, H, W)`.

        Returns:
            Images in [0, 1], with shape `(..., C, H, W)`.

        Example:
            >>> from pyro_vaes.data import Dequantize, Logit, ToUnit, load_data
            >>> digits = load_data("digits", preprocess=[ToUnit(), Dequantize(), Logit()])
            >>> images = digits.to_images(digits.train[:2])
            >>> images.shape, torch.allclose(images, digits.train.images[:2] / 16)
            (torch.Size([2, 1, 8, 8]), True)
        """
        y = self._shaped(x)
        for step in reversed(self.steps):
            y = step.inverse(y)
        return ((y - self.raw.low) / ((self.raw.high - self.raw.low) or 1.0)).clamp(0, 1)

    def _shaped(self, x: Tensor) -> Tensor:
        """Images with their shape; only the number of pixels is checked."""
        if x.shape[-3:] == self.image_shape:
            return x
        pixels = math.prod(self.image_shape)
        if x.shape[-1] != pixels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but images of {self.name} are (..., {pixels}) or (..., "
                f"{', '.join(map(str, self.image_shape))}): for image completion put the images together "
                "first, with assemble()."
            )
        return x.unflatten(-1, self.image_shape)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(part):,} {name}" for name, part in self.parts.items())
        shape = " x ".join(map(str, self.image_shape))
        classes = "no labels" if self.num_classes is None else f"{self.num_classes} classes"
        batch = ", ".join(str(("B", *part.shape[1:])).replace("'", "") for part in self.train.batch(slice(0, 1)))
        return (
            f"ImageData {self.name!r}: {sizes} images of {shape} (C x H x W), {classes}\n"
            f"  batches: {batch}, pixels in [{self.info.low:.4g}, {self.info.high:.4g}]\n"
            f"  space:   {self.space}\n"
            f"  split:   {self.splits}\n"
            f"  from:    {self.provenance}"
        )
