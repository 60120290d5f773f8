"""`train`: options in, a run directory out."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_vaes.infer import Callback, ClipGradNorm, EarlyStopping, KLWarmup, fit

from .build import build_pair, data_path, load_run_data
from .options import ENGINES, REPLACEABLE, Options
from .pictures import save, training_pictures
from .run_directory import (
    Run,
    as_device,
    describe,
    read_options,
    reopen,
    write_json,
)
from .run_files import CHECKPOINT, HISTORY, RUN, new_run


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
    as_device(options.device)
    options = replace(options, data=data_path(options.data))
    data = load_run_data(options)
    options = options.resolved(data)
    if options.patience and data.valid is None:
        raise ValueError(f"--patience watches validation rows, but {data.name} has none: leave it out.")
    built = build_pair(options, data)  # options that do not fit each other are refused before anything is written

    facts = describe(options, data, str(directory))
    with new_run(directory, overwrite=overwrite):
        write_json(directory / RUN, facts)
        run = Run(directory, options, facts, data, *built)
        return _fit(run, resuming=False, progress=progress)


def resume(directory: Path, given: dict[str, Any], *, progress: bool = True) -> Run:
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
    if "data" in given:
        given = given | {"data": data_path(str(given["data"]))}
    differing = [n for n, v in given.items() if n not in REPLACEABLE and getattr(options, n) != v]
    if differing:
        was = ", ".join(f"{n.replace('_', '-')} {getattr(options, n)}" for n in differing)
        raise ValueError(
            f"the run in {directory} was started with {was}: leave these out with --resume, or start another run with "
            "another --out."
        )

    options = replace(options, **given)
    as_device(options.device)
    run = reopen(directory, options, facts)
    finished = len(run.history)
    if "epochs" in given and options.epochs < finished:
        raise ValueError(
            f"the run in {directory} has {finished} epochs already, --epochs {options.epochs} asks for fewer: leave it "
            "out, or ask for more."
        )

    facts |= {"options": options.to_json(), "command": options.command(str(directory))}
    write_json(directory / RUN, facts)
    return _fit(run, resuming=True, progress=progress)


def _fit(run: Run, *, resuming: bool, progress: bool) -> Run:
    """Train the pair of a run, and write its history and pictures."""
    options = run.options
    callbacks: list[Callback] = []
    if options.kl_warmup:
        steps_per_epoch = math.ceil(len(run.data.train) / options.batch_size)
        callbacks.append(KLWarmup(options.kl_warmup * steps_per_epoch))
    if options.clip:
        callbacks.append(ClipGradNorm(options.clip))
    if options.patience:
        callbacks.append(EarlyStopping(options.patience))

    history = fit(
        run.model,
        run.guide,
        run.data,
        loss=options.loss(),
        optim=functools.partial(torch.optim.Adam, lr=options.lr),
        epochs=options.epochs,
        batch_size=options.batch_size,
        callbacks=callbacks,
        seed=options.seed,
        device=options.device,
        checkpoint=run.directory / CHECKPOINT,
        resume=resuming,
        on_nan=options.on_nan,
        compile=ENGINES[options.compile],
        progress=progress,
    )

    run = replace(run, history=history)
    write_json(run.directory / HISTORY, history.to_dict())
    save(training_pictures(run), run.directory)
    return run
