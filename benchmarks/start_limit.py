"""How small the gap of a Laplace guide with one or two updates can become: what limits it is the start's network.

Trains the small net of the Laplace paper (784-256-16 and back, Gaussian output, MNIST) with one update and a trained
start. Then its decoder stays as it is, the modes of all training images are found with eight halved updates, and
networks for the start alone are fitted to them, in the metric of their curvature: the same net, and a wider one. With
each, ELBO, IW-100 and their difference after 0, 1, 2, 4 and 8 updates, on training images that nothing was fitted to.

    PYRO_VAES_DATA=... python benchmarks/start_limit.py --seeds 1 --out benchmarks/results/start_limit-cpu.json
"""

import argparse
import functools
import json
import pathlib

import torch
from torch import Tensor, nn

from papers.guide_comparison import Networks, image_setting
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.guides import AmortizedLaplace, geometric
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP

RATES = ((1e-3, 0.4), (3e-4, 0.4), (1e-4, 0.2))  # Adam's learning rates, and the shares of the epochs under each


def figures(vae: VAE, start: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """In nats per datum, by the number of updates."""
    rows = {}
    for steps, halvings in ((0, None), (1, None), (1, 2), (2, None), (2, 2), (4, None), (8, None)):
        guide = AmortizedLaplace(vae.model, start, steps, schedule=geometric, halvings=halvings)
        estimate = log_likelihood(vae.model, guide, x, 100, seed=0)
        elbo, iw = estimate.elbo.mean().item(), estimate.log_likelihood.mean().item()
        name = f"{steps}" + ", halved where they fail" * (halvings is not None)
        rows[name] = {"ELBO": elbo, "IW-100": iw, "gap": iw - elbo}
    return rows


@torch.no_grad()
def modes(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and Cholesky factors of the precision."""
    guide = AmortizedLaplace(vae.model, vae.encoder, 8, schedule=geometric, halvings=2)
    posteriors = [guide.posterior(part) for part in x.split(500)]
    return torch.cat([q.mean for q in posteriors]), torch.cat([q.chol_precision for q in posteriors])


def fit_start(start: nn.Module, x: Tensor, mean: Tensor, factor: Tensor, epochs: int) -> nn.Module:
    """Minimise ½ (start - mode)ᵀ P (start - mode): what a start costs before any update, were p(z | x) Gaussian."""
    for lr, share in RATES:
        optim = torch.optim.Adam(start.parameters(), lr=lr)
        for _ in range(round(share * epochs)):
            for rows in torch.randperm(len(x)).split(128):
                away = (start(x[rows]) - mean[rows]).unsqueeze(-1)
                loss = 0.5 * (factor[rows].mT @ away).square().sum((-1, -2)).mean()
                optim.zero_grad()
                loss.backward()
                optim.step()
    return start


def measure(seed: int, options: argparse.Namespace) -> dict[str, object]:
    setting = image_setting("cpu", "mnist")
    data = setting.load()
    x = data.train[:].flatten(1)
    held_out, train = x[-1000:], x[:-1000]
    torch.manual_seed(seed)
    networks = Networks.for_data(setting, data)
    vae = networks.vae(nn.Linear)
    guide = AmortizedLaplace(vae.model, vae.encoder, 1, schedule=geometric, start_weight=1.0)
    adam = functools.partial(torch.optim.Adam, lr=setting.lr, fused=True)
    fit(vae.model, guide, train, optim=adam, epochs=options.epochs, batch_size=128, seed=seed, progress=False)
    result: dict[str, object] = {"trained with the decoder": figures(vae, vae.encoder, held_out)}
    mean, factor = modes(vae, train)
    wide = MLP(784, options.wide, setting.latent_dim)
    for name, start in {"fitted alone": vae.encoder, f"784-{'-'.join(map(str, options.wide))}-16": wide}.items():
        fit_start(start, train, mean, factor, options.alone)
        result[name] = figures(vae, start, held_out)
        result[f"{name}, on images it was fitted to"] = figures(vae, start, train[:1000])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="of the model and its guide")
    parser.add_argument("--alone", type=int, default=40, help="epochs of a start by itself")
    parser.add_argument("--wide", type=int, nargs="+", default=[1024, 1024], help="hidden layers of the wider start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    result: dict[str, object] = {
        "command": f"python benchmarks/start_limit.py --epochs {options.epochs} --alone {options.alone} "
        f"--wide {' '.join(map(str, options.wide))} --seeds {' '.join(map(str, options.seeds))}"
    }
    for seed in options.seeds:
        result[f"seed {seed}"] = rows = measure(seed, options)
        for start, by_updates in rows.items():
            for updates, row in by_updates.items():
                nats = ", ".join(f"{name} {value:.2f}" for name, value in row.items())
                print(f"seed {seed}, start {start}, updates {updates}: {nats}")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
