"""Where files are looked for, and whether they are the files they should be."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pyro_vaes.errors import Cure, MissingFileError, UnwritableError, UsageError

_T = TypeVar("_T")
_START_WITH_DIGITS = Cure("data", "digits", words="start with load_data('digits')", detail=", which needs no file")

# The files that this package knows byte by byte, by their path under the data folder.
SHA256 = {
    "ATTFaces/att_faces.npz": "401ef285b17268b08a61a22264fda95c2da50a0c0e3e4352efebdea91bb6cc0c",
    "BinarizedMNIST/binarized_mnist.npz": "df14a884cb4aa7ac6692463fb31798a687c4e762c73c23a8ae3114fbec4e6093",
    "CIFAR10subset/cifar10_subset.npz": "3f0a7346b6562fbd423ab7a5ad5cc6464b5da1d86bdf61a7fb996c0d8117a10d",
    "Caltech101Silhouettes/caltech101_silhouettes_28.mat": (
        "862d0a4b828256d54ad5de7c5066c18c72f355cac5b7cde4c1c3be7c000d180b"
    ),
    "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "FreyFaces/frey_rawface.mat": "265a83a23adb081755cd3de375509828e690324d1d60f076b8ecebc840d59c64",
    "LFWgray64/lfw_gray64.npz": "bc8718e668ea0b7a83dffcb1f98a8c4ea3d9554ef9872c8ab3913c1c9aea8c2c",
    "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "Omniglot/omniglot_105x105_bits.npz": "2f446dcd4f1c09fe1f493940d49a1bdd00b912737bcaf03d7b91a03cf504d392",
    "Omniglot/omniglot_28x28.npz": "3034fb1632b9aa858c8800fc57cd787a24bc1085c7db4e59a7e80971b0db8478",
    "SVHNsubset/svhn_subset.npz": "b1bc149e8ab08ab7eb8dc8fe597bb96772f8e4e59b7a6636b6867159a93d0bd5",
}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Library:
    """The folders where data sets are looked for, and what may be done about missing or altered files.

    Arguments:
        root: The folder to look in. If None: the folder named by the environment variable `PYRO_VAES_DATA`,
            then `~/.cache/pyro_vaes`.
        download: Whether files that are in none of the folders may be downloaded.
        verify: Whether files with a known SHA-256 have to match it.
    """

    root: str | os.PathLike[str] | None = None
    download: bool = True
    verify: bool = True

    @property
    def folders(self) -> list[Path]:
        """The folders in the order in which they are looked through."""
        if self.root is not None:
            return [Path(self.root).expanduser()]
        folders = [os.environ.get("PYRO_VAES_DATA"), "~/.cache/pyro_vaes"]
        return [Path(folder).expanduser() for folder in folders if folder]

    @property
    def target(self) -> Path:
        """The folder to download to: the first that can be written to."""
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError:
                continue
            if os.access(folder, os.W_OK):
                return folder
        raise UnwritableError(
            f"none of the folders {self._named} can be written to, so nothing can be downloaded.",
            _choose_root("a folder of yours"),
        )

    @property
    def _named(self) -> str:
        return ", ".join(map(str, self.folders))

    def _folder_with(self, relative: str) -> Path | None:
        for folder in self.folders:
            if (folder / relative).exists():
                return folder
        return None

    def find(self, relative: str) -> Path | None:
        """The path of a file or folder in the first folder that has it, or None."""
        folder = self._folder_with(relative)
        return None if folder is None else folder / relative

    def require(self, relative: str, name: str) -> Path:
        """The path of a file that this package cannot download.

        Raises:
            FileNotFoundError: If it is in none of the folders.
            ValueError: If its SHA-256 is not the known one.
        """
        path = self.find(relative)
        if path is None:
            raise MissingFileError(
                f"{name} needs the file {relative}, which is in none of {self._named} and cannot be downloaded.",
                _choose_root(f"the folder that has {relative}"),
                _START_WITH_DIGITS,
            )
        self.check(path, relative)
        return path

    def check(self, path: Path, relative: str) -> None:
        """Compares a file with the SHA-256 known for its relative path, if `verify`.

        Raises:
            ValueError: If they differ.
        """
        wanted = SHA256.get(relative)
        if not self.verify or wanted is None:
            return

        got = sha256(path)
        if got != wanted:
            raise UsageError(
                f"{path} is not the file it should be: its {path.stat().st_size:,} bytes have the SHA-256 "
                f"{got}, but {wanted} is wanted. It is truncated or altered.",
                Cure("files", words="copy or download it again"),
                Cure("verify", False, detail=" to read it all the same"),
            )

    def obtain(self, name: str, marker: str, read: Callable[[str, bool], _T]) -> _T:
        """Reads a data set that another package can download.

        The first folder that has the marker is read without network access, so that read-only folders work;
        what is missing or damaged there is downloaded if that is allowed and the folder can be written to.

        Arguments:
            name: The name of the data set, for errors.
            marker: The relative path of a file or folder that is there if the data set is.
            read: `read(root, download)`, which reads, or downloads and reads.

        Raises:
            FileNotFoundError: If the data set is in none of the folders and cannot be downloaded.
            ValueError: If it is there, but damaged, and cannot be downloaded.
        """
        here = self._folder_with(marker)
        if here is None and not self.download:
            raise MissingFileError(
                f"{name} needs {marker}, which is in none of {self._named}.",
                _choose_root("the folder that has it"),
                Cure("download", True),
            )
        root = here or self.target

        # torchvision, scikit-learn and the network raise all kinds of errors, all with one cure
        if here is not None:
            try:
                return read(str(root), False)
            except Exception as error:
                if not self.download or not os.access(root, os.W_OK):
                    anew = Cure("download", True, words="remove them and pass download=True")
                    raise UsageError(
                        f"{name}: the files under {root} are incomplete, truncated or altered ({error}).",
                        Cure("files", words="copy them again"),
                        anew,
                    ) from error

        try:
            return read(str(root), True)
        except Exception as error:
            copy = Cure("files", words=f"copy {marker} there from elsewhere")
            raise MissingFileError(
                f"{name} is not, or not whole, in {self._named}, and the download to {root} failed "
                f"({type(error).__name__}: {error}). Is there a network?",
                copy,
                _START_WITH_DIGITS,
            ) from error


def _choose_root(folder: str) -> Cure:
    detail = f" or set the environment variable PYRO_VAES_DATA to {folder}"
    return Cure("root", detail=detail)
