"""Time of a training step of the Laplace guide: closed form beside the generic path, and a plain VAE's step.

One process, the same parameters and data, interleaved repetitions, medians. The network is 784-500-500-50 with Gaussian
noise, or the small 784-256-256-16; its decoder is trained for a few steps first, so that its masks are not those of a
random network.

    PYRO_VAES_DATA=... python benchmarks/laplace.py [--size large] [--rounds 5] [--device cpu] [--out FILE.json]
"""

import argparse
import functools
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vaes.data import load
from pyro_vaes.guides import AmortizedLaplace
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead

BATCH, STEPS = 128, 4
SIZES = {"large": (500, 50), "small": (256, 16)}


def build(hidden: int, latent_dim: int) -> VAE:
    encoder = Chain(MLP(784, [hidden], hidden, activate_output=True), NormalHead(hidden, latent_dim))
    decoder = MLP(latent_dim, [hidden, hidden], 784)
    return VAE(encoder, decoder, GaussianLikelihood(0.26, learn_scale=True), latent_dim)


def step(vae: VAE, guide: Callable[..., object], x: Tensor) -> Callable[[], None]:
    """Loss and gradients of one batch; the optimiser's share is the same for all and left out."""
    loss = Trace_ELBO()

    def run() -> None:
        vae.zero_grad()
        with pyro.validation_enabled(False):
            loss.differentiable_loss(vae.model, guide, x).backward()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="large")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=100, help="training steps of the plain VAE beforehand")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    try:
        x = load("mnist", download=False).train[: BATCH * options.train].flatten(1).to(device)
    except FileNotFoundError:
        print("MNIST is not on this machine: random pixels instead.")
        x = torch.rand(BATCH * options.train, 784, device=device)
    x = x - x.mean(0)
    vae = build(*SIZES[options.size]).to(device)
    fit(vae.model, vae.guide, x, epochs=1, batch_size=BATCH, progress=False, seed=0)
    batch = x[:BATCH]
    laplace = functools.partial(AmortizedLaplace, vae.model, vae.encoder, STEPS)
    guides = {
        "VAE": vae.guide,
        "fast": laplace(path="fast"),
        "generic": laplace(path="generic"),
        "fast, detached updates": laplace(path="fast", detach_updates=True),
    }
    contestants = {name: step(vae, guide, batch) for name, guide in guides.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(options.rounds + 1):  # the first round warms up
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append((time.perf_counter() - started) * 1e3)
    medians = {name: statistics.median(t) for name, t in times.items()}
    with torch.no_grad():
        fast, generic = (guides[name].posterior(batch).mean for name in ("fast", "generic"))
        difference = (fast - generic).abs().max().item()
    print(f"{'step':<26}{'ms':>10}{'of VAE':>10}")
    for name, median in medians.items():
        print(f"{name:<26}{median:>10.1f}{median / medians['VAE']:>9.1f}x")
    ratio = medians["generic"] / medians["fast"]
    print(f"generic / fast: {ratio:.2f}x; largest difference of the means: {difference:.1e}")
    if options.out is not None:
        result = {
            "command": f"python benchmarks/laplace.py --size {options.size} --rounds {options.rounds}",
            "machine": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "ms_per_step": medians,
            "largest difference of the means": difference,
            "all": times,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
