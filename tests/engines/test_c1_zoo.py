"""C1: a graph of a zoo case gives the eager loss and gradients, on what it was not recorded on."""

import warnings

import pyro
import pytest
import torch

from pyro_vaes.infer.bounds.bound import step_losses
from pyro_vaes.infer.engines.loss_graph import LossGraph
from pyro_vaes.infer.training.step import around_a_loss
from pyro_vaes.programs.pair import Pair
from tests.zoo import BOUNDS, CASES, FULL, GUIDES, MODELS, covering, undefined

# Cases that run eagerly by design, with the reason; none at present.
EAGER: dict[tuple[str, str, str], str] = {}

# Equal to rounding: a graph keeps the units that are idle for all data, and the classes
# that labels rule out, and sums their zeros too.
SUMS_ZEROS = ("laplace", "laplace_trained_start", "gaussian_mixture_dgm")

DEFINED = [case for case in CASES if not undefined(*case)]


def rows_of(case):
    """What a case shows where not every pair of rows need be met; the slow guides are left to small models."""
    return frozenset(zip(("model", "guide", "bound"), case, strict=True))


def is_quick(case):
    return not ("laplace" in case[1] and case[0].startswith(("hierarchical", "ladder", "user", "conv")))


CHOSEN = DEFINED if FULL else covering([case for case in DEFINED if is_quick(case)], rows_of, seed=1)


def evaluations(case, dtype):
    """The loss and gradients of a case by the programs and by a graph of them, from one state."""
    torch.set_default_dtype(dtype)
    built = MODELS[case[0]]()
    guide, bound = GUIDES[case[1]](built), BOUNDS[case[2]]()
    pair = Pair(built.model, guide)
    pair.discover(bound, built.args)
    parameters = list(pair.parameters.values())

    def loss(args):
        with around_a_loss():
            return step_losses(bound, pair.model, pair.guide, args)[-1]()

    with pair.aside():
        loss(built.args)
        graph = LossGraph(loss, built.args, parameters, lambda: ())

    with torch.no_grad():  # other parameters, another batch, another seed
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn_like(parameter))
    args = [value.roll(2, 0) for value in built.args]

    found = []
    for evaluate in (lambda: loss(args), lambda: graph(args)):
        with pair.aside():
            pyro.set_rng_seed(7)
            value = evaluate()
            if isinstance(value, torch.Tensor):
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                value = value.detach(), list(gradients), ()
            found.append((*value[:2], torch.get_rng_state()))
    return found


@pytest.mark.parametrize("case", CHOSEN, ids="-".join)
def test_c1_graph_equals_the_eager_loss(case):
    if case in EAGER:
        pytest.skip(EAGER[case])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is not concave.*")
        eager, graph = evaluations(case, torch.float32)

    assert torch.equal(eager[2], graph[2]), "they draw equally many random numbers"
    exact = not set(case) & set(SUMS_ZEROS)
    largest = max(g.abs().max() for g in eager[1] if g is not None)
    wanted, found = [eager[0], *eager[1]], [graph[0], *graph[1]]
    for one, two in zip(found, wanted, strict=True):
        if exact or one is None:
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)
        else:
            scale = max(two.abs().max(), 1e-2 * largest)
            assert (one - two).abs().max() <= 2e-5 * scale


@pytest.mark.parametrize("case", [("mlp_vae", "own", "trace"), ("mlp_vae", "laplace", "trace")], ids="-".join)
def test_c1_in_double_precision(case):
    eager, graph = evaluations(case, torch.float64)
    wanted, found = [eager[0], *eager[1]], [graph[0], *graph[1]]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_c1_few_cases_run_eagerly():
    assert len(EAGER) <= 0.05 * len(DEFINED)
