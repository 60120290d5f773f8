"""The command line: the one place where names turn into constructors, and run directories that repeat themselves."""

from pyro_vaes.cli.app import app, main
from pyro_vaes.cli.options import Options
from pyro_vaes.cli.run_directory import Run, open_run

__all__ = ["Options", "Run", "app", "main", "open_run"]
