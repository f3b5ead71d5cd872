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


def seconds(environment: dict[str, str], threads: int) -> float:
    """Of the second epoch; the first warms up."""
    with tempfile.TemporaryDirectory() as out:
        command = [
            *(Path(sys.executable).parent / "nsn", "train", "demo", "--json"),
            *("--data", ROOT / "data/mnist", "--out", out),
            *("--epochs", "2", "--threads", str(threads)),
        ]
        env = {**os.environ, **environment}
        result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return float(json.loads(result.stdout.splitlines()[1])["seconds"])


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
                    found[way].append(seconds(environment, options.threads))
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
