"""Seconds of an epoch of `nsn train demo`, idle and beside processes that keep cores busy.

The command's default, whose threads wait asleep, beside OpenMP's own, whose threads spin. In
interleaved rounds; prints a line a way, with median and range. Its fair share of a machine of which
n busy processes want the cores too is cores / (threads + n) of each thread's time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: OpenMP's default, as an explicit number of spins.
WAYS = {"asleep (the default)": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}


def seconds(environment: dict[str, str], threads: int, epochs: int) -> list[float]:
    """Of each epoch but the first, which warms up."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            *(Path(sys.executable).parent / "nsn", "train", "demo", "--json"),
            *("--data", ROOT / "data/mnist", "--out", out),
            *("--epochs", str(epochs + 1), "--threads", str(threads)),
        ]
        env = {**os.environ, **environment}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return [json.loads(line)["seconds"] for line in result.stdout.splitlines()[1 : epochs + 1]]


def main() -> None:
    """Measures all ways, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=2, help="busy processes")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    for busy in (0, options.busy):
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            found: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(options.rounds):
                for way, environment in WAYS.items():
                    found[way] += seconds(environment, options.threads, epochs=1)
        finally:
            for each in others:
                each.kill()
        for way, times in found.items():
            print(
                f"{busy} busy processes, {way}: {statistics.median(times):.2f} s an epoch "
                f"({min(times):.2f} to {max(times):.2f})",
                flush=True,
            )


main()
