"""Studies: a network trained together, and each sub-network alone, for many seeds.

A study is a set of runs, each a process of one thread. What a run depends on, its recipe and seed,
names its files, so that a study may be killed at any moment and goes on, and so that the runs of
each sub-network alone are shared by all variants that do not change them.
"""

import hashlib
import io
import math
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from rich.table import Table

from nsn import files
from nsn.training.data import Data, load_data
from nsn.training.errors import DivergedError, InputError
from nsn.training.loop import Run, evaluate
from nsn.training.recipe import Recipe, check_recipe, metric_of
from nsn.training.report import (
    damaged,
    fault,
    json_text,
    machine,
    number_text,
    read_json,
    read_state,
    write_json,
    write_state,
)
from nsn.training.tables import difference

#: How often a run that goes on for long notes where it is, in seconds.
_SAVES_EVERY = 60.0


@dataclass(frozen=True)
class Task:
    """One run of a study.

    Attributes:
        recipe: what is trained: all together, or one sub-network alone.
        seed: of the run.
    """

    recipe: Recipe
    seed: int


def key_of(recipe: Recipe, data: str) -> str:
    """A short name of what a recipe trains on some data (:func:`digest`)."""
    # A number is the same whether it is written as 1 or 1.0.
    text = json_text(_as_floats([recipe.identity, recipe.alone_name, data]))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _as_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_floats(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_floats(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def digest(data: Data) -> str:
    """What tells data from others: all of them, and how many samples a pass reads."""
    found = hashlib.sha256()
    for split in (data.train, data.test):
        for part in split.tensors():
            found.update(str(tuple(part.shape)).encode())
            found.update(part.contiguous().numpy().data)
        found.update(str(len(split)).encode())
    return found.hexdigest()[:12]


@dataclass
class Results:
    """The finished runs of a folder.

    Attributes:
        folder: where their files are.
        data: the digest of the data that all runs read.
        runs: key to what a run gave, or where it diverged, as :func:`train_one` returns it.
    """

    folder: Path
    data: str
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def key(self, task: Task) -> str:
        """A run's name, which stands for its recipe, data and seed."""
        return f"{key_of(task.recipe, self.data)}-{task.seed}"

    def find(self, tasks: Iterable[Task]) -> list[Task]:
        """Reads what was finished before; returns the tasks that are left, in order."""
        left = {}
        for task in tasks:
            key = self.key(task)
            if key in self.runs or key in left:
                continue
            file = self.folder / f"{key}.json"
            if file.exists():
                self.runs[key] = _read_run(file, task.recipe)
            else:
                left[key] = task
        return list(left.values())

    def of(self, recipe: Recipe, seed: int) -> dict[str, Any] | None:
        """What a run gave, or None where it is not finished."""
        return self.runs.get(self.key(Task(recipe, seed)))


def _read_run(file: Path, recipe: Recipe) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        InputError: where the file holds none.
    """
    run = read_json(file)
    if isinstance(run, dict) and "diverged" in run:
        wrong = fault(run, {"diverged": str})
    else:
        score = {metric_of(recipe.values): float}
        scores = dict.fromkeys(recipe.description.names, score)
        wrong = fault(run, {"scores": scores, "seconds": float, "flops": int})
    if wrong:
        raise damaged(file, wrong)
    result: dict[str, Any] = run
    return result


def train_one(values: dict[str, Any], alone: str | None, seed: int, place: str) -> dict[str, Any]:
    """One run, from where it was left; its result stays in ``place`` with ``.json`` behind.

    Returns:
        ``seed``; ``alone``, the sub-network or None; ``seconds`` of processor time in all steps;
        ``flops`` as ``Run`` counts them; and ``scores`` by sub-network, from the last weights and
        read once, with the number of ``steps``, or where a loss is no finite number ``diverged``,
        which says where and the remedy.
    """
    recipe = replace(check_recipe(values), alone_name=alone)
    state_file, result_file = Path(f"{place}.pt"), Path(f"{place}.json")
    data = load_data(recipe.values["data"], recipe.description)
    run = Run(recipe, data, seed, evaluates_epochs=False)
    spent = 0.0
    if state_file.exists():
        try:
            state = read_state(state_file, [*run.state_dict(), "spent"])
        except InputError:
            state_file.unlink()  # damaged: from the start
        else:
            run.load_state_dict(state)
            spent = state["spent"]
    started, saved = time.process_time(), time.monotonic()

    def after_epoch(record: dict[str, Any]) -> None:
        nonlocal saved
        if time.monotonic() - saved > _SAVES_EVERY and not run.complete:
            so_far = spent + time.process_time() - started
            write_state(state_file, {**run.state_dict(), "spent": so_far})
            saved = time.monotonic()

    outcome: dict[str, Any]
    try:
        run.train(on_epoch=after_epoch)
        outcome = {
            "scores": evaluate(run.evaluated, data.test),
            "steps": -(-len(data.train) // recipe.batch_size) * recipe.epochs,
        }
        if not all(math.isfinite(each["loss"]) for each in outcome["scores"].values()):
            raise DivergedError(
                "the training diverged: the loss of the last weights is no finite number. Lower "
                "optimizer.lr, for example with --set."
            )
    except DivergedError as error:
        outcome = {"diverged": str(error)}
    seconds = spent + time.process_time() - started
    result = {"seed": seed, "alone": alone, **outcome, "seconds": seconds, "flops": run.flops}
    write_json(result_file, result)
    state_file.unlink(missing_ok=True)
    return result


def run_all(
    tasks: list[Task],
    results: Results,
    jobs: int,
    on_result: Callable[[Task, dict[str, Any]], None],
) -> None:
    """Runs what is left of a study, ``jobs`` runs at a time, each a process of one thread.

    Where ``on_result`` raises, the others are ended.

    Raises:
        InputError: where a run's process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    waiting: dict[Future[dict[str, Any]], Task] = {}
    try:
        for task in tasks:
            arguments = (task.recipe.values, task.recipe.alone_name, task.seed)
            place = str(results.folder / results.key(task))
            waiting[pool.submit(train_one, *arguments, place)] = task
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                task = waiting.pop(future)
                results.runs[results.key(task)] = future.result()
                on_result(task, future.result())
    except BaseException as error:
        # One that was about to start when this came is not known to the pool.
        for process in {*(pool._processes or {}).values(), *multiprocessing.active_children()}:
            process.terminate()
        # Waits for the pool's own thread: at its end it closes a pipe that the end of the program
        # would otherwise write to.
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "study: a run's process was ended from outside, perhaps for want of memory. The "
                "same command goes on; use fewer --jobs."
            ) from None
        raise
    pool.shutdown()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


# ---- what a study says ---------------------------------------------------------------------------


WAYS = ("together", "alone")


def tasks_of(recipe: Recipe, seeds: Iterable[int], ways: Iterable[str] = WAYS) -> list[Task]:
    """All runs of a study, those of one seed beside each other."""
    recipes = [recipe] if "together" in ways else []
    if "alone" in ways:
        recipes += [recipe.alone(name) for name in recipe.description.names]
    return [Task(each, seed) for seed in seeds for each in recipes]


def scores_of(
    recipe: Recipe, seeds: Iterable[int], results: Results, way: str
) -> dict[str, list[float]]:
    """What each sub-network reached in finished runs, one number a seed; NaN where it diverged."""
    metric = metric_of(recipe.values)
    names = recipe.description.names
    scores: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        trained, kept = (recipe, name) if way == "together" else (recipe.alone(name), "base")
        for run in (results.of(trained, seed) for seed in seeds):
            if run is not None:
                diverged = "diverged" in run
                scores[name].append(math.nan if diverged else run["scores"][kept][metric])
    return scores


def summary(recipe: Recipe, seeds: Iterable[int], results: Results) -> dict[str, Any]:
    """The document of study.json, of those seeds whose runs are all there.

    Returns:
        ``recipe``, ``data`` (its digest), ``seeds``, ``metric`` (``accuracy`` or ``loss``, the
        latter in nats),
        ``subnetworks`` (by name ``together`` and ``alone``, one number a seed, and ``difference``,
        the mean and the standard error of together - alone, paired by seed), ``compute`` (by name
        and ``together``: ``flops`` of a run and ``seconds`` of processor time, one a seed) and
        ``machine``.
    """
    names = recipe.description.names
    own = {name: recipe.alone(name) for name in names}
    all_runs = {
        seed: [results.of(each, seed) for each in (recipe, *own.values())] for seed in seeds
    }
    whole = {
        seed: [run for run in runs if run is not None]
        for seed, runs in all_runs.items()
        if None not in runs
    }
    together = scores_of(recipe, whole, results, "together")
    alone = scores_of(recipe, whole, results, "alone")
    scores: dict[str, Any] = {}
    for name in names:
        differences = [a - b for a, b in zip(together[name], alone[name], strict=True)]
        scores[name] = {
            "together": together[name],
            "alone": alone[name],
            "difference": {
                "mean": statistics.fmean(differences) if differences else math.nan,
                "standard_error": standard_error(differences),
            },
        }
    compute = {
        name: _compute(runs[place] for runs in whole.values())
        for place, name in enumerate(("together", *names))
    }
    return {
        "recipe": recipe.values,
        "data": results.data,
        "seeds": list(whole),
        "metric": metric_of(recipe.values),
        "subnetworks": scores,
        "compute": compute,
        "machine": {**machine(), "threads": 1},
    }


def _compute(runs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found = list(runs)
    return {
        "flops": found[0]["flops"] if found else 0,
        "seconds": [round(run["seconds"], 1) for run in found],
    }


def standard_error(values: list[float]) -> float:
    """Of the mean; NaN for fewer than two values."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _same(file: Path, recipe: Recipe, results: Results) -> dict[str, Any]:
    """What an earlier study of the same recipe and data left.

    Raises:
        InputError: where it is of another one, or damaged.
    """
    study = read_json(file)
    head = {"recipe": dict, "data": str, "seeds": (int, None), "metric": str}
    wrong = fault(study, head)
    if not wrong and len(set(study["seeds"])) < len(study["seeds"]):
        wrong = "a seed is there twice"
    if wrong:
        raise damaged(file, wrong)
    try:
        there = check_recipe(study["recipe"])
    except InputError as error:
        raise damaged(file, str(error).removesuffix(".")) from None
    one, other = (
        {**each.identity, "alone": each.values.get("alone", {})} for each in (there, recipe)
    )
    differs = difference(one, other) or difference(study["data"], results.data, "data")
    if differs:
        raise InputError(
            f"--out: the study there is of another recipe, of other --set or of other data: "
            f"{differs}. Choose another folder for this one, or remove that."
        )
    if study["metric"] != metric_of(recipe.values):
        raise damaged(file, f"metric is {study['metric']!r}")
    found: dict[str, Any] = study
    return found


def restore_ablation(
    file: Path, recipe: Recipe, results: Results, way: str
) -> tuple[list[int], list[str]]:
    """What an ablation.json compares, where it is of the same recipe.

    Returns:
        Its seeds, and the labels of its variants.

    Raises:
        InputError: where it is of another one, compares other runs, or is damaged.
    """
    study = _same(file, recipe, results)
    wrong = fault(study, {"way": str, "variants": dict})
    if wrong:
        raise damaged(file, wrong)
    if study["way"] != way:
        raise InputError(
            f"--out: the ablation there compares runs {study['way']}, and this one runs {way}. "
            f"Choose another folder for this one, or remove that."
        )
    return study["seeds"], list(study["variants"])


def restore(file: Path, recipe: Recipe, results: Results) -> list[int]:
    """Takes the results of a study.json as finished runs, where it is of the same recipe.

    Returns:
        Its seeds.

    Raises:
        InputError: where it is of another one, or damaged.
    """
    study = _same(file, recipe, results)
    metric, scores, names = study["metric"], study["subnetworks"], recipe.description.names
    numbers = (float, len(study["seeds"]))
    ways = dict.fromkeys(WAYS, numbers)
    costs = {"seconds": numbers, "flops": int}
    wrong = fault(
        study,
        {
            "subnetworks": dict.fromkeys(names, ways),
            "compute": dict.fromkeys(("together", *names), costs),
        },
    )
    if wrong:
        raise damaged(file, wrong)
    for place, seed in enumerate(study["seeds"]):

        def run(name: str | None, values: dict[str, float], place: int = place) -> dict[str, Any]:
            compute = study["compute"][name or "together"]
            return {
                "scores": {each: {metric: value} for each, value in values.items()},
                "seconds": compute["seconds"][place],
                "flops": compute["flops"],
                "alone": name,
            }

        joint = {name: scores[name]["together"][place] for name in names}
        results.runs.setdefault(results.key(Task(recipe, seed)), run(None, joint))
        for name in names:
            key = results.key(Task(recipe.alone(name), seed))
            results.runs.setdefault(key, run(name, {"base": scores[name]["alone"][place]}))
    seeds: list[int] = study["seeds"]
    return seeds


def study_table(study: dict[str, Any], title: str) -> Table:
    """Mean and standard error of each sub-network together, alone, and of their difference."""
    metric, seeds = study["metric"], len(study["seeds"])
    result = Table(title=f"{title}: {metric}, {seeds} seeds, mean ± standard error")
    result.add_column("sub-\nnetwork", overflow="fold")
    for heading in ("together", "alone", "difference", "FLOPs alone"):
        result.add_column(heading, justify="right", overflow="fold")
    for name, each in study["subnetworks"].items():
        difference = each["difference"]
        result.add_row(
            name,
            *(_mean_text(each[way]) for way in ("together", "alone")),
            _difference_text(difference["mean"], difference["standard_error"]),
            f"{study['compute'][name]['flops']:.2e}",
        )
    result.caption = f"FLOPs together: {study['compute']['together']['flops']:.2e}"
    return result


def ablation_table(variants: Mapping[str, dict[str, list[float]]], title: str) -> Table:
    """What each variant of a recipe makes of the first one, paired by seed.

    Args:
        variants: label to each sub-network's scores, one a seed, NaN where it diverged; a variant
            may lack some of the first one's sub-networks, and have others.
        title: above the table.
    """
    first = next(iter(variants.values()))
    names = list(dict.fromkeys(name for scores in variants.values() for name in scores))
    result = Table(title=f"{title}: mean, and difference from the first ± standard error")
    result.add_column("variant", overflow="fold")
    for name in names:
        result.add_column(name, justify="right", overflow="fold")
    for label, scores in variants.items():
        cells = []
        for name in names:
            if name not in scores:
                cells.append("-")
                continue
            values = scores[name]
            reached = [each for each in values if math.isfinite(each)]
            lines = [number_text(statistics.fmean(reached))] if reached else []
            before = first.get(name, [])
            pairs = [a - b for a, b in zip(values, before, strict=False) if math.isfinite(a)]
            if scores is not first and pairs:
                lines.append(_difference_text(statistics.fmean(pairs), standard_error(pairs)))
            if not reached:
                lines.append("diverged")
            elif len(reached) < len(values):
                lines.append(f"{len(values) - len(reached)} of {len(values)} diverged")
            cells.append("\n".join(lines))
        result.add_row(label, *cells)
    return result


def _difference_text(mean: float, error: float) -> str:
    """Of one seed there is no standard error."""
    return f"{mean:+.4f}" + ("" if math.isnan(error) else f" ± {number_text(error)}")


def _mean_text(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return number_text(values[0])
    return f"{number_text(statistics.fmean(values))} ± {number_text(standard_error(values))}"


def plot_study(study: dict[str, Any], path: Path, title: str) -> None:
    """A dot a seed, together and alone, and the mean with one standard error to each side."""
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        names = list(study["subnetworks"])
        figure = Figure(figsize=(1.2 + 1.9 * len(names), 3.4), layout="constrained")
        figure.suptitle(title)
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for place, (way, colour) in enumerate((("together", "C0"), ("alone", "C1"))):
                values = study["subnetworks"][name][way]
                count = len(values)
                spread = [place + 0.3 * (i + 0.5 - count / 2) / max(count, 1) for i in range(count)]
                axes.plot(spread, values, ".", color=colour, alpha=0.6)
                if values:
                    axes.errorbar(
                        [place + 0.3],
                        [statistics.fmean(values)],
                        [standard_error(values)],
                        color=colour,
                        marker="_",
                        capsize=3,
                    )
            axes.set(title=name, xticks=[0, 1], xticklabels=["together", "alone"])
            axes.set_xlim(-0.5, 1.6)
        figure.axes[0].set_ylabel(f"{study['metric']}, last weights")
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
    files.write(path, image.getbuffer())
