"""A loss and its gradients as one graph of tensor operations.

The graph is what torch has done in one evaluation of a loss: neither Pyro nor autograd nor
the programs' own Python runs any more. Random draws stay operations, and parameters and
buffers are shared with the modules, not copied.
"""

import functools
import operator
import pathlib
import re
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from pyro_vaes.ops import capturing

from .enumeration import costs_summed_as_they_are
from .reads import CannotCapture, RefuseReads, in_one_line

Loss = Callable[[Sequence[Tensor]], Tensor]
LeftBehind = Callable[[], tuple[Tensor, ...]]
LOOKED_UP = re.compile(r"\b(?P<root>torch|self)\.(?P<path>(?:ops\.|_)[\w.]+)")
NO_PRIVATE_API = "this version of torch lacks the function that records graphs"
READ = "the programs read a number of a tensor into Python (.item(), bool() or float())"
READS_A_NUMBER = ("aten._local_scalar_dense", "data-dependent", "tracing tensor")
KEPT = ("_assert_async", "_assert_tensor_metadata", "sym_constrain_range")


class Evaluated(NamedTuple):
    """A loss, its gradients, and the tensors that the bound has left behind.

    The gradient of a parameter that the loss does not reach is None.
    """

    value: Tensor
    gradients: list[Tensor | None]
    left_behind: tuple[Tensor, ...]


class LossGraph:
    """The graph of a loss and its gradients.

    Arguments:
        loss: The loss as a function of the batch's tensors.
        tensors: The tensors of a batch; the loss is evaluated on them once.
        parameters: What it is differentiated by.
        left_behind: What the bound has left behind after the evaluation.

    Raises:
        CannotCapture: The evaluation cannot be recorded.
    """

    def __init__(
        self,
        loss: Loss,
        tensors: Sequence[Tensor],
        parameters: Sequence[Tensor],
        left_behind: LeftBehind,
    ) -> None:
        self.num_gradients = len(parameters)
        self.reached: list[int] = []

        def outputs(*given: Tensor) -> list[Tensor]:
            value = loss(given)
            trained = [p for p in parameters if p.requires_grad]
            found = torch.autograd.grad(value, trained, allow_unused=True)

            gradients = dict(zip(map(id, trained), found, strict=True))
            reached = [gradients.get(id(p)) for p in parameters]
            self.reached = [i for i, g in enumerate(reached) if g is not None]
            own = _as_accumulated(reached, parameters)
            return [value.detach(), *own, *(t.detach() for t in left_behind())]

        self.module = record(outputs, tensors)
        self.run: Callable[..., Sequence[Tensor]] = as_function(self.module)

    @property
    def num_operations(self) -> int:
        """How many operations one evaluation takes."""
        return sum(node.op == "call_function" for node in self.module.graph.nodes)

    def __call__(self, tensors: Sequence[Tensor]) -> Evaluated:
        """The loss of another batch, with the parameters as they are now."""
        with torch.no_grad():
            value, *rest = self.run(*tensors)
        return self.sorted_out(value, rest)

    def sorted_out(self, value: Tensor, rest: Sequence[Tensor]) -> Evaluated:
        """The graph's outputs after the first: which is whose gradient, what is left behind."""
        gradients: list[Tensor | None] = [None] * self.num_gradients
        for index, gradient in zip(self.reached, rest, strict=False):
            gradients[index] = gradient
        return Evaluated(value, gradients, tuple(rest[len(self.reached) :]))


def record(
    function: Callable[..., list[Tensor]],
    tensors: Sequence[Tensor],
) -> fx.GraphModule:
    """The graph of a function of tensors, which is evaluated once on these.

    Raises:
        CannotCapture: It reads numbers into Python, or torch cannot record it.
    """
    make_fx = torchs_recorder()
    try:
        with costs_summed_as_they_are(), capturing(), RefuseReads():
            module = make_fx(function, tracing_mode="real")(*tensors)
    except CannotCapture as error:
        raise CannotCapture(f"{error}{_place(error)}") from error
    except Exception as error:
        what = in_one_line(error)
        if any(mark in str(error) for mark in READS_A_NUMBER):
            what = READ
        raise CannotCapture(f"{what}{_place(error)}") from error

    for node in module.graph.nodes:
        if node.kwargs.get("generator") is not None:
            raise CannotCapture("the programs draw from a generator of their own")

    _simplify(module)
    return module


def as_function(module: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """The graph's operations in turn, bound once rather than looked up in each call."""
    python = module.graph.python_code("self")
    names = dict(python.globals)

    def bound(found: re.Match[str]) -> str:
        root, path = found["root"], found["path"]
        value = operator.attrgetter(path)({"torch": torch, "self": module}[root])
        if isinstance(value, torch._ops.OpOverload):
            value = value._op  # without Python's part of the call

        name = f"_bound_{root}_{path.replace('.', '_')}"
        names[name] = value
        return name

    source = LOOKED_UP.sub(bound, python.src)
    exec(source, names)  # torch itself runs graphs so
    return functools.partial(names["forward"], module)


def torchs_recorder() -> Callable[..., Callable[..., fx.GraphModule]]:
    """The function of torch that records graphs; it is private, and takes a second to import.

    Raises:
        CannotCapture: This version of torch lacks it.
    """
    try:
        from torch.fx.experimental.proxy_tensor import make_fx
    except ImportError as error:
        raise CannotCapture(NO_PRIVATE_API) from error
    return make_fx


def _as_accumulated(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """The gradients that are there, laid out as ``backward()`` would leave them in ``.grad``.

    Each has the strides of its parameter and a memory of its own.
    """
    found: list[Tensor] = []
    taken = {p.untyped_storage().data_ptr() for p in parameters}

    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is None:
            continue
        if gradient.layout is not torch.strided:
            raise CannotCapture("a gradient is sparse")

        memory = gradient.untyped_storage().data_ptr()
        same_layout = gradient.stride() == parameter.stride()
        if memory in taken or not same_layout:
            gradient = torch.empty_like(parameter).copy_(gradient)
            memory = gradient.untyped_storage().data_ptr()
        taken.add(memory)
        found.append(gradient)
    return found


def _simplify(module: fx.GraphModule) -> None:
    """Leave out what changes no number: detached aliases, results that nobody uses."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            node.replace_all_uses_with(node.args[0])

    for node in reversed(list(graph.nodes)):
        is_idle = node.op == "call_function" and not node.users
        if is_idle and not _has_effect(node.target):
            graph.erase_node(node)

    graph.lint()
    module.recompile()


def _has_effect(operation: object) -> bool:
    """Whether an operation counts beside its result: changes a tensor, draws, checks."""
    if not isinstance(operation, torch._ops.OpOverload):
        return getattr(operation, "__name__", "") != "getitem"
    if operation._schema.is_mutable or any(name in str(operation) for name in KEPT):
        return True
    return torch.Tag.nondeterministic_seeded in operation.tags


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code that was running, in brackets."""
    libraries = ("/torch/", "/pyro/", "/pyro_vaes/", "/contextlib.py", "/functools.py")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in libraries):
            file = pathlib.Path(frame.filename).name
            return f" [{file}, line {frame.lineno}: {frame.line}]"
    return ""
