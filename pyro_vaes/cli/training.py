"""`train`: options in, a run directory out."""

import functools
from dataclasses import replace
from pathlib import Path

import torch

from pyro_vaes.cli.build import build_pair, data_path, load_data
from pyro_vaes.cli.names import BOUNDS, choose
from pyro_vaes.cli.options import REPLACEABLE, Options
from pyro_vaes.cli.pictures import save, training_pictures
from pyro_vaes.cli.run_directory import (
    Run,
    describe,
    finished_epochs,
    open_run,
    read_options,
    usable,
    write_json,
)
from pyro_vaes.cli.run_lock import CHECKPOINT, HISTORY, RUN, claimed
from pyro_vaes.data import ImageData
from pyro_vaes.infer import Callback, ClipGradNorm, EarlyStopping, KLWarmup, fit

__all__ = ["resume", "train"]


def train(options: Options, directory: Path, *, overwrite: bool = False, progress: bool = True) -> Run:
    """Train from the beginning and write the run directory.

    Arguments:
        options: What to train.
        directory: Where to.
        overwrite: Whether a run that is there may be replaced.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the options do not suit the data, or the directory cannot be written; before training.
        FileNotFoundError: If data files are missing.
    """
    options = replace(options, data=data_path(options.data))
    usable(options.device)
    data = load_data(options)
    options = options.resolved(data)
    if options.patience and data.valid is None:
        raise ValueError(f"--patience watches validation rows, but {data.name} has none: leave it out.")
    build_pair(options, data)  # options that do not fit each other are refused before anything is written
    with claimed(directory, overwrite=overwrite):
        write_json(directory / RUN, describe(options, data, str(directory)))
        return _fit(options, data, directory, resuming=False, progress=progress)


def resume(directory: Path, given: dict[str, object], *, progress: bool = True) -> Run:
    """Continue an interrupted run to the numbers of an uninterrupted one, or a finished one for more epochs.

    Arguments:
        directory: The run.
        given: Options given anew; only those in `REPLACEABLE` may differ from the run's own.
        progress: Whether to show a progress bar.

    Raises:
        FileNotFoundError: If there is no run.
        ValueError: If it is damaged, other options are given that it was not started with, or fewer epochs than it has.
    """
    options, facts = read_options(directory)
    given = {n: data_path(str(v)) if n == "data" else v for n, v in given.items()}
    differing = [n for n, v in given.items() if n not in REPLACEABLE and getattr(options, n) != v]
    if differing:
        was = ", ".join(f"{n.replace('_', '-')} {getattr(options, n)}" for n in differing)
        raise ValueError(
            f"the run in {directory} was started with {was}: leave these out with --resume, or start another run with "
            "another --out."
        )
    options = replace(options, **{n: v for n, v in given.items() if n in REPLACEABLE})  # type: ignore[arg-type]
    finished = finished_epochs(directory)
    if "epochs" in given and options.epochs < finished:
        raise ValueError(
            f"the run in {directory} has {finished} epochs already, --epochs {options.epochs} asks for fewer: leave it "
            "out, or ask for more."
        )
    usable(options.device)
    data = load_data(options)
    write_json(directory / RUN, facts | {"options": options.to_json(), "command": options.command(str(directory))})
    return _fit(options, data, directory, resuming=True, progress=progress)


def _fit(options: Options, data: ImageData, directory: Path, *, resuming: bool, progress: bool) -> Run:
    built = build_pair(options, data)
    bound = choose("bound", options.bound, BOUNDS).build(options.particles, options.free_bits)
    callbacks: list[Callback] = []
    if options.kl_warmup:
        callbacks.append(KLWarmup(options.kl_warmup * -(-len(data.train) // options.batch_size)))
    if options.clip:
        callbacks.append(ClipGradNorm(options.clip))
    if options.patience:
        callbacks.append(EarlyStopping(options.patience))
    history = fit(
        built.model,
        built.guide,
        data,
        loss=bound,
        optim=functools.partial(torch.optim.Adam, lr=options.lr),
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=callbacks,
        seed=options.seed,
        device=usable(options.device),
        checkpoint=directory / CHECKPOINT,
        resume=resuming,
        on_nan=options.on_nan,
        progress=progress,
    )
    write_json(directory / HISTORY, history.to_dict())
    run = open_run(directory, device=options.device)
    save(training_pictures(run), directory)
    return run
