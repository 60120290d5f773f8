"""Where analytic KL divergences are right: read off the gradients of the densities, not off class names."""

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pyro_vaes.infer.checks.tables import random_sites
from pyro_vaes.programs.pair import Pair
from pyro_vaes.programs.reach import Program

__all__ = ["dependencies", "mean_field_violations"]


def dependencies(program: Program, values: dict[str, Tensor], args: tuple[object, ...]) -> dict[str, set[str]]:
    """For each latent site, the other latent sites on whose values its density depends."""
    leaves = {n: v.detach().clone().requires_grad_() for n, v in values.items() if v.is_floating_point()}
    with torch.enable_grad(), poutine.block():
        trace = poutine.trace(poutine.condition(program, data={**values, **leaves})).get_trace(*args)
        found = {}
        for name in values:
            log_prob = trace.nodes[name]["fn"].log_prob(values[name].detach()).sum()
            others = {n: leaf for n, leaf in leaves.items() if n != name}
            if not others or not log_prob.requires_grad:
                found[name] = set[str]()
                continue
            gradients = torch.autograd.grad(log_prob, list(others.values()), allow_unused=True, retain_graph=True)
            found[name] = {n for n, g in zip(others, gradients, strict=True) if g is not None}
    return found


def mean_field_violations(pair: Pair, args: tuple[object, ...]) -> tuple[set[str], set[str]]:
    """Sites whose analytic KL would be wrong, and sites that the guide draws given other latent sites.

    An analytic KL of a site is right if the guide draws the site after, or independently of, every variable on which
    its prior depends.
    """
    with torch.no_grad(), poutine.block():
        sites = random_sites(poutine.trace(pair.guide).get_trace(*args))
        model = random_sites(poutine.trace(pair.model).get_trace(*args))
    values = {n: s["value"] for n, s in sites.items() if n in model and not s["is_observed"]}
    if any(isinstance(sites[n]["fn"], Delta) for n in values):  # a joint density in an auxiliary site: nothing analytic
        return set(), set(values)
    if len(values) < 2:
        return set(), set()
    order = list(values)
    prior, posterior = dependencies(pair.model, values, args), dependencies(pair.guide, values, args)

    def ancestors(name: str) -> set[str]:
        direct = posterior[name]
        return direct.union(*(ancestors(d) for d in direct)) if direct else set()

    violating = {
        name
        for name in order
        for parent in prior[name]
        if order.index(parent) > order.index(name) and name in ancestors(parent)
    }
    return violating, {name for name in order if posterior[name]}
