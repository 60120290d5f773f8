"""The keywords of a call that a network takes."""

import inspect
from collections.abc import Mapping

from torch import nn

from pyro_vaes.programs import Program, required_arguments


def accepted_keywords(
    network: Program,
    num_args: int,
    kwargs: Mapping[str, object],
) -> dict[str, object]:
    """Those keywords that a network takes beside so many positional arguments."""
    try:
        function = network.forward if isinstance(network, nn.Module) else network
        signature = inspect.signature(function)
    except ValueError:  # a compiled function
        return {}

    parameters = signature.parameters.values()
    by_position = [p for p in parameters if p.kind < p.VAR_POSITIONAL]
    filled = {p.name for p in by_position[:num_args]}
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    by_name = {p.name for p in parameters if p.kind in kinds}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    names = kwargs.keys() if takes_all else by_name - filled
    keywords = {name: value for name, value in kwargs.items() if name in names}
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    lacks = takes_any or set(required_arguments(network)) - keywords.keys()
    if lacks and not num_args and not takes_all:
        first, *rest = kwargs
        raise ValueError(
            f"The guide was called with the keywords {list(kwargs)} alone, but "
            f"{type(network).__name__}{signature} takes what it encodes by position: "
            f"guide({', '.join([first, *(f'{name}={name}' for name in rest)])})?"
        )
    return keywords
