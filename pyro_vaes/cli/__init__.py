"""The command line: the one place where names turn into constructors, and run directories that repeat themselves."""

from pyro_vaes.cli.app import app, main
from pyro_vaes.cli.errors import user_errors
from pyro_vaes.cli.names import choose
from pyro_vaes.cli.options import Options, whole_numbers
from pyro_vaes.cli.run_directory import Run, open_run, versions

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
