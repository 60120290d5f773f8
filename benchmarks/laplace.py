"""The Laplace guide beside the authors' way and a plain VAE: time, peak memory and ELBO of a training step.

Same process, parameters and data for all contestants; interleaved repetitions, medians. Each size has a process of its
own: large buffers that were freed before change where later ones come from, and with it the times. The networks are
784-500-500-50 and 784-256-256-16 with Gaussian noise, batch 128, 4 updates. Their decoders are trained for a few
hundred steps first, by the Laplace guide itself and, as another case, as plain VAEs, which leaves most units of the
last hidden layer off for good. Peak memory is that of a process of its own for each contestant. Further: the time of
test-time inference with a recursive mixture of two posteriors, and that of an importance-sampled log-likelihood with
the Laplace guide.

    PYRO_VAES_DATA=... python benchmarks/laplace.py [--rounds 7] [--train 200] [--device cpu] [--out FILE.json]
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial

import pyro
import torch
from authors_laplace import authors_guide, posterior
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_vaes.data import load_data
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.guides import AmortizedLaplace, AmortizedMixture, AmortizedNormal
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.nn import MLP, Chain, GaussianLikelihood, NormalHead, WeightHead

BATCH, STEPS = 128, 4
SIZES = {"large": (500, 50), "small": (256, 16)}
Guide = Callable[..., object]


def encoder(hidden: int, latent_dim: int) -> Chain:
    return Chain(MLP(784, [hidden], hidden, activate_output=True), NormalHead(hidden, latent_dim))


def build(hidden: int, latent_dim: int) -> VAE:
    decoder = MLP(latent_dim, [hidden, hidden], 784)
    return VAE(encoder(hidden, latent_dim), decoder, GaussianLikelihood(0.26, learn_scale=True), latent_dim)


def guides(vae: VAE) -> dict[str, Guide]:
    def laplace(**options: object) -> AmortizedLaplace:
        return AmortizedLaplace(vae.model, vae.encoder, STEPS, **options)

    return {
        "VAE": vae.guide,
        "authors' way": authors_guide(vae, STEPS),
        "fast": laplace(path="fast"),
        "generic": laplace(path="generic"),
        "fast, detached updates": laplace(path="fast", detach_updates=True),
    }


def step(vae: VAE, guide: Guide, x: Tensor) -> Callable[[], None]:
    """Loss and gradients of one batch; the optimiser's share is the same for all and left out."""
    loss = Trace_ELBO()

    def run() -> None:
        vae.zero_grad()
        with pyro.validation_enabled(False):
            loss.differentiable_loss(vae.model, guide, x).backward()

    return run


def interleaved(contestants: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each repetition; the first round warms up and is left out."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - started) * 1e3)
    return {name: t[1:] for name, t in times.items()}


def peak_megabytes(size: str, name: str, file: str) -> float:
    """How far a training step raises the peak memory of a process of its own."""
    command = [sys.executable, __file__, "--peak", size, name, file]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(size: str, name: str, file: str) -> None:
    vae = build(*SIZES[size])
    state, batch = torch.load(file, weights_only=True)
    vae.load_state_dict(state)
    vae.zero_grad(set_to_none=False)
    step(vae, guides(vae)["VAE"], batch)()  # libraries are loaded, parameters have gradients
    before = high_water()
    run = step(vae, guides(vae)[name], batch)
    for _ in range(2):
        run()
    print(high_water() - before)


def high_water() -> float:
    """The peak resident memory of this process so far, in megabytes; getrusage starts with that of its parent."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def mean_elbo(vae: VAE, mean: Tensor, covariance: Tensor, x: Tensor, draws: int = 100) -> float:
    """The ELBO of N(mean, covariance) with the same noise for all contestants."""
    q = pyro.distributions.MultivariateNormal(mean, covariance)
    torch.manual_seed(1)
    z = q.sample((draws,))
    log_p = vae.likelihood(vae.decoder(z)).log_prob(x) + vae.prior().log_prob(z)
    return (log_p - q.log_prob(z)).mean().item()


@torch.no_grad()
def agreement(vae: VAE, batch: Tensor) -> dict[str, float]:
    ours = AmortizedLaplace(vae.model, vae.encoder, STEPS, path="fast").posterior(batch)
    theirs = posterior(vae, STEPS, batch)
    precisions = ours.precision_matrix, theirs.precision_matrix
    elbos = [mean_elbo(vae, q.mean, q.covariance_matrix, batch) for q in (ours, theirs)]
    return {
        "largest difference of the means": (ours.mean - theirs.mean).abs().max().item(),
        "relative difference of the precisions": ((precisions[0] - precisions[1]).norm() / precisions[1].norm()).item(),
        "ELBO, fast": elbos[0],
        "ELBO, authors' way": elbos[1],
    }


def training_steps(size: str, trained: str, x: Tensor, options: argparse.Namespace) -> dict[str, object]:
    torch.manual_seed(0)
    vae = build(*SIZES[size]).to(x.device)
    own = AmortizedLaplace(vae.model, vae.encoder, 1, detach_updates=True)
    fit(vae.model, own if trained == "laplace" else vae.guide, x, epochs=1, batch_size=BATCH, progress=False, seed=0)
    batch = x[:BATCH]
    contestants = {name: step(vae, guide, batch) for name, guide in guides(vae).items()}
    times = interleaved(contestants, options.rounds, options.device)
    medians = {name: statistics.median(t) for name, t in times.items()}
    result: dict[str, object] = {"ms_per_step": medians, "all": times, **agreement(vae, batch)}
    peaks = dict.fromkeys(medians, float("nan"))
    if options.device == "cpu" and pathlib.Path("/proc/self/status").exists():
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            torch.save((vae.state_dict(), batch), file.name)
            peaks = {name: peak_megabytes(size, name, file.name) for name in medians}
        result["peak_megabytes"] = peaks
    theirs = "authors' way"
    print(f"\n{size}, decoder trained with {trained:<10}{'ms':>10}{'of VAE':>10}{'speed-up':>10}{'peak MB':>10}")
    for name, median in medians.items():
        print(
            f"{name:<40}{median:>10.1f}{median / medians['VAE']:>9.1f}x{medians[theirs] / median:>9.2f}x"
            f"{peaks[name]:>10.1f}"
        )
    print(f"ELBO {result['ELBO, fast']:.4f}, authors' way {result[f'ELBO, {theirs}']:.4f} nats per datum")
    return result


def mixture_inference(size: str, x: Tensor, rounds: int) -> dict[str, float]:
    """Mixtures of two posteriors, as the recursive mixture has at test time, beside one encoder.

    Two encoders and a network for the weight, three of the same size as the paper has; the first layer shared; all
    layers but the heads shared.
    """
    vae = build(*SIZES[size]).to(x.device)
    hidden, latent_dim = SIZES[size]

    def heads(last: Callable[[], nn.Module], count: int) -> list[nn.Module]:
        return [last().to(x.device) for _ in range(count)]

    def deep(head: nn.Module) -> Chain:
        return Chain(MLP(hidden, [], hidden, activate_output=True), head)

    first = MLP(784, [], hidden, activate_output=True).to(x.device)
    both = MLP(784, [hidden], hidden, activate_output=True).to(x.device)
    weight = Chain(MLP(784, [hidden], hidden, activate_output=True), WeightHead(hidden)).to(x.device)
    guides = {
        "VAE": AmortizedNormal(vae.model, vae.encoder),
        "RME(2)": AmortizedMixture(vae.model, [vae.encoder, encoder(*SIZES[size]).to(x.device)], [weight]),
        "RME(2), first layer shared": AmortizedMixture(
            vae.model,
            heads(lambda: deep(NormalHead(hidden, latent_dim)), 2),
            heads(lambda: deep(WeightHead(hidden)), 1),
            trunk=first,
        ),
        "RME(2), heads apart": AmortizedMixture(
            vae.model,
            heads(lambda: NormalHead(hidden, latent_dim), 2),
            heads(lambda: WeightHead(hidden), 1),
            trunk=both,
        ),
    }
    with torch.no_grad(), pyro.validation_enabled(False):
        runs = {name: partial(guide.posterior, x[:BATCH]) for name, guide in guides.items()}
        times = interleaved(runs, 40 * rounds, x.device.type)
    medians = {name: statistics.median(t) for name, t in times.items()}
    for name, median in medians.items():
        print(f"{size}: posterior of a batch, {name:<30}{median:.3f} ms, {median / medians['VAE']:.2f} of the VAE's")
    return medians


def likelihood_seconds(size: str, x: Tensor) -> dict[str, float]:
    torch.manual_seed(0)
    vae = build(*SIZES[size]).to(x.device)
    guide = AmortizedLaplace(vae.model, vae.encoder, STEPS)
    started = time.perf_counter()
    result = log_likelihood(vae.model, guide, x[:100], 5000, batch_size=100, chunk_size=50)
    seconds = time.perf_counter() - started
    print(f"{size}: IW-5000 of 100 images in {seconds:.1f} s: {result}")
    return {"seconds": seconds, "largest khat": result.khat.max().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=sorted(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", type=int, default=200, help="training steps beforehand")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)  # the processes that measure memory
    options = parser.parse_args()
    if options.peak:
        return print_peak(*options.peak)
    result = alone(options) if len(options.sizes) == 1 else apart(options)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def apart(options: argparse.Namespace) -> dict[str, object]:
    """The results of all sizes, from a process for each."""
    result: dict[str, object] = {}
    for size in options.sizes:
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [sys.executable, __file__, "--sizes", size, "--rounds", str(options.rounds), "--out", file.name]
            subprocess.run([*command, "--train", str(options.train), "--device", options.device], check=True)
            result |= json.loads(pathlib.Path(file.name).read_text())
    return result


def alone(options: argparse.Namespace) -> dict[str, object]:
    """The results of one size, by name; printed too."""
    rows = BATCH * options.train
    try:
        x = load_data("mnist", download=False).train[:rows].flatten(1).to(options.device)
    except FileNotFoundError:
        print("MNIST is not on this machine: random pixels instead.")
        x = torch.rand(rows, 784, device=options.device)
    x = x - x.mean(0)
    result: dict[str, object] = {
        "command": f"python benchmarks/laplace.py --rounds {options.rounds} --train {options.train} "
        f"--device {options.device}",
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (size,) = options.sizes
    for trained in ("laplace", "vae"):
        result[f"{size}, trained with {trained}"] = training_steps(size, trained, x, options)
    result[f"{size}, posterior of a batch in ms"] = mixture_inference(size, x, options.rounds)
    result[f"{size}, IW-5000 of 100 images"] = likelihood_seconds(size, x)
    return result


if __name__ == "__main__":
    main()
