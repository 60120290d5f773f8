"""How far to believe the log-likelihood of a MNIST VAE: importance sampling, annealing, and the annealing's own gap.

Trains a VAE (784-200-200-10, Adam 1e-3, batch 128) on dynamically binarised MNIST. On real test images: IW-5000 and the
lower bound of annealed importance sampling from the prior and from the guide. On images drawn from the model: the lower
and upper bounds of bidirectional Monte Carlo with the same settings, and IW-5000 beside them.

    PYRO_VAES_DATA=... python benchmarks/ais.py [--device cuda] --out benchmarks/results/ais-cpu.json
"""

import argparse
import json
import pathlib
import time

import torch

from pyro_vaes.data import Binarize, ToUnit, load_data
from pyro_vaes.diagnostics import ais, bdmc, log_likelihood
from pyro_vaes.infer import evaluate, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead


def build(seed: int) -> VAE:
    torch.manual_seed(seed)
    encoder = Chain(MLP(784, [200], 200, activate_output=True), NormalHead(200, 10))
    return VAE(encoder, MLP(10, [200, 200], 784), BernoulliLikelihood(), latent_dim=10)


def timed(function, *args, **kwargs):
    started = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - started


def mean_and_error(values: torch.Tensor) -> list[float]:
    """Mean and standard error over the images."""
    return [values.mean().item(), (values.std() / len(values) ** 0.5).item()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=32, help="test images, and as many simulated ones")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500, help="inverse temperatures")
    parser.add_argument("--leapfrog", type=int, default=10)
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--train-images", type=int, help="use only the first so many; for a quick look")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()

    mnist = load_data("mnist", preprocess=[ToUnit(), Binarize()], download=False)
    train = mnist.train if options.train_images is None else mnist.train[: options.train_images]
    vae = build(options.seed).to(options.device)
    pair = vae.model, vae.guide
    _, training = timed(fit, *pair, train, epochs=options.epochs, seed=options.seed)
    images = mnist.test[: options.images].to(options.device)
    settings = {
        "num_chains": options.chains,
        "num_steps": options.steps,
        "leapfrog_steps": options.leapfrog,
        "seed": options.seed,
    }
    weighted, weighting = timed(log_likelihood, *pair, images, options.particles, seed=options.seed)
    prior, from_prior = timed(ais, *pair, images, **settings)
    guide, from_guide = timed(ais, *pair, images, start="guide", **settings)
    sandwich, both_ways = timed(bdmc, *pair, images, **settings)
    simulated = sandwich.observations["x"].to(options.device)
    inside, _ = timed(log_likelihood, *pair, simulated, options.particles, seed=options.seed)
    given = (f"--{n.replace('_', '-')} {v}" for n, v in vars(options).items() if n != "out" and v is not None)
    result = {
        "command": f"python benchmarks/ais.py {' '.join(given)}",
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "test ELBO, 10,000 images": -evaluate(*pair, mnist.test),
        "real images: ELBO": mean_and_error(weighted.elbo),
        f"real images: IW-{options.particles}": mean_and_error(weighted.log_likelihood),
        "real images: AIS from the prior": mean_and_error(prior.log_likelihood),
        "real images: AIS from the guide": mean_and_error(guide.log_likelihood),
        f"real images: AIS from the prior less IW-{options.particles}": mean_and_error(
            prior.log_likelihood - weighted.log_likelihood
        ),
        f"real images: AIS from the guide less IW-{options.particles}": mean_and_error(
            guide.log_likelihood - weighted.log_likelihood
        ),
        "real images: share with k-hat above 0.7": (weighted.khat > 0.7).double().mean().item(),
        "real images: median ESS of the chains from the prior": prior.ess.median().item(),
        "real images: median ESS of the chains from the guide": guide.ess.median().item(),
        "real images: acceptance from the prior": prior.acceptance.mean().item(),
        "simulated images: lower bound": mean_and_error(sandwich.lower),
        "simulated images: upper bound": mean_and_error(sandwich.upper),
        "simulated images: gap": mean_and_error(sandwich.gap),
        "simulated images: largest gap": sandwich.gap.max().item(),
        f"simulated images: IW-{options.particles}": mean_and_error(inside.log_likelihood),
        "simulated images: acceptance": sandwich.forward.acceptance.mean().item(),
        "seconds of training": training,
        f"seconds of IW-{options.particles}": weighting,
        "seconds of AIS from the prior": from_prior,
        "seconds of AIS from the guide": from_guide,
        "seconds of BDMC": both_ways,
    }
    for name, value in result.items():
        shown = [round(v, 3) for v in value] if isinstance(value, list) else value
        print(f"{name:<56}{round(shown, 3) if isinstance(shown, float) else shown}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
