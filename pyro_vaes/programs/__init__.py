"""Reading a Pyro program: its sites, plates, masks, scales and units; running one without leaving a trace."""

from pyro_vaes.programs.pair import Pair, preserve_rng

__all__ = ["Pair", "preserve_rng"]
