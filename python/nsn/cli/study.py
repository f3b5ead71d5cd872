"""``nsn study``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nsn.cli.app import INTERRUPTED, DataOption, app, command, tables_console
from nsn.training.data import load_data
from nsn.training.errors import InputError
from nsn.training.recipe import Recipe, load_recipe, metric_of, shipped
from nsn.training.report import json_text, number_text, read_json, write_json
from nsn.training.study import (
    WAYS,
    Results,
    Task,
    ablation_table,
    digest,
    plot_study,
    restore,
    run_all,
    scores_of,
    study_table,
    summary,
    tasks_of,
)
from nsn.training.tables import split_values


class _Way(StrEnum):
    together = "together"
    alone = "alone"


@command(app)
def study(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help=f"{', '.join(shipped())}, or the path of a .toml file."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 1 on.")] = 10,
    jobs: Annotated[
        int, typer.Option(min=1, help="How many runs at a time, each a process of one thread.")
    ] = 1,
    data: DataOption = None,
    out: Annotated[
        Path, typer.Option(help="Folder for what the study leaves; one that is there goes on.")
    ] = Path("runs/study"),
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="In place of a recipe's value; repeatable."
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,..",
            help="Run variants too, in which one value is another; repeatable.",
        ),
    ] = None,
    way: Annotated[
        _Way | None,
        typer.Option(
            "--way", help="With --vary: which runs variants are compared by; default: together."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each run, no table.")
    ] = False,
) -> None:
    """Train together and each sub-network alone, for many seeds.

    Leaves study.json, study.png and, below runs, a file for each run. It may be killed at any
    moment: the same command goes on, and a study.json alone is enough to add seeds to it. Scores
    are of the last weights, read once.

    Hyper-parameters are to be chosen on a part of the training data, never on test data: with
    --set data.validation=0.15 that part is evaluated on, and the test data are not read. What the
    recipe says below alone.NAME holds for that sub-network's own runs.

    With --vary the recipe and its variants, in each of which one value is another, are trained for
    all seeds, together, or with --way alone each sub-network by itself; ablation.json has their
    scores, and the table how each differs from the recipe, paired by seed.

    Examples:
      nsn study mnist --seeds 10 --jobs 2 --out runs/study-mnist
      nsn study mnist --seeds 3 --set data.validation=0.15 --vary teach.kind=none,mutual
    """
    changes = list(overrides or [])
    chosen = _load(recipe, changes, data)
    variants = {"recipe": chosen}
    for each in vary or []:
        key, equals, values = each.partition("=")
        if not equals or not values:
            raise InputError(f"--vary: expected KEY=A,B,.., but got '{each}'.")
        for value in split_values(values):
            change = f"{key}={value}"
            variants[change] = _load(recipe, [*changes, change], data)
    if way is not None and not vary:
        raise InputError("--way says what --vary compares. Leave it out, or add --vary.")
    numbers = list(range(1, seeds + 1))
    results = Results(out / "runs", digest(load_data(chosen.values["data"], chosen.description)))
    study_file = out / "study.json"
    if not vary and study_file.exists():
        there = read_json(study_file)
        restore(there, chosen, results)
        numbers = sorted({*numbers, *there["seeds"]})  # none is lost
    compared = [str(way or _Way.together)]
    ways = compared if vary else WAYS
    tasks = [task for each in variants.values() for task in tasks_of(each, numbers, ways)]
    tasks.sort(key=lambda task: task.seed)
    left = results.find(tasks)
    console = tables_console()
    done = len({results.key(task) for task in tasks}) - len(left)
    total = done + len(left)
    labels = {
        results.key(Task(task.recipe, 0)): label
        for label, variant in reversed(variants.items())
        for task in tasks_of(variant, [0])
    }

    def finish() -> None:
        if not vary:
            write_json(study_file, summary(chosen, numbers, results))

    def show(task: Task, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        finish()
        if as_json:
            print(json_text(result), flush=True)
            return
        metric = metric_of(task.recipe.values)
        alone = task.recipe.alone_name
        # By itself a sub-network is the base of its network.
        scores = "  ".join(
            f"{alone or name} {number_text(score[metric])}"
            for name, score in result["scores"].items()
        )
        way = "alone" if alone else "together"
        label = labels[results.key(Task(task.recipe, 0))]
        shown = "" if label == "recipe" else f" ({label})"
        console.print(
            f"{done}/{total}  seed {task.seed}, {way}{shown}: {scores}  {result['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

    try:
        run_all(left, results, jobs, show)
    except KeyboardInterrupt:
        console.print("Go on with the same command.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise InputError(f"--out: {error}") from None
    finish()
    if vary:
        scores = {
            label: scores_of(variant, numbers, results, compared[0])
            for label, variant in variants.items()
        }
        document = {
            "recipe": chosen.values,
            "seeds": numbers,
            "metric": metric_of(chosen.values),
            "way": compared[0],
            "variants": scores,
        }
        write_json(out / "ablation.json", document)
        if not as_json:
            console.print(ablation_table(scores, f"{recipe}, {compared[0]}"))
            console.print(f"Left in {out}: ablation.json, runs", highlight=False)
        return
    document = summary(chosen, numbers, results)
    plot_study(document, out / "study.png", f"{recipe}, {len(document['seeds'])} seeds")
    if not as_json:
        console.print(study_table(document, recipe))
        console.print(f"Left in {out}: study.json, study.png, runs", highlight=False)


def _load(recipe: str, changes: list[str], data: Path | None) -> Recipe:
    chosen = load_recipe(recipe, changes)
    return chosen if data is None else chosen.reading(data)
