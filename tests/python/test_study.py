"""Studies: together and alone, for many seeds, killed and gone on with."""

import io
import json
import math
import os
import re
import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from command import COMMAND, run
from nsn.cli.app import app
from nsn.training import loop
from nsn.training.data import Data, load_data
from nsn.training.errors import DivergedError, InputError
from nsn.training.images import Images
from nsn.training.recipe import Recipe, load_recipe
from nsn.training.report import json_text, write_state
from nsn.training.study import (
    Results,
    Task,
    ablation_table,
    digest,
    restore,
    standard_error,
    summary,
    tasks_of,
    train_one,
)
from nsn.training.text import Windows
from test_data import write_set
from test_recipe import SMALL, TEXT

SMOOTHING = "label_smoothing = 0.1\n"
MEANS = """
[teach]
kind = "base"
weight = { small = 0.3 }
[average]
decay = 0.9
[bound]
row_norm = 0.3
blocks = ["hidden"]
[alone]
small = { "optimizer.lr" = 0.2 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    data = write_set(tmp_path / "data", gz=True)
    path.write_text(SMALL.replace("path = 'images'", f"path = '{data}'"))
    return path


def study(recipe: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return run("study", recipe, "--out", out, *more)


def read(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "study.json").read_text())
    return document


def without_time(document: dict[str, Any]) -> dict[str, Any]:
    for each in document["compute"].values():
        each.pop("seconds")
    return document


def test_a_study_is_its_runs(recipe: Path, tmp_path: Path) -> None:
    """Each score is that of the run by itself, from its last weights."""
    out = tmp_path / "out"
    result = study(recipe, out, "--seeds", "2", "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert "6/6" in result.stdout and re.search(r"2\s+seeds", result.stdout)
    assert (out / "study.png").read_bytes().startswith(b"\x89PNG")
    document = read(out)
    assert document["seeds"] == [1, 2] and document["metric"] == "accuracy"
    torch.set_num_threads(1)
    chosen = load_recipe(str(recipe))
    data = load_data(chosen.values["data"], chosen.description)
    for name, scores in document["subnetworks"].items():
        for place, seed in enumerate((1, 2)):
            for way, each, kept in (
                ("together", chosen, name),
                ("alone", chosen.alone(name), "base"),
            ):
                trained = loop.Run(each, data, seed)
                trained.train()
                expected = trained.epochs[-1]["subnetworks"][kept]["accuracy"]
                assert scores[way][place] == expected, (name, way, seed)
        pairs = [a - b for a, b in zip(scores["together"], scores["alone"], strict=True)]
        assert scores["difference"]["mean"] == pytest.approx(statistics.fmean(pairs))
        assert scores["difference"]["standard_error"] == pytest.approx(abs(pairs[0] - pairs[1]) / 2)
    flops = 3 * 2 * len(data.train)
    assert document["compute"]["small"]["flops"] == flops * chosen.description.flops("small")
    assert document["compute"]["together"]["flops"] == flops * sum(
        chosen.description.flops(name) for name in chosen.description.names
    )
    assert len(document["compute"]["together"]["seconds"]) == 2


def test_a_study_goes_on_from_its_runs_and_from_its_document(recipe: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert study(recipe, whole, "--seeds", "3").returncode == 0
    assert study(recipe, out, "--seeds", "1").returncode == 0
    # The document alone is enough.
    for file in (out / "runs").iterdir():
        file.unlink()
    result = study(recipe, out, "--seeds", "3", "--json")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(line["seed"] for line in lines) == [2, 2, 2, 3, 3, 3]
    assert without_time(read(out)) == without_time(read(whole))
    again = study(recipe, out, "--seeds", "3", "--json")
    assert again.returncode == 0 and again.stdout == ""
    other = study(recipe, out, "--seeds", "3", "--set", "optimizer.lr=0.2")
    assert other.returncode == 2 and "the study there is of another recipe" in other.stderr
    assert "optimizer.lr (0.1 there, 0.2 here)" in other.stderr
    # Fewer seeds lose none.
    assert study(recipe, out, "--seeds", "1").returncode == 0
    assert read(out)["seeds"] == [1, 2, 3]
    # Other data are another study.
    data = write_set(tmp_path / "other", count=8)
    elsewhere = study(recipe, out, "--seeds", "3", "--data", str(data))
    assert elsewhere.returncode == 2 and "of other data" in elsewhere.stderr
    assert study(recipe, out, "--way", "alone").returncode == 2


def test_a_killed_study_ends_with_the_same_numbers(recipe: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    more = ("--seeds", "2", "--set", "epochs=6")
    assert study(recipe, whole, *more).returncode == 0
    command = [*COMMAND, "study", recipe, "--out", out, *more]
    for _ in range(2):
        started = subprocess.Popen(
            [*map(str, command), "--json"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert started.stdout is not None
        started.stdout.readline()
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
    assert study(recipe, out, *more).returncode == 0
    assert without_time(read(out)) == without_time(read(whole))


def test_a_killed_study_leaves_no_process(recipe: Path, tmp_path: Path) -> None:
    """Its workers end too, at work or waiting for it."""
    out = tmp_path / "out"
    command = [*COMMAND, "study", str(recipe), "--out", str(out), "--json"]
    process = subprocess.Popen(
        [*command, "--seeds", "1", "--jobs", "4", "--set", "epochs=100000"],
        stdout=subprocess.DEVNULL,
    )
    workers = f"/proc/{process.pid}/task/{process.pid}/children"
    deadline = time.monotonic() + 60
    while not (out / "runs").exists() or not Path(workers).read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(3)
    children = [Path("/proc") / each for each in Path(workers).read_text().split()]
    process.kill()
    process.wait()
    while any((child / "status").exists() and not is_zombie(child) for child in children):
        assert time.monotonic() < deadline, "a worker goes on"
        time.sleep(0.1)


def is_zombie(process: Path) -> bool:
    try:
        return "\nState:\tZ" in (process / "status").read_text()
    except OSError:
        return True


def test_ctrl_c_ends_a_study_at_once(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "study", str(recipe), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--seeds", "1", "--set", "epochs=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(6)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - started < 20


def test_a_run_goes_on_in_the_middle(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nsn.training.study._SAVES_EVERY", -1.0)
    chosen = load_recipe(str(recipe), ["epochs=4", "average.decay=0.9"])
    place = str(tmp_path / "run")
    whole = train_one(chosen.values, None, 1, place)
    Path(f"{place}.json").unlink()
    states = []

    def stop(path: Path, state: dict[str, Any]) -> None:
        write_state(path, state)
        states.append(path)
        if len(states) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("nsn.training.study.write_state", stop)
    with pytest.raises(KeyboardInterrupt):
        train_one(chosen.values, None, 1, place)
    assert Path(f"{place}.pt").exists()
    again = train_one(chosen.values, None, 1, place)
    assert again["scores"] == whole["scores"] and len(states) == 3
    assert [path.name for path in tmp_path.glob("run.*")] == ["run.json"]


def test_variants_share_the_seeds_and_are_compared_with_the_recipe(
    recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    vary = ("--vary", "optimizer.lr=0.05,0.2", "--vary", "teach.weight=0.25")
    vary += ("--set", "teach.kind=base")
    result = study(recipe, out, "--seeds", "2", *vary)
    assert result.returncode == 0, result.stderr
    assert "optimizer.lr=0.05" in result.stdout and "8/8" in result.stdout
    document = json.loads((out / "ablation.json").read_text())
    assert list(document["variants"]) == [
        "recipe",
        "optimizer.lr=0.05",
        "optimizer.lr=0.2",
        "teach.weight=0.25",
    ]
    assert all(len(each["small"]) == 2 for each in document["variants"].values())
    assert not (out / "study.json").exists()
    # More of the same keeps what is there; runs of another kind would not fit into one table.
    more = ("--seeds", "1", "--set", "teach.kind=base", "--vary", "batch_size=8")
    assert study(recipe, out, *more).returncode == 0
    both = json.loads((out / "ablation.json").read_text())
    assert both["seeds"] == [1, 2]
    assert set(both["variants"]) == {*document["variants"], "batch_size=8"}
    for label, scores in document["variants"].items():
        assert both["variants"][label] == scores
    way = (recipe, "--out", out, *more, "--way", "alone")
    assert "compares runs together, and this one runs alone. Choose another" in refused(*way)
    other = (recipe, "--out", out, "--vary", "batch_size=8")
    assert "is of another recipe, of other --set or of other data: teach.kind" in refused(*other)


def test_a_variant_may_have_other_subnetworks(recipe: Path, tmp_path: Path) -> None:
    """The columns are of all that there are, and each number stands below its own name."""
    vary = "network.subnetworks=[{ name = 'other', blocks = ['output'] }]"
    result = study(recipe, tmp_path, "--seeds", "1", "--vary", vary)
    assert result.returncode == 0, result.stderr
    variants = json.loads((tmp_path / "ablation.json").read_text())["variants"]
    assert [set(each) for each in variants.values()] == [{"base", "small"}, {"base", "other"}]
    console = Console(width=200, record=True, file=io.StringIO())
    some = {"recipe": {"a": [1.0], "b": [2.0]}, "x": {"b": [4.0], "c": [3.0]}}
    console.print(ablation_table(some, "title"))
    rows = [re.findall(r"[\w.+-]+", line) for line in console.export_text().splitlines()]
    assert ["variant", "a", "b", "c"] in rows and ["recipe", "1.0000", "2.0000", "-"] in rows
    assert ["x", "-", "4.0000", "3.0000"] in rows and ["+2.0000"] in rows


def refused(*arguments: object) -> str:
    """What ``nsn study`` says as it refuses to."""
    error = CliRunner().invoke(app, ["study", *map(str, arguments)]).exception
    assert isinstance(error, InputError), error
    return str(error)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ("data.path=elsewhere", "variants are compared on the same data, so that 'data.path' cann"),
        ("data.validation=0.2", "'data.validation' cannot be varied. Use --set for all of them"),
        (" data.kind=text", "'data.kind' cannot be varied"),
        ("data={ kind = 'images' }", "'data' cannot be varied"),
        ("alone.small.optimizer.lr=0.2", "changes only runs alone, .* Add --way alone"),
        ("optimizer.lr", "--vary: expected KEY=A,B,.., but got 'optimizer.lr'. Write, for example"),
        ("optimizer.lr=", "expected KEY=A,B,.., but got 'optimizer.lr='. Write, for example"),
        ("optimizer.lr=0.2,fast", "^--vary optimizer.lr=fast: 'optimizer.lr' is a number"),
        ("optimizer.lr=-1", "^--vary optimizer.lr=-1: recipe: optimizer: .*Invalid learning rate"),
        ("teach.weight=0.2", "^--vary teach.weight=0.2: nobody teaches"),
        ("optimizer.rate=1", "^--vary optimizer.rate=1: the recipe has no key 'optimizer.rate'"),
    ],
)
def test_wrong_variants(recipe: Path, tmp_path: Path, vary: str, message: str) -> None:
    out = tmp_path / "out"
    assert re.search(message, refused(recipe, "--out", out, "--vary", vary))
    assert not out.exists()


@pytest.mark.parametrize(
    "vary",
    [
        "teach.kind=none,mutual",
        "sampling.count=2",
        "by_lane=true",
        "network.merge={ rule = 'sum' }",
        "network.blocks.output.merge={ rule = 'sum' }",
        "network.subnetworks.small.width=0.5",
    ],
)
def test_what_changes_nothing_alone_is_no_variant_of_it(recipe: Path, vary: str) -> None:
    assert "changes only runs together, but runs alone are compared. Leave --way" in refused(
        recipe, "--vary", vary, "--way", "alone"
    )


def test_values_of_runs_alone_can_vary(recipe: Path, tmp_path: Path) -> None:
    vary = ("--vary", "alone.small.optimizer.lr=0.02,0.3", "--way", "alone")
    result = study(recipe, tmp_path, "--seeds", "1", "--json", *vary)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(line["variant"], line["alone"]) for line in lines] == [
        ("recipe", "base"),
        ("recipe", "small"),
        ("alone.small.optimizer.lr=0.02", "small"),
        ("alone.small.optimizer.lr=0.3", "small"),
    ]


@pytest.mark.parametrize("out", ["/proc/nowhere", "file"])
def test_a_folder_that_cannot_be_made(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    text = refused(recipe, "--out", out)
    assert re.fullmatch(
        rf"--out: cannot make the folder '{out}/runs': [^[]+\. Choose another\.", text
    )


def test_a_variant_that_diverges_is_said_to(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    vary = ("--seeds", "2", "--vary", "optimizer.lr=1e30,0.2")
    result = study(recipe, out, *vary)
    assert result.returncode == 0, result.stderr
    assert "seed 2, together (optimizer.lr=1e30): the training diverged: the loss" in result.stdout
    assert "6/6" in result.stdout
    assert re.search(r"optimizer.lr=1e30 *│ *diverged *│ *diverged *│", result.stdout)
    variants = json.loads((out / "ablation.json").read_text())["variants"]
    assert variants["optimizer.lr=1e30"] == {"base": [None, None], "small": [None, None]}
    assert all(isinstance(each, float) for each in variants["optimizer.lr=0.2"]["small"])
    (out / "ablation.json").unlink()
    again = CliRunner().invoke(app, ["study", str(recipe), "--out", str(out), *vary])
    assert again.exit_code == 0 and "seed" not in again.stdout, again.stderr
    assert json.loads((out / "ablation.json").read_text())["variants"] == variants


@pytest.mark.parametrize(
    ("more", "run_"),
    [
        ((), "seed 1, together: "),
        (("--vary", "optimizer.lr=0.1", "--way", "alone"), "seed 1, base alone (recipe): "),
    ],
)
def test_a_recipe_that_diverges_ends_the_study(
    recipe: Path, tmp_path: Path, more: tuple[str, ...], run_: str
) -> None:
    arguments = ("--seeds", "1", "--set", "optimizer.lr=1e30", *more)
    result = study(recipe, tmp_path, *arguments)
    assert result.returncode == 4, result.stderr
    assert f"{run_}the training diverged: the loss is" in result.stderr
    # From what that left.
    again = CliRunner().invoke(app, ["study", str(recipe), "--out", str(tmp_path), *arguments])
    assert isinstance(again.exception, DivergedError) and run_ in str(again.exception)
    assert not {"study.json", "ablation.json"} & {each.name for each in tmp_path.iterdir()}


def test_a_last_step_that_diverges_is_no_score(recipe: Path, tmp_path: Path) -> None:
    """Only the evaluation sees what the last step made of the weights."""
    wild = ["optimizer.lr=1e38", "epochs=1", "batch_size=100"]
    chosen = load_recipe(str(recipe), wild)
    result = train_one(chosen.values, None, 1, str(tmp_path / "run"))
    assert "the loss of the last weights is no finite number" in result["diverged"]
    assert "scores" not in result


def test_the_table_of_variants() -> None:
    def shown(variants: dict[str, dict[str, list[float]]]) -> str:
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(ablation_table(variants, "title"))
        return console.export_text()

    one = shown({"recipe": {"base": [0.5]}, "other": {"base": [0.75]}})
    assert "0.7500" in one and "+0.2500" in one and "nan" not in one
    nan = math.nan
    two = shown(
        {"recipe": {"base": [0.5, 0.25]}, "a": {"base": [nan, 0.5]}, "b": {"base": [nan] * 2}}
    )
    assert "1 of 2 diverged" in two and "+0.2500" in two and "nan" not in two
    assert re.search(r"b *│ *diverged *│", two)


def test_data_that_differ_anywhere_are_other_data(recipe: Path, tmp_path: Path) -> None:
    images = torch.zeros(300, 16, dtype=torch.uint8)
    labels = torch.zeros(300, dtype=torch.int64)
    tokens = torch.zeros(900, dtype=torch.int64)

    def changed(tensor: torch.Tensor) -> torch.Tensor:
        other = tensor.clone()
        other[-1] = 1
        return other

    of_images = [
        Data(Images(images, labels), Images(images, labels)),
        Data(Images(changed(images), labels), Images(images, labels)),
        Data(Images(images, changed(labels)), Images(images, labels)),
        Data(Images(images, labels), Images(changed(images), labels)),
        Data(Images(images, labels), Images(images, changed(labels))),
    ]
    of_text = [
        Data(Windows(tokens, 6, 3), Windows(tokens, 6, 3)),
        Data(Windows(changed(tokens), 6, 3), Windows(tokens, 6, 3)),
        Data(Windows(tokens, 6, 3), Windows(changed(tokens), 6, 3)),
    ]
    assert len({digest(each) for each in (*of_images, *of_text)}) == 8
    assert digest(of_images[0]) == digest(Data(Images(images.clone(), labels), of_images[0].test))


def finished(chosen: Recipe, results: Results, seeds: list[int]) -> dict[str, Any]:
    """The document of a study whose runs all gave the same."""
    for task in tasks_of(chosen, seeds):
        results.runs[results.key(task)] = {
            "scores": {
                name: {"accuracy": 0.5, "loss": 1.0} for name in task.recipe.description.names
            },
            "seconds": 1.0,
            "flops": 1,
        }
    document: dict[str, Any] = json.loads(json_text(summary(chosen, seeds, results)))
    return document


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ([], {}, "recipe is missing"),
        ([], [], "the document is no table"),
        ([], 3, "the document is no table"),
        (["seeds"], [1, "2"], "seeds[] is '2'"),
        (["data"], None, "data is None"),
        (["recipe"], {}, "recipe: 'epochs' must be an integer"),
        (["subnetworks", "small"], {}, "subnetworks.small.together is missing"),
        (["subnetworks", "small", "alone"], [0.5], "subnetworks.small.alone has 1 values in pl"),
        (["subnetworks", "small", "alone"], [0.5, None], "subnetworks.small.alone[] is None"),
        (["compute", "together", "seconds"], [1.0], "seconds has 1 values in place of 2"),
        (["compute"], [], "compute is no table"),
        (["subnetworks", "small", "alone"], [0.5, math.nan], "it has NaN, which JSON has not"),
        (["seeds"], [1, 1], "a seed is there twice"),
        (["metric"], "loss", "metric is 'loss'"),
    ],
)
def test_a_damaged_study_is_refused(
    recipe: Path, tmp_path: Path, path: list[str], value: Any, message: str
) -> None:
    chosen = load_recipe(str(recipe))
    document = finished(chosen, Results(tmp_path, "some"), [1, 2])
    file = tmp_path / "study.json"
    file.write_text(json.dumps(document))
    assert restore(file, chosen, Results(tmp_path, "some")) == [1, 2]
    whole = {"document": document}
    place: Any = whole
    *tables, last = ["document", *path]
    for each in tables:
        place = place[each]
    place[last] = value
    file.write_text(json.dumps(whole["document"]))
    with pytest.raises(InputError) as error:
        restore(file, chosen, Results(tmp_path, "some"))
    text = str(error.value)
    assert text.startswith(f"'{file}' is damaged: ") and message in text
    assert text.endswith(". Remove it, or copy it again.") and ".." not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "scores is missing"),
        ("[]", "the document is no table"),
        ('{"scores": {"base": {"accuracy": 1.0}}}', "seconds is missing"),
        ('{"scores": {}, "seconds": 1.0, "flops": 1}', "scores.base is missing"),
        ('{"diverged": 3}', "diverged is 3"),
        ("{", "it is no JSON"),
    ],
)
def test_a_damaged_run_is_refused(recipe: Path, tmp_path: Path, text: str, message: str) -> None:
    results = Results(tmp_path, "some")
    task = Task(load_recipe(str(recipe)), 1)
    file = tmp_path / f"{results.key(task)}.json"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        results.find([task])
    assert str(error.value).startswith(f"'{file}' is damaged: ") and message in str(error.value)


def test_validation_is_of_the_training_data(recipe: Path) -> None:
    chosen = load_recipe(str(recipe), ["data.validation=0.25"])
    whole = load_data({**chosen.values["data"], "validation": 0.0}, chosen.description)
    held = load_data(chosen.values["data"], chosen.description)
    assert len(held.train) + len(held.test) == len(whole.train)
    for part, at in ((held.train, 0), (held.test, len(held.train))):
        found, expected = part.batch(torch.arange(2)), whole.train.batch(torch.arange(at, at + 2))
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_validation_of_text_never_reads_the_test_part(tmp_path: Path) -> None:
    path = tmp_path / "text.toml"
    path.write_text(TEXT)
    text = tmp_path / "text.txt"
    text.write_text("abcab" * 99 + "ccccc")
    chosen = load_recipe(str(path), ["data.validation=0.2"]).reading(text)
    held = load_data(chosen.values["data"], chosen.description)
    whole = load_data({**chosen.values["data"], "validation": 0.0}, chosen.description)
    together = torch.cat([held.train.tokens, held.test.tokens])
    assert torch.equal(together, whole.train.tokens)


def with_means(recipe: Path, *overrides: str) -> Recipe:
    recipe.write_text(SMOOTHING + recipe.read_text() + MEANS)
    return load_recipe(str(recipe), overrides)


def test_means_of_training_are_in_the_loop(recipe: Path) -> None:
    """Each of them changes the weights, and together they are as in plain code."""
    plain = load_recipe(str(recipe))
    chosen = with_means(recipe)
    data = load_data(chosen.values["data"], chosen.description)
    run_ = loop.Run(chosen, data, 1)
    run_.train()
    assert run_.evaluated is not run_.network
    norms = run_.network.get_parameter("hidden.weight").detach().norm(dim=1)
    assert float(norms.max()) <= 0.3 + 1e-5
    weights = set()
    for off in (
        [],
        ["label_smoothing=0.0"],
        ["teach.kind=none"],
        ["average.decay=0.0"],
        ["bound.row_norm=0.0"],
    ):
        each = loop.Run(load_recipe(str(recipe), off), data, 1)
        each.train()
        weights.add(tuple(each.evaluated.get_parameter("output.weight").flatten().tolist()))
    assert len(weights) == 5
    assert plain.teacher(run_.network) is None and plain.average(run_.network) is None


def test_alone_has_its_own_values_and_no_teacher(recipe: Path) -> None:
    chosen = with_means(recipe)
    alone = chosen.alone("small")
    assert alone.values["optimizer"]["lr"] == 0.2
    assert chosen.alone("base").values["optimizer"]["lr"] == chosen.values["optimizer"]["lr"]
    assert alone.values["teach"]["kind"] == "none"
    assert alone.values["average"] == chosen.values["average"]
    assert alone.values["label_smoothing"] == 0.1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "base"', 'kind = "best"', "teach.kind must be one of none, base, next_larger"),
        ("small = 0.3", "smal = 0.3", "no sub-network 'smal'"),
        ("decay = 0.9", "decay = 1.0", "average.decay must be a number at least 0 and below 1"),
        ("row_norm = 0.3", "row_norm = -1.0", "bound.row_norm must be a number at least 0"),
        ('blocks = ["hidden"]', 'blocks = ["hiden"]', "bound.blocks names 'hiden'"),
        ('blocks = ["hidden"]', "blocks = []", "Name the blocks"),
        ("label_smoothing = 0.1", "label_smoothing = 2.0", "label_smoothing must be a number"),
        ("small = { ", "smal = { ", "alone names 'smal'"),
        ('"optimizer.lr"', '"optimizer.rate"', "recipe: alone.small: the recipe has no key"),
    ],
)
def test_wrong_means(recipe: Path, old: str, new: str, message: str) -> None:
    text = recipe.read_text()
    recipe.write_text(SMOOTHING.replace(old, new) + text + MEANS.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_recipe(str(recipe))


def test_an_override_holds_alone_too(recipe: Path) -> None:
    chosen = with_means(recipe, "optimizer.lr=0.7")
    assert chosen.alone("small").values["optimizer"]["lr"] == 0.7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.kind=some"], "sampling.kind must be one of"),
        (["sampling.count=2"], "sampling.count is not used with kind 'all'"),
        (["sampling.kind=random"], "base is the teacher, but with sampling.kind 'random'"),
        (
            ["sampling.kind=sandwich", "sampling.count=9"],
            "^recipe: sampling: .*9 sub-networks are to be drawn, but only 0 fit",
        ),
        (["sampling.kind=from_epoch"], "'from_epoch' needs sampling.first"),
        (
            ["sampling.kind=random", "teach.kind=mutual"],
            "teach each other with teach.kind 'mutual', but sampling.count is 1",
        ),
        (
            ["sampling.kind=random", "teach.kind=next_larger"],
            "teach each other with teach.kind 'next_larger', but sampling.count is 1",
        ),
    ],
)
def test_wrong_sampling(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_means(recipe, *overrides)


def test_sampling_is_in_the_loop_and_goes_on(recipe: Path) -> None:
    options = ["sampling.kind=random", "epochs=3"]
    chosen = load_recipe(str(recipe), options)
    data = load_data(chosen.values["data"], chosen.description)
    whole = loop.Run(chosen, data, 1)
    whole.train()
    steps = iter(range(100))
    part = loop.Run(chosen, data, 1)
    part.train(should_stop=lambda: next(steps) == 3)
    state = part.state_dict()
    rest = loop.Run(chosen, data, 1)
    rest.load_state_dict(state)
    rest.train()
    plain = loop.Run(load_recipe(str(recipe), ["epochs=3"]), data, 1)
    plain.train()
    for a, b in zip(whole.network.parameters(), rest.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(
        whole.network.get_parameter("output.weight"), plain.network.get_parameter("output.weight")
    )


def test_a_sandwich_without_base_has_no_base_to_teach(recipe: Path) -> None:
    text = recipe.read_text()
    wide = """
[[network.blocks]]
name = "wide"
type = "Dense"
in_features = 16
out_features = 16
[[network.subnetworks]]
name = "base"
blocks = ["hidden", "output"]
[[network.subnetworks]]
name = "big"
blocks = ["wide", "hidden", "output"]
"""
    first = text.index("[[network.blocks]]")
    blocks, subnetworks = wide.split("[[network.subnetworks]]", 1)
    recipe.write_text(f"{text[:first]}{blocks}{text[first:]}\n[[network.subnetworks]]{subnetworks}")
    with pytest.raises(InputError, match="which is 'big' here, and base by chance"):
        load_recipe(str(recipe), ["sampling.kind=sandwich", "teach.kind=base"])


def test_who_starts_later_is_evaluated_later(recipe: Path) -> None:
    text = recipe.read_text().replace(
        "[network]", "[sampling]\nkind = 'from_epoch'\nfirst = { small = 1 }\n[network]"
    )
    recipe.write_text(text)
    chosen = load_recipe(str(recipe))
    run_ = loop.Run(chosen, load_data(chosen.values["data"], chosen.description), 1)
    run_.train()
    assert [list(record["subnetworks"]) for record in run_.epochs] == [["base"], ["base", "small"]]


def test_who_runs_by_chance_is_evaluated_once_it_has(recipe: Path) -> None:
    """Before that its batch norms have no statistics; who never runs is said before it begins."""
    norm = "[[network.blocks]]\nname = 'norm'\ntype = 'BatchNorm'\nfeatures = 16\n"
    text = recipe.read_text().replace("[[network.blocks]]", f"{norm}[[network.blocks]]", 1)
    text = text.replace("features = 16\n", "features = 16\nper_subnetwork = ['statistics']\n", 1)
    recipe.write_text(text.replace('blocks = ["output"]', 'blocks = ["norm", "output"]'))
    options = ["sampling.kind=random", "batch_size=64", "schedule.warmup_epochs=0"]
    chosen = load_recipe(str(recipe), [*options, "epochs=16"])
    data = load_data(chosen.values["data"], chosen.description)
    seen = []
    for seed in range(1, 5):
        run_ = loop.Run(chosen, data, seed)
        run_.train()
        seen += [list(record["subnetworks"]) for record in run_.epochs]
        assert seen[-1] == ["base", "small"]
    assert ["base"] in seen and ["small"] in seen
    one = load_recipe(str(recipe), [*options, "epochs=1"])
    with pytest.raises(InputError, match="'(base|small)' runs in none of the steps of 1 epochs wi"):
        loop.Run(one, data, 1)


def test_alone_is_alone_and_of_any_kind(recipe: Path) -> None:
    for key, value in (
        ("network.subnetworks", "[{ name = 'z', width = { hidden = 0.5 } }]"),
        ("network.grid", "{ w = { of = ['hidden'], widths = [0.5, 1.0] } }"),
        ("network.blocks.output.merge", "{ rule = 'sum' }"),
    ):
        with pytest.raises(InputError, match=f"alone.base says '{key}.*no use where one sub-net"):
            load_recipe(str(recipe), [f"alone.base.{key}={value}"])
    twice = "alone.small={ 'optimizer.lr' = 0.3, optimizer = { lr = 0.4 } }"
    with pytest.raises(InputError, match="says 'optimizer.lr' of one sub-network twice"):
        load_recipe(str(recipe), [twice])
    other = ["alone.small.schedule={ kind = 'constant' }", "optimizer.momentum=0.9"]
    other += ["alone.small.optimizer={ name = 'AdamW', lr = 0.1 }"]
    values = load_recipe(str(recipe), other).alone("small").values
    assert values["schedule"] == {"kind": "constant"}
    assert values["optimizer"] == {"name": "AdamW", "lr": 0.1}


def test_who_cannot_learn_from_whom_is_said_before_a_run(recipe: Path) -> None:
    early = "network.subnetworks=[{ name = 'early', blocks = ['hidden'] }]"
    with pytest.raises(
        InputError, match=r"^recipe: teach: .*'early' gives \(2, 16\), but is to learn from 'base'"
    ):
        load_recipe(str(recipe), [early, "teach.kind=base"])
    load_recipe(str(recipe), [early, "teach.kind=base", "teach.weight={ early = 0.0 }"])
    with pytest.raises(InputError, match="'base', but the network has no sub-networks that could"):
        load_recipe(str(recipe), ["network.subnetworks=[]", "teach.kind=base"])


def test_by_lane_has_no_teacher(recipe: Path) -> None:
    with pytest.raises(InputError, match="none can learn from another"):
        load_recipe(str(recipe), ["by_lane=true", "teach.kind=base"])


def test_numbers_of_few_seeds() -> None:
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
    assert standard_error([1.0]) != standard_error([1.0])  # no number


def test_a_summary_has_the_seeds_that_are_whole(recipe: Path, tmp_path: Path) -> None:
    chosen = load_recipe(str(recipe))
    results = Results(tmp_path, "some")
    for task in tasks_of(chosen, [1, 2]):
        if task.seed == 2 and task.recipe.alone_name == "small":
            continue
        name = task.recipe.alone_name
        names = ["base"] if name else chosen.description.names
        results.runs[results.key(task)] = {
            "scores": {each: {"accuracy": 0.5, "loss": 1.0} for each in names},
            "seconds": 1.0,
            "flops": 1,
        }
    assert summary(chosen, [1, 2], results)["seeds"] == [1]
    assert results.key(Task(chosen, 1)) != results.key(Task(chosen.alone("base"), 1))


@pytest.mark.parametrize("options", ["momentum = 0.9\nnesterov = true", "momentum = 0.0"])
@pytest.mark.parametrize(
    "sampling", ["kind = 'random'", "kind = 'from_epoch'\nfirst = { base = 1 }"]
)
def test_fused_optimizers_where_parameters_begin_apart(
    recipe: Path, sampling: str, options: str
) -> None:
    text = recipe.read_text().replace("[network]", f"[sampling]\n{sampling}\n[network]")
    recipe.write_text(text.replace("lr = 0.1", f"lr = 0.1\nfused = false\n{options}"))
    runs = []
    for fused in ("true", "false"):
        chosen = load_recipe(str(recipe), [f"optimizer.fused={fused}", "epochs=3"])
        run_ = loop.Run(chosen, load_data(chosen.values["data"], chosen.description), 1)
        run_.train()
        runs.append(run_.network)
    for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_fused_momentum_with_dampening_is_refused(recipe: Path) -> None:
    text = recipe.read_text().replace("[network]", "[sampling]\nkind = 'random'\n[network]")
    more = "lr = 0.1\nfused = true\nmomentum = 0.9\ndampening = 0.1"
    recipe.write_text(text.replace("lr = 0.1", more))
    with pytest.raises(
        InputError, match=r"recipe: optimizer.dampening: .* Leave dampening or fused"
    ):
        load_recipe(str(recipe))
