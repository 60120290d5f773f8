"""`demo`: a small variational auto-encoder of real digits, trained and criticised in about a minute."""

from pathlib import Path

import torch

from .measure import EVALUATION, Measured, measure
from .options import Options
from .report import write_report
from .run_files import CHECKPOINT, HISTORY, RUN
from .training import train

DEMO = Options(
    likelihood="poisson",
    hidden=(256, 256),
    latent_dim=(6,),
    epochs=130,
    lr=2e-3,
    patience=30,
)
"""A likelihood for counts, because these pixels are counts: of inked dots in blocks of 4 x 4."""


def demo(directory: Path, *, options: Options = DEMO, progress: bool = True) -> tuple[Measured, list[Path]]:
    """Train, evaluate and report; a run of its own that is there is replaced.

    Arguments:
        directory: Where to.
        options: What to train.
        progress: Whether to show a progress bar.

    Returns:
        The numbers, and the files written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for so few pixels slow a machine down
    try:
        run = train(options, directory, overwrite=True, progress=progress)
        measured = measure(run)
        written = write_report(run, measured)
    finally:
        torch.set_num_threads(threads)

    files = (RUN, CHECKPOINT, HISTORY, EVALUATION)
    return measured, [*(directory / name for name in files), *written]
