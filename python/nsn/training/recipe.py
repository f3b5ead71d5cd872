"""Recipes: a network and how to train it, as data."""

import json
import math
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

import nsn
from nsn import Description, Network, files, param_groups
from nsn.description import described_dtype
from nsn.training.errors import InputError
from nsn.training.tables import (
    MEANS,
    TEACHERS,
    check_data,
    check_kinds,
    check_means,
    check_optimizer,
    check_schedule,
    complete,
    is_of_alone,
    override,
    put,
)


@contextmanager
def _beginning(start: str, in_place_of: str = "") -> Iterator[None]:
    """Has errors of a recipe that is made of another begin by saying how."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(
            text if text.startswith(start) else start + text.removeprefix(in_place_of)
        ) from None


def _of_alone(name: str) -> AbstractContextManager[None]:
    return _beginning(f"recipe: alone.{name}: ", in_place_of="recipe: ")


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked.

    Attributes:
        values: the whole document, as it was after all overrides; goes into reports.
        description: the network.
        epochs: passes over the training data, or for text over ``data.windows`` windows of it.
        batch_size: samples a step.
        by_lane: whether a step runs one sub-network after the other, which takes less memory.
        alone_name: where one sub-network is trained by itself, which.
    """

    values: dict[str, Any]
    description: Description
    epochs: int
    batch_size: int
    by_lane: bool = False
    alone_name: str | None = None

    def alone(self, name: str) -> "Recipe":
        """The recipe for one sub-network by itself: the whole network, ``base``, at its width.

        It keeps the dropout that it has as a sub-network. Decay that the recipe takes from one
        sub-network's loss is on its own loss now.

        Raises:
            InputError: where there is no such sub-network.
        """
        if name not in self.description.names:
            raise InputError(
                f"--alone: the recipe has no sub-network '{name}'. They are "
                f"{', '.join(self.description.names)}."
            )
        values = deepcopy(self.values)
        values["network"] = json.loads(self.description.alone(name).to_json())
        del values["network"]["nsn"]
        if values["decay"].get("of"):
            values["decay"]["of"] = "base"
        values["sampling"] = deepcopy(MEANS["sampling"])
        values["teach"] = deepcopy(MEANS["teach"])
        if isinstance(values["label_smoothing"], dict):
            values["label_smoothing"] = values["label_smoothing"].get(name, 0.0)
        kept = {each["name"] for each in values["network"]["blocks"]}
        values["bound"]["blocks"] = [each for each in values["bound"]["blocks"] if each in kept]
        if not values["bound"]["blocks"]:
            values["bound"] = deepcopy(MEANS["bound"])
        with _of_alone(name):
            own = values.pop("alone", {}).get(name, {})
            # Another kind takes nothing of what the recipe says of its own.
            for table, kind in (("schedule", "kind"), ("optimizer", "name")):
                other = own.get(f"{table}.{kind}", values[table].get(kind))
                if other != values[table].get(kind):
                    values[table] = {kind: other}
            for key, value in own.items():
                put(values, key, value, "recipe")
            return replace(check_recipe(values), alone_name=name)

    def try_out(self) -> None:
        """Trains one step on zeros, together and each that has values of its own alone.

        It shows what cannot be before a run is under way.

        Raises:
            InputError: where values do not go with the network, or with each other.
        """
        # Whatever the mode of whoever reads the recipe.
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            try:
                network = Network(self.description)
                # Of a grid those too that are drawn.
                names = [*network.subnetworks, *self.sampling(network)(0, 0).names]
                x = torch.zeros(
                    2, *self.description.input_shape, dtype=described_dtype(self.description)
                )
                if self.by_lane:
                    network.backward_by_lane(x, lambda name, output: output.sum())
                else:
                    outputs = network(x, list(dict.fromkeys(names)))
                    torch.autograd.backward([each.sum() for each in outputs.values()])
            except InputError:
                raise
            except (RuntimeError, ValueError) as error:  # the former for want of memory
                key = "by_lane" if self.by_lane else "network"
                raise InputError(f"recipe: {key}: {error}") from None
            kind = self.values["teach"]["kind"]
            # Where nobody teaches, the values of a variant in which all do have to be right too.
            teacher = self._teacher_of("mutual" if kind == "none" else kind, network)
            if kind != "none":
                rows = {name: output.flatten(0, -2) for name, output in outputs.items()}
                zeros = {
                    name: torch.zeros(len(each), dtype=torch.int64) for name, each in rows.items()
                }
                try:
                    nsn.joint_loss(rows, zeros, teach=teacher)
                except ValueError as error:
                    raise InputError(f"recipe: teach: {error}") from None
            optimizer = self.optimizer(network)
            try:
                optimizer.step()
            except Exception as error:  # of whatever kind torch takes for it
                name = self.values["optimizer"]["name"]
                raise InputError(
                    f"recipe: optimizer: torch.optim.{name} cannot train this network: "
                    f"{str(error).removesuffix('.')}."
                ) from None
            self.bound(network)
        for name in self.values.get("alone", {}):
            with _of_alone(name):
                self.alone(name).try_out()

    @property
    def label_smoothing(self) -> float | dict[str, float]:
        """As :func:`nsn.joint_loss` takes it."""
        smoothing: float | dict[str, float] = self.values["label_smoothing"]
        return smoothing

    def teacher(self, network: Network) -> nsn.teach.Teacher | None:
        """Whose outputs sub-networks learn from, or None."""
        kind = self.values["teach"]["kind"]
        return None if kind == "none" else self._teacher_of(kind, network)

    def _teacher_of(self, kind: str, network: Network) -> nsn.teach.Teacher:
        teach = self.values["teach"]
        try:
            return TEACHERS[kind](network, teach["weight"], teach["temperature"])
        except ValueError as error:
            raise InputError(f"recipe: teach: {error}") from None

    def sampling(self, network: Network) -> nsn.schedule.Schedule:
        """Which sub-networks run in which step."""
        sampling = self.values["sampling"]
        kind, count = sampling["kind"], sampling["count"]
        try:
            if kind == "sandwich":
                return nsn.schedule.sandwich(network, count)
            if kind == "random":
                return nsn.schedule.random(network, count)
            if kind == "from_epoch":
                return nsn.schedule.from_epoch(network, sampling["first"])
            return nsn.schedule.all(network)
        except ValueError as error:
            raise InputError(f"recipe: sampling: {error}") from None

    def bound(self, network: Network) -> None:
        """Bounds the weights' rows where the recipe wants it; after each step."""
        bound = self.values["bound"]
        if bound["row_norm"] > 0:
            try:
                nsn.bound_row_norms(network, bound["row_norm"], bound["blocks"])
            except ValueError as error:
                raise InputError(f"recipe: bound: {error}") from None

    def average(self, network: Network) -> AveragedModel | None:
        """What keeps the moving average of a network's weights and statistics, or None."""
        decay = self.values["average"]["decay"]
        if decay == 0:
            return None
        return AveragedModel(network, multi_avg_fn=nsn.average_fn(decay), use_buffers=True)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run depends on: all values, but where its data lie and what others do alone."""
        values = {**self.values, "data": {**self.values["data"], "path": ""}}
        values.pop("alone", None)
        return values

    def reading(self, path: Path) -> "Recipe":
        """The recipe with its data from another place."""
        values = deepcopy(self.values)
        values["data"]["path"] = str(path)
        return replace(self, values=values)

    def optimizer(self, network: Network) -> torch.optim.Optimizer:
        """The recipe's optimizer over the network's parameters, decay where the recipe wants it."""
        options = dict(self.values["optimizer"])
        name = options.pop("name")
        decay = self.values.get("decay", {})
        try:
            groups = param_groups(network, decay.get("weight_decay", 0.0), decay.get("of"))
        except ValueError as error:
            raise InputError(f"recipe: decay: {error}") from None
        try:
            optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(groups, **options)
        except Exception as error:  # of whatever kind torch takes for it
            raise InputError(
                f"recipe: optimizer: torch.optim.{name} refuses its options: "
                f"{str(error).removesuffix('.')}."
            ) from None
        if name == "SGD" and self.values["sampling"]["kind"] != "all":
            _start_momentum(optimizer)
        return optimizer

    def learning_rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rate is multiplied with at a step.

        Args:
            step: counted from 0 over the whole run.
            steps_per_epoch: steps in an epoch.
        """
        schedule = self.values.get("schedule", {"kind": "constant"})
        if schedule["kind"] == "steps":
            passed = sum(step // steps_per_epoch >= each for each in schedule["milestones"])
            return float(schedule["divide_by"] ** -passed)
        if schedule["kind"] == "cosine":
            warmup: float = schedule["warmup_epochs"] * steps_per_epoch
            if step < warmup:
                return (step + 1) / warmup
            progress = (step - warmup) / max(1, self.epochs * steps_per_epoch - warmup)
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        return 1.0


def _start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Starts momentum at zero for torch's fused SGD, which fails where parameters begin apart.

    In a step it wants either all of them to have momentum already, or none.
    """
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"]:
            continue
        if group["dampening"]:
            raise InputError(
                "recipe: optimizer.dampening: torch's fused SGD cannot begin with it where "
                "sampling lets parameters begin apart. Leave dampening or fused out."
            )
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("nsn.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(name: str, overrides: Iterable[str] = (), variant: str | None = None) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        name: a shipped recipe's name, or the path of a .toml file.
        overrides: ``key.path=value``, the value as in TOML (quotes around strings may be left out);
            blocks and sub-networks are addressed by name: ``network.blocks.hidden1.dropout=0.1``.
        variant: one more, which holds in place of all others.

    Raises:
        InputError: where there is no such recipe, it is malformed, or an override fits nothing.
    """
    values = _read(name)
    complete(values)  # so that all can be overridden
    keys = {override(values, each, "--set") for each in sorted(overrides, key=is_of_alone)}
    if variant is None:
        return _checked(values, keys, "--set")
    where = f"--vary {variant}"
    keys.add(override(values, variant, where))
    with _beginning(f"{where}: "):
        return _checked(values, keys, where)


def description_of(name: str) -> Description:
    """The network of a recipe, which is read as by :func:`load_recipe`, but not tried out."""
    return check_recipe(_read(name)).description


def _checked(values: dict[str, Any], keys: set[str], where: str) -> Recipe:
    """A recipe whose values of some keys were given, each of which has to have a use."""
    idle = keys & {"teach.weight", "teach.temperature"}
    if idle and values["teach"]["kind"] == "none" and "teach.kind" not in keys:
        raise InputError(
            f"{where}: nobody teaches, so that {min(idle)} has no use. Set teach.kind."
        )
    recipe = check_recipe(values)
    recipe.try_out()
    return recipe


def _read(name: str) -> dict[str, Any]:
    if name in shipped():
        text = (resources.files("nsn.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        path = Path(name)
        try:
            text = files.read(path).decode()
        except FileNotFoundError:
            raise InputError(
                f"recipe: there is no recipe '{name}'. Give the path of a .toml file, or one of "
                f"{', '.join(shipped())}."
            ) from None
        except OSError as error:
            raise InputError(f"recipe: {files.reason(error)}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"recipe: '{name}' is no UTF-8 text: {error}.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe: '{name}' is no TOML: {error}.") from None


def check_recipe(values: dict[str, Any]) -> Recipe:
    """A recipe from its document; completes defaults and refuses what it does not know."""
    values = deepcopy(values)
    complete(values)
    check_kinds(values)
    values["data"] = check_data(values["data"])
    check_optimizer(values["optimizer"])
    values.setdefault("decay", {})
    check_schedule(values.setdefault("schedule", {"kind": "constant"}), values["epochs"])
    check_means(values)
    try:
        text = json.dumps({"nsn": 1, **values["network"]}, allow_nan=False)
        description = Description.from_json(text)
    except (TypeError, ValueError) as error:
        raise InputError(f"recipe: network: {error}") from None
    recipe = Recipe(values, description, values["epochs"], values["batch_size"], values["by_lane"])
    sizes = {name: description.parameter_count(name) for name in description.names}
    if values["sampling"]["kind"] == "sandwich" and values["teach"]["kind"] == "base":
        largest = max(sizes, key=lambda name: (sizes[name], description.names.index(name)))
        if largest != "base":
            raise InputError(
                f"recipe: base is the teacher, but the sandwich always runs the largest, which is "
                f"'{largest}' here, and base by chance. Teach by another."
            )
    if values["teach"]["kind"] != "none" and len(sizes) == 1 and not description.grid:
        raise InputError(
            f"recipe: teach.kind is '{values['teach']['kind']}', but the network has no "
            f"sub-networks that could learn. Leave teach out."
        )
    _check_rules(description)
    _check_grid(values, description)
    if values["sampling"]["kind"] == "from_epoch" and not values["sampling"]["first"]:
        raise InputError(
            "recipe: sampling.kind 'from_epoch' needs sampling.first, the epoch from which on each "
            "runs that does not from the beginning: { sub1 = 5 }."
        )
    smoothing = values["label_smoothing"]
    for name in smoothing if isinstance(smoothing, dict) else ():
        if name not in description.names and not description.has_cell(name):
            raise InputError(
                f"recipe: label_smoothing names '{name}', which is no sub-network. They are "
                f"{', '.join(description.names)}."
            )
    unknown = set(values["bound"]["blocks"]) - set(description.blocks)
    if unknown:
        raise InputError(f"recipe: bound.blocks names '{min(unknown)}', which is no block.")
    for name in values.get("alone", {}):
        if name not in description.names:
            raise InputError(
                f"recipe: alone names '{name}', which is no sub-network. They are "
                f"{', '.join(description.names)}."
            )
        recipe.alone(name)
    return recipe


def _check_rules(description: Description) -> None:
    """Refuses merge rules that a recipe cannot hold."""
    document = json.loads(description.to_json())
    rules = [each["merge"] for each in (document, *document["blocks"]) if "merge" in each]
    if any(rule["rule"] == "function" for rule in rules):
        raise InputError(
            "recipe: the merge rule 'function' is code, which a recipe cannot hold. Train in a "
            "loop of your own, or use another rule."
        )


def _check_grid(values: dict[str, Any], description: Description) -> None:
    """Refuses a grid whose sub-networks nobody runs, or that cannot be evaluated."""
    if not description.grid:
        return
    buffers = [name for name, is_buffer in description.parameters if is_buffer]
    if buffers:
        raise InputError(
            f"recipe: '{buffers[0].rpartition('.')[0]}' keeps running statistics, which a grid's "
            f"sub-networks share with base, so that they fit none of them. Use GroupNorm or "
            f"LayerNorm, or train in a loop of your own that recalibrates."
        )
    kind = values["sampling"]["kind"]
    if kind not in ("sandwich", "random"):
        raise InputError(
            f"recipe: network.grid describes sub-networks that nobody runs with sampling.kind "
            f"'{kind}'. Use 'sandwich' or 'random', or list those that are to run."
        )


def metric_of(values: dict[str, Any]) -> str:
    """What a recipe's sub-networks are judged by: ``accuracy``, or for text ``loss``."""
    return "loss" if values.get("data", {}).get("kind") == "text" else "accuracy"
