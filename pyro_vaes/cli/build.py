"""From options to objects: the data set, the model and the guide."""

from pathlib import Path
from typing import NamedTuple

from pyro_vaes.data import NAMES, Binarize, ImageData, Step, ToUnit, load_data
from pyro_vaes.models import VAE, ConditionalVAE, HierarchicalVAE
from pyro_vaes.nn import Chain, Labelled, Likelihood, Networks, OneHot
from pyro_vaes.programs import Program, preserve_rng

from .names import (
    GUIDES,
    LIKELIHOODS,
    NETWORKS,
    GuideEntry,
    suitable_likelihood,
)
from .options import Options

Model = VAE | ConditionalVAE | HierarchicalVAE


class Built(NamedTuple):
    """A model and its guide, with the module that holds the model."""

    vae: Model
    model: Program
    guide: Program


def data_path(data: str) -> str:
    """The name of a data set as it is, a path as an absolute one, so that a run can be opened from anywhere."""
    known = data.lower().replace("-", "_")
    path = Path(data).expanduser()
    return data if known in NAMES or not path.exists() else str(path.resolve())


def load_run_data(options: Options) -> ImageData:
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

    data = load_data(
        options.data,
        options.root,
        seed=options.split_seed,
        preprocess=steps,
        resize=options.resize,
        grey=options.grey,
        key=options.key,
        label_key=options.label_key,
        image_shape=options.image_shape,
    )
    if options.limit is not None:
        data = data.take(options.limit)

    if options.likelihood == "bernoulli" and data.info.levels != 2:
        levels = "continuous" if data.info.levels is None else f"{data.info.levels} levels"
        grey = f"{data.name} are grey ({levels})"
        suitable = suitable_likelihood(data.info, options.guide)
        raise ValueError(
            f"the Bernoulli likelihood is for pixels 0 or 1, but those of {grey}: add "
            f"--binarize for dynamic binarisation, or choose --likelihood {suitable}."
        )
    if options.model != "conditional_vae":
        return data
    if data.num_classes is None:
        raise ValueError(
            f"conditional_vae needs one label per image, but {data.name} has none: choose --model "
            "vae, or another data set."
        )
    return data.with_labels()


def num_classes(options: Options, data: ImageData) -> int:
    """The number of classes that a conditional model is given; 0 for the others."""
    conditional = options.model == "conditional_vae"
    return (conditional and data.num_classes) or 0


def build_pair(options: Options, data: ImageData) -> Built:
    """The model and the guide, with weights drawn from the seed; the generators outside stay as they are.

    Arguments:
        options: Resolved options, see :meth:`Options.resolved`.
        data: The data set.

    Example:
        >>> options = Options(latent_dim=(2,), hidden=(8,))
        >>> data = load_run_data(options)
        >>> build_pair(options.resolved(data), data).vae.latent_dim
        2
    """
    entry = LIKELIHOODS[str(options.likelihood)]
    likelihood = entry.build(data.info)
    divisor = max(1.0, abs(data.info.low), abs(data.info.high)) if entry.raw else 1.0
    classes = num_classes(options, data)

    with preserve_rng(options.seed):
        family = NETWORKS[options.network].build
        networks = family(data.image_shape, options.hidden, divisor)
        vae = _vae(options, networks, likelihood, classes)

        guide = GUIDES[options.guide]
        if not isinstance(guide, GuideEntry):
            return Built(vae, vae.model, vae.guide)

        # a guide of its own, whose networks see the label too where the model does
        trunk, width = networks.trunk(classes)
        if classes:
            trunk = Labelled(trunk, classes)
        head = guide.head(width, sum(options.latent_dim))
        return Built(vae, vae.model, guide.build(vae.model, Chain(trunk, head)))


def _vae(options: Options, networks: Networks, likelihood: Likelihood, classes: int) -> Model:
    """The model that the options name."""
    if options.model == "hierarchical_vae":
        return _hierarchical(options, networks, likelihood)

    (latent_dim,) = options.latent_dim
    encoder = networks.head(networks.trunk(classes), latent_dim)
    decoder = networks.decoder(latent_dim + classes, likelihood.num_params)
    if not classes:
        return VAE(encoder, decoder, likelihood, latent_dim)
    labels = OneHot(classes)
    return ConditionalVAE(encoder, decoder, likelihood, latent_dim, embedding=labels)


def _hierarchical(options: Options, networks: Networks, likelihood: Likelihood) -> HierarchicalVAE:
    dims, skip = options.latent_dim, options.skip

    # the width of what each level but the top one sees from above
    above = []
    for level in range(1, len(dims)):
        above.append(sum(dims[level:]) if skip else dims[level])

    if options.top_down:
        trunks = [networks.trunk(width) for width in [*above, 0]]
    elif skip:
        # the guide passes z_l, ..., z_1 and then the image
        trunks = [networks.trunk(sum(dims[:level]), image_last=True) for level in range(len(dims))]
    else:
        trunks = [networks.trunk(), *map(networks.vector_trunk, dims[:-1])]

    encoders = [networks.head(trunk, dim) for trunk, dim in zip(trunks, dims, strict=True)]
    priors = [networks.head(networks.vector_trunk(a), dim) for a, dim in zip(above, dims, strict=False)]
    decoder = networks.decoder(sum(dims) if skip else dims[0], likelihood.num_params)
    return HierarchicalVAE(encoders, decoder, likelihood, dims, priors=priors, skip=skip, top_down=options.top_down)
