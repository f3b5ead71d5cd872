from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import nsn
from nsn.training.data import Data, Split
from nsn.training.errors import InputError
from nsn.training.loop import Run
from nsn.training.recipe import load_recipe, shipped

SMALL = """
epochs = 2
batch_size = 4
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


@pytest.fixture
def small(tmp_path: Path) -> str:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


def test_shipped_recipes_load() -> None:
    assert shipped() == ["demo", "paper"]
    for name in shipped():
        recipe = load_recipe(name)
        assert recipe.description.names == ["base", "sub1", "sub2"]
        assert [recipe.description.parameter_count(n) for n in recipe.description.names] == [
            1_238_730,
            623_290,
            7_850,
        ]


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
        ("network.blocks.output.in_features=8", r"expects \(\*, 8\), .* but gets \(16\)"),
        ("network.merge.rule=median", "unknown merge rule 'median'"),
    ],
)
def test_wrong_overrides(small: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(small, [override])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "", "'epochs' must be an integer, but is None"),
        ("epochs = 2", "epochs = 2\nepoch = 3", "unknown key 'epoch'. The keys are batch_size"),
        ("epochs = 2", "epochs = = 2", "is no TOML"),
        ("warmup_epochs", "warmup", "recipe: schedule has an unknown key 'warmup'"),
        (
            "[schedule]",
            "[decay]\nweight_decay = 'x'\n[schedule]",
            "decay.weight_decay must be a number",
        ),
        ("[schedule]", "[decay]\nof = 3\n[schedule]", "decay.of must be a sub-network's name"),
        ("shape = [16]", "shape = [16]\ncolor = 1", "'input' has an unknown field 'color'"),
    ],
)
def test_wrong_recipes(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(SMALL.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_recipe(str(path))


def test_unknown_recipe_and_wrong_options(small: str) -> None:
    with pytest.raises(InputError, match="no recipe 'nope'. .* demo, paper"):
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
    with pytest.raises(InputError, match="no sub-network 'nobody'.*base, sub1, sub2"):
        recipe.alone("nobody")
    assert recipe.values == load_recipe("paper").values


def test_a_run_told_to_stop_goes_on_in_another_with_the_same_bits(small: str) -> None:
    recipe = load_recipe(small)
    torch.manual_seed(0)
    split = Split(torch.randint(256, (30, 16), dtype=torch.uint8), torch.randint(10, (30,)))
    whole = Run(recipe, Data(split, split), seed=5)
    whole.train()
    for stop_after in (0, 3, 8, 12):
        first = Run(recipe, Data(split, split), seed=5)
        steps = 0

        def count(progress: object) -> None:
            nonlocal steps
            steps += 1

        first.train(on_step=count, should_stop=lambda: steps == stop_after)  # noqa: B023
        assert not first.complete and steps == stop_after
        state = deepcopy(first.state_dict())
        torch.rand(7)
        second = Run(recipe, Data(split, split), seed=5)
        second.load_state_dict(state)
        second.train()
        assert second.complete
        for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
            assert torch.equal(a, b)
        assert [each["train_loss"] for each in second.epochs] == [
            each["train_loss"] for each in whole.epochs
        ]
