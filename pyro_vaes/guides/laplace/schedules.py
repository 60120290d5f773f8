"""Step sizes a_t of the Laplace guide's updates, for t = 0, 1, ..

Full steps hop between the linear regions of a ReLU network and stall; sizes that fall reach the mode.

References:
    | Variational Laplace Autoencoders (Park, Kim & Kim, 2019)
    | https://proceedings.mlr.press/v97/park19a.html
"""


def decaying(t: int, first: float = 0.5) -> float:
    """The step size ``first / (t + 1)``, with the authors' 0.5, the most careful one: it stops short of the mode.

    Example:
        >>> [decaying(t) for t in range(4)]
        [0.5, 0.25, 0.16666666666666666, 0.125]
    """
    return first / (t + 1)


def geometric(t: int, ratio: float = 0.9) -> float:
    """The step size ``ratio ** t``: a full step first, as an earlier version of the authors' code had it.

    Train the start along with it (``start_weight=1.0``), which such steps forget.

    Example:
        >>> [round(geometric(t), 3) for t in range(4)]
        [1.0, 0.9, 0.81, 0.729]
    """
    return ratio**t
