"""Graphs as one call each: compiled by Inductor on the CPU, as a CUDA graph on a GPU.

Random numbers are those of torch's own stream.
"""

import functools
import itertools
import logging
import shutil
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from .cuda_graphs import CudaGraph
from .loss_graph import as_function
from .reads import CannotCapture, in_one_line

_numbers = itertools.count()
logger = logging.getLogger(__name__)
OPTIONS: dict[str, Any] = {"fallback_random": True}  # torch's own random numbers


@functools.cache
def missing_compiler(device_type: str) -> str:
    """What is missing for compilation on a kind of device, in words; "" where nothing is."""
    if device_type == "cuda":
        return ""
    try:
        from torch._inductor import compile_fx  # noqa: F401 - it is private
    except ImportError:
        return "this version of torch has no compiler"
    if not find_cpp_compiler():
        return "there is no C++ compiler on the path (install g++ or clang)"
    return ""


def find_cpp_compiler() -> str | None:
    """The C++ compiler that torch would use."""
    named = torch._inductor.config.cpp.cxx
    for name in named if isinstance(named, list | tuple) else (named,):
        found = shutil.which(name) if name else None
        if found:
            return found
    return shutil.which("clang++")


def compile_graph(
    module: fx.GraphModule,
    tensors: Sequence[Tensor],
    num_fixed: int = 0,
) -> Callable[..., Sequence[Tensor]]:
    """A graph as compiled code; it is run on copies of these tensors.

    Arguments:
        module: The graph.
        tensors: Its inputs.
        num_fixed: How many of the last inputs are the same tensors in every call.

    Raises:
        CannotCapture: It cannot be compiled.
    """
    if any(tensor.is_cuda for tensor in tensors):
        return CudaGraph(as_function(module), tensors, num_fixed)

    options = dict(OPTIONS)
    skip_all_guards = getattr(torch.compiler, "skip_all_guards_unsafe", None)
    if skip_all_guards is not None:  # the engine has looked at the inputs already
        options["guard_filter_fn"] = skip_all_guards

    def run(*given: Tensor) -> Sequence[Tensor]:
        return module(*given)

    # torch keeps compiled code with the code of a function, which each graph must own
    own = types.FunctionType(
        run.__code__.replace(co_name=f"step_{next(_numbers)}"),
        run.__globals__,
        closure=run.__closure__,
    )
    compiled = torch.compile(own, fullgraph=True, dynamic=False, options=options)
    try:
        with torch.no_grad():
            compiled(*(t.clone() for t in tensors))
    except Exception as error:
        logger.debug("compilation failed", exc_info=True)
        raise CannotCapture(f"compilation failed ({in_one_line(error)})") from error
    return compiled
