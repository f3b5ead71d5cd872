"""What ``nsn describe`` and ``nsn plot paths`` show."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console

import nsn
from command import run
from nsn.describing import read_description, tables
from nsn.paths import Kept, Paths, Width, paths_of
from nsn.paths import Path as Way
from nsn.picture import plot_paths
from nsn.training.errors import InputError
from random_networks import random_description
from test_recipe import SMALL


def elastic() -> nsn.Description:
    """A convolutional network with narrowed, following, dropped, private and grouped blocks."""
    blocks = ["stem", "stage", "norm", "flat", "output"]
    return nsn.Description(
        input=(1, 4, 4),
        blocks={
            "stem": nsn.Conv2d(1, 8, 3, padding=1),
            "stage": nsn.Residual(
                {
                    "wide": nsn.Conv2d(8, 16, 3, padding=1),
                    "back": nsn.Conv2d(16, 8, 3, padding=1),
                }
            ),
            "norm": nsn.BatchNorm(8, per_subnetwork=["affine", "statistics"]),
            "head": nsn.GlobalAvgPool(),
            "exit": nsn.Dense(8, 10),
            "flat": nsn.Flatten(),
            "output": nsn.Dense(128, 10),
        },
        subnetworks={
            "base": blocks,
            "half": nsn.Subnetwork(blocks, width={"stem": 0.5, "stage": {"wide.out": 0.25}}),
            "early": nsn.Subnetwork(["stem", "head", "exit"], width={"stem": 6}),
        },
    )


def text_of(description: nsn.Description, width: int = 500) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(tables(description))
    return capture.get()


def cells(description: nsn.Description, title: str, width: int = 500) -> list[list[str]]:
    """The rows of one of the tables, cell by cell, the heading first."""
    part = text_of(description, width).split(title)[1]
    rows = []
    for line in part.splitlines()[1:]:
        if line.strip() and line.strip()[0] in "┃│":
            rows.append([cell.strip() for cell in re.split("[┃│]", line)[1:-1]])
        elif "└" in line:
            break
    return rows


def kept(paths: Paths, subnetwork: str, block: str) -> Kept | None:
    way = next(way for way in paths.ways if way.name == subnetwork)
    return way.kept[[name for name, _ in paths.blocks].index(block)]


# ---- widths -------------------------------------------------------------------------------------


def test_paths_of_a_network() -> None:
    paths = paths_of(elastic())
    assert [name for name, _ in paths.blocks] == list(elastic().blocks)
    assert dict(paths.blocks)["stage"] == "Residual"
    assert [way.name for way in paths.ways] == ["base", "half", "early"]
    assert [way.parameters for way in paths.ways] == [
        each["parameters"] for each in elastic().describe()
    ]
    half = Width("output", 4, 8)
    assert kept(paths, "half", "stem") == Kept((Width("out", 4, 8),), own=False)
    # A dimension of its own, and an output that follows the input.
    assert kept(paths, "half", "stage") == Kept((Width("wide.out", 4, 16), half), own=False)
    assert kept(paths, "half", "norm") == Kept((half,), own=True)
    assert kept(paths, "half", "flat") == Kept((half,), own=False)
    assert kept(paths, "half", "exit") is None
    assert kept(paths, "base", "stage") == Kept((Width("wide.out", 16, 16),), own=False)
    assert kept(paths, "early", "head") == Kept((Width("output", 6, 8),), own=True)
    assert kept(paths, "early", "exit") == Kept((Width("out", 10, 10),), own=True)
    assert kept(paths, "early", "stage") is None


def test_a_width_inside_a_sequence_goes_on_and_a_tied_output_is_whole() -> None:
    description = nsn.Description(
        input=(4,),
        blocks={
            "embedding": nsn.Embedding(12, 8),
            "ffn": nsn.Sequence({"up": nsn.Dense(8, 16), "down": nsn.Dense(16, 8)}),
            "norm": nsn.LayerNorm(8),
            "output": nsn.TiedOutput("embedding", 12, 8),
        },
        subnetworks={
            "half": nsn.Subnetwork(
                ["embedding", "ffn", "norm", "output"],
                width={"embedding": 6, "ffn": {"up.out": 8, "down.out": 2}},
            )
        },
        dtype=nsn.description.torch.int64,
    )
    paths = paths_of(description)
    ffn = kept(paths, "half", "ffn")
    assert ffn == Kept((Width("up.out", 8, 16), Width("down.out", 2, 8)), own=False)
    assert ffn is not None and ffn.texts() == ["up.out 8 of 16", "down.out 2 of 8"]
    norm = kept(paths, "half", "norm")
    assert norm == Kept((Width("output", 2, 8),), own=False)
    assert norm is not None and norm.texts() == ["2 of 8"] and not norm.whole
    output = kept(paths, "half", "output")
    assert output is not None and output.whole and output.texts() == []


def test_paths_agree_with_the_outputs_of_random_networks() -> None:
    narrower = 0
    for seed in range(120):
        description = nsn.Description.from_json(json.dumps(random_description(seed)))
        summary = description.describe()
        paths = paths_of(description)
        for way, each in zip(paths.ways, summary, strict=True):
            names = [name for (name, _), it in zip(paths.blocks, way.kept, strict=True) if it]
            assert names == [block["name"] for block in each["blocks"]]
            # Behind the same blocks as in base, an output differs by its width alone.
            for block, whole in zip(each["blocks"], summary[0]["blocks"], strict=False):
                if block["name"] != whole["name"]:
                    break
                part = kept(paths, way.name, block["name"])
                assert part is not None
                widths = {width.name: width for width in part.widths}
                shown = widths.get("output", widths.get("out"))
                if shown is not None:
                    ratio = math.prod(block["output"]) / math.prod(whole["output"])
                    assert shown.fraction == pytest.approx(ratio), (seed, way.name, block)
                    narrower += ratio < 1
    assert narrower > 100


# ---- the picture --------------------------------------------------------------------------------


def test_boxes_are_as_high_as_their_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    paths = paths_of(elastic())
    plot_paths(paths, tmp_path / "paths.png", "elastic")
    (axes,) = figures[0].axes
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    filled = [box for box in boxes if box.get_facecolor()[:3] != (1.0, 1.0, 1.0)]
    outlines = [box for box in boxes if box.get_facecolor()[:3] == (1.0, 1.0, 1.0)]
    widths = [
        (width, part) for way in paths.ways for part in way.kept if part for width in part.widths
    ]
    assert len(filled) == len(outlines) == len(widths)
    for box, outline, (width, part) in zip(filled, outlines, widths, strict=True):
        assert box.get_height() / outline.get_height() == pytest.approx(width.kept / width.full)
        assert bool(box.get_hatch()) == part.own
        assert box.get_x() > 0 and box.get_x() + box.get_width() < axes.get_xlim()[1]
    # A row lies below the other, a column right of the other.
    rows = [[box for box in outlines if box.get_y() == y] for y in {o.get_y() for o in outlines}]
    assert sorted(map(len, rows)) == [3, 5, 6]
    assert all(
        a.get_x() + a.get_width() <= b.get_x() + 1e-9 for row in rows for a, b in pairwise(row)
    )
    texts = [text.get_text() for text in axes.texts]
    for expected in ("base", "half", "early", "stem", "Residual", "4 of 8", "wide.out 4 of 16"):
        assert expected in texts
    for each in elastic().describe():
        assert any(text.startswith(f"{each['parameters']:,}") for text in texts)


@pytest.mark.parametrize(("blocks", "most"), [(1, 1_000), (100, 20_000)])
def test_a_picture_of_any_network_has_a_sane_size(blocks: int, most: int, tmp_path: Path) -> None:
    part = Kept((Width("out", 1, 2),), own=False)
    names = tuple((f"{'long_name_' * 10}{place}", "Dense") for place in range(blocks))
    ways = tuple(Way(f"{'s' * 80}{place}", 10**12, (part,) * blocks) for place in range(3))
    plot_paths(Paths(names, ways), tmp_path / "paths.png", "folder/$_^/" * 30)
    height, width, _ = matplotlib.image.imread(tmp_path / "paths.png").shape
    assert 300 < width <= most and 20 < height < 1_000


# ---- the tables ---------------------------------------------------------------------------------


def test_tables_have_the_numbers_of_describe() -> None:
    description = elastic()
    summary = description.describe()
    base = summary[0]["parameters"]
    first, second, *rows = cells(description, "Sub-networks")
    assert [first[-1], second[-1]] == ["its own", "alone"]
    for row, each in zip(rows, summary, strict=True):
        assert row == [
            each["name"],
            str(len(each["blocks"])),
            f"{each['parameters']:,}",
            f"{100 * each['parameters'] / base:.1f}",
            f"{each['bytes']:,}",
            f"{each['flops']:,}",
            f"{each['private_parameters']:,}",
        ]
    heading, *rows = cells(description, "Parameters that two share")
    assert heading == ["sub-network", "base", "half", "early"]
    for row, each in zip(rows, summary, strict=True):
        assert row == [
            each["name"],
            *(f"{each['shared'][name]:,}" if name != each["name"] else "-" for name in heading[1:]),
        ]


def test_the_table_of_widths() -> None:
    assert cells(elastic(), "Widths") == [
        ["block", "full", "base", "half", "early"],
        ["stem (Conv2d)", "out 8", "whole", "4 of 8", "6 of 8"],
        ["stage (Residual)", "wide.out 16", "whole", "wide.out 4 of 16", "-"],
        ["", "", "", "output 4 of 8", ""],
        ["norm (BatchNorm)", "", "whole", "4 of 8", "-"],
        ["head (GlobalAvgPool)", "", "-", "-", "6 of 8"],
        ["exit (Dense)", "out 10", "-", "-", "whole"],
        ["flat (Flatten)", "", "whole", "4 of 8", "-"],
        ["output (Dense)", "out 10", "whole", "whole", "-"],
    ]


def test_what_is_stored_is_what_the_network_has() -> None:
    (line,) = [each for each in text_of(elastic()).splitlines() if "Stored once" in each]
    stored = sum(parameter.numel() for parameter in nsn.Network(elastic()).parameters())
    apart = sum(each["parameters"] for each in elastic().describe())
    assert f"Stored once: {stored:,} parameters; as separate networks: {apart:,}." in line


def test_a_narrow_terminal_shows_whole_numbers() -> None:
    first = cells(elastic(), "Sub-networks", width=60)
    columns = ["".join(column) for column in zip(*first[1:], strict=True)]
    for each in elastic().describe():
        assert f"{each['flops']:,}" in columns[5] and "…" not in "".join(columns)


# ---- the commands -------------------------------------------------------------------------------


def test_describe_a_recipe() -> None:
    shown = run("describe", "demo")
    assert shown.returncode == 0, shown.stderr
    for text in ("623,290", "1,869,870", "50.3", "hidden2 (Dense)", "whole"):
        assert text in shown.stdout
    as_json = run("describe", "demo", "--json")
    assert as_json.returncode == 0, as_json.stderr
    assert json.loads(as_json.stdout) == read_description("demo").describe()


def test_describe_a_program() -> None:
    shown = run("describe", "demo", "--program").stdout
    assert shown.startswith("base:\n%0: (784)\n%1 = product(%0, hidden1.weight (784, 784)")
    assert "sub2:\n%0: (784)\n%1 = product(%0, output.weight (10, 784)" in shown
    programs = json.loads(run("describe", "demo", "--program", "--json").stdout)
    assert [step["primitive"] for step in programs["sub1"]["steps"]] == [
        "product",
        "activation",
        "dropout",
        "product",
    ]


def test_a_network_in_all_forms(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    description = read_description(str(tmp_path / "small.toml"))
    assert description.names == ["base", "small"]
    (tmp_path / "small.json").write_text(description.to_json())
    nsn.save(nsn.Network(description), tmp_path / "small.safetensors")
    for form in ("small.json", "small.safetensors"):
        assert read_description(str(tmp_path / form)).to_json() == description.to_json()
    # A merge function's name is enough to show the network.
    document: dict[str, Any] = json.loads(description.to_json())
    document["merge"] = {"rule": "function", "name": "mine"}
    (tmp_path / "small.json").write_text(json.dumps(document))
    assert read_description(str(tmp_path / "small.json")).describe() == description.describe()


def test_plot_paths_writes_a_picture(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    picture = tmp_path / "paths.png"
    drawn = run("plot", "paths", tmp_path / "small.toml", "--out", picture)
    assert drawn.returncode == 0 and f"Wrote {picture}" in drawn.stdout, drawn.stderr
    height, width, _ = matplotlib.image.imread(picture).shape
    assert 300 < width < 2000 and 200 < height < 2000
    lost = run("plot", "paths", "demo", "--out", tmp_path / "nowhere" / "paths.png")
    assert lost.returncode == 2 and "--out: cannot write" in lost.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nope", None, "one of the recipes cnn, demo, mnist, paper, transformer, but got"),
        ("report.md", "text", "read from a checkpoint .*, but got '.*report.md'"),
        ("lost.json", None, "cannot read '.*lost.json': No such file"),
        ("lost.safetensors", None, "^cannot open '.*lost.safetensors': No such file"),
        ("lost.toml", None, "there is no recipe '.*lost.toml'"),
        ("report.json", '{"final": {}}', "report.json': nsn.Description: .*lacks the field 'nsn'"),
        ("bad.json", "{", "bad.json': "),
        ("binary.json", b"\xff\xfe", "cannot read '.*binary.json'"),
        ("text.safetensors", "text", "^'.*text.safetensors' has 4 bytes"),
        ("other.toml", "epochs = 1", "recipe: 'batch_size' must be"),
    ],
)
def test_what_is_no_network(
    name: str, content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read_description(str(tmp_path / name))


def test_a_wrong_file_is_one_message_and_code_2() -> None:
    for command in (["describe"], ["plot", "paths"]):
        result = run(*command, "nope")
        assert result.returncode == 2 and result.stderr.startswith("nsn: a network is read from")
        assert "Traceback" not in result.stderr
