"""``nsn study``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nsn import files
from nsn.cli.app import INTERRUPTED, DataOption, app, command, tables_console
from nsn.training.data import load_data
from nsn.training.errors import DivergedError, InputError
from nsn.training.recipe import Recipe, load_recipe, metric_of, shipped
from nsn.training.report import json_text, number_text, write_json
from nsn.training.study import (
    WAYS,
    Results,
    Task,
    ablation_table,
    digest,
    plot_study,
    restore,
    restore_ablation,
    run_all,
    scores_of,
    study_table,
    summary,
    tasks_of,
)
from nsn.training.tables import is_of_several, split_values


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
    scores, null where a variant's run diverged, and the table how each differs from the recipe,
    paired by seed. In a folder that has one of the same recipe its seeds and variants stay.

    Examples:
      nsn study mnist --seeds 10 --jobs 2 --out runs/study-mnist
      nsn study mnist --seeds 3 --set data.validation=0.15 --vary teach.kind=none,mutual
    """
    changes = list(overrides or [])
    chosen = _load(recipe, changes, data)
    variants = {"recipe": chosen}
    for each in vary or []:
        for change in _changes(each, way):
            variants[change] = _load(recipe, changes, data, change)
    if way is not None and not vary:
        raise InputError("--way says what --vary compares. Leave it out, or add --vary.")
    compared = [str(way or _Way.together)]
    numbers = list(range(1, seeds + 1))
    results = Results(out / "runs", digest(load_data(chosen.values["data"], chosen.description)))
    try:
        results.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out: cannot make the folder '{results.folder}': {error.strerror}. Choose another."
        ) from None
    # Of what an earlier study left here none is lost.
    study_file, ablation_file = out / "study.json", out / "ablation.json"
    if not vary and study_file.exists():
        numbers = sorted({*numbers, *restore(study_file, chosen, results)})
    if vary and ablation_file.exists():
        seeds_before, labels_before = restore_ablation(ablation_file, chosen, results, compared[0])
        numbers = sorted({*numbers, *seeds_before})
        for label in labels_before:
            if label not in variants:
                variants[label] = _load(recipe, changes, data, label)
    ways = compared if vary else WAYS
    labelled = [
        (label, task)
        for label, variant in variants.items()
        for task in tasks_of(variant, numbers, ways)
    ]
    tasks = sorted((task for _, task in labelled), key=lambda task: task.seed)
    # What several variants share is the first one's.
    labels = {results.key(task): label for label, task in reversed(labelled)}
    left = results.find(tasks)
    console = tables_console()
    done = len({results.key(task) for task in tasks}) - len(left)
    total = done + len(left)

    def text_of(task: Task) -> str:
        alone = task.recipe.alone_name
        variant = f" ({labels[results.key(task)]})" if vary else ""
        return f"seed {task.seed}, {f'{alone} alone' if alone else 'together'}{variant}"

    def check(task: Task, result: dict[str, Any]) -> None:
        """Without the recipe's own runs there is nothing to say, nor to compare with."""
        if "diverged" in result and labels[results.key(task)] == "recipe":
            raise DivergedError(f"{text_of(task)}: {result['diverged']}")

    def finish() -> None:
        if not vary:
            write_json(study_file, summary(chosen, numbers, results))

    def show(task: Task, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        check(task, result)
        finish()
        if as_json:
            variant = {"variant": labels[results.key(task)]} if vary else {}
            print(json_text({**variant, **result}), flush=True)
            return
        metric = metric_of(task.recipe.values)
        shown = result.get("diverged") or "  ".join(
            # By itself a sub-network is the base of its network, and is named before.
            ("" if result["alone"] else f"{name} ") + number_text(score[metric])
            for name, score in result["scores"].items()
        )
        console.print(
            f"{done}/{total}  {text_of(task)}: {shown}  {result['seconds']:.0f} s",
            highlight=False,
            soft_wrap=True,
        )

    try:
        for task in tasks:
            before = results.of(task.recipe, task.seed)
            if before is not None:
                check(task, before)
        run_all(left, results, jobs, show)
        finish()
        if vary:
            scores = {
                label: scores_of(variant, numbers, results, compared[0])
                for label, variant in variants.items()
            }
            ablation = {
                "recipe": chosen.values,
                "data": results.data,
                "seeds": numbers,
                "metric": metric_of(chosen.values),
                "way": compared[0],
                "variants": scores,
            }
            write_json(ablation_file, ablation)
            shown, left_there = ablation_table(scores, f"{recipe}, {compared[0]}"), "ablation.json"
        else:
            document = summary(chosen, numbers, results)
            plot_study(document, out / "study.png", f"{recipe}, {len(document['seeds'])} seeds")
            shown, left_there = study_table(document, recipe), "study.json, study.png"
    except KeyboardInterrupt:
        console.print("Go on with the same command.", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        raise InputError(f"--out: {files.reason(error)}") from None
    if not as_json:
        console.print(shown)
        console.print(f"Left in {out}: {left_there}, runs", highlight=False)


def _changes(vary: str, way: _Way | None) -> list[str]:
    """The overrides that a --vary asks for, one a variant."""
    key, equals, values = vary.partition("=")
    key = key.strip()
    if not equals or not values:
        raise InputError(
            f"--vary: expected KEY=A,B,.., but got '{vary}'. Write, for example, "
            f"optimizer.lr=0.05,0.1."
        )
    table = key.partition(".")[0]
    if table == "data" and key != "data.windows":
        raise InputError(
            f"--vary: variants are compared on the same data, so that '{key}' cannot be varied. "
            f"Use --set for all of them, or studies in folders of their own."
        )
    if table == "alone" and way is not _Way.alone:
        raise InputError(
            f"--vary: '{key}' changes only runs alone, but runs together are compared. Add "
            f"--way alone."
        )
    if table != "alone" and way is _Way.alone and is_of_several(key):
        raise InputError(
            f"--vary: '{key}' changes only runs together, but runs alone are compared. Leave "
            f"--way out."
        )
    return [f"{key}={value}" for value in split_values(values)]


def _load(recipe: str, changes: list[str], data: Path | None, variant: str | None = None) -> Recipe:
    chosen = load_recipe(recipe, changes, variant)
    return chosen if data is None else chosen.reading(data)
