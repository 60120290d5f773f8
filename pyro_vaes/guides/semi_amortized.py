r"""The semi-amortised guide: start at an encoder's normal, then climb each datum's own bound by gradient steps.

    lambda_0 = (loc(x), log scale(x)),    lambda_{t+1} = lambda_t + lr d ELBO(x; lambda_t) / d lambda,    t = 0, .., T-1

    ELBO(x; lambda) = E log p(x, loc + scale eps) + sum_i log scale_i + const

The expectation is estimated from fresh noise at each step, the entropy is exact. The bound is summed over the batch
before it is differentiated, so that a step does not depend on how many data it holds, and trained through: the encoder
learns a start from which the steps get far, the model sees how it bends them.

References:
    | Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag & Rush, 2018)
    | https://arxiv.org/abs/1802.02550
"""

from collections.abc import Callable

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from pyro_vaes.programs import Program, is_dry_run

from .amortized import AmortizedGuide, AmortizedNormal
from .given import Rows, as_given, differentiable
from .joint import Joint
from .latents import Latents, SiteDraw
from .rules.joint import JointRule
from .rules.upstream import Upstream

Noise = Callable[[Tensor], Tensor]


class SemiAmortized(AmortizedGuide):
    """A diagonal normal refined datum by datum, for any Pyro program with continuous latents in a plate.

    Every log density of the program enters through the program itself, so the guide has no parameters but those of the
    guide that it starts from. Handlers around the guide are seen: with a KL weight of beta (``scale_latents``) the
    steps climb the weighted bound, divided by beta; give the guide the model without that weight. A dropout or a batch
    norm in training mode is part of what the steps see.

    The noise of the steps comes from torch's generator, not from sample sites, so in training mode the posterior of x
    is random. In evaluation mode (``guide.eval()``, as ``evaluate`` and the diagnostics have it) it is a function of x:
    the steps then take their noise from a generator of their own, the same numbers for every datum and every call.

    Arguments:
        base_guide: The guide to start from, also one that is trained already: then this refines it at test time.
        steps: Number T of gradient steps, 0 or more; 0 is the base guide.
        lr: Step size in units of lambda per nat: with gradients of a sum over the batch it is about the batch size
            times smaller than one for the mean over it. Beyond 2 / curvature of log p(x, z) the steps overshoot.
        momentum: Share of the last step that is taken again, in [0, 1); the authors' value is 0.5.
        second_order: Whether gradients pass through the steps. False takes the steps as constants: the encoder is
            trained as if its lambda_0 were lambda_T, at about half of the cost.
        max_norm: Largest Euclidean norm of one datum's gradient (loc and log scale together); longer ones are
            shortened. None for no limit.
        num_samples: Draws of the noise for each step's gradient, one evaluation of the model each. 1 does in training,
            refinement at test time gains from about 8.
        noise: Takes a template with shape ``(num_samples, B, numel)`` and returns the standard normal numbers of one
            step; a function that returns the same numbers each time gives steps without fresh noise. None for the
            above.

    Raises:
        ValueError: An argument is out of its range; or, at the first call, the program has discrete latents or latents
            outside the data plate.

    Example:
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, BernoulliLikelihood, Chain, NormalHead
        >>> vae = VAE(Chain(MLP(16, [8], 8), NormalHead(8, 3)), MLP(3, [8], 16), BernoulliLikelihood(), latent_dim=3)
        >>> guide = SemiAmortized(AmortizedNormal(vae.model, vae.encoder), steps=2)
        >>> guide.posterior(torch.ones(5, 16)).mean.shape
        torch.Size([5, 3])
    """

    encoder: AmortizedNormal

    def __init__(
        self,
        base_guide: AmortizedNormal,
        steps: int = 4,
        lr: float = 1e-2,
        *,
        momentum: float = 0.0,
        second_order: bool = True,
        max_norm: float | None = 5.0,
        num_samples: int = 1,
        noise: Noise | None = None,
    ) -> None:
        if not isinstance(base_guide, AmortizedNormal):
            raise ValueError(
                f"SemiAmortized starts from an AmortizedNormal, but got {type(base_guide).__name__}. Wrap the encoder: "
                "SemiAmortized(AmortizedNormal(vae.model, vae.encoder))?"
            )

        # the ascent
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps is the number of gradient steps, 0 or more, but got {steps!r}.")
        if not lr > 0:
            raise ValueError(f"lr is a step size up the bound and must be positive, but got {lr!r}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is the share of the last step taken again, in [0, 1), but got {momentum!r}.")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm limits a gradient's length and must be positive or None, but got {max_norm!r}.")

        # the draws by which it sees the bound
        if not isinstance(num_samples, int) or num_samples < 1:
            raise ValueError(f"num_samples is the number of draws per step, 1 or more, but got {num_samples!r}.")
        if noise is not None and not callable(noise):
            raise ValueError(f"noise maps a template to numbers, but got {noise!r}; lambda template: ...?")

        super().__init__(base_guide.model, base_guide)
        self.steps, self.lr, self.momentum, self.second_order = steps, lr, momentum, second_order
        self.max_norm, self.num_samples, self.noise = max_norm, num_samples, noise

    @classmethod
    def rule(cls, *args: object, given: Upstream = (), **kwargs: object) -> JointRule:
        """This guide as a rule of a :class:`~pyro_vaes.guides.ComposedGuide`.

        Arguments:
            args, kwargs: The encoder to start from, then those of the constructor.
            given: Sites whose values the encoder gets as keywords, see
                :class:`~pyro_vaes.guides.Amortized`.
        """
        encoder, *rest = args

        def make(model: Program) -> SemiAmortized:
            start = AmortizedNormal(model, encoder)  # type: ignore[arg-type]

            return cls(start, *rest, **kwargs)  # type: ignore[arg-type]

        return JointRule(make, given)

    def latents(self, *args: object, **kwargs: object) -> Latents:
        return self.encoder.latents(*args, **kwargs)

    def site_draws(self, q: TorchDistribution, latents: Latents) -> dict[str, SiteDraw]:
        """How each latent site is drawn whose joint distribution is q."""
        return self.encoder.site_draws(q, latents)

    def encode(self, *args: object, rows: Rows = None, **kwargs: object) -> TorchDistribution:
        """The refined normal of these rows of the arguments; must be called outside the data plate."""
        asked = as_given(args, kwargs, rows)
        latents = self.latents_of(asked)
        with differentiable(asked.with_rows(latents)) as given:
            q = given.call(self.encoder.encode)
            start = self.encoder.diagonal(q)
            if not self.steps or is_dry_run():
                return q

            loc, scale = given.in_rows(start.loc), given.in_rows(start.scale)
            first = torch.cat([loc, scale.log()], -1)  # (B, 2 numel)
            refined = self._climb(first, Joint(self.model, latents, given))
            loc, log_scale = refined.chunk(2, -1)
            return Normal(loc, log_scale.exp()).to_event(1)

    def _climb(self, first: Tensor, joint: Joint) -> Tensor:
        """lambda_T from lambda_0, with gradients through the steps, past them, or none, as the ambient mode has it."""
        through = self.second_order and torch.is_grad_enabled()
        refined, velocity = first if through else first.detach(), torch.zeros_like(first)
        noise = self.noise or (torch.randn_like if self.training else repeatable_noise(first.device))
        with torch.enable_grad():  # evaluation needs the steps as well
            for _ in range(self.steps):
                point = refined if refined.requires_grad else refined.detach().requires_grad_()
                velocity = self.momentum * velocity + self._slope(point, joint, noise, create_graph=through)
                refined = point + self.lr * velocity
        if through:
            return refined
        return refined.detach() + (first - first.detach())  # the same number, with the gradient of lambda_0

    def _slope(self, point: Tensor, joint: Joint, noise: Noise, *, create_graph: bool) -> Tensor:
        """d ELBO / d lambda of every datum, each no longer than ``max_norm``; 0 where it is not finite."""
        loc, log_scale = point.chunk(2, -1)
        draws = loc + log_scale.exp() * noise(loc.new_empty((self.num_samples, *loc.shape)))
        log_joint = [joint(z) for z in draws]
        elbo = torch.stack(log_joint).mean(0) + log_scale.sum(-1)  # (B,), up to a constant of the entropy
        (slope,) = torch.autograd.grad(elbo.sum(), point, create_graph=create_graph)
        # a draw so far out that log p(x, z) overflows says nothing about the way up
        slope = torch.where(slope.isfinite().all(-1, keepdim=True), slope, 0.0)
        if self.max_norm is None:
            return slope
        return slope * (self.max_norm / slope.norm(dim=-1, keepdim=True).clamp(min=self.max_norm))


def repeatable_noise(device: torch.device) -> Noise:
    """The same normal numbers, step by step, each time it is made; all data share them, wherever in a batch."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(template: Tensor) -> Tensor:
        shape = (len(template), 1, template.shape[-1])
        return torch.randn(shape, generator=generator, dtype=template.dtype, device=device).expand_as(template)

    return draw
