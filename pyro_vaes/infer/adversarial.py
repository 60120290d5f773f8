r"""A discriminator on top of any bound: reconstructions are to look like data.

    loss / B     = loss of the bound / B + w BCE(1, D(x_hat)),      x_hat = mean of p(x | z), z the guide's own draw
    L_dis        = w BCE(1, D(x)) + w BCE(0, D(x_hat)),             x_hat held fixed

BCE(t, D) is the binary cross-entropy of the discriminator's logits, a mean over images and, of a patch discriminator,
over the map of patches. Each step moves the pair by the first and the discriminator by the second, both from the images
of one pass of the pair; neither loss has a gradient for the other's parameters.

References:
    | How to Train Your VAE (Rivera, 2024)
    | https://arxiv.org/abs/2309.13160
    | Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2016)
    | https://arxiv.org/abs/1512.09300
    | Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017), for logits of patches
    | https://arxiv.org/abs/1611.07004
"""

import copy
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus
from torch.optim import Optimizer

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import (
    DRAWN,
    DataPlate,
    Program,
    SiteRecorder,
    find_data_plate,
    find_plate,
    modes,
)

from .bounds.bound import Args, Bound, found_once
from .bounds.facts import facts_of, layers
from .bounds.global_batch import is_shared
from .bounds.observations import ObservationRecorder, observation_mean
from .bounds.recorded import Recorded
from .callback import Callback, Run, State
from .optimizers import (
    MakeOptimizer,
    halve_learning_rate,
    make_optimizer,
    step_if_finite,
)

T = TypeVar("T")


class _Images(NamedTuple):
    """What the discriminator is shown of one run: data ``(B, *event)`` and reconstructions ``(K B, *event)``."""

    real: Tensor
    fake: Tensor


class Adversarial_ELBO(Bound):
    """Any bound with a discriminator of data and reconstructions, which has an optimiser of its own.

    :func:`~pyro_vaes.infer.fit` needs nothing else: after each step of the pair it takes one of the discriminator, and
    its checkpoints hold both. In a loop of one's own, or after ``SVI.step``, :meth:`discriminator_step` takes it::

        loss = bound.differentiable_loss(model, guide, x)
        (loss / len(x)).backward()
        optimizer.step()
        bound.discriminator_step()

    The loss stays a sum over the data: the adversarial term times the batch's number of rows, or the number of data
    that a subsampling plate stands for. Reconstructions are the means of the observation given the draws with which the
    wrapped bound has run the model; of several particles all are shown if they are vectorised, the last one if not. A
    step of the pair changes nothing of the discriminator, running statistics included. A step of the discriminator that
    is not finite is left out, and a rollback of ``fit`` takes the discriminator and its optimiser back as it does the
    pair and the pair's.

    Arguments:
        base: The bound, any with a differentiable loss but those of mixtures and ``DReG_ELBO``, whose draws are
            no plain ones of the guide.
        discriminator: Maps images ``(B, *event)`` to logits with any shape; the module is trained in place and moves to
            the images' device.
        weight: w, 0 or more; the released 100.
        optim: The discriminator's optimiser, as for ``fit``; Adam with learning rate 1e-3 by default.
        site: The observed site that holds the images; needed where there are several.

    Raises:
        ValueError: An argument is of no use; at a call, the pair's observation has no mean or its draws no gradient, or
            several processes share the step.

    Example:
        >>> from pyro_vaes.infer import AggregatePosterior_ELBO, fit
        >>> from pyro_vaes.models import VAE
        >>> from pyro_vaes.nn import MLP, LaplaceLikelihood, NormalHead
        >>> vae = VAE(NormalHead(3, 2), MLP(2, [], 3), LaplaceLikelihood(0.1), latent_dim=2)
        >>> bound = Adversarial_ELBO(AggregatePosterior_ELBO(), MLP(3, [8], 1), weight=1.0)
        >>> history = fit(vae.model, vae.guide, torch.randn(64, 3), loss=bound, batch_size=16, epochs=1, progress=False)
    """

    def __init__(
        self,
        base: ELBO,
        discriminator: nn.Module,
        *,
        weight: float = 100.0,
        optim: MakeOptimizer | Optimizer | PyroOptim | None = None,
        site: str | None = None,
    ) -> None:
        if not hasattr(base, "differentiable_loss"):
            raise ValueError(
                f"base must be a bound with a differentiable loss, but {type(base).__name__} has none; Trace_ELBO()?"
            )
        if not facts_of(base).plain_draws:
            other = next(b for b in layers(base) if not facts_of(b).plain_draws)
            raise UsageError(
                f"{type(other).__name__} has draws that are no plain draws of the guide (one "
                "of each component of a mixture, or with gradients of their own), and a "
                "discriminator of their reconstructions would send wrong gradients to the "
                "guide.",
                use_bound(),
            )

        if not isinstance(discriminator, nn.Module) or not any(p.requires_grad for p in discriminator.parameters()):
            raise ValueError(
                f"The discriminator must be a module with parameters to train, but got {type(discriminator).__name__}."
            )
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight is that of a penalty, a number of 0 or more, but got {weight}.")

        super().__init__(num_particles=base.num_particles, max_plate_nesting=base.max_plate_nesting)
        self.base, self.discriminator, self.weight, self.site = base, discriminator, weight, site
        self._optim = optim
        self._models, self._guides = Recorded(ObservationRecorder()), Recorded(SiteRecorder(DRAWN))
        self._images: _Images | None = None

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        """The discriminator's optimiser, made when it is first asked for."""
        parameters: list[Tensor] = [p for p in self.discriminator.parameters() if p.requires_grad]
        return make_optimizer(self._optim, parameters)

    def negative_bound(self, model: Program, guide: Program, *args: object) -> Tensor:
        """The base's loss plus N w BCE(1, D(x_hat)), without a gradient for the discriminator."""
        if is_shared():
            raise ValueError(
                "Adversarial_ELBO trains its discriminator on one process, but several share this step. Use one device."
            )
        loss, images, num_data = self._run(self.base.differentiable_loss, model, guide, args)
        self._images = _Images(images.real.detach(), images.fake.detach())
        return loss + num_data * self._generator_term(images.fake)

    def negative_value(self, model: Program, guide: Program, *args: object) -> float:
        with modes(self.discriminator, training=False):
            loss, images, num_data = self._run(self.base.loss, model, guide, args)
            return float(loss + num_data * self._generator_term(images.fake))

    def discriminator_loss(self) -> Tensor:
        """w BCE(1, D(x)) + w BCE(0, D(x_hat)) of the images of the latest loss, ``()``; they are forgotten afterwards.

        Raises:
            ValueError: There are none: no loss was computed since.
        """
        if self._images is None:
            raise ValueError(
                "The discriminator learns from the images of the latest differentiable_loss (or SVI.step), and there "
                "was none since its last step. Compute the pair's loss first."
            )
        images, self._images = self._images, None
        self.discriminator.to(images.real.device)
        dtype = next(self.discriminator.parameters()).dtype  # the pass of the pair may have been in mixed precision
        real, fake = (self.discriminator(x.to(dtype)) for x in (images.real, images.fake))
        return self.weight * (softplus(-real).mean() + softplus(fake).mean())

    def discriminator_step(self) -> Tensor:
        """Differentiate :meth:`discriminator_loss` and step the discriminator's optimiser; returns it, detached.

        Where the loss is not finite, as from images with a NaN, weights and running statistics stay as they are.
        """
        before = [b.clone() for b in self.discriminator.buffers()]
        loss, optimizer = self.discriminator_loss(), self.optimizer
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        loss = loss.detach()
        step_if_finite(optimizer, loss)
        with torch.no_grad():
            for buffer, old in zip(self.discriminator.buffers(), before, strict=True):
                buffer.copy_(torch.where(loss.isfinite(), buffer, old.to(buffer.device)))
        return loss

    def left_behind(self) -> tuple[Tensor, ...]:
        """The images of the latest loss."""
        if self._images is None:
            return ()
        return tuple(self._images)

    def leave_behind(self, tensors: Sequence[Tensor]) -> int:
        """Take up the images of a loss."""
        if len(tensors) < 2:
            return 0
        self._images = _Images(*tensors[:2])
        return 2

    def callbacks(self) -> Sequence[Callback]:
        return (_DiscriminatorSteps(self),)

    def _generator_term(self, fake: Tensor) -> Tensor:
        """w BCE(1, D(x_hat)) by copies of the discriminator's state, so that nothing of it changes."""
        self.discriminator.to(fake.device)
        state = {n: p.detach() for n, p in self.discriminator.named_parameters()}
        state |= {n: b.clone() for n, b in self.discriminator.named_buffers()}
        return self.weight * softplus(-functional_call(self.discriminator, state, (fake,))).mean()

    def _run(self, bound: Callable[..., T], model: Program, guide: Program, args: Args) -> tuple[T, _Images, int]:
        """A function of the base's, the images that it has met, and the number of data that they stand for."""
        plate = self._plate(model, guide, args)
        loss = bound(self._models(model), self._guides(guide), *args)

        drawn = self._guides.recorder.take_all()
        observation = self._models.recorder.take(self.site)
        for name, message in drawn.items():
            if torch.is_grad_enabled() and not message["fn"].has_rsample:
                raise UsageError(
                    "Adversarial_ELBO needs reparameterised draws, through which the discriminator's gradient reaches "
                    f"the guide, but the site {name!r} ({type(message['fn']).__name__}) has none.",
                    use_bound(detail=" alone"),
                    Cure("guide", "AmortizedNormal", words="AmortizedNormal"),
                )

        shape = (-1, *observation["fn"].event_shape)
        real = observation["value"].reshape(shape)
        fake = observation_mean(observation).reshape(shape)
        return loss, _Images(real, fake), find_plate(observation, plate.name).num_data

    @found_once
    def _plate(self, model: Program, guide: Program, args: Args) -> DataPlate:
        return find_data_plate(model, guide, args)


class _DiscriminatorSteps(Callback):
    """The discriminator's share of a run of ``fit``: its steps, its rollbacks, and its state in the checkpoints."""

    def __init__(self, bound: Adversarial_ELBO) -> None:
        self.bound = bound
        self.back_to: State = {}

    @property
    def parts(self) -> dict[str, nn.Module | Optimizer]:
        return {
            "discriminator": self.bound.discriminator,
            "optimizer": self.bound.optimizer,
        }

    def stepped(self, run: Run) -> None:
        if self.bound._images is not None:  # as after a rollback
            self.bound.discriminator_step()

    def kept(self, run: Run) -> None:
        self.back_to = copy.deepcopy(self.state_dict())

    def rolled_back(self, run: Run) -> None:
        self.bound._images = None  # those of the weights that were given up
        self.load_state_dict(copy.deepcopy(self.back_to))
        halve_learning_rate(self.bound.optimizer)

    def state_dict(self) -> State:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: State) -> None:
        for name, part in self.parts.items():
            saved = state[name]
            assert isinstance(saved, dict)
            part.load_state_dict(saved)
