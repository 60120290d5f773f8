"""Keeping the sample messages of a run that somebody else makes of a program."""

from typing import Self

from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message

from .sites import Role, Sites, role


class SiteRecorder(Messenger):
    """Around a program: keeps the sample messages of its latest run by name.

    Arguments:
        roles: Roles of the sites that are kept.
    """

    def __init__(self, roles: frozenset[Role]) -> None:
        super().__init__()
        self.roles = roles
        self.found: Sites = {}

    def __enter__(self) -> Self:
        self.found = {}
        return super().__enter__()

    def _pyro_post_sample(self, msg: Message) -> None:
        if role(msg) in self.roles:
            self.found[str(msg["name"])] = msg

    def take_all(self) -> Sites:
        """The messages of the latest run; afterwards nothing holds on to its graph."""
        found, self.found = self.found, {}
        return found
