"""What teaching costs: a training step whose sub-networks learn from each other, and one without.

Networks of the recipes, their batch sizes, random inputs; forward, joint loss, backward and
optimizer. Ratios are over ``plain``, the same step without a teacher.

    python benchmarks/teaching.py
"""

from typing import Any

import torch
from common import Step, interleaved, run
from rich.console import Console
from rich.table import Table

import nsn
from nsn.training.recipe import load_recipe

RECIPES = ("mnist", "cnn", "transformer")
SECONDS = 8.0


def ways_of(name: str) -> dict[str, Step]:
    """Steps of one recipe's network, by teacher."""
    recipe = load_recipe(name)
    net = nsn.Network(recipe.description).train()
    shape = (recipe.batch_size, *recipe.description.input_shape)
    tokens = name == "transformer"
    x = torch.randint(65, shape) if tokens else torch.rand(shape)
    classes = recipe.description.output_shape("base")[-1]
    y = torch.randint(classes, (shape[0] * shape[1] if tokens else shape[0],))
    optimizer = recipe.optimizer(net)
    teachers: dict[str, nsn.teach.Teacher | None] = {
        "plain": None,
        "base": nsn.teach.base(net),
        "base, T = 2": nsn.teach.base(net, temperature=2.0),
        "mutual": nsn.teach.mutual(net),
    }

    def step_with(teacher: nsn.teach.Teacher | None) -> Step:
        def step() -> None:
            optimizer.zero_grad()
            outputs = {each: out.flatten(0, -2) for each, out in net(x, nsn.ALL).items()}
            nsn.joint_loss(outputs, y, teach=teacher).backward()
            optimizer.step()

        return step

    return {label: step_with(teacher) for label, teacher in teachers.items()}


def measure() -> dict[str, Any]:
    """Medians in ms, by recipe and teacher."""
    result = {}
    for name in RECIPES:
        ways = {label: (step, lambda: None) for label, step in ways_of(name).items()}
        result[name] = interleaved(ways, SECONDS)
    return result


def show(title: str, result: dict[str, Any]) -> None:
    """Ratios over the plain step."""
    table = Table(title=title)
    table.add_column("recipe")
    first = next(iter(result.values()))["median_ms"]
    for label in first:
        table.add_column(label, justify="right")
    for name, measured in result.items():
        medians = measured["median_ms"]
        cells = [f"{medians['plain']:.2f} ms"]
        cells += [f"{each / medians['plain']:.3f}" for label, each in list(medians.items())[1:]]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    run(__doc__, measure, show)
