"""Time of a training step: ``fit`` beside raw PyTorch, ``SVI.step`` and torchvision DataLoader loops.

One process, one job for all: MNIST with fresh bits in every pass, the 784-500-500-50 network, batches of 128. The
repetitions of all contestants are interleaved and medians are reported, so that a slow spell of the machine hits all of
them. ``fit`` and one raw loop use the package's networks; all others are written with torch alone, and "raw, our
networks" tells the loop's part in the difference from the networks'. There are two DataLoader loops, both around the
raw step: one with all preprocessing in torchvision's per-image transforms, one that flattens and binarises whole
batches.

    python benchmarks/step.py [--rounds 7] [--steps 100] [--device cpu] [--out benchmarks/results/step-cpu.json]
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision import datasets, transforms

from pyro_vaes.data import Binarize, from_tensors, load_data
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead

BATCH = 128


def networks() -> tuple[nn.Module, nn.Module]:
    encoder = Chain(MLP(784, [500], 500, activate_output=True), NormalHead(500, 50))
    return encoder, MLP(50, [500, 500], 784)


def torch_networks() -> tuple[nn.Module, nn.Module]:
    """The same in torch alone: an encoder that returns means and logarithms of scales, and a decoder."""
    hidden = [nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU()]
    mirrored = [nn.Linear(50, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(500, 100)), nn.Sequential(*mirrored, nn.Linear(500, 784))


def raw_step(encoder: nn.Module, decoder: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """One step as one writes it by hand: sampled KL, one particle, summed over the batch, averaged over the data."""
    q = encoder(x)
    loc, log_scale = q.chunk(2, -1) if isinstance(q, Tensor) else (q.base_dist.loc, q.base_dist.scale.log())
    noise = torch.randn_like(loc)
    z = loc + log_scale.exp() * noise
    log_q = -0.5 * noise.square() - log_scale
    log_p = -0.5 * z.square()
    loss = (binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + (log_q - log_p).sum()) / len(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def raw_loop(
    x: Tensor, steps: int, *, fused: bool, networks: Callable[[], tuple[nn.Module, nn.Module]] = torch_networks
) -> Callable[[], float | None]:
    encoder, decoder = (n.to(x.device) for n in networks())
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=fused)

    def run() -> None:
        order = torch.randperm(len(x), device=x.device)
        for index in order.split(BATCH)[:steps]:
            raw_step(encoder, decoder, optimizer, torch.bernoulli(x.index_select(0, index)))

    return run


def fit_loop(x: Tensor, steps: int) -> Callable[[], float]:
    """The seconds of one epoch; the check of the pair before it is reported apart."""
    encoder, decoder = networks()
    vae = VAE(encoder, decoder, BernoulliLikelihood(), 50).to(x.device)
    pixels = x[: steps * BATCH].reshape(-1, 1, 28, 28)
    rows = from_tensors(pixels, split=(0, 0), preprocess=Binarize()).to(x.device).train
    return lambda: fit(vae.model, vae.guide, rows, epochs=1, batch_size=BATCH, progress=False).seconds[0]


def svi_loop(x: Tensor, steps: int) -> Callable[[], float | None]:
    """As in Pyro's VAE tutorial: pyro.module statements, pyro.optim.Adam, validation as Pyro sets it."""
    encoder, decoder = (n.to(x.device) for n in torch_networks())

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            prior = pyro.distributions.Normal(x.new_zeros(len(x), 50), x.new_ones(len(x), 50)).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", pyro.distributions.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", pyro.distributions.Normal(loc, log_scale.exp()).to_event(1))

    pyro.clear_param_store()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())

    def run() -> None:
        with pyro.validation_enabled(True):
            for index in torch.randperm(len(x), device=x.device).split(BATCH)[:steps]:
                svi.step(torch.bernoulli(x.index_select(0, index)))

    return run


def dataloader_loop(root: str, steps: int, device: torch.device, *, per_image: bool) -> Callable[[], float | None]:
    """The raw step on torchvision's MNIST and a DataLoader in this process."""
    per_image_steps = [transforms.Lambda(torch.flatten), transforms.Lambda(torch.bernoulli)] if per_image else []
    transform = transforms.Compose([transforms.ToTensor(), *per_image_steps])
    dataset = datasets.MNIST(root, train=True, transform=transform, download=False)
    encoder, decoder = (n.to(device) for n in torch_networks())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    rows = torch.utils.data.Subset(dataset, range(steps * BATCH))

    def run() -> None:
        for x, _ in torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True):
            x = x.to(device)
            raw_step(encoder, decoder, optimizer, x if per_image else torch.bernoulli(x.flatten(1)))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    try:
        mnist = load_data("mnist", download=False)
        x, root = mnist.train[:].to(device), os.environ.get("PYRO_VAES_DATA")
    except FileNotFoundError:
        print("MNIST is not on this machine: random pixels instead, and no DataLoader loop.")
        x, root = torch.rand(options.steps * BATCH, 784, device=device), None
    contestants = {
        "raw": raw_loop(x, options.steps, fused=False),
        "raw, fused Adam": raw_loop(x, options.steps, fused=True),
        "raw, our networks": raw_loop(x, options.steps, fused=True, networks=networks),
        "fit": fit_loop(x, options.steps),
        "SVI.step": svi_loop(x, options.steps),
    }
    if root is not None:
        contestants["DataLoader, images"] = dataloader_loop(str(root), options.steps, device, per_image=True)
        contestants["DataLoader, batches"] = dataloader_loop(str(root), options.steps, device, per_image=False)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    before: list[float] = []
    for round_ in range(options.rounds + 1):  # the first round warms up
        for name, run in contestants.items():
            started = time.perf_counter()
            inside = run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            if round_ and inside is not None:
                before.append(seconds - inside)
            if round_:
                times[name].append((seconds if inside is None else inside) / options.steps * 1e3)
    medians = {name: statistics.median(t) for name, t in times.items()}
    print(f"{'loop':<20}{'ms per step':>12}{'of raw':>9}{'of raw, fused':>15}")
    for name, median in medians.items():
        print(f"{name:<20}{median:>12.2f}{median / medians['raw']:>8.2f}x{median / medians['raw, fused Adam']:>14.2f}x")
    print(f"fit checks the pair before the first step: {statistics.median(before):.2f} s, once")
    result = {
        "command": f"python benchmarks/step.py --rounds {options.rounds} --steps {options.steps} --device {device}",
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "ms_per_step": medians,
        "seconds before the first step of fit": statistics.median(before),
        "all": times,
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
