r"""Guides that compose by site: the model run with its observations hidden, each latent drawn from its rule.

    q(z) = prod over latent sites of q_i(z_i | x, upstream)

in the order of the model, or with a site first that another one is given. Plates, masks
and scales are those of the model, since the model's own code makes them; a masked row
is drawn from its prior, and both densities are masked.

References:
    | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
    | https://arxiv.org/abs/1312.6114
    | Automatic Variational Inference in Stan (Kucukelbir et al., 2015)
    | https://arxiv.org/abs/1506.03431
"""

import functools
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias, cast

from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.runtime import Message
from torch import Tensor, nn

from pyro_vaes.nn import ProgramModule
from pyro_vaes.programs import (
    DRAWN,
    Findings,
    Program,
    bind_keywords,
    dry_run,
    plates,
    sites,
)

from .amortized import AmortizedGuide
from .composed_call import OBSERVED, UNOBSERVED, Call
from .composed_plan import Plan, known_site, latents_of
from .given import Given, differentiable
from .passing_buffers import PassingBuffers
from .rules.base import Rule
from .rules.joint import JointRule
from .rules.network import FunctionRule
from .rules.upstream import Upstream

Key = str | tuple[str, ...]
AnyRule: TypeAlias = Rule | JointRule | AutoGuide | FunctionRule


class ComposedGuide(ProgramModule):
    """A guide whose latent sites each have a rule.

    The guide runs the model up to its last latent site and draws each latent from its
    rule. Any program will do that Pyro can train: nested and crossed plates, plates
    that subsample, masks, scales, global and discrete latents, sequences whose length
    changes, latents that are there in some batches only.

    Arguments:
        model: The program.
        rules: From names to rules. A name is that of a site, a pattern (``"z_*"``, see
            :mod:`fnmatch`), or a tuple of names for a joint rule over them. An exact
            name goes before a pattern, else the first that matches decides. ``"y"``
            also stands for the site ``y_unobserved`` that ``obs_mask=`` makes, which
            follows its prior where no rule names it. A rule is :class:`Free`,
            :class:`Amortized`, :class:`AmortizedCategorical`, :class:`FromPrior`,
            :class:`Enumerated`; a guide of this library over a site or tuple of sites,
            ``AmortizedLaplace.rule(start)``; an autoguide of Pyro (class,
            ``functools.partial`` or instance); or any function from a
            :class:`~pyro_vaes.guides.rules.Site` to a distribution.
        context: A network, called once per call of the guide with the model's
            arguments, whose output networks get that name ``context`` in their forward:
            an RNN over a sequence, for example.

    Raises:
        ValueError: A rule is none of these; or, at the first call, a latent site has no
            rule, or a posterior does not fit its site.

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
        functions = [None if _is_part(rule) else rule for rule in made]
        self._rules = tuple(functions)
        self.rules = nn.ModuleList()
        for rule in made:
            held = rule if _is_part(rule) else nn.Identity()
            self.rules.append(cast(nn.Module, held))
        for index, rule in enumerate(made):
            if isinstance(rule, AutoGuide):
                setattr(self, f"autoguide_{index}", rule)

        self.context = context if isinstance(context, nn.Module) else None
        self._context = (context,)
        self._found = Findings[Plan]()
        self.passed = PassingBuffers()

    @property
    def model(self) -> Program:
        """The program whose latents this guide infers."""
        return self._model[0]

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        plan = self._plan(args, kwargs)
        return Call(self, plan, args, kwargs).run()

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
            args, kwargs: The model's arguments: those of the data that the guide was
                fitted to, or others, such as a new visit of a known patient or a longer
                sequence.
            given: Values of other latent sites by name; those that are not given are
                drawn.

        Raises:
            ValueError: There is no such latent site, or another rule's guide draws it.
        """
        plan = self._plan(args, kwargs)
        if site not in plan.known:
            raise ValueError(
                f"The model has no latent site {site!r} for these arguments; there are "
                f"{sorted(plan.known)}. Does another argument decide which there are?"
            )
        with poutine.block():
            return Call(self, plan, args, kwargs, dict(given or {}), wanted=site).find()

    @property
    def context_network(self) -> Program | None:
        """The network that is run once per call, where Pyro sees its parameters."""
        return self._context[0] if self.context is None else self.context

    def given_at(self, index: int) -> Upstream:
        """What the networks of a joint rule are given, by the position of its key."""
        return self._givens[index]

    def describe_rule(self, site: str) -> str:
        """What draws a site, in a few words."""
        index = self._index_of(site, {site})
        if index is None:
            return "its prior" if site.endswith(UNOBSERVED) else "no rule"
        rule = self.rule_at(index)
        name = getattr(rule, "__name__", type(rule).__name__)
        return f"{self._keys[index]!r}: {name}"

    # rules

    def rule_at(self, index: int) -> object:
        """The rule of a key by its position."""
        auto = self._modules.get(f"autoguide_{index}")
        if auto is not None:
            return auto
        function = self._rules[index]
        return self.rules[index] if function is None else function

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

    def _plan(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> "Plan":
        program = bind_keywords(self.model, kwargs)
        return self._found.of((program,), args, lambda: self._look(args, kwargs))

    def _look(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> "Plan":
        """Run the model aside, and find which rule draws which site."""
        with differentiable(Given(args, kwargs)) as given:
            trace = dry_run(self.model, given.args, given.kwargs)

        messages, everything = sites(trace, DRAWN), sites(trace)
        if not messages:
            raise ValueError(
                "The model has no latent sample site for these arguments, so there is "
                "nothing for a guide to infer. Is everything observed?"
            )

        known = {name: known_site(message) for name, message in messages.items()}
        indices: dict[str, int | None] = {}
        for name in known:
            index = self._index_of(name, set(known))
            stem = name.removesuffix(UNOBSERVED)
            if index is None and not (stem != name and stem + OBSERVED in everything):
                raise ValueError(
                    f"The latent site {name!r} has no rule; there are rules for "
                    f"{list(self._keys)}. Add one: {name!r}: Free() for a global site, "
                    "Amortized(network), AmortizedCategorical(network) for a discrete "
                    "one, or FromPrior()?"
                )
            indices[name] = index

        dims = [0]
        for message in everything.values():
            dims += [plate.dim for plate in plates(message)]
        plan = Plan(known, indices, depth=-min(dims))

        for name, index in indices.items():
            rule = None if index is None else self.rule_at(index)
            if isinstance(rule, Rule):
                rule.prepare(known[name])
            elif isinstance(rule, AmortizedGuide):
                self._add_group(plan, name, cast(int, index), messages)
        return plan

    def _add_group(
        self,
        plan: Plan,
        name: str,
        index: int,
        messages: Mapping[str, Message],
    ) -> None:
        """The latent sites that one guide draws together with this one."""
        if name in plan.groups:
            return
        alone = isinstance(self._keys[index], str)
        names = [n for n in plan.known if plan.indices[n] == index]
        group = [name] if alone else names
        latents = latents_of(messages, [plan.known[n] for n in group])
        for member in group:
            plan.groups[member] = latents


def _is_part(rule: object) -> bool:
    """Whether a rule is a module that the guide's list of rules holds."""
    return isinstance(rule, nn.Module) and not isinstance(rule, AutoGuide)


def _refuse_arguments(model: object, rules: object, context: object) -> None:
    """Refuse what can never work."""
    if not callable(model):
        raise ValueError(
            "ComposedGuide takes (model, rules), but the model is a "
            f"{type(model).__name__}. Pass vae.model rather than vae?"
        )

    if not isinstance(rules, Mapping) or not rules:
        raise ValueError(
            f"rules must map names of latent sites to rules, but got {rules!r}. "
            "Pass a dictionary such as {'z': Amortized(network)}?"
        )
    for key, rule in rules.items():
        _refuse_rule(key, rule)

    if context is not None and not callable(context):
        raise ValueError(
            f"context must be a network, but got {type(context).__name__}. It is "
            "called once for each call of the guide, with the model's arguments."
        )


def _refuse_rule(key: object, rule: object) -> None:
    names = key if isinstance(key, tuple) else (key,)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "A rule's key is the name of a latent site, a pattern such as 'z_*', or a "
            f"tuple of names for a joint posterior, but got {key!r}."
        )

    if not callable(rule) and not isinstance(rule, JointRule):
        raise ValueError(
            f"The rule of {key!r} must be a Rule, a guide's rule(...), an autoguide or "
            f"a function of the site, but got {type(rule).__name__}."
        )

    is_joint = isinstance(rule, JointRule | AmortizedGuide) or _is_auto(rule)
    if isinstance(key, tuple) and not is_joint:
        raise ValueError(
            f"The sites {key} need a joint rule, such as "
            "AmortizedMultivariateNormal.rule(encoder), but got "
            f"{type(rule).__name__}, which is for one site: give it to each of them."
        )


def _is_auto(rule: object) -> bool:
    base = rule.func if isinstance(rule, functools.partial) else rule
    is_class = isinstance(base, type) and issubclass(base, AutoGuide)
    return is_class or isinstance(base, AutoGuide)
