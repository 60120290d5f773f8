"""Several guides for one model: same data, same networks, same epochs and seeds; trained, measured, tabulated."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from pyro.infer import ELBO

from papers.guide_comparison.setting import Networks, Setting
from papers.study import Job, Result, Study
from pyro_vaes.diagnostics import log_likelihood
from pyro_vaes.infer import fit
from pyro_vaes.models import VAE
from pyro_vaes.programs import Pair, preserve_rng

__all__ = ["Guide", "Method", "compare", "comparison", "image_setting"]

Guide = Callable[..., object]

COLOUR = ("svhn_subset", "cifar10_subset", "svhn", "cifar10")
GREY = ("mnist", "digits", "fashion_mnist", "omniglot28")


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


def image_setting(budget: str, data: str) -> Setting:
    """One hidden layer of 256 and a code of 16, or 512 and 32 for colour images, with Adam 5e-4.

    ``"smoke"`` takes seconds; ``"cpu"`` trains for 10 epochs and measures 1000 test images; ``"gpu"`` trains for 100
    and measures all.
    """
    hidden, latent_dim = ((512,), 32) if data in COLOUR else ((256,), 16)
    shared = Setting(data, hidden=hidden, latent_dim=latent_dim, budget=budget)
    if budget == "smoke":
        return replace(
            shared,
            hidden=(16,),
            latent_dim=4,
            epochs=1,
            train_images=512,
            test_images=64,
            num_particles=10,
        )

    if budget == "cpu":
        return replace(shared, epochs=10, test_images=1000)

    return replace(shared, epochs=100)


def comparison(
    name: str,
    about: str,
    setting: Callable[[str, str, str], Setting],
    methods: Callable[[str], Sequence[Method]],
    published: Mapping[tuple[str, str], tuple[Mapping[str, float], str]],
    output: str,
) -> Study[Setting]:
    """A paper's comparison of guides with one likelihood as a study.

    Arguments:
        name: Name of the paper's method.
        about: What it compares, in one line.
        setting: From budget, data and output to what the methods share.
        methods: From the budget to the methods.
        published: By data and output, log-likelihoods by method, and where they come from.
        output: ``"gaussian"``, or ``"bernoulli"``, for which colour images are not binarised.
    """
    here = {data: entry for (data, other), entry in published.items() if other == output}

    def remark(setting: Setting) -> str:
        notes = []
        if setting.data in here:
            _, source = here[setting.data]
            notes.append(source)
        if setting.data.endswith("_subset"):
            notes.append(f"{setting.data} is a subset of the published data: no figure on it is one on the full data")
        if output == "gaussian":
            notes.append("Gaussian densities of pixels have no upper bound: other epochs, other figures")
        return ". ".join(notes) + "." * bool(notes)

    return Study(
        name if output == "gaussian" else f"{name}_{output}",
        f"{about}; {output} output",
        GREY if output == "bernoulli" else GREY + COLOUR,
        lambda budget, data: setting(budget, data, output),
        lambda shared: {method.name: functools.partial(compare, method) for method in methods(shared.budget)},
        published={data: _column("IW", values) for data, (values, _) in here.items()},
        remark=remark,
    )


def _column(name: str, values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {method: {name: value} for method, value in values.items()}


def compare(method: Method, setting: Setting, job: Job) -> Result:
    """Train one method from one seed; measure it, in nats per datum on test images, and its refinements.

    Methods with one seed start from the same model. The columns: ELBO, the mean log importance weight; IW, the
    importance-weighted estimate with the setting's number of particles; the median seconds per epoch; the median
    milliseconds of the posterior of one batch; how many numbers the guide learns.

    Raises:
        FloatingPointError: Training diverged.
    """
    data = setting.load(job.root).to(job.device)
    with preserve_rng(job.seed):
        networks = Networks.for_data(setting, data)
        vae, guide, loss = method.build(networks)

    fused = job.device.type in ("cpu", "cuda")
    try:
        history = fit(
            vae.model,
            guide,
            data.train,
            loss=loss,
            optim=functools.partial(torch.optim.Adam, lr=setting.lr, fused=fused),
            epochs=setting.epochs,
            device=job.device,
            batch_size=setting.batch_size,
            seed=job.seed,
            progress=job.progress,
        )
    except ValueError as error:
        # a curvature that is not positive definite, at weights that training came to
        raise FloatingPointError(str(error)) from error

    test = setting.measured(data.test or data.train)
    figures = _figures(vae, guide, test, setting)
    figures["s/epoch"] = statistics.median(history.seconds)

    refined = {}
    for name, refine in method.refine.items():
        refined[name] = _figures(vae, refine(vae), test, setting)
    return Result(figures, beside=refined)


def _figures(vae: VAE, guide: Guide, test: torch.Tensor, setting: Setting) -> dict[str, float]:
    estimate = log_likelihood(vae.model, guide, test, setting.num_particles)
    elbo, iw = estimate.elbo.mean().item(), estimate.log_likelihood.mean().item()

    modules = Pair(vae.model, guide).modules.values()
    of_pair = {parameter for module in modules for parameter in module.parameters()}
    of_model = {*vae.decoder.parameters(), *vae.likelihood.parameters()}

    return {
        "ELBO": elbo,
        "IW": iw,
        "IW − ELBO": iw - elbo,
        "ms/batch": _inference_ms(vae, guide, test[: setting.batch_size]),
        "guide parameters": sum(p.numel() for p in of_pair - of_model),
    }


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
