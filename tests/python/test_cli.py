"""The command line as a user runs it."""

import io
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import nsn
from command import COMMAND, run
from nsn.cli import main
from nsn.cli.app import app
from nsn.training.errors import InputError
from nsn.training.report import read_state
from test_data import write_set
from test_recipe import SMALL, TEXT


@pytest.fixture
def setting(tmp_path: Path) -> dict[str, Path]:
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL)
    return {
        "recipe": recipe,
        "data": write_set(tmp_path / "data", gz=True),
        "out": tmp_path / "out",
    }


def train(setting: dict[str, Path], *more: str | Path) -> subprocess.CompletedProcess[str]:
    return run(
        "train",
        setting["recipe"],
        "--data",
        setting["data"],
        "--out",
        setting["out"],
        "--threads",
        "1",
        *more,
    )


def test_train_leaves_its_files_and_eval_repeats_its_table(setting: dict[str, Path]) -> None:
    result = train(setting, "--seed", "3")
    assert result.returncode == 0, result.stderr
    assert "epoch 2/2  loss" in result.stdout and "small" in result.stdout
    out = setting["out"]
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "report.json",
        "curves.png",
    }
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "report.json").read_text())
    assert list(report["final"]) == ["base", "small"]
    assert report["seed"] == 3 and not report["interrupted"]
    assert report["recipe"]["optimizer"] == {"name": "SGD", "lr": 0.1}
    assert report["machine"]["torch"] == torch.__version__ and report["machine"]["threads"] == 1
    assert [record["epoch"] for record in report["epochs"]] == [1, 2]
    assert "chosen on the test data" in report["best_epoch_on_test"]["note"]
    final = report["final"]["small"]
    assert final["parameters"] == 170 and final["bytes"] == 680 and final["latency_us"] > 0
    assert final["accuracy"] == report["epochs"][-1]["subnetworks"]["small"]["accuracy"]

    again = run("eval", out / "model.safetensors", "--data", setting["data"], "--json")
    assert again.returncode == 0, again.stderr
    scores = json.loads(again.stdout)["final"]
    for name, row in report["final"].items():
        assert scores[name]["accuracy"] == row["accuracy"]
        assert scores[name]["loss"] == pytest.approx(row["loss"])
    shown = run("eval", out / "model.safetensors", "--data", setting["data"])
    assert shown.returncode == 0 and f"{final['accuracy']:.4f}" in shown.stdout


def test_eval_finds_the_data_of_the_recipe(setting: dict[str, Path]) -> None:
    assert train(setting).returncode == 0
    found = run("eval", setting["out"] / "model.safetensors")
    assert found.returncode == 0, found.stderr
    moved = setting["data"].rename(setting["data"].with_name("elsewhere"))
    lost = run("eval", setting["out"] / "model.safetensors")
    assert lost.returncode == 2 and f"there is no folder '{setting['data']}'" in lost.stderr
    assert run("eval", setting["out"] / "model.safetensors", "--data", moved).returncode == 0


def test_text_from_training_to_eval(setting: dict[str, Path], tmp_path: Path) -> None:
    setting["recipe"].write_text(TEXT)
    setting["data"] = tmp_path / "text.txt"
    setting["data"].write_text("abcab" * 100)
    result = train(setting)
    assert result.returncode == 0, result.stderr
    report = json.loads((setting["out"] / "report.json").read_text())
    last = report["epochs"][-1]["subnetworks"]["small"]
    assert f"small {last['loss']:.4f}" in result.stdout  # not its accuracy
    final = report["final"]["small"]
    assert final["loss"] == last["loss"] and final["latency_us"] > 0
    assert final["bits_per_character"] == pytest.approx(final["loss"] / math.log(2))
    assert report["recipe"]["data"]["path"] == str(setting["data"])
    again = run("eval", setting["out"] / "model.safetensors", "--json")
    assert again.returncode == 0, again.stderr
    for name, row in json.loads(again.stdout)["final"].items():
        assert row["accuracy"] == report["final"][name]["accuracy"]
    setting["data"].write_text("abcad" * 100)
    other = run("eval", setting["out"] / "model.safetensors")
    assert other.returncode == 2 and "has the character 'd' at 4" in other.stderr


def test_same_seed_same_bits_other_seed_other_bits(setting: dict[str, Path]) -> None:
    contents = []
    for seed in ("1", "1", "2"):
        assert train(setting, "--seed", seed).returncode == 0
        contents.append((setting["out"] / "model.safetensors").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_overrides(setting: dict[str, Path]) -> None:
    result = train(setting, "--epochs", "1", "--set", "optimizer.lr=0.5")
    assert result.returncode == 0, result.stderr
    report = json.loads((setting["out"] / "report.json").read_text())
    assert report["recipe"]["epochs"] == 1 and report["recipe"]["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nope"], "there is no recipe 'nope'"),
        (["train", "demo", "--data", "nowhere"], "there is no folder 'nowhere'"),
        (["train", "demo", "--set", "lr=1"], "the recipe has no key 'lr'"),
        (["eval", "nowhere.safetensors"], "cannot open 'nowhere.safetensors': No such file"),
        (["eval", __file__], "is no complete safetensors file"),
    ],
)
def test_wrong_input_is_one_message_and_code_2(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stderr.startswith("nsn: ")


def test_data_that_does_not_fit(setting: dict[str, Path]) -> None:
    result = run("train", "demo", "--data", setting["data"], "--out", setting["out"])
    assert result.returncode == 2 and "has 4 x 4 pixels" in result.stderr
    assert not setting["out"].exists()


def test_an_out_that_cannot_be_made(setting: dict[str, Path]) -> None:
    setting["out"].write_text("a file")
    result = train(setting)
    assert result.returncode == 2 and "--out: cannot make the folder" in result.stderr


def test_help_and_version() -> None:
    version = f"nsn {nsn.__version__}, torch {torch.__version__}, CPU level {nsn.cpu_level()}\n"
    assert run("--version").stdout == version
    examples = {
        "train": "nsn train demo --set",
        "eval": "nsn eval runs/demo",
        "describe": "nsn describe demo",
        "extract": "nsn extract runs/demo/model.safetensors sub1",
        "export": "--format executorch --subnetworks base,sub2",
        "verify": "nsn verify runs/demo/model.safetensors",
        "plot paths": "nsn plot paths transformer",
        "plot curves": "nsn plot curves runs/paper",
        "plot": "curves",
        "": "verify",
    }
    assert run("train", "-h").stdout == run("train", "--help").stdout
    for command, example in examples.items():
        help = CliRunner().invoke(app, [*command.split(), "-h"]).stdout
        assert "{" not in help and ("Example" in help) == (command not in ("", "plot")), help
        # Each can be copied: it stands on a line of its own.
        lines = [line for line in help.splitlines() if line.startswith("    nsn ")]
        if command not in ("", "plot"):
            assert lines and not any(line.endswith("-") or "  nsn" in line[4:] for line in lines)
            assert all(line.strip().startswith(f"nsn {command} ") for line in lines), help
            assert "\n\n    nsn" not in help, help
        text = " ".join(CliRunner().invoke(app, [*command.split(), "--help"]).stdout.split())
        assert example in text and "3 nsn verify found" in text and "130" in text, text
    assert "nsn train demo --set" in run("train", "--help").stdout
    assert run("frobnicate").returncode == 2


def test_interrupt_leaves_a_usable_checkpoint(setting: dict[str, Path]) -> None:
    arguments = [
        "train",
        setting["recipe"],
        "--data",
        setting["data"],
        "--out",
        setting["out"],
        "--threads",
        "1",
        "--epochs",
        "100000",
    ]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/100000")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    report = json.loads((setting["out"] / "report.json").read_text())
    assert report["interrupted"] and 1 <= len(report["epochs"]) < 100000
    net = nsn.load(setting["out"] / "model.safetensors")
    assert net(torch.rand(2, 16), "small").isfinite().all()
    assert {path.name for path in setting["out"].iterdir()} == {
        "model.safetensors",
        "report.json",
        "curves.png",
        "state.pt",
    }


def test_a_killed_run_resumes_and_ends_with_the_same_bits(setting: dict[str, Path]) -> None:
    many = ["--epochs", "40", "--set", "optimizer.momentum=0.9"]
    recipe = setting["recipe"]
    recipe.write_text(recipe.read_text().replace("lr = 0.1", "lr = 0.1\nmomentum = 0.0"))
    assert train(setting, *many).returncode == 0
    whole = (setting["out"] / "model.safetensors").read_bytes()
    whole_report = json.loads((setting["out"] / "report.json").read_text())

    setting["out"] = setting["out"].with_name("in_parts")
    arguments = ["--data", setting["data"], "--out", setting["out"], "--threads", "1", *many]
    process = subprocess.Popen(
        [*COMMAND, "train", *map(str, [recipe, *arguments])], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while not process.stdout.readline().startswith("epoch 3/40"):
        pass
    process.kill()
    process.communicate(timeout=60)
    assert (setting["out"] / "state.pt").exists()
    assert not (setting["out"] / "model.safetensors").exists()

    for wrong, differs in (
        (["--seed", "9"], "seed (1 there, 9 here)"),
        (["--set", "optimizer.lr=0.3"], "optimizer.lr (0.1 there, 0.3 here)"),
        (["--set", "network.blocks.hidden.dropout=0.25"], "hidden.dropout (0.5 there, 0.25 here)"),
        (["--alone", "small"], "alone (None there, small here)"),
    ):
        refused = train(setting, *many, "--resume", *wrong)
        assert refused.returncode == 2 and "has another value of" in refused.stderr, refused.stderr
        assert differs in " ".join(refused.stderr.split()), refused.stderr
    resumed = train(setting, *many, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "epoch 3/40" not in resumed.stdout and "epoch 40/40" in resumed.stdout
    assert (setting["out"] / "model.safetensors").read_bytes() == whole
    report = json.loads((setting["out"] / "report.json").read_text())
    for record, expected in zip(report["epochs"], whole_report["epochs"], strict=True):
        assert record["train_loss"] == expected["train_loss"]
        assert record["subnetworks"] == expected["subnetworks"]
    assert not (setting["out"] / "state.pt").exists()


def test_nothing_to_resume(setting: dict[str, Path]) -> None:
    result = train(setting, "--resume")
    assert result.returncode == 2 and "Leave --resume out" in result.stderr
    setting["out"].mkdir()
    buffer = io.BytesIO()
    torch.save({"epochs": list(range(100)), "weights": torch.randn(50)}, buffer)
    cut = [buffer.getvalue()[: 97 * i] for i in range(1, 1 + buffer.tell() // 97)]
    for part in cut:
        (setting["out"] / "state.pt").write_bytes(part)
        with pytest.raises(InputError, match="it is no state of nsn train, or damaged"):
            read_state(setting["out"] / "state.pt", ["epochs"])
    for state in (b"no state", cut[-1], [1], {"epochs": 3}, torch.ones(3), None):
        if isinstance(state, bytes):
            (setting["out"] / "state.pt").write_bytes(state)
        else:
            torch.save(state, setting["out"] / "state.pt")
        result = train(setting, "--resume")
        assert result.returncode == 2 and "it is no state of nsn train" in result.stderr, state


def test_a_subnetwork_alone_and_both_in_one_plot(setting: dict[str, Path], tmp_path: Path) -> None:
    assert train(setting).returncode == 0
    together = setting["out"]
    setting["out"] = tmp_path / "alone"
    result = train(setting, "--alone", "small")
    assert result.returncode == 0 and "small alone: last epoch" in result.stdout
    report = json.loads((setting["out"] / "report.json").read_text())
    assert report["alone"] == "small" and list(report["final"]) == ["base"]
    assert nsn.load(setting["out"] / "model.safetensors").description.blocks_of("base") == [
        "output"
    ]
    picture = tmp_path / "both.png"
    drawn = run("plot", "curves", together, setting["out"] / "report.json", "--out", picture)
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert train(setting, "--alone", "nobody").returncode == 2
    for wrong, message in ((tmp_path, "cannot read"), (setting["recipe"], "is no JSON")):
        refused = run("plot", "curves", wrong, "--out", picture)
        assert refused.returncode == 2 and message in refused.stderr, refused.stderr


def test_compare_trains_each_alone_and_resumes(setting: dict[str, Path]) -> None:
    refused = train(setting, "--compare", "--alone", "small")
    assert refused.returncode == 2 and "leave --alone out" in refused.stderr
    result = train(setting, "--compare")
    assert result.returncode == 0, result.stderr
    out = setting["out"]
    report = json.loads((out / "report.json").read_text())
    assert list(report["comparison"]) == ["base", "small"]
    for name, both in report["comparison"].items():
        own = json.loads((out / f"alone-{name}" / "report.json").read_text())
        assert own["alone"] == name and len(own["epochs"]) == len(report["epochs"])
        assert both["alone"] == {key: own["final"]["base"][key] for key in ("accuracy", "loss")}
        assert both["together"]["loss"] == report["final"][name]["loss"]
    shown = result.stdout.splitlines()[-2].replace("│", " ").split()
    together, alone = report["comparison"]["small"].values()
    scores = [f"{way[key]:.4f}" for key in ("accuracy", "loss") for way in (together, alone)]
    assert shown == ["small", *scores, "170"]

    # What is done stays; what is missing is made again, with the same bits.
    files = [out / folder / "model.safetensors" for folder in (".", "alone-base", "alone-small")]
    contents = [file.read_bytes() for file in files]
    times = [file.stat().st_mtime_ns for file in files]
    (out / "alone-small" / "report.json").unlink()
    (out / "report.json").write_text(json.dumps({**report, "comparison": None}))
    resumed = train(setting, "--compare", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert [file.read_bytes() for file in files] == contents
    changed = [file.stat().st_mtime_ns != time for file, time in zip(files, times, strict=True)]
    assert changed == [False, False, True]
    again = json.loads((out / "report.json").read_text())
    assert again["comparison"] == report["comparison"]
    # Other training than the one that stands there is not mistaken for it.
    for other in (["--epochs", "1"], ["--seed", "9"]):
        refused = train(setting, "--compare", "--resume", *other)
        assert refused.returncode == 2 and "Leave --resume out" in refused.stderr


def test_live_bar_on_a_terminal(setting: dict[str, Path]) -> None:
    arguments = [
        "train",
        setting["recipe"],
        "--data",
        setting["data"],
        "--out",
        setting["out"],
        "--threads",
        "1",
        "--epochs",
        "300",
    ]
    assert "epoch 300/300" in (shown := on_a_terminal(150, *arguments))
    assert "loss" in shown and "left" in shown and ("base 0." in shown or "base 1." in shown)
    # A narrow terminal has the numbers all the same, and no line is longer.
    shown = on_a_terminal(60, *arguments)
    assert "epoch 1" in shown and "100%" in shown and "left" in shown


def on_a_terminal(columns: int, *arguments: str | Path) -> str:
    """What a command writes to a terminal of that width."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    text = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        text += chunk
    assert process.wait(timeout=60) == 0, text.decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())


def test_a_narrow_terminal_cuts_no_number(setting: dict[str, Path], checkpoint: Path) -> None:
    table = on_a_terminal(60, "eval", checkpoint)
    assert all(len(line) <= 60 for line in table.splitlines()), table
    assert "…" not in table
    found = json.loads(run("eval", checkpoint, "--json").stdout)["final"]
    columns = [line.replace("│", "|").split("|") for line in table.splitlines()]
    cells = "".join(row[4].strip() for row in columns if len(row) > 5)
    assert f"{found['base']['parameters']:,}" in cells, table


def test_a_reader_that_leaves_changes_nothing(setting: dict[str, Path]) -> None:
    """As in ``nsn train ... | head -1``."""
    for more in ((), ("--json",)):
        shutil.rmtree(setting["out"], ignore_errors=True)
        arguments = ["train", setting["recipe"], "--data", setting["data"], "--out", setting["out"]]
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=120) == 0, process.stderr.read()
        assert process.stderr.read() == b""
        assert {each.name for each in setting["out"].iterdir()} == {
            "model.safetensors",
            "report.json",
            "curves.png",
        }
    process = subprocess.Popen([*COMMAND, "describe", "demo"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0


def strict_json(text: str) -> Any:
    """Refuses NaN and Infinity, which are no JSON."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_a_loss_that_is_no_number_ends_the_run(setting: dict[str, Path]) -> None:
    result = train(setting, "--set", "optimizer.lr=1e30", "--epochs", "3", "--json")
    assert result.returncode == 4, result.stderr
    assert "the training diverged: the loss is" in result.stderr
    assert "Lower optimizer.lr" in result.stderr and len(result.stderr.splitlines()) == 1
    assert "model.safetensors" not in {each.name for each in setting["out"].iterdir()}
    for line in result.stdout.splitlines():
        strict_json(line)


def test_results_that_are_no_numbers_are_null(setting: dict[str, Path], tmp_path: Path) -> None:
    assert train(setting).returncode == 0
    path = setting["out"] / "model.safetensors"
    net = nsn.load(path)
    with torch.no_grad():
        net.output.bias.fill_(math.nan)
    nsn.save(net, tmp_path / "nan.safetensors", nsn.load_metadata(path))
    data = ("--data", setting["data"])
    final = strict_json(run("eval", tmp_path / "nan.safetensors", *data, "--json").stdout)["final"]
    assert final["base"]["loss"] is None and final["base"]["accuracy"] is not None
    assert "nan" in run("eval", tmp_path / "nan.safetensors", *data).stdout
    checked = run("verify", tmp_path / "nan.safetensors", *data, "--json")
    assert checked.returncode == 3
    problems = {row["problem"] for row in strict_json(checked.stdout)["rows"]}
    assert all("of the view's" in each and "NaN or infinite" in each for each in problems)


def test_a_disk_that_is_full_keeps_the_last_state(setting: dict[str, Path]) -> None:
    """The limit of a file's size stands for the disk's: it is lowered after the first epoch."""
    arguments = [
        *("train", str(setting["recipe"]), "--data", str(setting["data"])),
        *("--out", str(setting["out"]), "--threads", "1", "--epochs", "3"),
    ]
    program = f"""
import resource, sys
from nsn.cli import main
from nsn.training import loop
evaluate, calls = loop.evaluate, []
def limited(*arguments):
    calls.append(1)
    if len(calls) == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    return evaluate(*arguments)
loop.evaluate = limited
sys.argv = ["nsn", *{arguments!r}]
main()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.splitlines()) == 1 and "cannot write" in result.stderr
    assert "the same command with --resume goes on" in result.stderr
    assert [each.name for each in setting["out"].iterdir()] == ["state.pt"]
    resumed = train(setting, "--epochs", "3", "--resume")
    assert resumed.returncode == 0 and "epoch 2/3" in resumed.stdout, resumed.stderr
    assert "epoch 1/3" not in resumed.stdout
    whole = setting["out"].parent / "whole"
    assert run(*arguments[:5], str(whole), *arguments[6:]).returncode == 0
    a, b = ((each / "model.safetensors").read_bytes() for each in (setting["out"], whole))
    assert a[-400:] == b[-400:]


def test_eval_finds_data_from_any_folder(tmp_path: Path) -> None:
    """Of a path that was relative to the folder of the training."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir()
    elsewhere.mkdir()
    write_set(project / "images", gz=False)
    (project / "small.toml").write_text(SMALL)

    made = run("train", "small.toml", "--out", "runs/a", "--epochs", "1", folder=project)
    assert made.returncode == 0, made.stderr
    here = run("eval", "runs/a/model.safetensors", "--json", folder=project)
    there = run("eval", "../project/runs/a/model.safetensors", "--json", folder=elsewhere)
    assert here.returncode == there.returncode == 0, there.stderr
    (tmp_path / "moved").mkdir()
    project.rename(tmp_path / "moved" / "project")
    moved = run("eval", "../moved/project/runs/a/model.safetensors", "--json", folder=elsewhere)
    assert moved.returncode == 0, moved.stderr
    shutil.copy(tmp_path / "moved/project/runs/a/model.safetensors", elsewhere)
    lost = run("eval", "model.safetensors", folder=elsewhere)
    assert lost.returncode == 2 and "Give the data with --data" in lost.stderr
    assert f"'{tmp_path.parent}/images'" in lost.stderr and "'images' here" in lost.stderr


def test_paths_that_are_no_text(setting: dict[str, Path]) -> None:
    out = os.fsencode(setting["out"]) + b"-\xff"
    result = train(setting, os.fsdecode(b"--out=" + out))
    assert result.returncode == 0, result.stderr
    left = {each.name for each in Path(os.fsdecode(out)).iterdir()}
    assert left == {"model.safetensors", "report.json", "curves.png"}


def test_train_in_json_lines(setting: dict[str, Path]) -> None:
    result = train(setting, "--json")
    assert result.returncode == 0, result.stderr
    *epochs, last = map(json.loads, result.stdout.splitlines())
    report = json.loads((setting["out"] / "report.json").read_text())
    assert epochs == report["epochs"] and last["final"] == report["final"]
    assert last["folder"] == str(setting["out"]) and not last["interrupted"]
    compared = train(setting, "--json", "--compare", "--resume")
    lines = list(map(json.loads, compared.stdout.splitlines()))
    assert list(lines[-1]["comparison"]) == ["base", "small"] and lines[-2]["alone"] == "small"


def test_plots_say_in_json_what_they_wrote(setting: dict[str, Path], tmp_path: Path) -> None:
    for arguments in (["paths", "demo"], ["curves", setting["out"]]):
        if arguments[0] == "curves":
            assert train(setting).returncode == 0
        picture = tmp_path / f"{arguments[0]}.png"
        result = run("plot", *arguments, "--out", picture, "--json")
        assert json.loads(result.stdout) == {"file": str(picture)} and picture.exists()


@pytest.fixture
def checkpoint(setting: dict[str, Path]) -> Path:
    result = train(setting)
    assert result.returncode == 0, result.stderr
    return setting["out"] / "model.safetensors"


def test_extract(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.pt"
    result = run("extract", checkpoint, "small", "--out", file)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {file}: small, 170 parameters, ")
    module = torch.load(file, weights_only=False)
    x = torch.rand(3, 16)
    assert torch.allclose(module(x), nsn.load(checkpoint).view("small")(x)) and not module.training
    document = json.loads(run("extract", checkpoint, "base", "--out", file, "--json").stdout)
    assert document["parameters"] == 442 and document["bytes"] == file.stat().st_size
    assert document["file"] == str(file) and document["subnetwork"] == "base"
    wrong = run("extract", checkpoint, "nobody")
    assert wrong.returncode == 2 and "no sub-network 'nobody'" in wrong.stderr
    nowhere = run("extract", checkpoint, "small", "--out", tmp_path / "no" / "such.pt")
    assert nowhere.returncode == 2 and "--out: cannot write" in nowhere.stderr


def test_export_and_verify(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    result = run("export", checkpoint, "--format", "onnx", "--out", out)
    assert result.returncode == 0, result.stderr
    steps = ["1/3  weights.bin", "2/3  base: ONNX", "3/3  small: ONNX"]
    assert result.stderr.splitlines() == steps
    assert result.stdout.startswith(f"Wrote {out}\n  base.onnx: ")
    assert "weights.bin: 1,768 bytes" in result.stdout  # 442 numbers
    beside = run("export", checkpoint, "--format", "pt2", "--subnetworks", "small", "--json")
    assert beside.returncode == 0, beside.stderr
    document = json.loads(beside.stdout)
    assert document["folder"] == str(checkpoint.parent / "pt2") and document["format"] == "pt2"
    assert [program["subnetwork"] for program in document["programs"]] == ["small"]

    good = run("verify", checkpoint, out, checkpoint.parent / "pt2", "--samples", "5")
    assert good.returncode == 0, good.stderr + good.stdout
    assert "against the view, on 5 inputs of the test data" in good.stdout
    assert "all 13 agree" in good.stdout and "FAILS" not in good.stdout
    document = json.loads(run("verify", checkpoint, out, "--json").stdout)
    assert document["agree"] and document["samples"] == 6 and len(document["rows"]) == 12
    assert all(row["ok"] and row["argmax"] == 1.0 for row in document["rows"])

    weights = out / "weights.bin"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 0x80]))
    bad = run("verify", checkpoint, out)
    assert bad.returncode == 3, bad.stdout
    assert "weights.bin: has the SHA-256" in bad.stdout and "1 of 11 FAIL" in bad.stdout
    weights.write_bytes(content)
    other = train_again(checkpoint, tmp_path)
    bad = run("verify", other, out)
    assert bad.returncode == 3 and "2 of 12 FAIL" in bad.stdout, bad.stdout


def train_again(checkpoint: Path, tmp_path: Path) -> Path:
    """The same network with other weights."""
    other = tmp_path / "other.safetensors"
    net = nsn.load(checkpoint)
    with torch.no_grad():
        net.output.weight.mul_(1.001)
    nsn.save(net, other, {"recipe": nsn.load_metadata(checkpoint)["recipe"]})
    return other


def test_verify_without_a_recipe(tmp_path: Path) -> None:
    net = nsn.Network(input=(4,), blocks={"output": nsn.Dense(4, 3)})
    nsn.save(net, tmp_path / "net.safetensors")
    result = run("verify", tmp_path / "net.safetensors")
    assert result.returncode == 0, result.stderr
    assert "on 64 random inputs, seed 0, since the checkpoint names no recipe" in result.stdout
    refused = run("eval", tmp_path / "net.safetensors")
    assert refused.returncode == 2 and "names no recipe. Give data" in refused.stderr


def test_what_cannot_be_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str | Path) -> str:
        """What the command says, in this process, before it ends with code 2."""
        monkeypatch.setattr(sys, "argv", ["nsn", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr().err

    checkpoint = tmp_path / "net.safetensors"
    net = nsn.Network(input=(16,), blocks={"output": nsn.Dense(16, 10)})
    nsn.save(net, checkpoint)
    refusals: list[tuple[list[str | Path], str]] = [
        (
            ["export", checkpoint, "--format", "tflite"],
            "one of executorch, onnx, pt2, runtime, but is",
        ),
        (["export", checkpoint, "--format", "pt2", "--out", tmp_path], "exists already"),
        (["export", checkpoint, "--format", "pt2", "--subnetworks", "a"], "no sub-network 'a'"),
        (["export", tmp_path / "x", "--format", "pt2"], "No such file"),
        (["verify", checkpoint, tmp_path / "none"], "manifest.json': No such file"),
        (["verify", checkpoint, "--data", tmp_path / "none"], "there is no folder"),
    ]
    for arguments, message in refusals:
        said = refused(*arguments)
        assert said.startswith("nsn: ") and message in said, said
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'nsn[onnx]'" in refused("export", checkpoint, "--format", "onnx")
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_threads_wait_asleep_in_training_alone(tmp_path: Path) -> None:
    """What OpenMP reads has to stand before torch is there; what the user set stays."""
    program = """
import os, sys, types
import nsn_command
assert "torch" not in sys.modules
cli = types.ModuleType("nsn.cli")
cli.main = lambda: print(os.environ.get("GOMP_SPINCOUNT"))
sys.modules["nsn"] = types.ModuleType("nsn")
sys.modules["nsn.cli"] = cli
nsn_command.main()
"""

    def spins(command: str, **own: str) -> str:
        clean = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
        clean.pop("OMP_WAIT_POLICY", None)
        return subprocess.run(
            [sys.executable, "-c", program, command],
            env={**clean, **own},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert spins("train") == "0"
    assert spins("eval") == "None"
    assert spins("train", GOMP_SPINCOUNT="7") == "7"
    assert spins("train", OMP_WAIT_POLICY="active") == "None"
    command = Path(sys.executable).parent / "nsn"
    assert subprocess.run([command, "--version"], capture_output=True, text=True).returncode == 0
