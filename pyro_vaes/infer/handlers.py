"""Effect handlers: KL weights, and parameters that stay with their modules."""

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self, cast

import pyro
from pyro.params.param_store import ParamStoreDict, StateDict
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

__all__ = [
    "ModuleParameters",
    "ParameterRecorder",
    "is_latent",
    "is_objective_only",
    "local_parameters",
    "objective_sum",
    "scale_latents",
    "untouched_store",
]


def is_latent(message: Message) -> bool:
    """Whether a message is a latent sample statement (neither observed nor a plate's subsampling)."""
    return message["type"] == "sample" and not message["is_observed"] and not site_is_subsample(message)


def is_objective_only(message: Message) -> bool:
    """Whether a factor is marked ``infer={"objective_only": True}``: added to what is trained, but no log-density.

    Bounds count it once for each datum, whatever their number of particles, where they allow factors in the guide;
    importance weights, and what is made of them, leave it out.
    """
    return bool(message["infer"].get("objective_only"))


def objective_sum(trace: Trace) -> Tensor | float:
    """The sum of a trace's factors of the objective alone, with their scales and masks; 0 without any."""
    return trace.log_prob_sum(lambda _, site: is_objective_only(site))


COMMON_SCALE = (
    "Sites that the model alone has and that are enumerated are summed out together with all that depends on them, so "
    "that they must have one KL weight (scale). Weigh them alike, or use the model whose prior is the mixture itself, "
    "without such sites, whose latents can be weighed one by one: LadderClusteringVAE.model with Trace_ELBO?"
)


def needs_common_scale(error: BaseException | None) -> bool:
    """Whether an error is :class:`~pyro.infer.TraceEnum_ELBO`'s refusal of unequal scales."""
    return isinstance(error, ValueError) and "share a common poutine.scale" in str(error)


class scale_latents(Messenger):
    """Weigh the KL term of the bound: multiply the scale of the latent sites by beta.

    The bound becomes ``E log p(x | z) - beta E[log q(z | x) - log p(z)]`` (Higgins et al., 2017), provided that model
    and guide are both inside: bounds such as :class:`~pyro.infer.TraceMeanField_ELBO` read only the guide's scale and
    others use both. Use it around the step, which covers both, or wrap both::

        with scale_latents(0.5):
            svi.step(x)

        SVI(scale_latents(0.5)(vae.model), scale_latents(0.5)(vae.guide), optim, loss)

    A factor marked ``infer={"evidence_for": "y"}`` goes by the weight of that site.

    Arguments:
        beta: A positive weight for all latent sites, or a mapping from site names to weights.

    Raises:
        ValueError: A weight is not positive (start a warm-up at, say, 1e-4), a named site does not occur, or sites that
            :class:`~pyro.infer.TraceEnum_ELBO` sums out together have different weights.

    References:
        | beta-VAE (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl
    """

    def __init__(self, beta: float | Mapping[str, float]) -> None:
        super().__init__()
        weights = list(beta.values()) if isinstance(beta, Mapping) else [beta]
        if not all(w > 0 for w in weights):
            raise ValueError(f"A KL weight must be positive, but got {beta}; start a warm-up at, say, 1e-4.")
        self.beta = beta
        self._seen: set[str] = set()

    def __enter__(self) -> Self:
        self._seen = set()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        result = super().__exit__(kind, error, traceback)  # type: ignore[arg-type]
        if needs_common_scale(error):
            raise ValueError(f"The KL weights are {self.beta}. {COMMON_SCALE}") from error
        if kind is None and isinstance(self.beta, Mapping) and self._seen:
            unknown = sorted(self.beta.keys() - self._seen)
            if unknown:
                raise ValueError(f"scale_latents weighs {unknown}, but the latent sites are {sorted(self._seen)}.")
        return result

    def _pyro_sample(self, msg: Message) -> None:
        evidence_for = msg["infer"].get("evidence_for")
        if evidence_for is not None:
            msg["scale"] = self._weight(evidence_for) * msg["scale"]
        if is_latent(msg):
            name = cast(str, msg["name"])
            beta = self._weight(name)
            if isinstance(self.beta, Mapping):
                self._seen.add(name)
                if msg["infer"].get("is_auxiliary"):
                    raise ValueError(
                        "Weights for single sites need a guide that samples each site by itself, but this one draws "
                        f"all of them from {name!r}; use one weight for all, or AmortizedNormal."
                    )
            msg["scale"] = beta * msg["scale"]

    def _weight(self, name: str) -> float:
        return self.beta.get(name, 1.0) if isinstance(self.beta, Mapping) else self.beta


class ModuleParameters(Messenger):
    """Let ``pyro.module`` use the module's own parameters, whatever the global store holds under their names."""

    def _pyro_param(self, msg: Message) -> None:
        args = msg["args"]
        if len(args) > 1 and isinstance(args[1], nn.Parameter):
            msg["value"] = args[1]


class ParameterRecorder(Messenger):
    """Note the name and value of every param statement, also of several under one name, which a trace would merge."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, object]] = []

    def _pyro_post_param(self, msg: Message) -> None:
        self.found.append((cast(str, msg["name"]), msg["value"]))


def _free_standing(state: StateDict) -> StateDict:
    """The entries of the store that belong to ``pyro.param`` statements rather than to modules."""
    names = [n for n, p in state["params"].items() if not isinstance(p, nn.Parameter)]
    return {
        "params": {n: state["params"][n] for n in names},
        "constraints": {n: state["constraints"][n] for n in names},
    }


@contextlib.contextmanager
def local_parameters() -> Iterator[None]:
    """Run programs on their modules' own parameters, with Pyro's global parameter store out of the way.

    Inside, PyroModules and ``pyro.module`` statements neither see nor change what the store holds of other modules, so
    two pairs that use the same names do not touch each other. Free-standing ``pyro.param`` statements use the store as
    ever, and what they create there stays.
    """
    store = pyro.get_param_store()
    outside = store.get_state()
    _replace(store, _free_standing(outside))
    try:
        with ModuleParameters():
            yield
    finally:
        inside = _free_standing(store.get_state())
        _replace(
            store,
            {
                "params": {**outside["params"], **inside["params"]},
                "constraints": {**outside["constraints"], **inside["constraints"]},
            },
        )


@contextlib.contextmanager
def untouched_store() -> Iterator[None]:
    """Afterwards Pyro's parameter store holds what it held before."""
    store = pyro.get_param_store()
    outside = store.get_state()
    try:
        yield
    finally:
        _replace(store, outside)


def _replace(store: ParamStoreDict, state: StateDict) -> None:
    store.clear()
    store.set_state(state)
