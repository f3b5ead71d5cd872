"""The command line: ``nsn train | eval | describe | extract | export | verify | plot``."""

import sys

from rich.console import Console

from nsn.cli import look, ship, train
from nsn.cli.app import BAD_INPUT, app
from nsn.training.errors import InputError

__all__ = ["look", "main", "ship", "train"]


def main() -> None:
    """The entry point: what the user gave wrong becomes one message and exit code 2."""
    try:
        app()
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(f"nsn: {error}", markup=False, highlight=False)
        sys.exit(BAD_INPUT)
