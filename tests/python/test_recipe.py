import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import nsn
from conftest import ROOT
from nsn.training import tables
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.images import Images
from nsn.training.loop import Run, evaluate
from nsn.training.recipe import check_recipe, load_recipe, shipped
from nsn.training.report import best_epoch, compare
from nsn.training.tables import difference, split_values
from nsn.training.text import Windows

SMALL = """
epochs = 2
batch_size = 4
[data]
kind = 'images'
path = 'images'
[optimizer]
name = "SGD"
lr = 0.1
[schedule]
kind = "cosine"
warmup_epochs = 1
[network]
merge = { rule = "mean" }
[network.input]
shape = [16]
[[network.blocks]]
name = "hidden"
type = "Dense"
in_features = 16
out_features = 16
dropout = 0.5
[[network.blocks]]
name = "output"
type = "Dense"
in_features = 16
out_features = 10
[[network.subnetworks]]
name = "small"
blocks = ["output"]
"""

TEXT = """
epochs = 2
batch_size = 4
[data]
kind = "text"
path = "text.txt"
characters = "abc"
windows = 30
[optimizer]
name = "AdamW"
lr = 0.1
[network.input]
shape = [6]
dtype = "int64"
[[network.blocks]]
name = "embedding"
type = "Embedding"
num_embeddings = 3
embedding_dim = 8
[[network.blocks]]
name = "hidden"
type = "Dense"
in_features = 8
out_features = 8
activation = "relu"
dropout = 0.2
[[network.blocks]]
name = "output"
type = "Dense"
in_features = 8
out_features = 3
[[network.subnetworks]]
name = "half"
blocks = ["embedding", "hidden", "output"]
width = { hidden = 0.5 }
[[network.subnetworks]]
name = "small"
blocks = ["embedding", "output"]
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.toml"
    path.write_text(TEXT)
    return str(path)


def test_shipped_recipes_load() -> None:
    assert shipped() == ["cnn", "demo", "mnist", "paper", "transformer"]
    for name in ("demo", "paper"):
        recipe = load_recipe(name)
        assert recipe.values["data"] == {
            "kind": "images",
            "path": "data/mnist",
            "validation": 0.0,
        }
        assert recipe.description.names == ["base", "sub1", "sub2"]
        assert [recipe.description.parameter_count(n) for n in recipe.description.names] == [
            1_238_730,
            623_290,
            7_850,
        ]


@pytest.mark.parametrize("name", ["cnn", "demo", "mnist", "transformer"])
def test_shipped_recipes_find_their_data(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(name)
    data = load_data(recipe.values["data"], recipe.description)
    for split in (data.train, data.test):
        inputs, targets = split.batch(split.ordered()[:2])
        assert inputs.shape == (2, *recipe.description.input_shape)
        assert targets.shape == (2, *recipe.description.output_shape("base")[:-1])
    assert len(data.train) == (1920 if name == "transformer" else 60000)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_every_subnetwork_alone_is_as_large_as_within(name: str) -> None:
    recipe = load_recipe(name)
    assert len(recipe.description.names) >= 5
    for each in recipe.description.names:
        alone = recipe.alone(each).description
        assert alone.names == ["base"] and alone.blocks == recipe.description.blocks_of(each)
        assert alone.parameter_count() == recipe.description.parameter_count(each)
        assert alone.output_shape("base") == recipe.description.output_shape(each)


def test_every_value_can_be_overridden(small: str) -> None:
    recipe = load_recipe(
        small,
        [
            "epochs=7",
            "optimizer.name=AdamW",
            "optimizer.lr=1",
            "schedule.warmup_epochs=0",
            "network.blocks.hidden.dropout=0.25",
            "network.subnetworks.small.blocks=['hidden', 'output']",
            "network.merge.rule=sum",
        ],
    )
    assert recipe.epochs == 7 and recipe.values["optimizer"] == {"name": "AdamW", "lr": 1.0}
    assert '"dropout":0.25' in recipe.description.to_json()
    assert recipe.description.blocks_of("small") == ["hidden", "output"]
    optimizer = recipe.optimizer(nsn.Network(recipe.description))
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "expected key=value, but got 'epochs'"),
        ("epoch=3", "has no key 'epoch'. The nearest keys are 'epochs'"),
        ("optimizer.lrate=3", "no key 'optimizer.lrate'. The nearest keys are 'lr'"),
        ("network.blocks.hiden.dropout=0", "no key 'network.blocks.hiden'. .* 'hidden'"),
        ("network.blocks.hidden.dropot=0", "unknown field 'dropot'. The fields are .*'dropout'"),
        ("network.merg.rule=sum", "unknown field 'merg'. The fields are .*'merge'"),
        ("epochs=2.5", r"'epochs' is an integer \(2\), but the value given is 2.5"),
        ("epochs=true", "'epochs' is an integer"),
        ("optimizer.lr=fast", "'optimizer.lr' is a number"),
        ("epochs=0", "'epochs' must be at least 1"),
        ("optimizer.name=Nope", "optimizer.name must be a class of torch.optim, but is 'Nope'"),
        ("schedule.kind=linear", "schedule.kind must be one of constant, steps, cosine"),
        ("schedule.warmup_epochs=-1", "schedule.warmup_epochs must be a positive number"),
        ("schedule.warmup_epochs=3", "a positive number of the 2 epochs, or 0, but is 3.0"),
        ("network.blocks.output.in_features=8", r"expects .*\(\*, 8\), .* but gets \(16\)"),
        ("network.merge.rule=median", "unknown merge rule 'median'"),
        ("data.kind=sound", "data.kind must be one of images, text, but is 'sound'"),
        ("data.path=3", "'data.path' is a string"),
    ],
)
def test_wrong_overrides(small: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(small, [override])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "", "'epochs' must be an integer, but is None"),
        (
            "epochs = 2",
            "epochs = 2\nepoch = 3",
            "unknown key 'epoch'. The keys are alone, average, batch_size",
        ),
        ("epochs = 2", "epochs = = 2", "is no TOML"),
        ("warmup_epochs", "warmup", "recipe: schedule has an unknown key 'warmup'"),
        (
            "[schedule]",
            "[decay]\nweight_decay = 'x'\n[schedule]",
            "'decay.weight_decay' must be a number",
        ),
        ("[schedule]", "[decay]\nof = 3\n[schedule]", "'decay.of' must be a string, but is 3"),
        ("[data]", "[data]\ncharacters = 'abc'", "data has an unknown key 'characters'"),
        ("kind = 'images'", "kind = 'text'", "'data.characters' must be a string, but is None"),
        ("shape = [16]", "shape = [16]\ncolor = 1", "'input' has an unknown field 'color'"),
    ],
)
def test_wrong_recipes(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


def test_unknown_recipe_and_wrong_options(small: str) -> None:
    with pytest.raises(InputError, match="no recipe 'nope'. .* demo, mnist, paper"):
        load_recipe("nope")
    recipe = load_recipe(small)
    recipe.values["optimizer"]["speed"] = 3
    with pytest.raises(InputError, match="torch.optim.SGD refuses its options"):
        recipe.optimizer(nsn.Network(recipe.description))
    with pytest.raises(InputError, match="recipe: decay: nsn: there is no sub-network 'sub9'"):
        load_recipe("demo", ["decay.of=sub9"])


def test_cosine_schedule(small: str) -> None:
    recipe = load_recipe(small)
    factors = [recipe.learning_rate_factor(step, 10) for step in range(20)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == pytest.approx(1.0) and factors[15] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(factors[10:])) and factors[-1] > 0


def test_alone_keeps_what_the_subnetwork_has() -> None:
    recipe = load_recipe("paper")
    sub1 = recipe.alone("sub1")
    assert sub1.alone_name == "sub1" and sub1.description.names == ["base"]
    assert sub1.description.blocks_of("base") == ["hidden2", "output"]
    assert sub1.values["network"]["blocks"][0]["dropout"] == 0.2
    assert recipe.alone("base").values["network"]["blocks"][1]["dropout"] == 0.5
    # The L2 term is on its own loss: no merging thins it out.
    for name in recipe.description.names:
        alone = recipe.alone(name)
        for group in alone.optimizer(nsn.Network(alone.description)).param_groups:
            weights = any(parameter.dim() == 2 for parameter in group["params"])
            assert group["weight_decay"] == (9e-5 if weights else 0.0)
    assert load_recipe("paper", ["decay.of=sub2"]).alone("sub2").values["decay"]["of"] == "base"
    with pytest.raises(InputError, match="no sub-network 'nobody'.*base, sub1, sub2"):
        recipe.alone("nobody")
    assert recipe.values == load_recipe("paper").values


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.characters=abca", "data.characters must name each character once, but is 'abca'"),
        ('data.characters=""', "data.characters must name each character once, but is ''"),
        ("data.windows=0", "'data.windows' must be at least 1, but is 0"),
        ("data.test_share=1.0", "data.test_share must be between 0 and 1, but is 1.0"),
    ],
)
def test_wrong_text_data(tmp_path: Path, override: str, message: str) -> None:
    path = tmp_path / "text.toml"
    path.write_text(TEXT.replace("windows", "test_share = 0.1\nwindows"))
    with pytest.raises(InputError, match=message):
        load_recipe(str(path), [override])


def test_recipes_without_data_are_of_mnist_and_text_gets_its_defaults(
    tmp_path: Path, text: str
) -> None:
    path = tmp_path / "old.toml"
    path.write_text(SMALL.replace("[data]\nkind = 'images'\npath = 'images'\n", ""))
    assert load_recipe(str(path)).values["data"] == {
        "kind": "images",
        "path": "data/mnist",
        "validation": 0.0,
    }
    recipe = load_recipe(text)
    assert recipe.values["data"]["test_share"] == 0.1
    assert recipe.values["data"]["test_windows"] == 500
    other = recipe.reading(tmp_path / "other.txt")
    assert other.values["data"]["path"] == str(tmp_path / "other.txt")
    assert recipe.values["data"]["path"] == "text.txt"


def image_run(recipe: str) -> Run:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (30, 16), dtype=torch.uint8, generator=generator)
    split = Images(images, torch.randint(10, (30,), generator=generator))
    return Run(load_recipe(recipe), Data(split, split), seed=5)


def test_training_by_lane_gives_the_same_weights(small: str) -> None:
    together = image_run(small)
    together.train()
    by_lane = Path(small).with_name("by_lane.toml")
    by_lane.write_text("by_lane = true\n" + SMALL)
    one_by_one = image_run(str(by_lane))
    one_by_one.train()
    assert load_recipe(small, ["by_lane=true"]).by_lane and not together.recipe.by_lane
    for a, b in zip(together.network.parameters(), one_by_one.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="'by_lane' must be true or false, but is 1"):
        by_lane.write_text("by_lane = 1\n" + SMALL)
        load_recipe(str(by_lane))


def text_run(recipe: str) -> Run:
    tokens = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
    data = Data(Windows(tokens[:150], 6, 30), Windows(tokens[150:], 6, 5))
    return Run(load_recipe(recipe), data, seed=5)


@pytest.mark.parametrize("kind", ["images", "text"])
def test_a_run_told_to_stop_goes_on_in_another_with_the_same_bits(
    small: str, text: str, kind: str
) -> None:
    def start() -> Run:
        return image_run(small) if kind == "images" else text_run(text)

    whole = start()
    whole.train()
    for stop_after in (0, 3, 8, 12):
        first = start()
        steps = 0

        def count(progress: object) -> None:
            nonlocal steps
            steps += 1

        first.train(on_step=count, should_stop=lambda: steps == stop_after)  # noqa: B023
        assert not first.complete and steps == stop_after
        state = deepcopy(first.state_dict())
        torch.rand(7)
        second = start()
        second.load_state_dict(state)
        second.train()
        assert second.complete
        for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
            assert torch.equal(a, b)
        assert [each["train_loss"] for each in second.epochs] == [
            each["train_loss"] for each in whole.epochs
        ]


def test_text_is_scored_at_every_position(text: str) -> None:
    run = text_run(text)
    split = run._data.test
    scores = evaluate(run.network, split)
    x, y = split.batch(split.ordered())
    for name in run.network.subnetworks:
        logits = run.network.view(name)(x)
        rates = logits.log_softmax(2).gather(2, y.unsqueeze(2))
        assert scores[name]["loss"] == pytest.approx(-rates.mean().item(), rel=1e-5)
        assert scores[name]["accuracy"] == pytest.approx(
            logits.argmax(2).eq(y).double().mean().item()
        )


def test_text_learns_what_follows_what(text: str) -> None:
    recipe = load_recipe(text, ["epochs=6", "optimizer.lr=0.02"])
    tokens = torch.arange(300) % 3
    run = Run(recipe, Data(Windows(tokens, 6, 100), Windows(tokens, 6, 5)), seed=1)
    run.train()
    assert run.epochs[0]["train_loss"] > 0.5
    for scores in run.epochs[-1]["subnetworks"].values():
        assert scores["accuracy"] == 1.0 and scores["loss"] < 0.2 < math.log(3)


def test_best_epoch_by_accuracy_or_by_loss() -> None:
    epochs = [
        {"epoch": 1, "subnetworks": {"base": {"accuracy": 0.9, "loss": 0.3}}},
        {"epoch": 2, "subnetworks": {"base": {"accuracy": 0.8, "loss": 0.2}}},
        {"epoch": 3, "subnetworks": {"base": {"accuracy": 0.7, "loss": 0.4}}},
    ]
    assert best_epoch(epochs, "accuracy")["base"]["epoch"] == 1
    assert best_epoch(epochs, "loss")["base"]["epoch"] == 2


def test_compare_puts_both_results_side_by_side() -> None:
    def final(accuracy: float) -> dict[str, float]:
        return {"accuracy": accuracy, "loss": 1 - accuracy, "parameters": 7}

    together = {"final": {"base": final(0.5), "small": final(0.25)}}
    alone = {"base": {"final": {"base": final(0.75)}}, "small": {"final": {"base": final(0.125)}}}
    assert compare(together, alone)["small"] == {
        "together": {"accuracy": 0.25, "loss": 0.75},
        "alone": {"accuracy": 0.125, "loss": 0.875},
    }


def with_tables(tmp_path: Path, more: str) -> str:
    """The recipe `mnist` with other tables in place of its own of those names."""
    text = (ROOT / "python" / "nsn" / "recipes" / "mnist.toml").read_text()
    for table in re.findall(r"^\[(\w+)\]", more, re.M):
        text = re.sub(rf"\[{table}\]\n(?:[^\[\n].*\n|\n)*", "", text)
    path = tmp_path / "recipe.toml"
    path.write_text(text + more)
    return str(path)


@pytest.mark.parametrize(
    ("more", "overrides", "message"),
    [
        ("[teach]\nweight = 0.5\n", [], "teach says nothing of who teaches"),
        ("[teach]\nkind = 'none'\n", ["teach.weight=0.3"], "so that teach.weight has no use"),
        ("[alone]\nbase = 3\n", [], "alone must be tables"),
        ("[average]\ndecay = 1.0\n", [], "at least 0 and below 1"),
        ("", ['network.merge={ rule = "function", name = "f" }'], "'function' is code"),
        (
            '[sampling]\nkind = "from_epoch"\nfirst = { sub1 = 60 }\n[teach]\nkind="none"\n',
            [],
            "'sub1' run from epoch 60 on, counted from 0, but there are 60",
        ),
    ],
)
def test_what_would_have_no_use_is_refused(
    tmp_path: Path, more: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(with_tables(tmp_path, more), overrides)


def test_alone_may_be_tables_in_tables(tmp_path: Path) -> None:
    more = "[alone]\nsub1.optimizer.lr = 0.5\nbase = { optimizer = { momentum = 0.5 } }\n"
    recipe = load_recipe(with_tables(tmp_path, more))
    assert recipe.alone("sub1").values["optimizer"]["lr"] == 0.5
    assert recipe.alone("base").values["optimizer"]["momentum"] == 0.5
    for setting in (
        "teach.weight=0.9",
        "teach.weight={ sub1 = 0.9 }",
        "label_smoothing={ base = 0.1 }",
    ):
        load_recipe("mnist", [setting])
    # In whichever order, and what is varied on purpose.
    load_recipe("demo", ["teach.weight=0.3", "teach.kind=base"])
    load_recipe("mnist", ["teach.kind=none"])


TEACHES = """
[teach]
kind = "base"
weight = { small = 0.3 }
[alone]
small = { optimizer.lr = 0.02 }
"""


@pytest.fixture
def taught(tmp_path: Path) -> str:
    """A recipe with a teacher, and with a rate of its own for one that runs alone."""
    path = tmp_path / "taught.toml"
    path.write_text(SMALL + TEACHES)
    return str(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teach.weight=2.0"], "recipe: teach: .* from 0 to 1, but is 2"),
        (["teach.weight=x"], "'teach.weight' is a number"),
        (["teach.weight={ nope = 0.5 }"], "recipe: teach: .*'nope'"),
        (["teach.temperature=0"], "the temperature must be positive"),
        (["teach.kind=none", "teach.weight={ nope = 0.5 }"], "recipe: teach: .*'nope'"),
        (["teach.kind=none", "teach.temperature=0"], "the temperature must be positive"),
        (["teach.weight=true"], "'teach.weight' is a number"),
        (["optimizer.momentum=0.9", "optimizer.name=AdamW"], "unknown key 'momentum'"),
        (["optimizer={name='AdamW', momentum=0.9}"], "unknown key 'momentum'. The keys are amsgra"),
        (["optimizer.lr=-1"], "torch.optim.SGD refuses its options: Invalid learning rate"),
        (["optimizer.nesterov=true"], "torch.optim.SGD refuses its options: Nesterov"),
        (["optimizer.name=Optimizer"], "must be a class of torch.optim, but is 'Optimizer'"),
        (["optimizer.name=LBFGS"], "torch.optim.LBFGS cannot train this network"),
        (["optimizer.name=SparseAdam"], "torch.optim.SparseAdam cannot train this network"),
        (
            ["teach.kind=none", "by_lane=true", "network.merge={ rule = 'equal_norms' }"],
            "recipe: by_lane: .*the merge rule 'equal_norms'.* Use a linear rule",
        ),
        (["sampling.kind=sandwich", "sampling.count=-1"], "'sampling.count' must be at least 0"),
        (["sampling.kind=sandwich", "sampling.count=1.5"], "'sampling.count' is an integer"),
        (["sampling.kind=sandwich", "sampling.count='1'"], "'sampling.count' is an integer"),
        (["sampling.kind=sandwich", "sampling.count=9"], "9 sub-networks are to be drawn"),
        (["sampling.kind=from_epoch", "sampling.first={nope=0}"], "recipe: sampling: .*'nope'"),
        (
            ["sampling.kind=from_epoch", "sampling.first={base='x'}"],
            "each of 'sampling.first' must be an integer, at least 0, but one is 'x'",
        ),
        (["decay.weight_decay=-1"], "recipe: decay: "),
        (["decay.of=nope"], "recipe: decay: .*'nope'"),
        (["bound.blocks=['hidden']", "bound.row_norm=inf"], "'bound.row_norm' is a number"),
        (["bound.blocks=[['hidden']]"], "each of 'bound.blocks' must be a string"),
        (
            ["schedule={kind='steps', milestones=[true]}"],
            "'schedule.milestones' must be an integer",
        ),
        (["schedule={kind='steps', milestones=[-3]}"], "at least 0, but one is -3"),
        (["schedule.warmup_epochs=nan"], "'schedule.warmup_epochs' is a number"),
        (["schedule=3"], "'schedule' is a table"),
        (
            ["alone.small.optimizer.lr=-1"],
            "recipe: alone.small: optimizer: .*Invalid learning rate",
        ),
        (["alone.small.optimizer.nope=1"], "alone.small: the recipe has no key 'optimizer.nope'"),
        (["alone.small.teach.kind=base"], "alone.small says 'teach.kind', which has no use"),
        (["alone.small={ alone = {} }"], "alone.small says 'alone', which has no use"),
        (["alone.small={ sampling = {} }"], "alone.small says 'sampling', which has no use"),
        (["alone.small.by_lane=true"], "alone.small says 'by_lane', which has no use"),
        (["alone.small.network.merge={ rule = 'sum' }"], "'network.merge', which has no use"),
        (["alone.small.data.validation=0.2"], "compared on the same data. Say it for all in"),
        (["alone.small={ data = { path = 'other' } }"], "alone.small says 'data.path'"),
        (["alone.nope.epochs=1"], "alone names 'nope'"),
        (["alone=3"], "alone must be tables"),
    ],
)
def test_what_cannot_be_is_found_before_any_run(
    taught: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(taught, overrides)


HOSTILE = [
    *(3, -3, 0, 1.5, math.nan, math.inf, -math.inf, 10**30, 10**400, True, "", "x", "base"),
    *([], [3], ["x"], [True], [math.nan], [["hidden"]], [{}], [{"name": []}], {}, {"x": "y"}),
    *(
        {"base": "x"},
        {"small": -1},
        {"base": math.nan},
        {"name": {}},
        {"kind": []},
        date(2026, 1, 2),
    ),
]


@pytest.mark.parametrize(
    "key",
    [
        *tables._KEYS,
        *sorted(tables._TABLES),
        *(f"optimizer.{key}" for key in tables._options("SGD")),
        *("optimizer.betas", "network", "network.input", "network.input.shape", "network.merge"),
        *("network.blocks", "network.subnetworks", "network.grid", "nope"),
        *("alone", "alone.small", "alone.small.network", "alone.small.optimizer.lr"),
        *("alone.small.epochs", "alone.small.schedule.kind", "alone.small.label_smoothing"),
    ],
)
@pytest.mark.parametrize("kind", ["images", "text"])
def test_any_value_is_accepted_or_refused(small: str, text: str, key: str, kind: str) -> None:
    """By the file, and by --set beside what else it says."""
    path = small if kind == "images" else text
    beside = [
        ["teach.kind=base", "sampling.kind=from_epoch"],
        ["sampling.kind=sandwich", "sampling.count=0"],
        ["schedule.kind=steps", "schedule.milestones=[1]"],
        ["average.decay=0.5", "bound.row_norm=1.0", "bound.blocks=['hidden']"],
    ]
    for place, value in enumerate(HOSTILE):
        values = deepcopy(load_recipe(path).values)
        *tables_, last = key.split(".")
        table = values
        for each in tables_:
            table = table.setdefault(each, {})
        table[last] = value
        with suppress(InputError):
            check_recipe(values)
        shown = value.isoformat() if isinstance(value, date) else toml(value)
        with suppress(InputError):
            load_recipe(path, [f"{key}={shown}", *beside[place % len(beside)]])


def toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value) if isinstance(value, (bool, str)) else str(value)


def test_options_of_any_kind_reach_the_optimizer(tmp_path: Path) -> None:
    path = tmp_path / "muon.toml"
    path.write_text(SMALL.replace("out_features = 10", "out_features = 10\nbias = false"))
    recipe = load_recipe(
        str(path),
        [
            "optimizer={ name = 'Muon', lr = 1 }",
            "optimizer.ns_steps=3",
            "optimizer.adjust_lr_fn=match_rms_adamw",
            "network.blocks.hidden.bias=false",
        ],
    )
    options = recipe.optimizer(nsn.Network(recipe.description)).defaults
    assert options["ns_steps"] == 3 and options["adjust_lr_fn"] == "match_rms_adamw"


def test_what_a_description_leaves_out_can_be_set(small: str) -> None:
    recipe = load_recipe(
        small,
        [
            "network.blocks.output.scale=true",
            "network.blocks.output.merge={ rule = 'owner' }",
            "network.subnetworks.small.dropout.output=0.5",
        ],
    )
    text = recipe.description.to_json()
    assert '"scale":true' in text and '"rule":"owner"' in text and '"output":0.5' in text


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["decay.weight_decay=1e-4"], "decay.weight_decay", 1e-4),
        (["decay.of=small"], "decay.of", "small"),
        (["schedule.kind=cosine"], "schedule.kind", "cosine"),
        (["schedule.warmup_epochs=1", "schedule.kind=cosine"], "schedule.warmup_epochs", 1.0),
        (["schedule.milestones=[1]", "schedule.kind=steps"], "schedule.milestones", [1]),
        (["schedule.divide_by=3", "schedule.kind=steps"], "schedule.divide_by", 3.0),
        (["optimizer.weight_decay=1e-4"], "optimizer.weight_decay", 1e-4),
        (["optimizer.momentum=0.9"], "optimizer.momentum", 0.9),
        (["optimizer.fused=true"], "optimizer.fused", True),
        (["optimizer.momentum=0"], "optimizer.momentum", 0),
        (["optimizer.betas=[0.8, 0.9]", "optimizer.name=AdamW"], "optimizer.betas", [0.8, 0.9]),
        (["optimizer={ name = 'SGD' }", "optimizer.name=AdamW"], "optimizer.name", "AdamW"),
        (["data.path=elsewhere"], "data.path", "elsewhere"),
        (["by_lane=true"], "by_lane", True),
        (["label_smoothing={ small = 0.1 }"], "label_smoothing", {"small": 0.1}),
        (["average.decay=0.9"], "average.decay", 0.9),
        (["sampling.count=2", "sampling.kind=random"], "sampling.count", 2),
    ],
)
def test_documented_keys_can_be_set_where_the_recipe_lacks_them(
    tmp_path: Path, overrides: list[str], key: str, value: object
) -> None:
    path = tmp_path / "bare.toml"
    bare = SMALL.replace('[schedule]\nkind = "cosine"\nwarmup_epochs = 1\n', "")
    path.write_text(bare.replace("[data]\nkind = 'images'\npath = 'images'\n", ""))
    recipe = load_recipe(str(path), overrides)
    table, _, last = key.rpartition(".")
    found = recipe.values[table] if table else recipe.values
    assert found[last] == value and type(found[last]) is type(value)
    if table in ("decay", "optimizer") and last not in ("of", "betas", "name"):
        assert load_recipe(str(path), [f"alone.small.{overrides[0]}"]).values == {
            **load_recipe(str(path)).values,
            "alone": {"small": {key: value}},
        }
    if key == "decay.weight_decay":
        path.write_text(f"{path.read_text()}\n[alone]\nsmall = {{ decay.weight_decay = 1e-4 }}\n")
        alone = load_recipe(str(path)).alone("small")
        groups = alone.optimizer(nsn.Network(alone.description)).param_groups
        assert 1e-4 in [group["weight_decay"] for group in groups]


def test_what_is_set_takes_the_place_of_what_holds_alone(taught: str) -> None:
    def rate(*overrides: str, variant: str | None = None) -> float:
        own = load_recipe(taught, overrides, variant).alone("small")
        found: float = own.values["optimizer"]["lr"]
        return found

    assert rate() == 0.02
    assert rate("optimizer.lr=0.03") == 0.03
    assert rate('optimizer={name="SGD", lr=0.03, momentum=0.9}') == 0.03
    assert rate("optimizer.momentum=0.9") == 0.02
    assert rate("alone.small.optimizer.lr=0.5") == 0.5
    assert rate("alone.small={ optimizer = { lr = 0.5 } }") == 0.5
    assert rate("alone={ small = { optimizer.lr = 0.5 } }") == 0.5
    assert rate("alone.small={ epochs = 1 }") == 0.1
    # In whichever order.
    assert rate("alone.small.optimizer.lr=0.5", "optimizer.lr=0.03") == 0.5
    assert rate("optimizer.lr=0.03", "alone.small.optimizer.lr=0.5") == 0.5
    assert rate("alone.small.optimizer.lr=0.5", variant="optimizer.lr=0.03") == 0.03
    assert rate("optimizer.lr=0.03", variant="alone.small.optimizer.lr=0.5") == 0.5


def test_to_check_a_recipe_draws_nothing(taught: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_recipe(taught, ["teach.kind=none", "sampling.kind=random"])
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_recipe_is_read_in_any_mode(taught: str, mode: Callable[[], Any]) -> None:
    with mode():
        load_recipe(taught)


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    keys = {*tables._KEYS, "network", "alone.NAME"}
    documented = set(re.findall(r"`([\w.]+)`", " ".join(re.findall(r"^\| (`.*?) \|", text, re.M))))
    assert keys == documented - {"key"}


def test_the_documented_recipe_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    path = tmp_path / "recipe.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", text, re.S).group(1))  # type: ignore[union-attr]
    recipe = load_recipe(str(path))
    assert recipe.description.names == ["base", "small"]
    assert recipe.teacher(nsn.Network(recipe.description)) is not None


@pytest.mark.parametrize(
    ("there", "here", "text"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, None),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b (1 there, 2 here)"),
        ({"a": {}}, {"a": {"b": 2}}, "a.b (nothing there, 2 here)"),
        ({"a": {"b": 2}}, {"a": 3}, "a ({'b': 2} there, 3 here)"),
        ({"a": [{"name": "x", "p": 1}]}, {"a": [{"name": "x", "p": 2}]}, "a.x.p (1 there, 2 here)"),
        ({"a": [{"name": "x"}]}, {"a": []}, "a.x ({'name': 'x'} there, nothing here)"),
        (
            {"a": [{"name": "x"}, {"name": "y"}]},
            {"a": [{"name": "y"}, {"name": "x"}]},
            "a ([{'name': 'x'}, {'name': 'y'}] there, [{'name': 'y'}, {'name': 'x'}] here)",
        ),
        ({"a": "x" * 99}, {"a": "y"}, "a"),
        ({"a": "x", "b": 1}, {"a": "y", "b": 2}, "a (x there, y here)"),
    ],
)
def test_the_first_value_that_differs_is_named(there: object, here: object, text: str) -> None:
    assert difference(there, here) == text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1", ["1"]),
        ("none,mutual", ["none", "mutual"]),
        ("{ a = 1, b = 2 },{ a = 3 }", ["{ a = 1, b = 2 }", "{ a = 3 }"]),
        (
            '{rule="weighted",weights={a=1.0,b=2.0}},x',
            ['{rule="weighted",weights={a=1.0,b=2.0}}', "x"],
        ),
        ("[[1, 2], [3, 4]],[5]", ["[[1, 2], [3, 4]]", "[5]"]),
        ("'a,]b',\"c,'d\"", ["'a,]b'", '"c,\'d"']),
        (",", ["", ""]),
    ],
)
def test_values_are_split_at_commas_of_their_own(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts
