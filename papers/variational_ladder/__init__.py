"""Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017).

    :mod:`~papers.variational_ladder.ladder`          what each level of a ladder codes, beside a hierarchy
    :mod:`~papers.variational_ladder.gibbs_chain`     the argument against hierarchies: z_1 alone represents the data

References:
    | Learning Hierarchical Features from Generative Models (Zhao, Song & Ermon, 2017)
    | https://arxiv.org/abs/1702.08396
"""

from papers.variational_ladder.gibbs_chain import GIBBS_CHAIN
from papers.variational_ladder.ladder import VARIATIONAL_LADDER

__all__ = ["GIBBS_CHAIN", "VARIATIONAL_LADDER"]
