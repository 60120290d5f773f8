"""What happens before the first training step of ``fit``: decoder runs, and control between files.

Both are counted by :func:`sys.setprofile` up to the start of step 1, on the CPU, with tiny
networks (the counts do not depend on their sizes):

    decoder runs     calls of the decoder's ``forward``
    passes           calls of functions of the package whose file is not that of the call of
                     a function of the package before it: how often a reader who follows the
                     run turns to another file

    python benchmarks/first_step.py [--json]
"""

import argparse
import json
import pathlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import FrameType

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

import pyro_vaes
from pyro_vaes.guides import AmortizedLaplace, AmortizedMixture
from pyro_vaes.infer import Callback, RecursiveMixture_ELBO, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead, WeightHead

PACKAGE = str(pathlib.Path(pyro_vaes.__file__).parent)
D, WIDTH, LATENT = 16, 8, 2  # of data, of hidden layers, of latents


@dataclass
class Counts:
    """What was counted before the first step of one case."""

    case: str
    decoder_runs: int = 0
    passes: int = 0


class Decoder(MLP):
    """A class of its own, so that no guide takes a short cut for known layers."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z)


class Counter(Callback):
    """A profile function that counts, and a callback of ``fit`` that ends it at step 1."""

    def __init__(self, case: str) -> None:
        self.counts = Counts(case)
        self.file: str | None = None
        self.reached = False

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or self.reached or code.co_name == "<module>":
            return

        if code is Decoder.forward.__code__:
            self.counts.decoder_runs += 1
        if code.co_filename.startswith(PACKAGE):
            self.counts.passes += code.co_filename != self.file
            self.file = code.co_filename

    def handler(self, run: object) -> None:
        """Called first thing in every step."""
        self.reached = True


def perceptron(head: nn.Module) -> nn.Module:
    return Chain(MLP(D, [WIDTH], WIDTH), head)


def laplace(vae: VAE) -> AmortizedLaplace:
    return AmortizedLaplace(vae.model, perceptron(nn.Linear(WIDTH, LATENT)), steps=2)


def mixture(vae: VAE) -> AmortizedMixture:
    components = [perceptron(NormalHead(WIDTH, LATENT)), laplace(vae)]
    weight = nn.Sequential(MLP(D, [WIDTH], WIDTH), WeightHead(WIDTH))
    return AmortizedMixture(vae.model, components, [weight])


def count(
    case: str,
    guide_of: Callable[[VAE], Callable[..., object]],
    loss: ELBO | None = None,
) -> Counts:
    """Train the case's guide for one step and return what came before it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    encoder = perceptron(NormalHead(WIDTH, LATENT))
    vae = VAE(encoder, Decoder(LATENT, [WIDTH], D), GaussianLikelihood(), LATENT)
    guide = guide_of(vae)
    x = torch.randn(8, D)

    counter = Counter(case)
    options = {"loss": loss, "callbacks": [counter], "progress": False, "seed": 0}
    sys.setprofile(counter)
    try:
        fit(vae.model, guide, x, epochs=1, batch_size=8, **options)
    finally:
        sys.setprofile(None)

    if not counter.reached:
        raise RuntimeError("fit never asked the callback for a handler, as each step does")
    return counter.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    as_json = parser.parse_args().json
    warnings.simplefilter("ignore")

    rows = [
        count("VAE with its own guide", lambda vae: vae.guide),
        count("AmortizedLaplace, 2 updates", laplace),
        count(
            "AmortizedMixture with a Laplace component, RecursiveMixture_ELBO",
            mixture,
            RecursiveMixture_ELBO(),
        ),
    ]

    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print(f"{'before the first step of fit':66}{'decoder runs':>14}{'passes':>8}")
    for row in rows:
        print(f"{row.case:66}{row.decoder_runs:14,}{row.passes:8,}")


if __name__ == "__main__":
    main()
