"""Which engine evaluates the losses of a training step, and why it is not a better one.

The first step of a kind (a batch's shapes, the modules' modes, the handlers around it) is
eager, and watched: a program that counts its calls, draws outside torch or leaves tensors
behind stays eager. Then its losses are recorded on other rows and other noise, and the
graphs compared with the eager loss in the first steps and every few hundred steps.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from .agreement import agree, difference
from .compiler import compile_graph, missing_compiler
from .inputs import Args, Inputs, inputs_of
from .loss_graph import Evaluated, LossGraph, as_function
from .modes import CAPTURED, COMPILED, EAGER, Compile, compiling_pays, recording_pays
from .numbers import as_tensors, describe_handlers, with_tensors
from .reads import CannotCapture
from .rewind import Moment
from .updates import NORM_FLOOR, AdamUpdate, Outcome
from .watch import Watch
from .whole_step import WholeStep, untouched

Handler = AbstractContextManager[object]
Loss = Callable[[], Tensor]
SubStep = Callable[[], Tensor]

CHANGES = "changes from step to step; a tensor that is changed in place is followed"
DIFFERS = "a graph of the programs gives other numbers than the programs"
TOO_FEW = "the steps are too few to earn back the recording of a graph"
MAX_KINDS = 16
MAX_VARIANTS = 4  # of a kind: states of the programs, such as their modes
FIRST_CHECKS = 3
STEPS_BETWEEN_CHECKS = {CAPTURED: 500, COMPILED: 4000}


class GraphDiffers(Exception):
    """A graph that steps have relied on gives other numbers than the programs do."""


class Evaluates(Protocol):
    """The eager side of a step."""

    def losses(self, args: Args) -> list[Loss]:
        """The losses of a step per datum, to be evaluated in turn."""

    def surroundings(self) -> AbstractContextManager[object]:
        """What surrounds each of them, beside the callbacks' handlers."""

    def left_behind(self) -> tuple[Tensor, ...]:
        """The tensors that the bound has left behind in its latest evaluation."""

    def leave_behind(self, tensors: Sequence[Tensor]) -> None:
        """Let the bound have them as if it had left them behind."""

    def buffers(self) -> list[Tensor]:
        """What an evaluation may change in place."""

    def roots(self) -> Mapping[str, object]:
        """The objects whose numbers and flags the losses may depend on."""


@dataclass
class _Variant:
    """The graphs of one kind of step in one state of the programs."""

    watch: Watch
    graphs: dict[int, LossGraph] = field(default_factory=dict)
    whole: WholeStep | None = None
    checks: int = 0
    runs: int = 0
    engine: str = CAPTURED


@dataclass
class _Kind:
    """Steps that are alike: of one graph, as far as their batches and handlers tell."""

    seen: int = 0
    variants: list[_Variant] = field(default_factory=list)
    num_losses: int = 0


@dataclass
class _StepAhead:
    """One step, before it is taken."""

    args: Args
    inputs: Inputs
    tensors: list[Tensor]
    handlers: Sequence[Handler]
    kind: _Kind


@dataclass
class _Check:
    """A loss that is evaluated both ways; the eager one has copies of the batch's tensors."""

    ahead: _StepAhead
    variant: _Variant
    index: int
    loss: Loss
    clones: list[Tensor]


class Engine:
    """Evaluates the losses of steps and their gradients, eagerly or as graphs.

    Arguments:
        mode: Which engines may be used, see :func:`~pyro_vaes.infer.fit`.
        eager: The eager side.
        parameters: What the losses are differentiated by, by name.
        device: Where they are.
        remaining: How many steps are still to come, as far as that is known.
        update: The optimiser's step as a part of the graph, where that is possible.
        resumes: The engine of the run that this one goes on from. Compiled steps differ from
            others by rounding, so a run that was compiled stays so.
        announce: Told in a word or two what takes long, and "" when it is over.
    """

    def __init__(
        self,
        mode: Compile,
        eager: Evaluates,
        parameters: Mapping[str, Tensor],
        device: torch.device,
        *,
        remaining: Callable[[], int],
        update: Callable[[], AdamUpdate | None] = lambda: None,
        resumes: str = EAGER,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.mode, self.eager, self.device = mode, eager, device
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.remaining, self.update, self.announce = remaining, update, announce

        self._counts: Counter[str] = Counter()  # steps of this epoch by engine
        self._notes = {EAGER: "compile=False" if mode is False else ""}
        self._was_compiled = resumes == COMPILED
        self.outcome: Outcome | None = None  # of a step that moved the parameters too
        self.replayed = 0  # steps since the epoch's start that rely on graphs
        self._off = mode is False
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._steps = 0
        self._no_compiler = ""

    @property
    def is_off(self) -> bool:
        """Whether all steps to come are eager."""
        return self._off

    @property
    def name(self) -> str:
        """The engine of most steps of this epoch."""
        if self._off or not self._counts:
            return EAGER
        return self._counts.most_common(1)[0][0]

    @property
    def reason(self) -> str:
        """Why that is no quicker one, in words; "" where there is nothing to say."""
        return self._notes.get(self.name, "")

    def start_epoch(self) -> None:
        """Forget how the steps so far were taken: a new epoch relies on nothing yet."""
        self._counts.clear()
        self.replayed = 0

    def turn_off(self, reason: str) -> None:
        """Take all steps to come eagerly."""
        self._off, self._notes[EAGER] = True, reason
        self._kinds.clear()

    def sub_steps(
        self,
        args: Args,
        num_data: float,
        handlers: Sequence[Handler],
        stack: ExitStack,
    ) -> list[SubStep]:
        """What to call in turn: each puts gradients in place and returns its loss.

        Arguments:
            args: The programs' arguments.
            num_data: How many data the loss stands for.
            handlers: What the callbacks want around the losses.
            stack: Holds the handlers while eager losses are evaluated.
        """
        self._steps += 1
        self.outcome = None
        ahead = None if self._off else self._look_ahead(args, num_data, handlers)
        if ahead is None:
            return self._eagerly(args, handlers, stack)

        variant = self._variant(ahead)
        if variant is None:
            return self._eagerly(args, handlers, stack)

        if variant.whole is not None and not variant.whole.holds():
            variant.whole, variant.engine, variant.checks = None, CAPTURED, 0
        if self._is_checked(variant):
            variant.runs += 1
            self.replayed += 1
            self._counts[variant.engine] += 1
            if variant.whole is not None:
                return [partial(self._take_whole, ahead, variant.whole)]
            every = range(ahead.kind.num_losses)
            return [partial(self._replay, ahead, variant, i) for i in every]

        variant.runs = 0
        clones = [t.clone() for t in ahead.inputs.tensors]
        losses = self.eager.losses(ahead.inputs.arguments(clones))
        ahead.kind.num_losses = len(losses)

        sub_steps: list[SubStep] = []
        for index, loss in enumerate(losses):
            checked = _Check(ahead, variant, index, loss, clones)
            sub_steps.append(partial(self._checked, checked))
        return sub_steps

    # which engine

    def _look_ahead(
        self,
        args: Args,
        num_data: float,
        handlers: Sequence[Handler],
    ) -> _StepAhead | None:
        """The step as the input of a graph; None where it is to be eager."""
        is_auto = self.mode == "auto" and not self._was_compiled
        if is_auto and not recording_pays(self._steps + self.remaining()):
            self._notes[EAGER] = TOO_FEW
            return None
        if torch.is_autocast_enabled(self.device.type):
            self.turn_off("autocast is on")
            return None

        try:
            inputs = inputs_of(args)
            form, numbers = describe_handlers(handlers)
        except CannotCapture as error:
            self.turn_off(str(error))
            return None

        key = inputs.key, num_data, form, torch.get_default_dtype()
        kind = self._kinds.setdefault(key, _Kind())
        kind.seen += 1
        if len(self._kinds) > MAX_KINDS:
            self.turn_off(f"there are more than {MAX_KINDS} kinds of steps")
            return None

        is_new = not kind.variants
        if is_auto and is_new and not recording_pays(self._expected(kind)):
            return None
        tensors = [*inputs.tensors, *as_tensors(numbers, self.device)]
        return _StepAhead(args, inputs, tensors, handlers, kind)

    def _expected(self, kind: _Kind) -> float:
        """How many more steps of this kind are likely to come."""
        return self.remaining() * kind.seen / self._steps

    def _variant(self, ahead: _StepAhead) -> _Variant | None:
        """The graphs that hold in the programs' present state, which may have to be made."""
        where = ""
        for variant in ahead.kind.variants:
            where = variant.watch.changed() or ""
            if not where:
                return variant

        if len(ahead.kind.variants) >= MAX_VARIANTS:
            self.turn_off(f"{where} {CHANGES}")
            return None
        variant = _Variant(Watch(self.eager.roots()))
        ahead.kind.variants.append(variant)
        return variant

    def _is_checked(self, variant: _Variant) -> bool:
        between = STEPS_BETWEEN_CHECKS[variant.engine]
        return variant.checks >= FIRST_CHECKS and variant.runs < between

    # taking a step

    def _eagerly(
        self,
        args: Args,
        handlers: Sequence[Handler],
        stack: ExitStack,
    ) -> list[SubStep]:
        for handler in handlers:
            stack.enter_context(handler)
        self._counts[EAGER] += 1
        return [partial(self._backward_value, loss) for loss in self.eager.losses(args)]

    def _backward_value(self, loss: Loss) -> Tensor:
        return self._backward(loss).value

    def _backward(self, loss: Loss) -> Evaluated:
        with self.eager.surroundings():
            value = loss()
            value.backward()
        gradients = [p.grad for p in self.parameters]
        return Evaluated(value.detach(), gradients, self.eager.left_behind())

    def _replay(self, ahead: _StepAhead, variant: _Variant, index: int) -> Tensor:
        return self._take(variant.graphs[index](ahead.tensors))

    def _take_whole(self, ahead: _StepAhead, whole: WholeStep) -> Tensor:
        stepped = whole(ahead.tensors)
        self.outcome = stepped.outcome
        return self._take(stepped.evaluated)

    def _take(self, found: Evaluated) -> Tensor:
        """Put a graph's results where those of an eager evaluation would be."""
        for parameter, gradient in zip(self.parameters, found.gradients, strict=True):
            parameter.grad = gradient
        self.eager.leave_behind(found.left_behind)
        return found.value

    def _checked(self, check: "_Check") -> Tensor:
        """An eager evaluation and one of the graph, from one state, which must agree."""
        ahead, variant, index = check.ahead, check.variant, check.index
        before = Moment(self.eager.buffers(), self.device)
        with ExitStack() as stack:
            for handler in ahead.handlers:
                stack.enter_context(handler)
            wanted = self._backward(check.loss)
        after = Moment(self.eager.buffers(), self.device)

        try:
            if index not in variant.graphs:
                self._refuse_side_effects(variant, before)
                variant.graphs[index] = self._record(ahead, index, after)
            if self._should_compile(ahead, variant, index):
                self._compile(ahead, variant, index, after)
            found = self._agreeing(ahead, variant, index, before, after, wanted)
        except CannotCapture as error:
            after.back()
            self._give_up(str(error), check.clones, ahead)
            self.eager.leave_behind(wanted.left_behind)
            return wanted.value

        if index == ahead.kind.num_losses - 1:
            variant.checks += 1
            self._counts[variant.engine] += 1
            self._notes[variant.engine] = self._why_not_compiled(variant)
        return self._take(found)

    def _refuse_side_effects(self, variant: _Variant, before: Moment) -> None:
        outside = before.drew_outside_torch()
        if outside is not None:
            raise CannotCapture(f"the programs draw from {outside}")
        where = variant.watch.changed()
        if where is not None:
            raise CannotCapture(f"each step changes {where}")

    def _record(self, ahead: _StepAhead, index: int, after: Moment) -> LossGraph:
        """The graph of a loss, recorded on other rows and other noise."""
        self.announce("recording, once")
        num_inputs = len(ahead.inputs.tensors)

        def loss(tensors: Sequence[Tensor]) -> Tensor:
            given, numbers = tensors[:num_inputs], tensors[num_inputs:]
            with ExitStack() as stack:
                for handler in with_tensors(ahead.handlers, numbers):
                    stack.enter_context(handler)
                with self.eager.surroundings():
                    return self.eager.losses(ahead.inputs.arguments(given))[index]()

        others = [*map(_other_rows, ahead.inputs.tensors), *ahead.tensors[num_inputs:]]
        torch.rand(7, device=self.device)  # other noise; afterwards it is as before
        try:
            return LossGraph(loss, others, self.parameters, self.eager.left_behind)
        finally:
            after.back()
            self.announce("")

    def _agreeing(
        self,
        ahead: _StepAhead,
        variant: _Variant,
        index: int,
        before: Moment,
        after: Moment,
        wanted: Evaluated,
    ) -> Evaluated:
        """The graph's evaluation, which agrees with the eager one.

        Where compiled code does not, the graph goes on without it.
        """
        graph, whole = variant.graphs[index], variant.whole
        before.back()
        if whole is None:
            found, moved = graph(ahead.tensors), untouched([])
        else:
            moved = untouched(whole.state())
            moved.__enter__()
            found, self.outcome = whole(ahead.tensors)
            wanted = _clipped(wanted, whole.update.max_norm())

        try:
            self._compare(found, wanted, after, compiled=variant.engine == COMPILED)
        except CannotCapture as error:
            if whole is not None:
                moved.put_back()
            self.outcome = None
            if variant.engine != COMPILED or self.replayed:
                raise
            self._no_compiler, variant.engine, variant.whole = (
                str(error),
                CAPTURED,
                None,
            )
            graph.run = as_function(graph.module)
            return self._agreeing(ahead, variant, index, before, after, wanted)
        return found

    def _why_not_compiled(self, variant: _Variant) -> str:
        if variant.engine == COMPILED:
            return ""
        if self._no_compiler:
            return f"not compiled: {self._no_compiler}"
        if self.mode == "auto":
            return "not compiled: the steps are too few to earn back the compilation"
        if self.mode == "capture":
            return ""
        return "not compiled: too few steps are of this kind"

    def _compare(
        self,
        found: Evaluated,
        wanted: Evaluated,
        after: Moment,
        *,
        compiled: bool,
    ) -> None:
        """Raise where two evaluations from one state differ, or leave different states."""
        where = difference(found, wanted, self.names, compiled=compiled)
        now = Moment(self.eager.buffers(), self.device)
        if where is None and not now.same_generators(after):
            where = "how many random numbers are drawn"
        if where is None:
            pairs = zip(now.values, after.values, strict=True)
            if not all(agree(a, b, compiled=compiled) for a, b in pairs):
                where = "a buffer"
        if where is not None:
            raise CannotCapture(f"{DIFFERS}: {where}")

    def _give_up(self, reason: str, clones: list[Tensor], ahead: _StepAhead) -> None:
        """Go on eagerly; the epoch has to be done again where its steps relied on graphs."""
        relied = self.replayed
        self.turn_off(reason)
        if relied:
            raise GraphDiffers(reason)
        with torch.no_grad():
            for tensor, clone in zip(ahead.inputs.tensors, clones, strict=True):
                if not torch.equal(tensor, clone):  # changed in place
                    tensor.copy_(clone)

    # compiling

    def _should_compile(self, ahead: _StepAhead, variant: _Variant, index: int) -> bool:
        if self.mode == "capture" or variant.engine == COMPILED or self._no_compiler:
            return False
        if self.mode is True or self._was_compiled:
            return 2 * ahead.kind.seen >= self._steps  # most steps are of this kind
        if self.device.type == "cuda":  # no compiler runs
            return recording_pays(self._expected(ahead.kind))
        size = variant.graphs[index].num_operations
        return compiling_pays(self._expected(ahead.kind), size)

    def _compile(
        self,
        ahead: _StepAhead,
        variant: _Variant,
        index: int,
        after: Moment,
    ) -> None:
        """Compile the graph of a loss, with the optimiser's step if it is the only one.

        Where that fails the graph stays as it is.
        """
        self._no_compiler = missing_compiler(self.device.type)
        if self._no_compiler:
            return

        self.announce("compiling, once")
        graph = variant.graphs[index]
        try:
            update = self.update()
            if update is None or ahead.kind.num_losses > 1:
                graph.run = compile_graph(graph.module, ahead.tensors)
            else:
                variant.whole = WholeStep(graph, ahead.tensors, update, self.parameters)
            variant.engine = COMPILED
        except CannotCapture as error:
            self._no_compiler = str(error)
        finally:
            after.back()
            self.announce("")


def _clipped(wanted: Evaluated, max_norm: float | None) -> Evaluated:
    """The evaluation with its gradients clipped."""
    if max_norm is None:
        return wanted
    present = [g for g in wanted.gradients if g is not None]
    norm = torch.nn.utils.get_total_norm(present)
    factor = (max_norm / (norm + NORM_FLOOR)).clamp(max=1.0)
    clipped = [None if g is None else g * factor for g in wanted.gradients]
    return wanted._replace(gradients=clipped)


def _other_rows(tensor: Tensor) -> Tensor:
    """A batch of the same layout with its rows in another order."""
    other = tensor.detach().clone()
    if other.dim():
        other.copy_(tensor.detach().roll(1, 0))
    return other.requires_grad_(tensor.requires_grad)
