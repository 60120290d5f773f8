"""Networks that a guide runs on the way to its last latent site, and their buffers.

A guide runs its model up to the last latent site, the model runs again afterwards.
Running averages of what a batch norm has seen there must not move twice in a step.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from pyro import poutine
from torch import nn

from pyro_vaes.programs import (
    Findings,
    Program,
    SwapPriors,
    bind_keywords,
    copied_buffers,
    modules_of,
    preserve_rng,
    run_swapped,
)


class PassingBuffers:
    """Keeps the buffers of what a model runs before its last latent site as they are.

    Which modules these are is found out once for each structure of a batch.
    """

    def __init__(self) -> None:
        self._found = Findings[tuple[nn.Module, ...]]()

    @contextmanager
    def kept(
        self,
        model: Program,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        latents: Collection[str],
    ) -> Iterator[None]:
        """Inside, these modules change copies."""
        program = bind_keywords(model, kwargs)

        def find() -> tuple[nn.Module, ...]:
            return changed_before(model, args, kwargs, latents)

        modules = self._found.of((program,), args, find)
        with copied_buffers(modules):
            yield


def changed_before(
    model: Program,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    latents: Collection[str],
) -> tuple[nn.Module, ...]:
    """Modules that a program runs before its last latent site and that change their
    buffers."""
    follows: list[nn.Module] = []
    for _, module in modules_of(model, "model"):
        follows += filter(_follows, module.modules())
    if not follows:
        return ()

    found: dict[nn.Module, None] = {}

    def note(module: nn.Module, _: object) -> None:
        if module in follows:
            found[module] = None

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        with poutine.block(), torch.no_grad(), preserve_rng():
            swap = SwapPriors(lambda message: message["fn"], latents)
            with copied_buffers(follows):
                run_swapped(swap, model, args, kwargs)
    finally:
        handle.remove()
    return tuple(found)


def _follows(module: nn.Module) -> bool:
    """Whether a module's buffers follow the batches that it sees."""
    is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
    return is_norm and module.running_mean is not None
