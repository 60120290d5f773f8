"""Runs of networks that leave their buffers as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@contextmanager
def untouched_buffers() -> Iterator[None]:
    """Inside, modules that are called change copies of their buffers.

    So the statistics of a batch norm, for example, stay as they are.
    """
    kept: dict[nn.Module, dict[str, Tensor | None]] = {}

    def keep(module: nn.Module, _: object) -> None:
        if module in kept or isinstance(module, torch.jit.ScriptModule):
            return
        kept[module] = dict(module._buffers)
        for name, buffer in kept[module].items():
            if buffer is not None and not is_lazy(buffer):
                module._buffers[name] = buffer.clone()

    handle = nn.modules.module.register_module_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
        for module, buffers in kept.items():
            module._buffers.update(buffers)
