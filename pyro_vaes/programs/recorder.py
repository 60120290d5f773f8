"""Keeping the sample messages of a program's run, to be read off after a bound has made it."""

from typing import Self, cast

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

__all__ = ["SiteRecorder"]


class SiteRecorder(Messenger):
    """Around a program: keeps those messages of its latest run that :meth:`wants` picks, by their sites' names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Message] = {}

    def __enter__(self) -> Self:
        self.found = {}
        return super().__enter__()

    def wants(self, msg: Message) -> bool:
        raise NotImplementedError

    def _pyro_post_sample(self, msg: Message) -> None:
        if self.wants(msg):
            self.found[cast(str, msg["name"])] = msg

    def take_all(self) -> dict[str, Message]:
        """The messages of the latest run; afterwards nothing holds on to its graph."""
        found, self.found = self.found, {}
        return found
