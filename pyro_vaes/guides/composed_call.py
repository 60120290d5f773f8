"""One call of a composed guide: the model is run, each latent drawn from its rule."""

from collections.abc import Mapping
from typing import Protocol, cast

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_vaes.programs import (
    Answer,
    HiddenPlates,
    Program,
    SwapPriors,
    plates,
    run_swapped,
)

from .accepted_keywords import accepted_keywords
from .amortized import AmortizedGuide, DrawnTogether
from .composed_plan import Plan
from .given import Given
from .latents import Latents
from .passing_buffers import PassingBuffers
from .plate_shapes import Placement
from .rules.base import Enumerated, FromPrior, Rule
from .rules.network import FunctionRule
from .rules.site import Site
from .rules.upstream import Upstream

UNOBSERVED, OBSERVED = "_unobserved", "_observed"  # what obs_mask= calls its two sites


class Composed(Protocol):
    """What a call needs to know of its guide."""

    rules: nn.ModuleList
    passed: PassingBuffers

    @property
    def model(self) -> Program:
        """The program."""

    @property
    def context_network(self) -> Program | None:
        """The network that is run once per call."""

    def rule_at(self, index: int) -> object:
        """The rule of a key by its position."""

    def given_at(self, index: int) -> Upstream:
        """What the networks of a joint rule are given."""


class _Wanted(BaseException):
    """The posterior that was asked for is known."""


class Call:
    """One call of a composed guide.

    Arguments:
        guide, plan: The guide, and who draws what.
        args, kwargs: The arguments of the model.
        given: Values of sites that are not drawn.
        wanted: Name of the site whose posterior is asked for; None to draw all sites.
    """

    def __init__(
        self,
        guide: "Composed",
        plan: Plan,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        given: Mapping[str, Tensor] | None = None,
        wanted: str | None = None,
    ) -> None:
        self.guide, self.plan, self.args, self.kwargs = guide, plan, args, kwargs
        self._values = dict(given or {})  # of sites that the model does not draw
        self._wanted = wanted
        self._rules = guide.rules  # looked up once: Pyro registers its parameters here
        self._rows: dict[str, Tensor] = {}
        self._groups: dict[int, DrawnTogether] = {}
        self._drawing: list[str] = []
        self._context: tuple[object, ...] = ()
        self.swap = SwapPriors(self._answer, list(plan.known), self._rows)

    def run(self) -> dict[str, Tensor]:
        """Draw every site; their values by name."""
        self._draw_autoguides()
        names = list(self.plan.known)
        with self.guide.passed.kept(self.guide.model, self.args, self.kwargs, names):
            values = run_swapped(self.swap, self.guide.model, self.args, self.kwargs)
        drawn = [name for name in names if name in values and self._in_guide(name)]
        return {name: values[name] for name in drawn}

    def find(self) -> TorchDistribution:
        """The posterior of the site that is wanted."""
        try:
            self.run()
        except _Wanted as found:
            return cast(TorchDistribution, found.args[0])
        raise ValueError(
            f"The site {self._wanted!r} is drawn by an autoguide or left out of the "
            "guide, so it has no posterior of its own here."
        )

    # what rules see

    @property
    def depth(self) -> int:
        return self.plan.depth

    @property
    def upstream(self) -> Mapping[str, Tensor]:
        return {**self._values, **self.swap.values}

    @property
    def rows(self) -> Mapping[str, Tensor]:
        return {**self._rows, **self.swap.rows}

    def value_of(self, name: str) -> Tensor | None:
        values = self.upstream
        if name in values:
            self._refuse_left_out(name)
            return values[name]

        if name not in self.plan.known:
            stem = name + UNOBSERVED
            return self.value_of(stem) if stem in self.plan.known else None
        self._refuse_left_out(name)
        return self._draw_ahead(name)

    def context_of(self, site: Site) -> object:
        if not self._context:
            network = self.guide.context_network
            if network is None:
                raise ValueError(
                    f"The network of the site {site.name!r} asks for a context, but "
                    "the guide has none. ComposedGuide(model, rules, context=network)?"
                )
            keywords = accepted_keywords(network, len(self.args), self.kwargs)
            self._context = (network(*site.args, **keywords),)
        return self._context[0]

    def num_outer(self) -> int:
        return max((self.outer_dims(n, v) for n, v in self.upstream.items()), default=0)

    def outer_dims(self, name: str, value: Tensor) -> int:
        known = self.plan.known.get(name)
        if known is None:
            return 0
        return max(value.dim() - len(known.fn.event_shape) - self.depth, 0)

    def in_plates(self, name: str, value: Tensor) -> Tensor:
        known = self.plan.known[name]
        event = known.fn.event_shape
        placement = Placement(name, known.plates)
        spare = value.dim() - len(event) - placement.depth
        batch = value.shape[spare : value.dim() - len(event)]
        full = torch.Size(broadcast_shape(batch, placement.shape))
        return value.reshape(batch + event).expand(full + event)

    # drawing

    def _answer(self, message: Message) -> Answer:
        name = message["name"]
        if name in self._values:
            return self._values[name]

        index = self._index(name)
        if not self._in_guide(name):
            return message["fn"].sample()  # so that the run goes on

        if name in self.plan.groups:
            assert index is not None
            return self._together(message, index)

        known, rule = self.plan.known[name], self._rule(index)
        site = Site(self, known, message["fn"], plates(message), message["mask"])
        q = self._posterior(site, rule)
        if isinstance(rule, Rule):
            marks = dict(rule.marks(message["infer"]))
            message["infer"].clear()
            message["infer"].update(marks)
        return q

    def _index(self, name: str) -> int | None:
        if name not in self.plan.indices:
            raise ValueError(
                f"The latent site {name!r} was not there when the guide looked at the "
                "model with arguments of this structure (it found "
                f"{list(self.plan.known)}). Let an argument's shape, type or None "
                "decide which latents there are, rather than values?"
            )
        return self.plan.indices[name]

    def _rule(self, index: int | None) -> object:
        return FromPrior() if index is None else self.guide.rule_at(index)

    def _in_guide(self, name: str) -> bool:
        index = self.plan.indices[name]
        return not isinstance(self._rule(index), Enumerated)

    def _posterior(self, site: Site, rule: object) -> TorchDistribution:
        if site.name in self._drawing:
            ring = " -> ".join([*self._drawing, site.name])
            raise ValueError(
                f"The sites' rules are given each other's values in a ring: {ring}. "
                "Draw one of them without the other's value?"
            )

        self._drawing.append(site.name)
        try:
            q = site.posterior(cast(FunctionRule, rule)(site))
        finally:
            self._drawing.pop()

        if site.name == self._wanted:
            raise _Wanted(q)
        return q

    def _draw_ahead(self, name: str) -> Tensor:
        """Draw a site before the model does, where another one's rule is given its
        value."""
        known, index = self.plan.known[name], self.plan.indices[name]
        asking = self.plan.known[self._drawing[-1]]
        if [p.name for p in known.plates] != [p.name for p in asking.plates]:
            raise ValueError(
                f"The rule of {asking.name!r} is given {name!r}, which the model draws "
                f"later and in other plates ({[p.name for p in known.plates]}, not "
                f"{[p.name for p in asking.plates]}), so it cannot be drawn first. "
                "Sample it earlier in the model?"
            )
        if known.is_masked or name in self.plan.groups:
            raise ValueError(
                f"The rule of {asking.name!r} is given {name!r}, which the model draws "
                "later: drawing it first is possible where it has no mask and a rule "
                "of its own. Sample it earlier in the model?"
            )

        site = Site(self, known, None, known.plates)
        q = self._posterior(site, self._rule(index))
        value = pyro.sample(name, q, infer=dict(known.infer))
        self._values[name] = value
        return value

    def _together(self, message: Message, index: int) -> Answer:
        """Draw a site together with others, from one guide over all of them."""
        latents = self.plan.groups[message["name"]]
        key = id(latents)
        if key not in self._groups:
            guide = cast(AmortizedGuide, self.guide.rule_at(index))
            self._groups[key] = DrawnTogether(guide, latents)

        known = self.plan.known[message["name"]]
        site = Site(self, known, message["fn"], plates(message), message["mask"])
        if self._wanted in latents.names:
            raise ValueError(
                f"The site {self._wanted!r} has a joint posterior with "
                f"{latents.names}: call the posterior method of its own guide, "
                "guide.rule_at(...)."
            )

        group = self._groups[key]
        self._drawing.append(site.name)
        try:
            return group.answer(message, self._given(site, index, latents))
        finally:
            self._drawing.pop()

    def _given(self, site: Site, index: int, latents: Latents) -> Given:
        keywords = dict(site.given(self.guide.given_at(index)).values())
        outer = self._outer_shape()
        placement = site.placement
        values = {n: v for n, v in self.upstream.items() if n not in latents.names}

        return Given(
            args=site.args,
            kwargs=self.kwargs,
            upstream={**values, **self.rows},
            keywords=keywords,
            latents=latents,
            layout=placement.layout(outer),
            placement=placement,
        )

    def _outer_shape(self) -> torch.Size:
        shapes = [v.shape[: self.outer_dims(n, v)] for n, v in self.upstream.items()]
        return torch.Size(broadcast_shape(*shapes)) if shapes else torch.Size()

    def _draw_autoguides(self) -> None:
        """Draw what Pyro's autoguides draw, before the model runs."""
        for index in sorted({i for i in self.plan.indices.values() if i is not None}):
            auto = self.guide.rule_at(index)
            if not isinstance(auto, AutoGuide):
                continue
            hidden = HiddenPlates()
            with hidden:
                draw = getattr(self.guide, f"autoguide_{index}")
                values = draw(*self.args, **self.kwargs)
            self._values.update(values)
            self._rows.update(hidden.rows)

    def _refuse_left_out(self, name: str) -> None:
        if name in self.plan.known and not self._in_guide(name):
            raise ValueError(
                f"The rule of {self._drawing[-1]!r} is given {name!r}, which "
                "Enumerated() leaves out of the guide, so it has no value there. "
                "Leave it out of given, or use AmortizedCategorical(network)?"
            )
