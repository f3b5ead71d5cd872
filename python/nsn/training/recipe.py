"""Recipes: a network and how to train it, as data."""

import difflib
import json
import math
import tomllib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel

import nsn
from nsn import Description, Network, files, param_groups
from nsn.training.errors import InputError

# What a recipe may hold apart from its network, with defaults where leaving a value out is fine.
_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "steps": {"milestones": [], "divide_by": 10.0},
    "cosine": {"warmup_epochs": 0},
}

# Kinds of data, with what each takes apart from ``kind``; a type stands for a value that is needed.
_DATA: dict[str, dict[str, Any]] = {
    "images": {"path": "data/mnist", "validation": 0.0},
    "text": {
        "path": str,
        "characters": str,
        "windows": int,
        "test_share": 0.1,
        "test_windows": 500,
        "validation": 0.0,
    },
}

# Means of training, with the values that leave them out.
_MEANS: dict[str, dict[str, Any]] = {
    "sampling": {"kind": "all", "count": 1, "first": {}},
    "teach": {"kind": "none", "weight": 0.5, "temperature": 1.0},
    "average": {"decay": 0.0},
    "bound": {"row_norm": 0.0, "blocks": []},
}
_TEACHERS = {
    "base": nsn.teach.base,
    "next_larger": nsn.teach.next_larger,
    "mutual": nsn.teach.mutual,
}


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
        if "of" in values["decay"]:
            values["decay"]["of"] = "base"
        values["sampling"] = deepcopy(_MEANS["sampling"])
        values["teach"] = deepcopy(_MEANS["teach"])
        kept = {each["name"] for each in values["network"]["blocks"]}
        values["bound"]["blocks"] = [each for each in values["bound"]["blocks"] if each in kept]
        if not values["bound"]["blocks"]:
            values["bound"] = deepcopy(_MEANS["bound"])
        for key, value in values.pop("alone", {}).get(name, {}).items():
            _put(values, key, value, f"recipe: alone.{name}")
        return replace(check_recipe(values), alone_name=name)

    @property
    def label_smoothing(self) -> float:
        """As :func:`nsn.joint_loss` takes it."""
        return float(self.values["label_smoothing"])

    def teacher(self, network: Network) -> nsn.teach.Teacher | None:
        """Whose outputs sub-networks learn from, or None."""
        teach = self.values["teach"]
        if teach["kind"] == "none":
            return None
        try:
            return _TEACHERS[teach["kind"]](network, teach["weight"], teach["temperature"])
        except (TypeError, ValueError) as error:
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
        except (TypeError, ValueError) as error:
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
        except (TypeError, ValueError) as error:
            raise InputError(
                f"recipe: optimizer: torch.optim.{name} refuses its options: {error}."
            ) from None
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


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("nsn.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_recipe(name: str, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe and applies overrides.

    Args:
        name: a shipped recipe's name, or the path of a .toml file.
        overrides: ``key.path=value``, the value as in TOML (quotes around strings may be left out);
            blocks and sub-networks are addressed by name: ``network.blocks.hidden1.dropout=0.1``.

    Raises:
        InputError: where there is no such recipe, it is malformed, or an override fits nothing.
    """
    values = _read(name)
    _complete(values)  # so that all can be overridden
    for override in overrides:
        _override(values, override)
        key = override.partition("=")[0].strip()
        for own in values.get("alone", {}).values():  # what is said here holds for these too
            own.pop(key, None)
    return check_recipe(values)


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
    known = {
        *("data", "epochs", "batch_size", "by_lane", "optimizer", "decay", "schedule", "network"),
        *("label_smoothing", "alone", *_MEANS),
    }
    _only(values, known, "recipe")
    _complete(values)
    kinds = {"epochs": int, "batch_size": int, "by_lane": bool, "optimizer": dict, "network": dict}
    for key, kind in kinds.items():
        _check_kind(values, key, kind, "")
    values["data"] = check_data(values.get("data", {"kind": "images"}))
    optimizer = values["optimizer"].get("name")
    found = getattr(torch.optim, optimizer, None) if isinstance(optimizer, str) else None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(
            f"recipe: optimizer.name must be a class of torch.optim, but is {optimizer!r}. Use "
            f"'SGD' or 'AdamW', for example."
        )
    _check_decay(values.setdefault("decay", {}))
    _check_schedule(values.setdefault("schedule", {"kind": "constant"}))
    _check_means(values)
    try:
        description = Description.from_json(json.dumps({"nsn": 1, **values["network"]}))
    except ValueError as error:
        raise InputError(f"recipe: network: {error}") from None
    recipe = Recipe(values, description, values["epochs"], values["batch_size"], values["by_lane"])
    for name in values.get("alone", {}):
        if name not in description.names:
            raise InputError(
                f"recipe: alone names '{name}', which is no sub-network. They are "
                f"{', '.join(description.names)}."
            )
        recipe.alone(name)
    unknown = set(values["bound"]["blocks"]) - set(description.blocks)
    if unknown:
        raise InputError(f"recipe: bound.blocks names '{min(unknown)}', which is no block.")
    return recipe


def _complete(values: dict[str, Any]) -> None:
    """Adds what leaves a means of training out, where nothing is said of it."""
    values.setdefault("by_lane", False)
    values.setdefault("label_smoothing", 0.0)
    data = values.setdefault("data", {"kind": "images"})
    if isinstance(data, dict):
        data.setdefault("validation", 0.0)
    for key, defaults in _MEANS.items():
        table = values.setdefault(key, {})
        if isinstance(table, dict):
            for name, value in defaults.items():
                table.setdefault(name, deepcopy(value))


def _check_means(values: dict[str, Any]) -> None:
    for key, defaults in _MEANS.items():
        _only(values[key], set(defaults), f"recipe: {key}")
    teach, average, bound = values["teach"], values["average"], values["bound"]
    _check_sampling(values)
    if teach["kind"] not in ("none", *_TEACHERS):
        raise InputError(
            f"recipe: teach.kind must be one of none, {', '.join(_TEACHERS)}, but is "
            f"{teach['kind']!r}."
        )
    if values["by_lane"] and teach["kind"] != "none":
        raise InputError(
            "recipe: by_lane runs one sub-network after the other, so that none can learn from "
            "another. Leave by_lane or teach out."
        )
    for name, value, most in (
        ("label_smoothing", values["label_smoothing"], 1.0),
        ("average.decay", average["decay"], 1.0),
        ("bound.row_norm", bound["row_norm"], math.inf),
    ):
        if not _is_number(value) or not 0 <= value <= most or (name[0] == "a" and value == 1):
            limits = "at least 0" if most == math.inf else "between 0 and 1"
            raise InputError(f"recipe: {name} must be a number {limits}, but is {value!r}.")
    if not isinstance(bound["blocks"], list):
        raise InputError(f"recipe: bound.blocks must be names, but is {bound['blocks']!r}.")
    if bound["row_norm"] > 0 and not bound["blocks"]:
        raise InputError(
            "recipe: bound.row_norm bounds the weights of bound.blocks, but that names none. Name "
            "the blocks, for example the hidden layers."
        )
    alone = values.get("alone", {})
    if not (isinstance(alone, dict) and all(isinstance(each, dict) for each in alone.values())):
        raise InputError(
            "recipe: alone must be tables of a sub-network's keys and values, such as "
            'sub2 = { "optimizer.lr" = 0.1 }.'
        )


def _check_sampling(values: dict[str, Any]) -> None:
    sampling, teach = values["sampling"], values["teach"]
    kind = sampling["kind"]
    kinds = ("all", "sandwich", "random", "from_epoch")
    if kind not in kinds:
        raise InputError(
            f"recipe: sampling.kind must be one of {', '.join(kinds)}, but is {kind!r}."
        )
    if kind in ("all", "from_epoch") and sampling["count"] != _MEANS["sampling"]["count"]:
        raise InputError(f"recipe: sampling.count is not used with kind '{kind}'. Leave it out.")
    if kind != "from_epoch" and sampling["first"]:
        raise InputError(f"recipe: sampling.first is not used with kind '{kind}'. Leave it out.")
    starts_late = kind == "from_epoch" and sampling["first"].get("base", 0) > 0
    if teach["kind"] == "base" and (kind == "random" or starts_late):
        raise InputError(
            f"recipe: base is the teacher, but with sampling.kind '{kind}' it does not run in "
            f"every step. Teach by another, or let it run."
        )


def check_data(table: Any) -> dict[str, Any]:
    """A recipe's ``data``, completed by defaults; refuses what it does not know."""
    if not isinstance(table, dict):
        raise InputError(f"recipe: data must be a table, but is {table!r}.")
    kind = table.get("kind")
    if kind not in _DATA:
        raise InputError(f"recipe: data.kind must be one of {', '.join(_DATA)}, but is {kind!r}.")
    fields = _DATA[kind]
    _only(table, {"kind", *fields}, "recipe: data")
    defaults = {key: value for key, value in fields.items() if not isinstance(value, type)}
    data: dict[str, Any] = {**defaults, **table}
    for key, default in fields.items():
        _check_kind(data, key, default if isinstance(default, type) else type(default), "data.")
    characters = data.get("characters", "a")
    if not characters or len(set(characters)) != len(characters):
        raise InputError(
            f"recipe: data.characters must name each character once, but is {characters!r}."
        )
    if not 0 < data.get("test_share", 0.5) < 1:
        raise InputError(
            f"recipe: data.test_share must be between 0 and 1, but is {data['test_share']}."
        )
    if not 0 <= data["validation"] < 1:
        raise InputError(
            f"recipe: data.validation must be a share, at least 0 and below 1, but is "
            f"{data['validation']}."
        )
    return data


def metric_of(values: dict[str, Any]) -> str:
    """What a recipe's sub-networks are judged by: ``accuracy``, or for text ``loss``."""
    return "loss" if values.get("data", {}).get("kind") == "text" else "accuracy"


def _check_kind(table: dict[str, Any], key: str, kind: type, where: str) -> None:
    value: Any = table.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"recipe: '{where}{key}' must be {_kind_name(kind)}, but is {value!r}.")
    if kind is int and isinstance(value, int) and value < 1:
        raise InputError(f"recipe: '{where}{key}' must be at least 1, but is {value}.")


def _check_decay(decay: dict[str, Any]) -> None:
    _only(decay, {"weight_decay", "of"}, "recipe: decay")
    if not _is_number(decay.get("weight_decay", 0.0)):
        raise InputError(
            f"recipe: decay.weight_decay must be a number, but is {decay['weight_decay']!r}."
        )
    if not isinstance(decay.get("of", ""), str):
        raise InputError(f"recipe: decay.of must be a sub-network's name, but is {decay['of']!r}.")


def _check_schedule(schedule: dict[str, Any]) -> None:
    kind = schedule.get("kind")
    if kind not in _SCHEDULES:
        raise InputError(
            f"recipe: schedule.kind must be one of {', '.join(_SCHEDULES)}, but is {kind!r}."
        )
    _only(schedule, {"kind", *_SCHEDULES[kind]}, "recipe: schedule")
    for key, default in _SCHEDULES[kind].items():
        schedule.setdefault(key, default)
    milestones = schedule.get("milestones", [])
    if not (isinstance(milestones, list) and all(isinstance(each, int) for each in milestones)):
        raise InputError(f"recipe: schedule.milestones must be epochs, but is {milestones!r}.")
    for key in ("divide_by", "warmup_epochs"):
        value = schedule.get(key, 1.0)
        if not _is_number(value) or value < 0 or (key == "divide_by" and value == 0):
            raise InputError(f"recipe: schedule.{key} must be a positive number, but is {value!r}.")


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise InputError(
            f"--set: expected key=value, but got '{override}'. Write, for example, "
            f"--set optimizer.lr=0.05."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string without quotes
    _put(values, path, value, "--set")


def _put(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Puts a value in the place of another; `where` is who asks for it, for messages."""
    keys = path.strip().split(".")
    place: Any = values
    for depth, key in enumerate(keys[:-1]):
        place = _child(place, key, keys[: depth + 1], where)
    last = keys[-1]
    old = _child(place, last, keys, where)
    if not _same_kind(old, value):
        raise InputError(
            f"{where}: '{path}' is {_kind_name(type(old))} ({old!r}), but the value given is "
            f"{value!r}. Give one of the same kind."
        )
    if isinstance(place, list):
        place[place.index(old)] = value
    else:
        place[last] = float(value) if isinstance(old, float) else value


def _child(place: Any, key: str, path: list[str], where: str) -> Any:
    """What a key means at a place; in a list it is the name of an entry."""
    entries: dict[str, Any] = {}
    if isinstance(place, dict):
        entries = place
    elif isinstance(place, list):
        entries = {each["name"]: each for each in place if isinstance(each, dict)}
    if key in entries:
        return entries[key]
    near = difflib.get_close_matches(key, entries, n=3, cutoff=0.0)
    remedy = f" The nearest keys are {', '.join(map(repr, near))}." if near else ""
    raise InputError(f"{where}: the recipe has no key '{'.'.join(path)}'.{remedy}")


def _only(table: Any, known: set[str], where: str) -> None:
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table, but is {table!r}.")
    for key in table:
        if key not in known:
            raise InputError(
                f"{where} has an unknown key '{key}'. The keys are {', '.join(sorted(known))}."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _same_kind(old: Any, new: Any) -> bool:
    if isinstance(old, float):
        return _is_number(new)
    return type(old) is type(new)


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "a table",
}


def _kind_name(kind: type) -> str:
    return _KINDS.get(kind, kind.__name__)
