"""Progressive training of a ladder: rungs are switched on one after the other, the top one first.

With rungs 1 .. L from the data upwards, of which rung l starts at step ``(L - l) stage``,

    alpha_L = 1,    alpha_l(t) = clip((t - (L - l) stage) / steps, 0, 1)
    t_l = u_l(merge(t_{l+1}, alpha_l v_l(z_l))),    KL_l is weighed by max(alpha_l, start)

A rung that comes late can only code what the rungs above it have left over.

References:
    | Progressive Learning and Disentanglement of Hierarchical Representations (Li et al., 2020)
    | https://arxiv.org/abs/2002.10549
    | Multi-Facet Clustering Variational Autoencoders (Falck et al., 2021), the authors' code
    | https://arxiv.org/abs/2106.05241
"""

import contextlib
import functools
from collections.abc import Sequence

from torch import Tensor, nn

from ..callback import Callback, Handler, Run
from ..handlers import scale_latents


class ProgressiveRungs(Callback):
    """Fade the rungs below the top one in, in the decoder and in the KL term, during training only.

    The weights of the KL terms are on the sites of model and guide. Outside the steps, in held-out bounds and
    afterwards, every rung is on.

    Arguments:
        sites: The latent sites of each rung, from the rung nearest the data upwards: ``[["z_1"], ["z_2"]]``, with
            ``"y_1"`` and so on where the guide has such sites. Sites that the model alone has are summed out together
            and cannot be weighed one by one: for :class:`~pyro_vaes.models.LadderClusteringVAE` in form A, use
            ``model`` rather than ``cluster_model``.
        injections: The modules v_1 .. v_{L-1} that carry z_l into the path from above:
            ``[merge.network for merge in ladder.merges]``.
        steps: Steps over which a rung is faded in.
        stage: Steps between the starts of two rungs; ``steps`` by default.
        start: KL weight of a rung that is off, positive.

    Raises:
        ValueError: The injections are not one fewer than the rungs, or a number is out of range.

    Example:
        >>> rungs = ProgressiveRungs([["z_1"], ["z_2"], ["z_3"]], [nn.Identity(), nn.Identity()], steps=100)
        >>> [rungs.weights(step) for step in (0, 150, 300)]
        [[0.0, 0.0, 1.0], [0.0, 0.5, 1.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        sites: Sequence[Sequence[str]],
        injections: Sequence[nn.Module],
        steps: int,
        *,
        stage: int | None = None,
        start: float = 1e-3,
    ) -> None:
        if len(injections) != len(sites) - 1:
            raise ValueError(
                f"{len(sites)} rungs have {len(sites) - 1} injections below the top one, but got {len(injections)}."
            )
        stage = steps if stage is None else stage
        if steps < 1 or stage < 0 or not 0 < start <= 1:
            raise ValueError(
                f"Fading needs steps >= 1, stage >= 0 and 0 < start <= 1, but got {steps}, {stage} and {start}."
            )
        self.sites, self.injections = [list(names) for names in sites], list(injections)
        self.steps, self.stage, self.begin = steps, stage, start

    def weights(self, step: int) -> list[float]:
        """alpha_1 .. alpha_L at a step, counted from 0."""
        below = range(len(self.sites) - 1, 0, -1)  # L - l for l = 1 .. L - 1
        return [min(1.0, max(0.0, (step - n * self.stage) / self.steps)) for n in below] + [1.0]

    def handler(self, run: Run) -> Handler | None:
        alpha = self.weights(run.step)
        if min(alpha) == 1.0:
            return None

        stack = contextlib.ExitStack()
        for module, factor in zip(self.injections, alpha[:-1], strict=True):
            hook = functools.partial(_multiply_output, factor)
            stack.enter_context(module.register_forward_hook(hook))

        beta: dict[str, float] = {}
        for names, weight in zip(self.sites, alpha, strict=True):
            beta |= dict.fromkeys(names, max(weight, self.begin))
        stack.enter_context(scale_latents(beta))
        return stack


def _multiply_output(factor: float, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """A forward hook."""
    return factor * output
