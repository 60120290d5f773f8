"""The shared conformance suite: one Row per distribution, one check per property, every check for every row.

Another room runs it on its own distributions with::

    @pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
    @pytest.mark.parametrize("row", MY_ROWS, ids=str)
    def test_conformance(row, check):
        check(row)

Checks run in float64, at the seed that the test set. Statistical ones draw NUM_SAMPLES values and allow a
deviation of SIGMAS standard errors, estimated from the draws: 5.5 of them is a chance of 4e-8 per number
compared.
"""

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.gof import auto_goodness_of_fit
from scipy import stats
from torch import Tensor

NUM_SAMPLES = 20_000
SIGMAS = 5.5
MIN_P_VALUE = 1e-4  # of a goodness-of-fit test
BATCH_SHAPES = [(), (3,), (2, 3)]
SAMPLE_SHAPES = [(), (2,), (5,), (4, 2)]  # smaller and larger than the batch

Args = dict[str, Tensor]
NumpyArgs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A distribution and what is known about it.

    Arguments:
        name: Shown by pytest.
        make: Constructor; takes the tensors of ``args`` and ``validate_args`` by keyword.
        args: Random float64 arguments for a batch shape.
        reference: SciPy's (or a brute-force) log density, from unbatched arguments and values with shape (n,
            *event).
        breaks: For densities: points between which one coordinate of the density is smooth, the first and
            last of which enclose all of its mass.
        values: For probabilities: all values, or those that carry all but 1e-9 of the mass, with shape (n,
            *event).
        bad_args: For each argument a value that validation must refuse.
        bad_values: Values that validation must refuse.
        event_shape: Shape of one value.
        cls: The class whose ``infer_shapes`` is tested, if it has one.
        gof: Whether the goodness-of-fit test applies (it does not to products on a bounded set: edge
            effects).
        moments: Whether mean and variance have a closed form; else quadrature gives them to the checks.
    """

    name: str
    make: Callable[..., dist.TorchDistribution]
    args: Callable[[tuple[int, ...]], Args]
    reference: Callable[[NumpyArgs, np.ndarray], np.ndarray]
    breaks: Callable[[Args], list[float]] | None = None
    values: Callable[[Args], Tensor] | None = None
    bad_args: tuple[tuple[str, float], ...] = ()
    bad_values: tuple[float, ...] = (math.nan,)
    event_shape: tuple[int, ...] = ()
    cls: type[dist.TorchDistribution] | None = None
    gof: bool = True
    moments: bool = True

    def __str__(self) -> str:
        return self.name

    def __call__(self, batch_shape: tuple[int, ...] = ()) -> dist.TorchDistribution:
        return self.make(**self.args(batch_shape))

    def quadrature(self, args: Args) -> tuple[Tensor, Tensor]:
        """Nodes (n, *event) and weights (n,) that integrate (or sum) over the support, unbatched."""
        if self.values is not None:
            values = self.values(args)
            return values, torch.ones(len(values), dtype=torch.float64)
        assert self.breaks is not None
        breaks = self.breaks(args)
        unit, weight = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(60))
        nodes = torch.cat([(a + b) / 2 + (b - a) / 2 * unit for a, b in itertools.pairwise(breaks)])
        weights = torch.cat([(b - a) / 2 * weight for a, b in itertools.pairwise(breaks)])
        if not self.event_shape:
            return nodes, weights
        (d,) = self.event_shape
        return torch.cartesian_prod(*[nodes] * d), torch.cartesian_prod(*[weights] * d).prod(-1)


def independent(row: Row, d: int = 2) -> Row:
    """The row of ``row.make(...).to_event(1)`` with d values."""

    def unstack(args: Args) -> list[Args]:
        return [{name: arg[i] for name, arg in args.items()} for i in range(d)]

    def reference(args: NumpyArgs, x: np.ndarray) -> np.ndarray:
        parts = [row.reference({name: arg[i] for name, arg in args.items()}, x[:, i]) for i in range(d)]
        return np.sum(parts, axis=0)

    def breaks(args: Args) -> list[float]:
        assert row.breaks is not None
        return sorted({b for part in unstack(args) for b in row.breaks(part)})

    def values(args: Args) -> Tensor:
        assert row.values is not None
        return torch.cartesian_prod(*(row.values(part) for part in unstack(args)))

    return replace(
        row,
        name=f"{row.name}.to_event",
        make=lambda **args: row.make(**args).to_event(1),
        args=lambda batch_shape: row.args((*batch_shape, d)),
        reference=reference,
        breaks=breaks if row.breaks else None,
        values=values if row.values else None,
        event_shape=(d,),
        cls=None,
        gof=False,
    )


def unbatched(row: Row, batch_shape: tuple[int, ...] = (2,)) -> Iterator[Args]:
    """A few sets of unbatched arguments."""
    args = row.args(batch_shape)
    for index in itertools.product(*map(range, batch_shape)):
        yield {name: arg[index] for name, arg in args.items()}


def bad_like(x: Tensor, value: float) -> Tensor:
    """``x`` with its last element replaced."""
    x = x.clone()
    x.reshape(-1)[-1] = value
    return x


def assert_within(estimates: Tensor, truth: Tensor, what: str) -> None:
    """Compare the mean of ``estimates`` over its first dimension with the truth, in standard errors."""
    error = (estimates.mean(0) - truth).abs()
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    worst = (error - 1e-9 - 1e-9 * truth.abs() - SIGMAS * standard_error).max()
    assert worst <= 0, f"{what}: {estimates.mean(0)} +- {standard_error} but {truth} is claimed"


def check_shapes_and_support(row: Row) -> None:
    for batch_shape, sample_shape in itertools.product(BATCH_SHAPES, SAMPLE_SHAPES):
        d = row(batch_shape)
        assert d.batch_shape == batch_shape and d.event_shape == row.event_shape
        x = d.sample(torch.Size(sample_shape))
        assert x.shape == sample_shape + batch_shape + row.event_shape, (batch_shape, sample_shape)
        assert d.support.check(x).all()
        assert d.support.event_dim == len(row.event_shape)
        assert d.log_prob(x).shape == sample_shape + batch_shape, (batch_shape, sample_shape)
        assert d.log_prob(x).isfinite().all()
        if batch_shape and len(sample_shape) == 1:  # one value against every batch element
            assert d.log_prob(x[0, 0]).shape == batch_shape


def check_infer_shapes(row: Row) -> None:
    if row.cls is None:
        return
    for batch_shape in BATCH_SHAPES:
        shapes = {name: arg.shape for name, arg in row.args(batch_shape).items()}
        assert row.cls.infer_shapes(**shapes) == (torch.Size(batch_shape), torch.Size(row.event_shape))
    # arguments that broadcast against each other
    one, two = row.args((3, 1)), row.args((2,))
    mixed = {name: (one if i % 2 else two)[name] for i, name in enumerate(one)}
    d = row.make(**mixed)
    assert row.cls.infer_shapes(**{n: a.shape for n, a in mixed.items()}) == (d.batch_shape, d.event_shape)
    assert d.log_prob(d.sample()).shape == d.batch_shape


def check_log_prob_against_reference(row: Row) -> None:
    for args in unbatched(row, (2, 2)):
        d = row.make(**args)
        x = d.sample(torch.Size([20]))
        expected = row.reference({n: a.numpy() for n, a in args.items()}, x.numpy())
        torch.testing.assert_close(d.log_prob(x), torch.as_tensor(expected), rtol=1e-9, atol=1e-9)


def check_log_prob_is_batched_as_unbatched(row: Row) -> None:
    args = row.args((2, 3))
    d = row.make(**args)
    x = d.sample(torch.Size([4]))
    together = d.log_prob(x)
    for i, j in itertools.product(range(2), range(3)):
        alone = row.make(**{name: arg[i, j] for name, arg in args.items()}).log_prob(x[:, i, j])
        torch.testing.assert_close(together[:, i, j], alone)


def check_normalisation_and_entropy(row: Row) -> None:
    for args in unbatched(row):
        d, (x, weight) = row.make(**args), row.quadrature(args)
        log_prob = d.log_prob(x)
        prob = weight * log_prob.exp()
        torch.testing.assert_close(prob.sum(), torch.ones_like(prob.sum()), rtol=0, atol=1e-8)
        try:
            entropy = d.entropy()
        except NotImplementedError:
            continue
        torch.testing.assert_close(entropy, -(prob * log_prob).sum(), rtol=1e-6, atol=1e-6)


def moments_by_quadrature(row: Row, args: Args) -> tuple[Tensor, Tensor]:
    """Mean and variance for unbatched arguments, differentiable in them."""
    x, weight = row.quadrature({name: arg.detach() for name, arg in args.items()})
    prob = (weight * row.make(**args).log_prob(x).exp()).reshape(-1, *(1 for _ in row.event_shape))
    mean = (prob * x).sum(0)
    return mean, (prob * (x - mean).square()).sum(0)


def check_moments_against_quadrature(row: Row) -> None:
    if not row.moments:
        for moment in ("mean", "variance"):
            with pytest.raises(NotImplementedError):
                getattr(row(), moment)
        return
    for args in unbatched(row):
        d = row.make(**args)
        mean, variance = moments_by_quadrature(row, args)
        torch.testing.assert_close(d.mean, mean, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(d.variance, variance, rtol=1e-6, atol=1e-7)


def check_moments_of_samples(row: Row) -> None:
    args = row.args((3,)) if row.moments else row.args(())
    d = row.make(**args)
    x = d.sample(torch.Size([NUM_SAMPLES])).double()
    mean, variance = (d.mean, d.variance) if row.moments else moments_by_quadrature(row, args)
    assert mean.shape == variance.shape == d.shape()
    assert_within(x, mean, "mean")
    assert_within((x - mean).square(), variance, "variance")


def check_goodness_of_fit(row: Row) -> None:
    if not row.gof:
        return
    for args in unbatched(row):
        d = row.make(**args)
        x = d.sample(torch.Size([NUM_SAMPLES]))
        if row.values is None:
            p_value = auto_goodness_of_fit(x, d.log_prob(x).exp())
        else:
            values = row.values(args)
            expected = NUM_SAMPLES * d.log_prob(values).exp()
            distance = torch.cdist(x.reshape(len(x), -1).double(), values.reshape(len(values), -1), p=1.0)
            counts = torch.bincount(distance.argmin(-1), minlength=len(values))
            rare = expected < 10  # pooled: the chi-squared approximation needs some counts in every cell
            cells = [torch.cat([a[~rare].double(), a[rare].double().sum()[None]]) for a in (counts, expected)]
            observed, wanted = (c[cells[1] > 1e-3].numpy() for c in cells)
            p_value = stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue
        assert p_value > MIN_P_VALUE, f"samples do not follow log_prob: p = {p_value:.1e}"


def check_enumerate_support(row: Row) -> None:
    d = row((2, 3))
    if not d.has_enumerate_support or row.event_shape:
        with pytest.raises(NotImplementedError):
            d.enumerate_support()
        return
    assert row.values is not None
    values = row.values(row.args(()))
    narrow, wide = d.enumerate_support(expand=False), d.enumerate_support()
    assert narrow.shape == (len(values), 1, 1) and wide.shape == (len(values), 2, 3)
    torch.testing.assert_close(narrow.flatten().double(), values)
    for x in (narrow, wide):
        assert d.support.check(x).all()
        torch.testing.assert_close(d.log_prob(x).logsumexp(0), torch.zeros(2, 3, dtype=torch.float64))


def check_expand(row: Row) -> None:
    args = row.args((3, 1))
    d = row.make(**args)
    for first, second in [
        ((3, 4), (3, 4)),
        ((2, 3, 1), (2, 3, 4)),
        ((2, 3, 4), (5, 2, 3, 4)),
        ((3, 1), (3, 1)),
    ]:
        expanded = d.expand(torch.Size(first)).expand(torch.Size(second))
        assert expanded.batch_shape == second and expanded.event_shape == row.event_shape
        x = expanded.sample(torch.Size([2]))
        assert x.shape == (2, *second, *row.event_shape)
        torch.testing.assert_close(expanded.log_prob(x), d.log_prob(x))
        if row.moments:
            assert expanded.mean.shape == second + row.event_shape
            torch.testing.assert_close(expanded.mean, d.mean.expand(second + row.event_shape))
        assert type(expanded) is type(d) and expanded._validate_args == d._validate_args
    wide = d.expand(torch.Size([200, 3, 1])).sample()
    assert len(wide[:, 0, 0].unique(dim=0)) > 1, "expanded dimensions share one draw"
    for illegal in [(4, 1), (3,), (2, 1, 1)]:
        with pytest.raises((ValueError, RuntimeError)):
            d.expand(torch.Size(illegal)).sample()


def check_errors(row: Row) -> None:
    args = row.args((3,))
    d = row.make(**args, validate_args=True)
    x = d.sample()
    with pytest.raises(ValueError):  # a batch of 4 against a batch of 3
        d.log_prob(torch.cat([x, x[:1]]))
    if row.event_shape:
        with pytest.raises(ValueError):
            d.log_prob(torch.cat([x, x], -1))
    assert row.bad_args, "a row names a bad value for some argument"
    for name, value in row.bad_args:
        bad = {**args, name: bad_like(args[name], value)}
        with pytest.raises(ValueError):
            row.make(**bad, validate_args=True)
        row.make(**bad, validate_args=False)
    for value in row.bad_values:
        with pytest.raises(ValueError):
            d.log_prob(bad_like(x.double(), value))
        row.make(**args, validate_args=False).expand(torch.Size([2, 3]))
    with pytest.raises(ValueError):
        d.expand(torch.Size([2, 3])).log_prob(bad_like(x.double(), row.bad_values[0]))


def check_log_prob_gradients(row: Row) -> None:
    args = row.args((2,))
    x = row.make(**args).sample()
    names, tensors = list(args), [a.clone().requires_grad_() for a in args.values()]

    def log_prob(*tensors: Tensor) -> Tensor:
        return row.make(**dict(zip(names, tensors, strict=True)), validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, tensors)


def check_reparameterised_gradients(row: Row) -> None:
    """The gradients of E[x] and Var[x] by rsample equal those of the closed forms."""
    d = row((2,))
    if not d.has_rsample:
        assert not d.sample().requires_grad
        return
    args = {name: arg.requires_grad_() for name, arg in row.args(()).items()}
    d = row.make(**args)
    first, second = (d.mean, d.variance) if row.moments else moments_by_quadrature(row, args)
    wide = {name: arg.detach().expand(NUM_SAMPLES, *arg.shape).clone().requires_grad_() for name, arg in args.items()}
    x = row.make(**wide).rsample()
    for draws, moment in [(x, first), ((x - first.detach()).square(), second)]:
        options = dict(retain_graph=True, materialize_grads=True)  # zero where a parameter has no part in a moment
        per_sample = torch.autograd.grad(draws.sum(), list(wide.values()), **options)
        truths = torch.autograd.grad(moment.sum(), list(args.values()), **options)
        for name, estimates, truth in zip(args, per_sample, truths, strict=True):
            assert_within(estimates, truth, f"gradient of {name}")


def check_mask(row: Row) -> None:
    d = row((3,))
    x, mask = d.sample(), torch.tensor([True, False, True])
    masked = d.mask(mask).log_prob(x)
    torch.testing.assert_close(masked, torch.where(mask, d.log_prob(x), torch.zeros_like(masked)))
    wide = d.expand(torch.Size([2, 3])).mask(mask)
    assert wide.log_prob(wide.sample()).shape == (2, 3)


def check_copies(row: Row) -> None:
    d = row((3,))
    x = d.sample()
    for duplicate in (pickle.loads(pickle.dumps(d)), copy.deepcopy(d)):
        torch.testing.assert_close(duplicate.log_prob(x), d.log_prob(x))
        assert duplicate.sample().shape == x.shape


def check_dtypes(row: Row) -> None:
    double = row.args((3,))
    x = row.make(**double).sample()
    for dtype in (torch.float32, torch.float64):
        d = row.make(**{name: arg.to(dtype) for name, arg in double.items()})
        assert not row.moments or d.mean.dtype == d.variance.dtype == dtype
        assert d.sample().dtype in (dtype, torch.int64)
        assert d.log_prob(x.to(dtype)).dtype == dtype
        torch.testing.assert_close(
            d.log_prob(x.to(dtype)).double(), row.make(**double).log_prob(x), rtol=1e-4, atol=1e-4
        )


def check_to_event(row: Row) -> None:
    d = row((2, 3))
    x = d.sample(torch.Size([4]))
    for n in range(3):
        event = d.to_event(n)
        assert event.batch_shape == (2, 3)[: 2 - n] and event.event_shape == (2, 3)[2 - n :] + row.event_shape
        summed = d.log_prob(x).sum(tuple(range(-n, 0))) if n else d.log_prob(x)
        torch.testing.assert_close(event.log_prob(x), summed)
        if row.moments:
            torch.testing.assert_close(event.mean, d.mean)


def check_log_prob_shape(row: Row, batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    """The property behind all shapes, for a driver that draws the shapes at random."""
    d = row(batch_shape)
    x = d.sample(torch.Size(sample_shape))
    assert x.shape == sample_shape + batch_shape + row.event_shape
    assert d.log_prob(x).shape == sample_shape + batch_shape
    expanded = d.expand(torch.Size((2, *batch_shape)))
    assert expanded.log_prob(expanded.sample(torch.Size(sample_shape))).shape == (
        *sample_shape,
        2,
        *batch_shape,
    )


CHECKS = cast(
    list[Callable[[Row], None]],
    [f for name, f in list(globals().items()) if name.startswith("check_") and f is not check_log_prob_shape],
)
