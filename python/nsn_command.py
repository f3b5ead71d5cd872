"""The command ``nsn``. A module by itself: OpenMP reads its environment when torch is loaded.

Threads that wait for each other spin for a while, and where other processes want the cores too they
spend most of their time so. In ``nsn train`` they sleep instead, unless the user says otherwise:
some 20 % slower on an idle machine, and not many times as slow on a busy one.
"""

import os
import sys


def main() -> None:
    """The entry point."""
    if sys.argv[1:2] == ["train"] and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    from nsn.cli import main as run

    run()
