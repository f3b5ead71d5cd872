"""The command line as a user runs it: each command a process of its own."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from nsn.cli import main

_TIMEOUT = 300  # seconds

COMMAND = [sys.executable, "-m", "nsn.cli"]

# Forked from a process that has imported what takes most of a command's time: torch, what torch's
# optimizers and exporters import where they are first used, and what draws pictures.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["nsn.cli", "torch._dynamo", "onnxscript", "matplotlib.backends.backend_agg"]
)


def run(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What a command returns and writes, begun in ``folder``.

    What libraries read from the environment when they are loaded (``NSN_CPU_LEVEL``,
    ``OMP_NUM_THREADS``) is that of the tests' first command; start ``COMMAND`` for another.
    """
    given = [os.fspath(each) for each in arguments]
    with tempfile.TemporaryDirectory() as temporary:
        files = [Path(temporary) / name for name in ("stdout", "stderr")]
        process = _processes.Process(target=_main, args=(given, folder or Path.cwd(), files))
        process.start()
        process.join(_TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(given, _TIMEOUT)
        output, errors = (file.read_text() for file in files)
    return subprocess.CompletedProcess(given, process.exitcode, output, errors)


def _main(arguments: list[str], folder: Path, files: list[Path]) -> None:
    os.chdir(folder)
    for descriptor, file in zip((1, 2), files, strict=True):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), descriptor)
    sys.argv = ["nsn", *arguments]
    main()
