"""The plain VAE on dynamically binarised MNIST: 784-500-500-50 MLPs, 20 epochs of Adam 1e-3, batch 128.

Prints and writes the test ELBO, the importance-weighted bound with 500 particles on 1,000 test images, the number of
active units and the seconds per epoch. Evaluation noise (binarisation included) is fixed.

    PYRO_VAES_DATA=... python benchmarks/mnist_vae.py [--device cuda] --out benchmarks/results/mnist_vae-cpu.json
"""

import argparse
import json
import pathlib
import statistics
import time

import torch

from pyro_vaes.data import Binarize, ToUnit, load_data
from pyro_vaes.diagnostics import collapse_report, log_likelihood
from pyro_vaes.infer import evaluate, fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead


def build(seed: int) -> VAE:
    torch.manual_seed(seed)
    encoder = Chain(MLP(784, [500], 500, activate_output=True), NormalHead(500, 50))
    return VAE(encoder, MLP(50, [500, 500], 784), BernoulliLikelihood(), latent_dim=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()

    mnist = load_data("mnist", preprocess=[ToUnit(), Binarize()], download=False)
    vae = build(options.seed).to(options.device)
    started = time.perf_counter()
    history = fit(vae.model, vae.guide, mnist, epochs=options.epochs, seed=options.seed)
    seconds = time.perf_counter() - started
    images = mnist.test[:1000].to(options.device)
    evaluated = time.perf_counter()
    estimate = log_likelihood(vae.model, vae.guide, images, 500)
    evaluated = time.perf_counter() - evaluated
    collapse = collapse_report(vae.model, vae.guide, images)["z"]
    result = {
        "command": "python benchmarks/mnist_vae.py "
        f"--epochs {options.epochs} --seed {options.seed} --device {options.device}",
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "train images": len(mnist.train),
        "test ELBO, 10,000 images": -evaluate(vae.model, vae.guide, mnist.test),
        "IW-500, 1,000 images": estimate.log_likelihood.mean().item(),
        "standard error of IW-500 over images": (estimate.log_likelihood.std() / 1000**0.5).item(),
        "ELBO, 1,000 images": estimate.elbo.mean().item(),
        "share of images with k-hat above 0.7": (estimate.khat > 0.7).double().mean().item(),
        "active units (Burda) of 50": collapse.active_units,
        "KL, nats": collapse.total_kl,
        "seconds per epoch, median": statistics.median(history.seconds),
        "seconds of training": seconds,
        "seconds of IW-500": evaluated,
        "train loss": history.train,
        "held-out loss": history.valid,
    }
    for name, value in result.items():
        print(f"{name:<42}{value if not isinstance(value, float) else round(value, 3)}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
