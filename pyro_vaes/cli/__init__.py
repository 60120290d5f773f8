"""The command line: the one place where names turn into constructors, and run directories that repeat themselves."""

from .app import app, main
from .errors import user_errors
from .names import choose
from .options import Options, whole_numbers
from .run_directory import Run, open_run, versions

__all__ = [
    "Options",
    "Run",
    "app",
    "choose",
    "main",
    "open_run",
    "user_errors",
    "versions",
    "whole_numbers",
]
