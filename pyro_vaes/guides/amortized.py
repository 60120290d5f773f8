"""Amortised normal guides for any Pyro program with continuous latents in one data plate.

    q(z | x) = N(loc(x), diag scale(x)²)    or    N(loc(x), L(x) L(x)ᵀ)

over the program's latent sites, concatenated in trace order and unconstrained (Kucukelbir et al., 2017); with
several sites or constrained supports the density carries the log-determinant of the map onto the support.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
    | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017)
    | https://arxiv.org/abs/1603.00788
"""

from dataclasses import dataclass, field
from typing import ClassVar

from pyro import poutine
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule, as_posterior
from pyro_vaes.programs import (
    Answer,
    Findings,
    Program,
    SwapPriors,
    bind_keywords,
    outside_the_run,
    plates,
    run_swapped,
)

from .accepted_keywords import accepted_keywords
from .find_latents import find_latents
from .given import Given, Rows, as_given
from .latents import Latents, SiteDraw, sample_all
from .masks import masked_posterior, own_mask
from .passing_buffers import PassingBuffers
from .plate_shapes import Placement
from .rules.joint import JointRule
from .rules.upstream import Upstream


class AmortizedGuide(ProgramModule):
    """What amortised guides share: the model's latents and plate, and an encoder over them.

    Arguments:
        model: Any Pyro program whose latents are continuous and lie in one data plate.
        encoder: Called with the model's positional arguments, and those keywords that its ``forward`` takes; returns a
            distribution over vectors of the latents' total (unconstrained) dimension, or a pair ``(loc, scale)``.

    Attributes:
        family: The family that the encoder must return, where the guide needs one.
        needs: What that is called, and what to do where another one came.
    """

    family: ClassVar[type] = object
    needs: ClassVar[tuple[str, str]] = ("", "")

    def __init__(self, model: Program, encoder: nn.Module) -> None:
        super().__init__()
        if not callable(model) or not isinstance(encoder, nn.Module):
            raise ValueError(
                f"{type(self).__name__} takes (model, encoder): a Pyro program and a network, but got "
                f"{type(model).__name__} and {type(encoder).__name__}. Pass vae.model rather than vae?"
            )
        self._model = (model,)  # in a tuple, so that a module given as the model does not become a part of the guide
        self.encoder = encoder
        self._found = Findings[Latents]()
        self._passed = PassingBuffers()
        self._of_all_data: Latents | None = None

    @classmethod
    def rule(cls, *args: object, given: Upstream = (), **kwargs: object) -> JointRule:
        """This guide as a rule of a :class:`~pyro_vaes.guides.ComposedGuide`.

        Arguments:
            args, kwargs: Those of the constructor, without the model.
            given: Sites whose values the networks get as keywords, see :class:`~pyro_vaes.guides.Amortized`.
        """
        return JointRule(lambda model: cls(model, *args, **kwargs), given)  # type: ignore[arg-type]

    @property
    def model(self) -> Program:
        """The program whose latents this guide infers."""
        return self._model[0]

    def latents(self, *args: object, **kwargs: object) -> Latents:
        """The model's latent sites and their plate; the model is run once for each structure of a batch.

        A plate that draws some of the rows itself is looked at only once: later calls may be
        with a part of the data.
        """
        if self._of_all_data is not None:
            return self._of_all_data

        program = bind_keywords(self.model, kwargs)
        found = self._found.of((program,), args, lambda: find_latents(self.model, *args, **kwargs))
        if not found.follows_batch:
            self._of_all_data = found
        return found

    def encode(self, *args: object, rows: Rows = None, **kwargs: object) -> TorchDistribution:
        """The encoder's distribution over the concatenated, unconstrained latents of these rows of the arguments."""
        given = as_given(args, kwargs, rows)
        latents = self.latents_of(given)

        q = as_posterior(self._encoded(given))
        if q.event_shape != (latents.numel,):
            raise ValueError(
                f"The encoder returns vectors of shape {tuple(q.event_shape)}, but the model's latent sites need "
                f"{latents.numel} numbers per datum: {latents.describe()}. Give the head that many outputs?"
            )
        if not self._fits(q):
            family, cure = self.needs
            raise ValueError(f"{type(self).__name__} needs an encoder that returns {family}, but got {q}; {cure}.")
        return q

    def latents_of(self, given: Given) -> Latents:
        """The latent sites that a posterior is asked for."""
        if given.latents is not None:
            return given.latents
        return self.latents(*given.args, **given.kwargs)

    def _fits(self, q: TorchDistribution) -> bool:
        """Whether q is of the family."""
        return isinstance(q, self.family)

    def _encoded(self, given: Given) -> object:
        """What the encoder returns."""
        return output_of(self.encoder, given)

    def posterior(self, *args: object, rows: Rows = None, **kwargs: object) -> TorchDistribution:
        """q(z | x) over the concatenated, unconstrained latents: batch shape ``(B,)``, event shape ``(numel,)``."""
        return self.encode(*args, rows=rows, **kwargs)

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        latents = self.latents(*args, **kwargs)
        group = DrawnTogether(self, latents)

        def answer(message: Message) -> Answer:
            rows = swap.rows.get(latents.plate) if latents.subsample_size is not None else None
            return group.answer(message, Given(args, kwargs, rows))

        swap = SwapPriors(answer, latents.names)
        with self._passed.kept(self.model, args, kwargs, latents.names):
            return run_swapped(swap, self.model, args, kwargs)

    def draws(self, given: Given, latents: Latents, placement: Placement) -> dict[str, SiteDraw]:
        """How each of the latent sites is drawn; called where the model is about to draw the first of them."""
        with outside_the_run():  # encoders may run the program (a Laplace component of a mixture)
            q = given.call(self.encode)
        return self.site_draws(given.laid_out(q, placement), latents)

    def site_draws(self, q: TorchDistribution, latents: Latents) -> dict[str, SiteDraw]:
        """How each latent site is drawn whose joint distribution is q."""
        return latents.draws(q)

    def sample(self, q: TorchDistribution, latents: Latents) -> dict[str, Tensor]:
        """Sample every latent site of the model from q."""
        return sample_all(self.site_draws(q, latents))


@dataclass
class DrawnTogether:
    """Latent sites of one run of a model that one guide draws, all at the first of them.

    Where rows may be masked, or the sites have scales of their own, each is drawn where the
    model draws it.
    """

    guide: AmortizedGuide
    latents: Latents
    draws: dict[str, SiteDraw] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)

    def answer(self, message: Message, given: Given) -> Answer:
        """How the site of this message is drawn, or its value."""
        latents, name = self.latents, message["name"]
        if self.draws is None:
            placement = Placement(name, plates(message))
            # an auxiliary site of the whole vector is masked as its sites are
            with poutine.mask(mask=own_mask(name, message["fn"])):
                self.draws = self.guide.draws(given, latents, placement)
            if not latents.is_masked and not latents.scales_differ:
                self.values = sample_all(self.draws)

        if name in self.values:
            return self.values[name]
        draw = self.draws[name]
        message["infer"].update(draw.infer)
        return masked_posterior(draw.fn, message["fn"], message["mask"])


def output_of(network: Program, given: Given) -> object:
    """What a network, or another guide, makes of the rows that a plate drew.

    The rows are taken of all arguments with as many rows as the first, unless the plate drew them all. A network gets
    those keywords that its ``forward`` takes; a guide, which runs the model, gets all of them.

    Raises:
        ValueError: The network needs a positional argument, and all came as keywords of other names.
    """
    if isinstance(network, AmortizedGuide):
        return given.call(network.encode)

    named = {**given.kwargs, **given.keywords}
    keywords = accepted_keywords(network, len(given.args), named) if named else {}
    rows, size = given.rows, given.size
    if rows is None or size is None or len(rows) == size:
        return network(*given.args, **keywords)

    def drawn(value: object) -> object:
        if isinstance(value, Tensor) and value.dim() and len(value) == size:
            return value[rows]
        return value

    drawn_keywords = {name: drawn(value) for name, value in keywords.items()}
    return network(*map(drawn, given.args), **drawn_keywords)


class AmortizedNormal(AmortizedGuide):
    """The diagonal normal: every latent site is its own (transformed) normal, so analytic KLs apply where they exist.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vaes.nn import MLP, Chain, NormalHead
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate.unsqueeze(-1)).expand([len(x), 3]).to_event(1), obs=x)
        >>> guide = AmortizedNormal(model, Chain(MLP(3, [8], 8), NormalHead(8, 1)))
        >>> guide(torch.ones(5, 3))["rate"].shape
        torch.Size([5])
    """

    def diagonal(self, q: TorchDistribution) -> Normal:
        """The factors of the encoder's distribution."""
        base = getattr(q, "base_dist", None)
        if not isinstance(base, Normal):
            raise ValueError(
                f"AmortizedNormal needs an encoder that returns a diagonal normal, but got {q}; use NormalHead, or "
                "AmortizedMultivariateNormal for a full covariance."
            )
        return base

    def site_draws(self, q: TorchDistribution, latents: Latents) -> dict[str, SiteDraw]:
        base = self.diagonal(q)
        locs, scales = latents.split(base.loc), latents.split(base.scale)

        draws = {}
        for site, loc, scale in zip(latents.sites, locs, scales, strict=True):
            draws[site.name] = SiteDraw(site.normal(loc, scale), {})
        return draws


class AmortizedMultivariateNormal(AmortizedGuide):
    """The full-covariance normal over all latent sites together, correlations between sites included."""

    family = MultivariateNormal
    needs = (
        "a MultivariateNormal",
        "use MultivariateNormalHead, or AmortizedNormal for a diagonal covariance",
    )
