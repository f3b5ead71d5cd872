import math
import re
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import nsn
from conftest import ROOT
from nsn.training.data import Data, load_data
from nsn.training.errors import InputError
from nsn.training.images import Images
from nsn.training.loop import Run, evaluate
from nsn.training.recipe import load_recipe, shipped
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
        ("epochs=2.5", r"'epochs' is an integer \(2\), but the value given is 2.5"),
        ("epochs=true", "'epochs' is an integer"),
        ("optimizer.lr=fast", "'optimizer.lr' is a number"),
        ("epochs=0", "'epochs' must be at least 1"),
        ("optimizer.name=Nope", "optimizer.name must be a class of torch.optim, but is 'Nope'"),
        ("schedule.kind=linear", "schedule.kind must be one of constant, steps, cosine"),
        ("schedule.warmup_epochs=-1", "schedule.warmup_epochs must be a positive number"),
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
            "decay.weight_decay must be a number",
        ),
        ("[schedule]", "[decay]\nof = 3\n[schedule]", "decay.of must be a sub-network's name"),
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
    recipe = load_recipe("demo", ["decay.of=sub9"])
    with pytest.raises(InputError, match="recipe: decay: nsn: there is no sub-network 'sub9'"):
        recipe.optimizer(nsn.Network(recipe.description))


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
    for table in re.findall(r"^[[](\w+)[]]", more, re.M):
        text = re.sub(rf"[[]{table}[]]\n(?:[^[\n].*\n|\n)*", "", text)
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


def test_every_key_is_documented() -> None:
    from nsn.training import tables

    text = (ROOT / "docs" / "recipes.md").read_text()
    keys = {"epochs", "batch_size", "by_lane", "label_smoothing", "network", "optimizer.name"}
    keys |= {f"{table}.{key}" for table, own in tables.MEANS.items() for key in own}
    keys |= {f"schedule.{key}" for own in tables._SCHEDULES.values() for key in own}
    keys |= {f"data.{key}" for own in tables._DATA.values() for key in own}
    keys |= {"data.kind", "schedule.kind", "decay.weight_decay", "decay.of", "alone.NAME"}
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
