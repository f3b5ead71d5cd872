"""The command line: ``nsn train | study | eval | describe | extract | export | verify | plot``."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from nsn.cli import look, ship, study, train
from nsn.cli.app import BAD_INPUT, DIVERGED, app
from nsn.training.errors import DivergedError, InputError

__all__ = ["look", "main", "ship", "study", "train"]


class _Output(io.TextIOWrapper):
    """A standard stream whose reader may leave (``| head``), and that takes any file's name."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
        )

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()


def main() -> None:
    """The entry point: what the user gave wrong becomes one message and its exit code."""
    with _outputs():
        try:
            app()
        except (InputError, DivergedError) as error:
            console = Console(stderr=True, soft_wrap=True)
            console.print(f"nsn: {error}", markup=False, highlight=False)
            sys.exit(DIVERGED if isinstance(error, DivergedError) else BAD_INPUT)


@contextmanager
def _outputs() -> Iterator[None]:
    before = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    made = {
        name: _Output(stream)
        for name, stream in before.items()
        if isinstance(stream, io.TextIOWrapper)
    }
    try:
        for name, stream in made.items():
            before[name].flush()
            setattr(sys, name, stream)
        yield
    finally:
        for name, stream in made.items():
            stream.flush()
            stream.detach()  # or else it would close what it writes to
            setattr(sys, name, before[name])
