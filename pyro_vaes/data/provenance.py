"""Where a data set is from."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Provenance:
    """Where a data set is from.

    Arguments:
        source: What it is and where it was read.
        licence: What is known about its licence.
        remark: What to know before reporting numbers: subset, re-encoded, transposed, inverted.
        sha256: Hashes of the files read, by path.
    """

    source: str
    licence: str = "not stated"
    remark: str = ""
    sha256: dict[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        hashes = "".join(f"{path} has the SHA-256 {digest[:12]}..." for path, digest in self.sha256.items())
        if len(self.sha256) > 1:
            hashes = f"SHA-256 of {len(self.sha256)} files on record"
        return ". ".join(part for part in (self.source, f"Licence: {self.licence}", self.remark, hashes) if part)
