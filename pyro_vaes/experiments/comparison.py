"""Several guides for one model: same data, same networks, same epochs and seeds; trained, measured, tabulated."""

import functools
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pyro.infer import ELBO

from pyro_vaes.data import ImageData
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.experiments.results import Comparison, Measurement
from pyro_vaes.experiments.setting import Networks, Setting
from pyro_vaes.infer import fit
from pyro_vaes.infer.pair import Pair, preserve_rng
from pyro_vaes.models import VAE

__all__ = ["Guide", "Method", "compare"]

logger = logging.getLogger(__name__)


Guide = Callable[..., object]


@dataclass(frozen=True)
class Method:
    """A guide and the bound that trains it.

    Attributes:
        name: As in the table.
        build: From the maker of networks to the model, its guide and the bound.
        refine: Guides to measure on the trained model in place of its own, untrained, by name.
    """

    name: str
    build: Callable[[Networks], tuple[VAE, Guide, ELBO]]
    refine: Mapping[str, Callable[[VAE], Guide]] = field(default_factory=dict)


def compare(
    setting: Setting,
    methods: Sequence[Method],
    seeds: Sequence[int] = (0,),
    *,
    root: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    out: str | os.PathLike[str] | None = None,
    published: Mapping[str, float] | None = None,
    remark: str = "",
    about: Mapping[str, object] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train and measure every method with every seed.

    Arguments:
        setting: What they share.
        methods: What is compared.
        seeds: Of the networks' weights, the order of the data and all noise; methods with one seed start from the same
            model.
        root: Folder of the data files, as for :func:`~pyro_vaes.data.load`.
        device: Where to train.
        out: A JSON file, written after each measurement. If it is there already with the same setting, what it holds is
            not computed again.
        published: Log-likelihoods by method, to be shown beside.
        remark: How far they can be compared.
        about: Command, machine and versions, for the record.
        progress: Whether to show progress bars.

    Raises:
        ValueError: ``out`` holds the comparison of another setting.
    """
    result = Comparison(setting, [], dict(published or {}), remark, dict(about or {}))
    if out is not None and Path(out).exists():
        earlier = Comparison.read(out)
        if earlier.setting != setting:
            raise ValueError(
                f"{out} holds a comparison with another setting ({earlier.title()}). Choose another file, or delete it."
            )
        result.measurements = [m for m in earlier.measurements if not m.error]
    data = setting.load(root).to(device)
    wanted = [(s, m) for s in seeds for m in methods]
    done = {(m.seed, m.method) for m in result.measurements}
    for seed, method in wanted:
        if {(seed, method.name), *((seed, name) for name in method.refine)} <= done:
            continue
        result.measurements = [
            m for m in result.measurements if m.seed != seed or m.method not in (method.name, *method.refine)
        ]
        result.measurements += _measure(setting, method, seed, data, torch.device(device), progress)
        if out is not None:
            result.save(out)
    return result


def _measure(
    setting: Setting, method: Method, seed: int, data: ImageData, device: torch.device, progress: bool
) -> list[Measurement]:
    """Train one method from one seed; measure it and its refinements."""
    with preserve_rng(seed):
        networks = Networks.for_data(setting, data)
        vae, guide, loss = method.build(networks)
    try:
        history = fit(
            vae.model,
            guide,
            data.train,
            loss=loss,
            optim=functools.partial(torch.optim.Adam, lr=setting.lr, fused=device.type in ("cpu", "cuda")),
            epochs=setting.epochs,
            device=device,
            batch_size=setting.batch_size,
            seed=seed,
            progress=progress,
        )
    except (ValueError, ArithmeticError) as error:
        logger.warning("%s with seed %d stopped: %s", method.name, seed, error)
        return [Measurement(method.name, seed, math.nan, math.nan, math.nan, math.nan, 0, str(error).splitlines()[0])]
    test = (data.test or data.train)[: setting.test_images]
    assert isinstance(test, torch.Tensor)
    guides = {method.name: guide} | {name: make(vae) for name, make in method.refine.items()}
    in_model = {id(p) for p in (*vae.decoder.parameters(), *vae.likelihood.parameters())}
    found = []
    for name, q in guides.items():
        estimate = log_likelihood(vae.model, q, test, setting.num_particles)
        learned = {p for m in Pair(vae.model, q).modules.values() for p in m.parameters() if id(p) not in in_model}
        found.append(
            Measurement(
                name,
                seed,
                estimate.elbo.mean().item(),
                estimate.log_likelihood.mean().item(),
                statistics.median(history.seconds) if q is guide else math.nan,
                _inference_ms(vae, q, test[: setting.batch_size]),
                sum(p.numel() for p in learned),
            )
        )
    return found


def _inference_ms(vae: VAE, guide: Guide, batch: torch.Tensor, repeats: int = 15) -> float:
    """Median time of the posterior of a batch; the first calls warm up."""
    posterior = getattr(guide, "posterior", vae.posterior)
    times = []
    with torch.no_grad():
        for _ in range(repeats + 3):
            started = time.perf_counter()
            posterior(batch)
            if batch.device.type == "cuda":
                torch.cuda.synchronize(batch.device)
            times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[3:])
