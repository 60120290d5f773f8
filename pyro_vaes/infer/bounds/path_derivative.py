r"""The gradient of log q(z) through its draws alone, for any guide whose draws are reparameterised.

    d log q_phi(z(phi)) / dphi  =  sum_i h_i dz_i/dphi  +  d log q_phi(z) / dphi at fixed z,    h_i = d log q / dz_i
                                   (path derivative)       (score function, zero in expectation)

Every draw leaves its site through a gate. While the gates are shut, a backward pass from log q ends at the draws, and
what arrives there is h_i with all other draws and all parameters held fixed; the densities of later sites given z_i
count. With the gates open again, sum_i <h_i, z_i> has the path derivative as its gradient. The guide runs once,
whatever it draws or optimises inside, and nothing is asked of its distributions but ``rsample`` and ``log_prob``.

References:
    | Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference
      (Roeder, Wu & Duvenaud, 2017)
    | https://arxiv.org/abs/1703.09194
"""

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor

from pyro_vaes.errors import Cure, UsageError, use_bound
from pyro_vaes.programs import DENSITIES, Program, is_latent, run, sites

from .bound import Args


class Gates(Messenger):
    """Let each draw with a gradient pass through a gate of its own; must surround the trace that records the draws."""

    def __init__(self) -> None:
        super().__init__()
        self._gates: list[tuple[Tensor, Tensor]] = []  # before and after

    def _pyro_post_sample(self, msg: Message) -> None:
        value = msg["value"]
        if is_latent(msg) and value.requires_grad:
            before = value.view_as(value)  # a tensor that nothing else holds, so that shutting it shuts nothing else
            after = before.view_as(before)
            self._gates.append((before, after))
            msg["value"] = after

    def path(self, log_q: Tensor, weight: Tensor | None = None) -> Tensor:
        """A number equal to 0 whose gradient is the path derivative of ``(weight * log_q).sum()``.

        Arguments:
            log_q: The density of the guide at its draws, computed from the values behind the gates.
            weight: Of each element of ``log_q``, without gradient; 1 for a single number.
        """
        if not self._gates or not log_q.requires_grad:
            return torch.zeros_like(log_q.sum())

        # shut the gates for one backward pass
        handles = [before.register_hook(torch.zeros_like) for before, _ in self._gates]
        try:
            draws = [after for _, after in self._gates]
            h = torch.autograd.grad(log_q, draws, weight, retain_graph=True, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()

        inner = [(g * z).sum() for g, z in zip(h, draws, strict=True) if g is not None]
        total = sum(inner, start=log_q.new_zeros(()))
        return total - total.detach()


def gated_trace(guide: Program, args: Args, bound: str) -> tuple[Trace, Gates]:
    """A trace of the guide, its draws behind gates, and the gates.

    Raises:
        ValueError: A site of the guide has a given value: its density is no density of a draw, and its derivative with
            respect to the parameters is no score function that could be left out.
    """
    with Gates() as gates:
        trace = run(guide, args)

    for name, site in sites(trace, DENSITIES).items():
        if site["is_observed"]:
            raise UsageError(
                f"{bound} leaves out the score function of the guide's draws, but the "
                f"guide's site {name!r} is not drawn: it has an obs=, or is a pyro.factor.",
                use_bound(),
                Cure("guide", "moved", words="move that statement to the model"),
            )
    return trace, gates
