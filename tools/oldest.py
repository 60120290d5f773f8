"""The oldest versions that pyproject.toml admits, as pip's constraints.

    python tools/oldest.py > constraints.txt

One line for each dependency of the package, and of the extras that it uses while it runs,
that has a lower bound; for the Python that runs this. Needs the package `packaging`.
"""

import pathlib
import tomllib

from packaging.requirements import Requirement

PYPROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"
EXTRAS = ("distributed", "tensorboard")


def requirements() -> list[Requirement]:
    """What the package needs here, with its extras."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    texts = list(project["dependencies"])
    for extra in EXTRAS:
        texts += project["optional-dependencies"][extra]

    found = map(Requirement, texts)
    return [r for r in found if r.marker is None or r.marker.evaluate()]


def main() -> None:
    """Print the constraints."""
    for requirement in requirements():
        for bound in requirement.specifier:
            if bound.operator == ">=":
                print(f"{requirement.name}=={bound.version}")


if __name__ == "__main__":
    main()
