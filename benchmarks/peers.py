"""Time of a training step: the three engines of ``fit`` beside raw torch, ``SVI.step`` and NumPyro.

    python benchmarks/peers.py [--jobs tiny hier5 mid big] [--rounds 7] [--steps 100]
        [--without numpyro compiled] [--write]

All contestants of a job take turns in each round, on one thread each; medians count. NumPyro
runs in a virtual environment of its own under ``.venv-numpyro``, which the script makes.
A table that is to be quoted is taken where nothing else runs: the load average, the spread
and all rounds are written with it, and a job that met a load above 0.3 is marked void.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from tqdm.auto import tqdm

from pyro_vaes.infer.training.loop import _steps_of_epoch
from pyro_vaes.infer.training.plan import Plan
from pyro_vaes.infer.training.prepare import prepare, start
from pyro_vaes.models import VAE, HierarchicalVAE
from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead

HERE = pathlib.Path(__file__).parent
RESULT = HERE / "results" / "peers-cpu.json"
ENVIRONMENT = HERE.parent / ".venv-numpyro"
QUIET = 0.3  # load average up to which a row counts

# features, widths, latent dimension, levels, batch
JOBS = {
    "tiny": (64, [32], 4, 1, 64),
    "hier5": (64, [32], 4, 5, 64),
    "mid": (784, [400], 20, 1, 256),
    "big": (784, [500, 500], 50, 1, 128),
}
ENGINES = {"eager": False, "captured": "capture", "compiled": True}


def head(features, hidden, dim):
    return Chain(MLP(features, hidden[:-1], hidden[-1], activate_output=True), NormalHead(hidden[-1], dim))


def build(job):
    """Model and guide of a job."""
    features, hidden, dim, levels, _ = JOBS[job]
    torch.manual_seed(0)
    decoder = MLP(dim, hidden[::-1], features)
    if levels == 1:
        return VAE(head(features, hidden, dim), decoder, BernoulliLikelihood(), dim)

    encoders = [head(features if level == 0 else dim, hidden, dim) for level in range(levels)]
    priors = [head(dim, hidden, dim) for _ in range(levels - 1)]
    return HierarchicalVAE(encoders, decoder, BernoulliLikelihood(), [dim] * levels, priors=priors)


def data_of(job, steps):
    features, *_, rows = JOBS[job]
    generator = torch.Generator().manual_seed(1)
    return torch.bernoulli(torch.full((steps * rows, features), 0.5), generator=generator)


class Raw(nn.Module):
    """The job in torch alone, its loss written by hand."""

    def __init__(self, job):
        super().__init__()
        features, hidden, self.dim, levels, _ = JOBS[job]

        def network(wide, narrow, widths):
            layers = []
            for a, b in zip([wide, *widths], widths, strict=False):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(widths[-1], narrow))

        sizes = [features] + [self.dim] * (levels - 1)
        self.encoders = nn.ModuleList(network(size, 2 * self.dim, hidden) for size in sizes)
        self.priors = nn.ModuleList(network(self.dim, 2 * self.dim, hidden) for _ in range(levels - 1))
        self.decoder = network(self.dim, features, hidden[::-1])

    def forward(self, x):
        draws, loss, below = [], 0.0, x
        for encoder in self.encoders:
            loc, scale = encoder(below).chunk(2, -1)
            scale = softplus(scale)
            noise = torch.randn_like(loc)
            below = loc + scale * noise
            draws.append(below)
            loss = loss - (scale.log() + 0.5 * noise.square()).sum()

        for prior, value, above in zip(self.priors, draws, draws[1:], strict=False):
            loc, scale = prior(above).chunk(2, -1)
            scale = softplus(scale)
            loss = loss + (scale.log() + 0.5 * ((value - loc) / scale).square()).sum()
        loss = loss + 0.5 * draws[-1].square().sum()
        logits = self.decoder(draws[0])
        return (loss + binary_cross_entropy_with_logits(logits, x, reduction="sum")) / len(x)


def raw(job, steps, *, compiled=False):
    """A loop by hand; with torch.compile around the loss or without."""
    model = Raw(job)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    loss = torch.compile(model) if compiled else model
    batches = data_of(job, steps).split(JOBS[job][-1])

    def round_():
        for x in batches:
            optimizer.zero_grad()
            loss(x).backward()
            optimizer.step()

    return round_


def svi(job, steps):
    pyro.clear_param_store()
    vae = build(job)
    steps_of = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    batches = data_of(job, steps).split(JOBS[job][-1])

    def round_():
        for x in batches:
            steps_of.step(x)

    return round_


def engine(job, steps, compile, stack):
    """An epoch of fit under one engine; the run goes on from round to round."""
    vae = build(job)
    plan = Plan(
        loss=None,
        optim=None,
        epochs=10**6,
        batch_size=JOBS[job][-1],
        callbacks=(),
        seed=0,
        device=None,
        checkpoint=None,
        resume=False,
        on_nan="raise",
        drop_last=None,
        unit=None,
        fabric=None,
        compile=compile,
    )
    training = start(prepare(plan, vae.model, vae.guide, data_of(job, steps), None))
    bar = stack.enter_context(tqdm(disable=True))

    def round_():
        _steps_of_epoch(training, bar)
        training.run.epoch += 1

    round_.training = training
    return round_


def numpyro(job, steps, stack):
    """The other process; a round is one line to it, and its answer."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "numpyro"], check=True)

    command = [str(python), str(HERE / "numpyro_peer.py"), job, str(steps)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.stdin.close)
    assert process.stdout.readline().strip() == "ready", "NumPyro did not start"

    def round_():
        process.stdin.write("go\n")
        process.stdin.flush()
        return [float(part) for part in process.stdout.readline().split()]

    return round_


def measure(job, rounds, steps, without):
    """Milliseconds per step of each contestant in each round."""
    found = {}
    with ExitStack() as stack:
        contestants = {"raw torch": raw(job, steps), "SVI.step": svi(job, steps)}
        if "compiled" not in without:
            contestants["torch.compile(raw)"] = raw(job, steps, compiled=True)
        for name, compile in ENGINES.items():
            if name not in without:
                contestants[f"fit, {name}"] = engine(job, steps, compile, stack)
        other = None if "numpyro" in without else numpyro(job, steps, stack)

        for run in contestants.values():  # what is done once
            run()
        for _ in range(rounds):
            for name, run in contestants.items():
                began = time.perf_counter()
                run()
                found.setdefault(name, []).append(1e3 * (time.perf_counter() - began) / steps)
            if other is not None:
                for name, taken in zip(("NumPyro, jitted step", "NumPyro, scan"), other(), strict=True):
                    found.setdefault(name, []).append(taken)

        for name, run in contestants.items():
            if name.startswith("fit, "):
                ran = run.training.step.engine
                assert ran.name == name.removeprefix("fit, "), f"{name} ran {ran.name}: {ran.reason}"
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--without", nargs="*", default=[], choices=["numpyro", "compiled", "captured"])
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)

    table = {}
    for job in options.jobs:
        before = os.getloadavg()[0]
        found = measure(job, options.rounds, options.steps, options.without)
        medians = {name: statistics.median(taken) for name, taken in found.items()}
        print(f"\n{job}, load average {before:.2f}{'  (void)' if before > QUIET else ''}")
        for name, median in medians.items():
            spread = (max(found[name]) - min(found[name])) / median
            print(f"  {name:<22}{median:8.3f} ms{median / medians['raw torch']:7.2f} x raw{spread:7.0%} spread")
        table[job] = {"load": before, "void": before > QUIET, "medians": medians, "rounds": found}

    if options.write:
        versions = {"torch": torch.__version__, "pyro": pyro.__version__, "machine": platform.processor()}
        RESULT.write_text(json.dumps({"versions": versions, "jobs": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
