"""The guides that the papers compare, each as a :class:`~papers.guide_comparison.Method`.

All share the model and the encoder's trunk; what differs is q and, for mixtures, its bound.
"""

from collections.abc import Callable, Sequence
from functools import partial

from pyro.infer import ELBO, Trace_ELBO
from torch import nn

from papers.guide_comparison.comparison import Guide, Method
from papers.guide_comparison.setting import Networks
from pyro_vaes.guides import (
    AmortizedHouseholder,
    AmortizedIAF,
    AmortizedLaplace,
    AmortizedMixture,
    AmortizedMultivariateNormal,
    AmortizedNormal,
    SemiAmortized,
    decaying,
    geometric,
)
from pyro_vaes.infer import RecursiveMixture_ELBO, StratifiedMixture_ELBO
from pyro_vaes.models import VAE
from pyro_vaes.nn import HouseholderHead, IAFHead, MultivariateNormalHead

__all__ = [
    "CAP",
    "boosted",
    "full_covariance",
    "householder",
    "iaf",
    "laplace",
    "mixture",
    "recursive_mixture",
    "semi_amortized",
    "vae",
]


CAP = 5.0
"""In nats. Better than 500 and than ME on held-out images of MNIST, with one seed; 2 gives the same after 3 epochs."""


def _laplace_guide(
    steps: int,
    model: VAE,
    bold: bool = False,
    start_weight: float = 0.0,
    halvings: int | None = None,
) -> Guide:
    return AmortizedLaplace(
        model.model,
        start=model.encoder,
        steps=steps,
        schedule=geometric if bold else decaying,
        start_weight=start_weight,
        halvings=halvings,
    )


def vae(refine: tuple[int, ...] = ()) -> Method:
    """The diagonal normal; `refine` names numbers of Laplace updates to put in its place on the trained model."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae()
        return model, model.guide, Trace_ELBO()

    return Method("VAE", build, _refined("VAE", refine))


def _refined(name: str, refine: tuple[int, ...]) -> dict[str, Callable[[VAE], Guide]]:
    return {f"{name}, then Laplace-{steps}": partial(_laplace_guide, steps) for steps in refine}


def full_covariance() -> Method:
    """An amortised full covariance, which tells "full covariance" from "Laplace"."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae(MultivariateNormalHead)
        guide = AmortizedMultivariateNormal(model.model, model.encoder)
        return model, guide, Trace_ELBO()

    return Method("full covariance", build)


def semi_amortized(steps: int, lr: float) -> Method:
    """Gradient steps on each datum's ELBO from the encoder's output, with the gradient through them."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae()
        start = AmortizedNormal(model.model, model.encoder)
        return model, SemiAmortized(start, steps=steps, lr=lr), Trace_ELBO()

    return Method(f"SA-{steps}", build)


def householder(flows: int) -> Method:
    """Householder reflections of a diagonal normal."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae(partial(HouseholderHead, flows=flows))
        return model, AmortizedHouseholder(model.model, model.encoder), Trace_ELBO()

    return Method(f"HF-{flows}", build)


def iaf(flows: int) -> Method:
    """Inverse autoregressive flows that see the encoder's features."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae(partial(IAFHead, flows=flows))
        return model, AmortizedIAF(model.model, model.encoder), Trace_ELBO()

    return Method(f"IAF-{flows}", build)


def laplace(
    steps: int,
    *,
    bold: bool = False,
    trained_start: bool = False,
    refine: Sequence[tuple[int, int | None]] = (),
) -> Method:
    """The Laplace posterior after so many updates from the encoder's mean.

    Arguments:
        steps: Number of updates.
        bold: Whether their step sizes are 1, 0.9, 0.81, .. rather than the authors' 0.5 / (t + 1).
        trained_start: Whether the encoder's mean is trained towards the mode, with weight 1.
        refine: Numbers of such bold updates to put in their place on the trained model, and how often each of these may
            be halved, or None.
    """
    name = f"VLAE-{steps}" + ", 0.9^t" * bold + ", trained start" * trained_start

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        model = networks.vae(nn.Linear)  # the updates start from a mean alone
        guide = _laplace_guide(steps, model, bold, start_weight=float(trained_start))
        return model, guide, Trace_ELBO()

    refined: dict[str, Callable[[VAE], Guide]] = {}
    for updates, halvings in refine:
        row = f"{name}, then {updates} of 0.9^t" + ", halved where they fail" * (halvings is not None)
        refined[row] = partial(_laplace_guide, updates, bold=True, halvings=halvings)
    return Method(name, build, refined)


def _mixture(components: int, bound: ELBO, networks: Networks) -> tuple[VAE, Guide, ELBO]:
    model = networks.vae()
    encoders = [model.encoder, *(networks.encoder() for _ in range(components - 1))]
    weights = [networks.weight() for _ in range(components - 1)]
    return model, AmortizedMixture(model.model, encoders, weights), bound


def mixture(components: int) -> Method:
    """All components, weights and the model on the mixture's bound at once."""
    return Method(
        f"ME-{components}",
        lambda networks: _mixture(components, StratifiedMixture_ELBO(), networks),
    )


def recursive_mixture(components: int, cap: float = 500.0, refine: tuple[int, ...] = ()) -> Method:
    """Each component where those before it fall short, its KL capped at `cap` nats; `refine` as for the VAE."""
    name = f"RME-{components}" + ("" if cap == 500.0 else f", cap {cap:g}")

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        return _mixture(components, RecursiveMixture_ELBO(cap), networks)

    return Method(name, build, _refined(name, refine))


def boosted(components: int, entropy: float = 1.0) -> Method:
    """The objective of boosted variational inference: the component's entropy in place of the capped KL."""

    def build(networks: Networks) -> tuple[VAE, Guide, ELBO]:
        return _mixture(components, RecursiveMixture_ELBO(entropy=entropy), networks)

    return Method(f"BVI-{components}", build)
