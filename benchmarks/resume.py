"""Exactness of training at full size: the run of mnist_vae.py twice from one seed, and once killed and resumed.

Three processes train the 784-500-500-50 VAE on dynamically binarised MNIST; the third is killed by SIGKILL in the
middle of an epoch and started again. All must end with the same weights and the same losses, bit for bit.

    PYRO_VAES_DATA=... python benchmarks/resume.py [--epochs 20] [--out benchmarks/results/resume-cpu.json]
"""

import argparse
import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import torch
from mnist_vae import build

from pyro_vaes.data import Binarize, ToUnit, load_data
from pyro_vaes.infer import fit


def train(directory: pathlib.Path, epochs: int) -> None:
    """One run; what it ends with is written as JSON."""
    mnist = load_data("mnist", preprocess=[ToUnit(), Binarize()], download=False)
    vae = build(seed=0)
    history = fit(
        vae.model,
        vae.guide,
        mnist,
        epochs=epochs,
        seed=0,
        checkpoint=directory / "checkpoint",
        resume=True,
        progress=False,
    )
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    result = {"weights": digest.hexdigest(), "train": history.train, "valid": history.valid}
    (directory / "result.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--directory", type=pathlib.Path, help="of one run; for the runs themselves")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    if options.directory is not None:
        train(options.directory, options.epochs)
        return

    with tempfile.TemporaryDirectory() as folder:
        runs = {name: pathlib.Path(folder) / name for name in ("first", "second", "killed")}
        for directory in runs.values():
            directory.mkdir()

        def start(directory: pathlib.Path) -> subprocess.Popen[bytes]:
            command = [sys.executable, __file__, "--directory", str(directory), "--epochs", str(options.epochs)]
            return subprocess.Popen(command)

        started = time.perf_counter()
        for name in ("first", "second"):
            if start(runs[name]).wait():
                raise SystemExit(f"The {name} run failed.")
        seconds = (time.perf_counter() - started) / 2
        victim = start(runs["killed"])
        time.sleep(0.55 * seconds)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        if (runs["killed"] / "result.json").exists():
            raise SystemExit("The run ended before it was killed.")
        if start(runs["killed"]).wait():
            raise SystemExit("The resumed run failed.")
        results = {name: json.loads((directory / "result.json").read_text()) for name, directory in runs.items()}
    result = {
        "command": f"python benchmarks/resume.py --epochs {options.epochs}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "two runs from one seed agree bit for bit": results["first"] == results["second"],
        "killed and resumed agrees bit for bit": results["first"] == results["killed"],
        "sha256 of the weights": {name: r["weights"] for name, r in results.items()},
        "held-out loss": {name: r["valid"][-1] for name, r in results.items()},
    }
    print(json.dumps(result, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
