r"""Guides that compose by site: the model run with its observations hidden, each latent drawn from its rule.

    q(z) = prod over latent sites of q_i(z_i | x, upstream)

in the order of the model, or with a site first that another one is given. Plates, masks and scales are those of the
model, since the model's own code makes them; a masked row is drawn from its prior, and both densities are masked.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
    | Automatic Variational Inference in Stan (Kucukelbir et al., 2015)
    | https://arxiv.org/abs/1506.03431
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TypeAlias, cast

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import broadcast_shape
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule
from pyro_vaes.programs import (
    DRAWN,
    Answer,
    Findings,
    HiddenPlates,
    Plate,
    Program,
    SwapPriors,
    bind_keywords,
    dry_run,
    plates,
    run_swapped,
    sites,
)

from .accepted_keywords import accepted_keywords
from .amortized import AmortizedGuide, DrawnTogether
from .given import Given, differentiable
from .latents import Latents, are_equal, latent_site, read_site
from .masks import has_mask
from .passing_buffers import PassingBuffers
from .plate_shapes import Placement
from .rules.base import Enumerated, FromPrior, Rule
from .rules.joint import JointRule
from .rules.site import KnownSite, Site
from .rules.upstream import Upstream

UNOBSERVED, OBSERVED = "_unobserved", "_observed"  # what obs_mask= calls its two sites

Key = str | tuple[str, ...]
FunctionRule = Callable[[Site], TorchDistribution]
AnyRule: TypeAlias = Rule | JointRule | AutoGuide | FunctionRule


class ComposedGuide(ProgramModule):
    """A guide whose latent sites each have a rule.

    The guide runs the model up to its last latent site and draws each latent from its rule. Any program will do that
    Pyro can train: nested and crossed plates, plates that subsample, masks, scales, global and discrete latents,
    sequences whose length changes, latents that are there in some batches only.

    Arguments:
        model: The program.
        rules: From names to rules. A name is that of a site, a pattern (``"z_*"``, see :mod:`fnmatch`), or a tuple of
            names for a joint rule over them. An exact name goes before a pattern, else the first that matches decides.
            ``"y"`` also stands for the site ``y_unobserved`` that ``obs_mask=`` makes, which follows its prior where no
            rule names it. A rule is :class:`Free`, :class:`Amortized`, :class:`AmortizedCategorical`,
            :class:`FromPrior`, :class:`Enumerated`; a guide of this library over a site or tuple of sites,
            ``AmortizedLaplace.rule(start)``; an autoguide of Pyro (class, ``functools.partial`` or instance); or any
            function from a :class:`~pyro_vaes.guides.rules.Site` to a distribution.
        context: A network, called once per call of the guide with the model's arguments, whose output networks get
            that name ``context`` in their forward: an RNN over a sequence, for example.

    Raises:
        ValueError: A rule is none of these; or, at the first call, a latent site has no rule, or a posterior does not
            fit its site.

    Example:
        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_vaes.guides import Amortized, ComposedGuide, Free
        >>> from pyro_vaes.nn import NormalHead
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(w, 1.0).expand([len(x), 2]).to_event(1))
        ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        >>> guide = ComposedGuide(model, {"w": Free(), "z": Amortized(NormalHead(2, 2))})
        >>> {name: tuple(value.shape) for name, value in guide(torch.zeros(5, 2)).items()}
        {'w': (), 'z': (5, 2)}
    """

    def __init__(
        self,
        model: Program,
        rules: Mapping[Key, AnyRule],
        context: Callable[..., object] | None = None,
    ) -> None:
        super().__init__()
        _refuse_arguments(model, rules, context)

        self._model = (model,)  # in a tuple, so that the model is no part of the guide
        self._keys = tuple(rules)
        self._givens: tuple[Upstream, ...] = tuple(
            rule.given if isinstance(rule, JointRule) else () for rule in rules.values()
        )

        made = [self._made(key, rule) for key, rule in rules.items()]
        self._rules = tuple(None if isinstance(rule, nn.Module) else rule for rule in made)
        self.rules = nn.ModuleList([r if _is_part(r) else nn.Identity() for r in made])  # type: ignore[misc]
        for index, rule in enumerate(made):
            if isinstance(rule, AutoGuide):
                setattr(self, f"autoguide_{index}", rule)

        self.context = context if isinstance(context, nn.Module) else None
        self._context = (context,)
        self._found = Findings[_Plan]()
        self._passed = PassingBuffers()

    @property
    def model(self) -> Program:
        """The program whose latents this guide infers."""
        return self._model[0]

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        plan = self._plan(args, kwargs)
        return _Call(self, plan, args, kwargs).run()

    def posterior(
        self,
        site: str,
        *args: object,
        given: Mapping[str, Tensor] | None = None,
        **kwargs: object,
    ) -> TorchDistribution:
        """The posterior of one site.

        Arguments:
            site: Name of the site.
            args, kwargs: The model's arguments: those of the data that the guide was fitted to, or others, such as a
                new visit of a known patient or a longer sequence.
            given: Values of other latent sites by name; those that are not given are drawn.

        Raises:
            ValueError: There is no such latent site, or another rule's guide draws it.
        """
        plan = self._plan(args, kwargs)
        if site not in plan.known:
            raise ValueError(
                f"The model has no latent site {site!r} for these arguments; there are {sorted(plan.known)}."
            )
        with poutine.block():
            return _Call(self, plan, args, kwargs, dict(given or {}), wanted=site).find()

    def describe_rule(self, site: str) -> str:
        """What draws a site, in a few words."""
        index = self._index_of(site, {site})
        if index is None:
            return "its prior" if site.endswith(UNOBSERVED) else "no rule"
        rule = self.rule_at(index)
        return f"{self._keys[index]!r}: {getattr(rule, '__name__', type(rule).__name__)}"

    # rules

    def rule_at(self, index: int) -> object:
        """The rule of a key by its position."""
        function = self._rules[index]
        if function is not None:
            return function
        auto = self._modules.get(f"autoguide_{index}")
        return self.rules[index] if auto is None else auto

    def _made(self, key: Key, rule: AnyRule) -> object:
        """The rule as it will be called."""
        if isinstance(rule, JointRule):
            return rule.make(self.model)
        base = rule.func if isinstance(rule, functools.partial) else rule
        if isinstance(base, type) and issubclass(base, AutoGuide):
            names = (key,) if isinstance(key, str) else key

            def hides(message: Message) -> bool:
                return not any(fnmatchcase(message["name"], name) for name in names)

            make = cast(Callable[[Program], AutoGuide], rule)
            return make(poutine.block(self.model, hide_fn=hides))
        return rule

    def _index_of(self, name: str, names: "set[str]") -> int | None:
        """Which key stands for a site: an exact one, else the first pattern."""
        stem = name.removesuffix(UNOBSERVED)
        wanted = {name} if stem == name or stem in names else {name, stem}
        for index, key in enumerate(self._keys):
            exact = {key} if isinstance(key, str) else set(key)
            if wanted & exact:
                return index
        for index, key in enumerate(self._keys):
            if isinstance(key, str) and any(fnmatchcase(n, key) for n in wanted):
                return index
        return None

    def _plan(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> "_Plan":
        program = bind_keywords(self.model, kwargs)
        return self._found.of((program,), args, lambda: self._look(args, kwargs))

    def _look(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> "_Plan":
        """Run the model aside, and find which rule draws which site."""
        with differentiable(Given(args, kwargs)) as given:
            trace = dry_run(self.model, given.args, given.kwargs)

        messages, everything = sites(trace, DRAWN), sites(trace)
        if not messages:
            raise ValueError("The model has no latent sample site, so there is nothing for a guide to infer.")

        known = {name: _known_site(message) for name, message in messages.items()}
        indices: dict[str, int | None] = {}
        for name in known:
            index = self._index_of(name, set(everything))
            stem = name.removesuffix(UNOBSERVED)
            if index is None and not (stem != name and stem + OBSERVED in everything):
                raise ValueError(
                    f"The latent site {name!r} has no rule; there are rules for {list(self._keys)}. Add one: "
                    f"{name!r}: Free() for a global site, Amortized(network), AmortizedCategorical(network) for a "
                    "discrete one, or FromPrior()?"
                )
            indices[name] = index

        dims = [plate.dim for message in everything.values() for plate in plates(message)]
        plan = _Plan(known, indices, depth=-min(dims, default=0))
        for name, index in indices.items():
            rule = None if index is None else self.rule_at(index)
            if isinstance(rule, Rule):
                rule.prepare(known[name])
            elif isinstance(rule, AmortizedGuide):
                self._add_group(plan, name, cast(int, index), messages)
        return plan

    def _add_group(self, plan: "_Plan", name: str, index: int, messages: Mapping[str, Message]) -> None:
        """The latent sites that one guide draws together with this one."""
        if name in plan.groups:
            return
        alone = isinstance(self._keys[index], str)
        names = [n for n in plan.known if plan.indices[n] == index]
        group = [name] if alone else names
        latents = _latents_of([messages[n] for n in group], [plan.known[n] for n in group])
        for member in group:
            plan.groups[member] = latents


@dataclass
class _Plan:
    """Who draws what, for batches of one structure.

    Attributes:
        known: The latent sites in the order of the model.
        indices: The position of the rule of each; None for the prior.
        depth: Number of batch dimensions that the plates of the model use.
        groups: The latents that a site is drawn together with, where a guide does that.
    """

    known: dict[str, KnownSite]
    indices: dict[str, int | None]
    depth: int
    groups: dict[str, Latents] = field(default_factory=dict)


class _Wanted(BaseException):
    """The posterior that was asked for is known."""


class _Call:
    """One call of a composed guide.

    Arguments:
        guide, plan: The guide, and who draws what.
        args, kwargs: The arguments of the model.
        given: Values of sites that are not drawn.
        wanted: Name of the site whose posterior is asked for; None to draw all sites.
    """

    def __init__(
        self,
        guide: ComposedGuide,
        plan: _Plan,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        given: Mapping[str, Tensor] | None = None,
        wanted: str | None = None,
    ) -> None:
        self.guide, self.plan, self.args, self.kwargs = guide, plan, args, kwargs
        self._values = dict(given or {})  # of sites that the model's statements do not draw
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
        with self.guide._passed.kept(self.guide.model, self.args, self.kwargs, names):
            values = run_swapped(self.swap, self.guide.model, self.args, self.kwargs)
        return {name: values[name] for name in names if name in values and self._in_guide(name)}

    def find(self) -> TorchDistribution:
        """The posterior of the site that is wanted."""
        try:
            self.run()
        except _Wanted as found:
            return cast(TorchDistribution, found.args[0])
        raise ValueError(
            f"The site {self._wanted!r} is drawn by an autoguide or left out of the guide, so it has no posterior of "
            "its own here."
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
            network = self.guide._context[0]
            if network is None:
                raise ValueError(
                    f"The network of the site {site.name!r} asks for a context, but the guide has none. "
                    "ComposedGuide(model, rules, context=network)?"
                )
            if self.guide.context is not None:
                network = self.guide.context  # where Pyro sees its parameters
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
            return message["fn"].sample()  # so that the run goes on; nothing depends on it

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
                f"The latent site {name!r} was not there when the guide looked at the model with arguments of this "
                f"structure (it found {list(self.plan.known)}). Let an argument's shape, type or None decide which "
                "latents there are, rather than values?"
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
            raise ValueError(f"The sites' rules are given each other's values in a ring: {ring}.")
        self._drawing.append(site.name)
        try:
            q = site.posterior(cast(FunctionRule, rule)(site))
        finally:
            self._drawing.pop()
        if site.name == self._wanted:
            raise _Wanted(q)
        return q

    def _draw_ahead(self, name: str) -> Tensor:
        """Draw a site before the model does, where another one's rule is given its value."""
        known, index = self.plan.known[name], self.plan.indices[name]
        asking = self.plan.known[self._drawing[-1]]
        if [p.name for p in known.plates] != [p.name for p in asking.plates]:
            raise ValueError(
                f"The rule of {asking.name!r} is given {name!r}, which the model draws later and in other plates "
                f"({[p.name for p in known.plates]}, not {[p.name for p in asking.plates]}), so it cannot be drawn "
                "first. Sample it earlier in the model?"
            )
        if known.is_masked or name in self.plan.groups:
            raise ValueError(
                f"The rule of {asking.name!r} is given {name!r}, which the model draws later: drawing it first is "
                "possible where it has no mask and a rule of its own. Sample it earlier in the model?"
            )

        site = Site(self, known, None, self._plates_now(known.plates))
        q = self._posterior(site, self._rule(index))
        value = pyro.sample(name, q, infer=dict(known.infer))
        self._values[name] = value
        return value

    def _plates_now(self, known: tuple[Plate, ...]) -> tuple[Plate, ...]:
        return known

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
                f"The site {self._wanted!r} has a joint posterior with {latents.names}: call the posterior method of "
                "its own guide, guide.rule_at(...)."
            )

        group = self._groups[key]
        self._drawing.append(site.name)
        try:
            return group.answer(message, self._given(site, index, latents))
        finally:
            self._drawing.pop()

    def _given(self, site: Site, index: int, latents: Latents) -> Given:
        keywords = dict(site.given(self.guide._givens[index]).values())
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
                values = getattr(self.guide, f"autoguide_{index}")(*self.args, **self.kwargs)
            self._values.update(values)
            self._rows.update(hidden.rows)

    def _refuse_left_out(self, name: str) -> None:
        if name in self.plan.known and not self._in_guide(name):
            raise ValueError(
                f"The rule of {self._drawing[-1]!r} is given {name!r}, which Enumerated() leaves out of the guide, so "
                "it has no value there. Leave it out of given, or use AmortizedCategorical(network)?"
            )


def _known_site(message: Message) -> KnownSite:
    fn, name = message["fn"], message["name"]
    is_discrete = fn.has_enumerate_support or getattr(fn.support, "is_discrete", False)
    return KnownSite(
        name=name,
        plates=plates(message),
        fn=fn,
        reals=None if is_discrete else read_site(name, fn.event_shape, fn.support),
        is_masked=has_mask(fn, message["mask"]),
        scale=message["scale"],
        infer=dict(message["infer"]),
    )


def _latents_of(messages: list[Message], known: list[KnownSite]) -> Latents:
    """Sites that one guide draws together, as one vector.

    Raises:
        ValueError: One is discrete, or they lie in different plates.
    """
    around = {tuple(plate.name for plate in site.plates) for site in known}
    if len(around) > 1:
        raise ValueError(
            f"The latent sites {[site.name for site in known]} lie in different plates {sorted(around)}, so their "
            "joint posterior is none of rows of one kind: a value of the outer site belongs to many rows of the inner "
            "one. Give each a rule of its own, the inner one with given=[the outer one]?"
        )
    stack = known[0].plates
    first = stack[0] if stack else None
    return Latents(
        sites=tuple(latent_site(message) for message in messages),
        plate=first.name if first else "",
        dim=first.dim if first else -1,
        full_size=first.num_data if first else None,
        subsample_size=None,
        rows=None,
        around=tuple(plate.name for plate in stack),
        is_masked=any(site.is_masked for site in known),
        scales_differ=not are_equal([site.scale for site in known]),
    )


def _is_part(rule: object) -> bool:
    """Whether a rule is a module that the guide's list of rules holds."""
    return isinstance(rule, nn.Module) and not isinstance(rule, AutoGuide)


def _refuse_arguments(model: object, rules: object, context: object) -> None:
    if not callable(model):
        raise ValueError(
            f"ComposedGuide takes (model, rules), but the model is a {type(model).__name__}. Pass vae.model rather "
            "than vae?"
        )
    if not isinstance(rules, Mapping) or not rules:
        raise ValueError(f"rules must map names of latent sites to rules, but got {rules!r}.")
    if context is not None and not callable(context):
        raise ValueError(f"context must be a network, but got {type(context).__name__}.")

    for key, rule in rules.items():
        names = key if isinstance(key, tuple) else (key,)
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"A rule's key is a name, a pattern or a tuple of names, but got {key!r}.")
        if not callable(rule) and not isinstance(rule, JointRule):
            raise ValueError(
                f"The rule of {key!r} must be a Rule, a guide's rule(...), an autoguide or a function of the site, but "
                f"got {type(rule).__name__}."
            )
        if isinstance(key, tuple) and not isinstance(rule, JointRule | AmortizedGuide) and not _is_auto(rule):
            raise ValueError(
                f"The sites {key} need a joint rule, such as AmortizedMultivariateNormal.rule(encoder), but got "
                f"{type(rule).__name__}, which is for one site: give it to each of them."
            )


def _is_auto(rule: object) -> bool:
    base = rule.func if isinstance(rule, functools.partial) else rule
    return isinstance(base, AutoGuide) or (isinstance(base, type) and issubclass(base, AutoGuide))
