"""CPU seconds that `import pyro_vaes` and `pyro-vaes --help` take beside `import torch, pyro`.

    python benchmarks/import_time.py [--rounds 5]

Each runs in a process of its own, in turn; the medians count. Take it where nothing else
runs: the first round only warms the file cache.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys

GOAL = 1.3  # times the import of torch and Pyro
HELP_GOAL = 1.5  # seconds beyond Python's start
RESULT = pathlib.Path(__file__).parent / "results" / "import_time-cpu.json"

COMMANDS = {
    "python": ["-c", "pass"],
    "import torch, pyro": ["-c", "import torch, pyro"],
    "import pyro_vaes": ["-c", "import pyro_vaes"],
    "pyro-vaes --help": ["-m", "pyro_vaes.cli", "--help"],
}


def cpu_seconds(arguments):
    """User and system time of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    options = parser.parse_args()

    rounds = {name: [] for name in COMMANDS}
    for number in range(options.rounds + 1):
        for name, arguments in COMMANDS.items():
            taken = cpu_seconds(arguments)
            if number:
                rounds[name].append(round(taken, 3))

    medians = {name: statistics.median(values) for name, values in rounds.items()}
    for name, median in medians.items():
        print(f"{name:<22}{median:7.2f} s")
    ratio = medians["import pyro_vaes"] / medians["import torch, pyro"]
    beyond = medians["pyro-vaes --help"] - medians["python"]
    print(f"import pyro_vaes: {ratio:.2f} times torch and Pyro (goal {GOAL})")
    print(f"pyro-vaes --help: {beyond:.2f} s beyond Python's start (goal {HELP_GOAL})")

    if options.write:
        found = {"medians": medians, "rounds": rounds, "load": os.getloadavg(), "ratio": round(ratio, 3)}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
