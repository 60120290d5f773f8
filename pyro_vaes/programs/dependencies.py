"""Which sites of a program depend on which others: read off the gradients of densities.

Where the guide draws a site before a variable on which its prior depends, and that
variable from it, an analytic KL divergence of the site is wrong.
"""

from typing import TypeVar

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from .reach import Program
from .runs import Args, run
from .sites import DRAWN, sites

Key = TypeVar("Key")


def dependencies(program: Program, values: dict[str, Tensor], args: Args) -> dict[str, set[str]]:
    """For each latent site, the other latent sites on whose values its density depends.

    Arguments:
        program: The program.
        values: Values of its latent sites by name.
        args: Its arguments.
    """
    leaves = {}
    for name, value in values.items():
        if value.is_floating_point():
            leaves[name] = value.detach().clone().requires_grad_()

    found = {}
    with torch.enable_grad(), poutine.block():
        trace = run(program, args, given={**values, **leaves})
        for name, value in values.items():
            log_prob = trace.nodes[name]["fn"].log_prob(value.detach()).sum()
            others = {n: leaf for n, leaf in leaves.items() if n != name}
            found[name] = reached(log_prob, others)
    return found


def reached(value: object, leaves: dict[Key, Tensor]) -> set[Key]:
    """The keys of the leaves that a gradient of the value reaches."""
    if not leaves or not isinstance(value, Tensor) or not value.requires_grad:
        return set()
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {k for k, g in zip(leaves, gradients, strict=True) if g is not None}


def mean_field_violations(model: Program, guide: Program, args: Args) -> tuple[set[str], set[str]]:
    """Sites whose analytic KL would be wrong, and sites drawn given other latent sites.

    An analytic KL of a site is right if the guide draws the site after, or independently
    of, every variable on which its prior depends.
    """
    with torch.no_grad(), poutine.block():
        guide_sites = sites(run(guide, args), DRAWN)
        model_sites = sites(run(model, args))
    values = {n: s["value"] for n, s in guide_sites.items() if n in model_sites}

    # a joint density in an auxiliary site: nothing is analytic
    if any(isinstance(guide_sites[n]["fn"], Delta) for n in values):
        return set(), set(values)
    if len(values) < 2:
        return set(), set()

    prior = dependencies(model, values, args)
    posterior = dependencies(guide, values, args)

    def ancestors(name: str) -> set[str]:
        direct = posterior[name]
        return direct.union(*map(ancestors, direct))

    violating = set()
    drawn_before: set[str] = set()
    for name in values:
        for parent in prior[name] - drawn_before:
            if name in ancestors(parent):
                violating.add(name)
        drawn_before.add(name)

    return violating, {name for name in values if posterior[name]}
