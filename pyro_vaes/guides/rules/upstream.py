"""What the network of a rule is given beside the model's arguments."""

from collections.abc import Callable, Iterable, Mapping

Names = Iterable[str] | Mapping[str, str]  # of sites; or their keywords by site
Upstream = Names | Callable[[str], Names]  # or a function of the name of a site


def names_given(given: Upstream, site: str) -> dict[str, str]:
    """The keywords of the upstream values of a site, by name."""
    names = given(site) if callable(given) else given
    return dict(names) if isinstance(names, Mapping) else {name: name for name in names}
