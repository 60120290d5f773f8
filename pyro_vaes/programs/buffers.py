"""Runs of networks that leave their buffers as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["untouched_buffers"]


@contextmanager
def untouched_buffers() -> Iterator[None]:
    """Inside, modules that are called change copies of their buffers, such as a batch norm's statistics."""
    kept: dict[nn.Module, dict[str, Tensor | None]] = {}

    def keep(module: nn.Module, _: object) -> None:
        if module not in kept and not isinstance(module, torch.jit.ScriptModule):
            kept[module] = dict(module._buffers)
            copies = {n: b.clone() for n, b in module._buffers.items() if b is not None and not is_lazy(b)}
            module._buffers.update(copies)

    handle = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        for module, buffers in kept.items():
            module._buffers.update(buffers)
