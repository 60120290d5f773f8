"""From options to objects: the data set, the model and the guide."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pyro_vaes.cli.names import GUIDES, LIKELIHOODS, NETWORKS, choose
from pyro_vaes.cli.options import Options
from pyro_vaes.data import NAMES, Binarize, ImageData, Step, ToUnit
from pyro_vaes.data import load_data as load_image_data
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import Chain, OneHot
from pyro_vaes.nn.default_networks import Labelled, Networks
from pyro_vaes.nn.likelihoods import Likelihood
from pyro_vaes.programs.pair import preserve_rng

__all__ = ["Built", "build_pair", "data_path", "load_data"]


@dataclass(frozen=True)
class Built:
    """A model and its guide, with the module that holds the model."""

    vae: VAE | ConditionalVAE | HierarchicalVAE
    model: Callable[..., object]
    guide: Callable[..., object]


def data_path(data: str) -> str:
    """The name of a data set as it is, a path as an absolute one, so that a run can be opened from anywhere."""
    known = data.lower().replace("-", "_")
    path = Path(data).expanduser()
    return data if known in NAMES or not path.exists() else str(path.resolve())


def load_data(options: Options) -> ImageData:
    """The data set, preprocessed as the likelihood wants it; batches are `(x, y)` for the conditional model.

    Raises:
        ValueError: If there is no such data set, or the likelihood does not suit it.
        FileNotFoundError: If its files are missing.
    """
    likelihood = LIKELIHOODS.get(options.likelihood or "")
    steps: tuple[Step, ...] | None = None
    if options.binarize:
        steps = (ToUnit(), Binarize())
    elif likelihood is not None and likelihood.raw:
        steps = ()
    data = load_image_data(
        options.data,
        options.root,
        seed=options.split_seed,
        preprocess=steps,
        resize=options.resize,
        grey=options.grey,
        key=options.key,
        label_key=options.label_key,
        image_shape=cast(tuple[int, int, int] | None, options.image_shape),
    )
    if options.limit is not None:
        data = data.take(options.limit)
    if options.likelihood == "bernoulli" and data.info.levels != 2:
        levels = "continuous" if data.info.levels is None else f"{data.info.levels} levels"
        raise ValueError(
            f"the Bernoulli likelihood is for pixels 0 or 1, but those of {data.name} are grey ({levels}): add "
            "--binarize for dynamic binarisation, or choose --likelihood continuous_bernoulli."
        )
    if options.model == "conditional_vae":
        if data.num_classes is None:
            raise ValueError(
                f"conditional_vae needs one label per image, but {data.name} has none: choose --model "
                "vae, or another data set."
            )
        return data.with_labels()
    return data


def build_pair(options: Options, data: ImageData) -> Built:
    """The model and the guide, with weights drawn from the seed; the generators outside stay as they are.

    Arguments:
        options: Resolved options, see :meth:`Options.resolved`.
        data: The data set.

    Example:
        >>> options = Options(latent_dim=(2,), hidden=(8,))
        >>> data = load_data(options)
        >>> build_pair(options.resolved(data), data).vae.latent_dim
        2
    """
    kind, _ = choose("network", options.network, NETWORKS)
    likelihood = choose("likelihood", str(options.likelihood), LIKELIHOODS)
    with preserve_rng(options.seed):
        divisor = max(1.0, abs(data.info.low), abs(data.info.high)) if likelihood.raw else 1.0
        networks = kind(data.image_shape, options.hidden, divisor)
        vae = _MODELS[options.model](options, data, networks, likelihood.build(data.info))
        model, guide = vae.model, vae.guide
        amortized = GUIDES[options.guide]
        if amortized is not None:
            classes = data.num_classes or 0 if options.model == "conditional_vae" else 0
            trunk, width = networks.trunk(classes)
            if classes:
                trunk = Labelled(trunk, classes)
            head = amortized.head(width, sum(options.latent_dim))
            guide = amortized.build(vae.model, Chain(trunk, head))
        return Built(vae, model, guide)


def _vae(options: Options, data: ImageData, networks: Networks, likelihood: Likelihood) -> VAE:
    (latent_dim,) = options.latent_dim
    encoder = networks.head(networks.trunk(), latent_dim)
    return VAE(encoder, networks.decoder(latent_dim, likelihood.num_params), likelihood, latent_dim)


def _conditional(options: Options, data: ImageData, networks: Networks, likelihood: Likelihood) -> ConditionalVAE:
    (latent_dim,), classes = options.latent_dim, data.num_classes
    assert classes is not None
    encoder = networks.head(networks.trunk(classes), latent_dim)
    decoder = networks.decoder(latent_dim + classes, likelihood.num_params)
    return ConditionalVAE(encoder, decoder, likelihood, latent_dim, embedding=OneHot(classes))


def _hierarchical(options: Options, data: ImageData, networks: Networks, likelihood: Likelihood) -> HierarchicalVAE:
    dims, skip = options.latent_dim, options.skip
    above = [sum(dims[i + 1 :]) if skip else dims[i + 1] for i in range(len(dims) - 1)]
    if options.top_down:
        trunks = [networks.trunk(extra) for extra in [*above, 0]]
    else:
        trunks = [networks.trunk()]
        for level in range(1, len(dims)):
            below = sum(dims[:level])
            # with skip connections the guide passes z_l, ..., z_1 and then the image
            trunks.append(networks.trunk(below, image_last=True) if skip else networks.vector_trunk(dims[level - 1]))
    encoders = [networks.head(trunk, dim) for trunk, dim in zip(trunks, dims, strict=True)]
    priors = [networks.head(networks.vector_trunk(a), dim) for a, dim in zip(above, dims, strict=False)]
    decoder = networks.decoder(sum(dims) if skip else dims[0], likelihood.num_params)
    return HierarchicalVAE(encoders, decoder, likelihood, dims, priors=priors, skip=skip, top_down=options.top_down)


_MODELS: dict[str, Callable[[Options, ImageData, Networks, Likelihood], VAE | ConditionalVAE | HierarchicalVAE]] = {
    "vae": _vae,
    "conditional_vae": _conditional,
    "hierarchical_vae": _hierarchical,
}
