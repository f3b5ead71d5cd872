"""What a run leaves: report.json, and the table of sub-networks."""

import io
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import nsn
from nsn import Network, files
from nsn.training.data import Split
from nsn.training.errors import InputError
from nsn.training.loop import Run, evaluate
from nsn.training.recipe import Recipe, metric_of
from nsn.training.text import Windows

_LATENCY_CALLS = 200


def summarize(network: Network, test: Split) -> dict[str, dict[str, float]]:
    """Each sub-network from the weights of this moment.

    Returns:
        Name to ``accuracy``, ``loss`` (mean cross entropy, nats), for text
        ``bits_per_character``, ``parameters``, ``bytes`` (of its parameters) and ``latency_us``
        (median microseconds of a view's forward of one sample).
    """
    scores = evaluate(network, test)
    text = isinstance(test, Windows)
    sample, _ = test.batch(test.ordered()[:1])
    return {
        name: {
            **scores[name],
            **({"bits_per_character": scores[name]["loss"] / math.log(2)} if text else {}),
            "parameters": network.description.parameter_count(name),
            "bytes": sum(each.nbytes for each in network.view(name).parameters),
            "latency_us": latency_us(network, name, sample),
        }
        for name in network.subnetworks
    }


def latency_us(network: Network, name: str, x: Tensor) -> float:
    """Median microseconds of one sub-network's forward of x, after a warm-up."""
    view = network.view(name)
    times = []
    for call in range(2 * _LATENCY_CALLS):
        started = time.perf_counter()
        view(x)
        if call >= _LATENCY_CALLS:
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def make_report(run: Run, test: Split) -> dict[str, Any]:
    """The contents of report.json."""
    return {
        "final": summarize(run.evaluated, test),
        "best_epoch_on_test": best_epoch(run.epochs, metric_of(run.recipe.values)),
        "seconds": run.seconds,
        "epochs": run.epochs,
        "recipe": run.recipe.values,
        "alone": run.recipe.alone_name,
        "machine": machine(),
        "seed": run.seed,
        "interrupted": not run.complete,
    }


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, or the one in a run's folder.

    Raises:
        InputError: where there is none.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(files.read(file))
    except OSError as error:
        raise InputError(f"report: {files.reason(error)}") from None
    except ValueError as error:
        raise InputError(f"report: '{file}' is no JSON: {error}.") from None
    if not (isinstance(report, dict) and isinstance(report.get("epochs"), list)):
        raise InputError(f"report: '{file}' is no report of nsn train: it has no list 'epochs'.")
    return report


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a run's state atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.write(path, buffer.getbuffer())


def read_state(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """What ``write_state`` wrote, a dict with these keys. Runs no code that the file may hold.

    Raises:
        InputError: where there is none.
    """
    try:
        content = files.read(path)
        state = torch.load(io.BytesIO(content), weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"--resume: there is no '{path}'. Leave --resume out to start a run, or name the "
            f"folder of one that was interrupted with --out."
        ) from None
    except OSError as error:
        raise InputError(f"--resume: {files.reason(error)}") from None
    except Exception:  # what torch makes of a file that is cut, or holds something else
        state = None
    if not isinstance(state, dict) or state.keys() != set(keys):
        raise InputError(
            f"--resume: cannot read '{path}': it is no state of nsn train, or damaged. Leave "
            f"--resume out to start the run anew."
        )
    return state


def finished_report(folder: Path, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """The report of the same run where it stands complete in a folder, else None."""
    try:
        report = read_report(folder)
    except InputError:
        return None
    wanted = {
        "recipe": recipe.values,
        "alone": recipe.alone_name,
        "seed": seed,
        "interrupted": False,
    }
    return report if all(report.get(key) == value for key, value in wanted.items()) else None


def compare(together: dict[str, Any], alone: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of sub-networks trained together beside those of each one trained by itself.

    Args:
        together: report of the run of all.
        alone: name to the report of its own run.

    Returns:
        Name to ``together`` and ``alone``, each with ``accuracy`` and ``loss``.
    """
    return {
        name: {
            way: {key: final[key] for key in ("accuracy", "loss")}
            for way, final in (
                ("together", together["final"][name]),
                ("alone", report["final"]["base"]),
            )
        }
        for name, report in alone.items()
    }


def best_epoch(epochs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """For each sub-network its best epoch on the test data: optimistic, and labelled so."""
    best: dict[str, Any] = {"note": "chosen on the test data, so optimistic; `final` is not"}
    sign = -1 if metric == "loss" else 1
    for record in epochs:
        for name, scores in record["subnetworks"].items():
            if name not in best or sign * scores[metric] > sign * best[name][metric]:
                best[name] = {"epoch": record["epoch"], **scores}
    return best


def machine() -> dict[str, Any]:
    """What a number depends on apart from the recipe."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "nsn": nsn.__version__,
        "cpu_level": nsn.cpu_level(),
        "system": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def table(final: dict[str, dict[str, float]], title: str) -> Table:
    """The sub-networks of a report, for a person."""
    result = _table(title, "accuracy", "loss", "parameters", "bytes", "latency,\nbatch 1")
    for name, row in final.items():
        result.add_row(
            name,
            number_text(row["accuracy"]),
            number_text(row["loss"]),
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
            f"{row['latency_us']:.0f} us",
        )
    return result


def comparison_table(report: dict[str, Any], title: str) -> Table:
    """What each sub-network reached together with all beside what it reached alone."""
    result = _table(title, "accuracy", "alone", "loss", "alone", "parameters")
    for name, both in report["comparison"].items():
        result.add_row(
            name,
            *(number_text(both[way][key]) for key in ("accuracy", "loss") for way in both),
            f"{report['final'][name]['parameters']:,}",
        )
    return result


def _table(title: str, *headings: str) -> Table:
    result = Table(title=title)
    result.add_column("sub-\nnetwork", overflow="fold")
    for heading in headings:
        result.add_column(heading, justify="right", overflow="fold")
    return result


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes atomically: the file is either the old one or the whole new one."""
    files.write(path, (json_text(document, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote.

    Raises:
        InputError: where the file is none of these.
    """
    try:
        return json.loads(files.read(path), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(files.reason(error)) from None
    except ValueError as error:
        raise damaged(path, f"it is no JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has {name}, which JSON has not")


def damaged(path: Path, why: str) -> InputError:
    """What to raise of a file that is not as it was written."""
    return InputError(f"'{path}' is damaged: {why}. Remove it, or copy it again.")


def fault(value: Any, form: Any, path: str = "") -> str | None:
    """What of a JSON document has not the form that it should have; None where all has.

    Args:
        value: the document, or a part of it.
        form: a type; a table of keys that have to be there, each with its form; or for a list the
            form of what is in it and how many there are, None for any number.
        path: of the part.
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{path or 'the document'} is no table"
        own = {key: f"{path}.{key}" if path else key for key in form}
        missing = [own[key] for key in form if key not in value]
        if missing:
            return f"{missing[0]} is missing"
        return next(filter(None, (fault(value[key], form[key], own[key]) for key in form)), None)
    if isinstance(form, tuple):
        each, count = form
        if not isinstance(value, list):
            return f"{path} is no list"
        if count not in (None, len(value)):
            return f"{path} has {len(value)} values in place of {count}"
        return next(filter(None, (fault(one, each, f"{path}[]") for one in value)), None)
    kinds = (int, float) if form is float else form
    fits = isinstance(value, kinds) and not isinstance(value, bool)
    return None if fits else f"{path} is {value!r}"


def json_text(document: Any, indent: int | None = None) -> str:
    """As JSON, which has no word for NaN and infinities: they are null there."""
    return json.dumps(_finite(document), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number_text(value: float | None) -> str:
    """A score for a person; None is what ``json_text`` makes of NaN."""
    return f"{math.nan if value is None else value:.4f}"
