"""The tables of a recipe: what they may hold, with defaults, and how a value is replaced."""

import difflib
import inspect
import math
import sys
import tomllib
from copy import deepcopy
from functools import cache
from typing import Any

import torch

import nsn
from nsn.training.errors import InputError

# What a recipe may hold apart from its network, with defaults where leaving a value out is fine.
_SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "steps": {"milestones": [], "divide_by": 10.0},
    "cosine": {"warmup_epochs": 0.0},
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
MEANS: dict[str, dict[str, Any]] = {
    "sampling": {"kind": "all", "count": 1, "first": {}},
    "teach": {"kind": "none", "weight": 0.5, "temperature": 1.0},
    "average": {"decay": 0.0},
    "bound": {"row_norm": 0.0, "blocks": []},
}
# All keys but those of the network and the optimizer's options, with what leaves each out, or the
# type of what is needed: of that kind are their values. They may be set where a recipe lacks them.
_KEYS: dict[str, Any] = {
    **{"epochs": int, "batch_size": int, "by_lane": False, "label_smoothing": 0.0},
    **{"optimizer.name": str, "decay.weight_decay": 0.0, "decay.of": ""},
    **{"schedule.kind": "constant", "data.kind": "images"},
    **{f"schedule.{key}": value for own in _SCHEDULES.values() for key, value in own.items()},
    **{f"data.{key}": value for own in _DATA.values() for key, value in own.items()},
    **{f"{table}.{key}": value for table, own in MEANS.items() for key, value in own.items()},
}
_TABLES = {path.partition(".")[0] for path in _KEYS if "." in path}
_TOP = {*_TABLES, *(path for path in _KEYS if "." not in path), "network", "alone"}
# What is in their arrays and tables.
_ELEMENTS: dict[str, type] = {
    "label_smoothing": float,
    "teach.weight": float,
    "schedule.milestones": int,
    "sampling.first": int,
    "bound.blocks": str,
}
# Keys whose value is a table, such as of sub-networks' names, and no part of the recipe's.
_NUMBER_OR_TABLE = {"label_smoothing", "teach.weight"}
_WHOLE = {*_NUMBER_OR_TABLE, "sampling.first", "network.merge"}
# What says nothing of a sub-network that runs by itself.
_OF_SEVERAL = (
    *("alone", "teach", "sampling", "by_lane"),
    *("network.merge", "network.subnetworks", "network.grid"),
)
_MOST = 2**63 - 1  # of an integer
_LONG = 60  # characters of a value that a message repeats
TEACHERS = {
    "base": nsn.teach.base,
    "next_larger": nsn.teach.next_larger,
    "mutual": nsn.teach.mutual,
}


def complete(values: dict[str, Any]) -> None:
    """Adds what leaves a means of training out, where nothing is said of it.

    What ``alone`` says of a sub-network is keys and values then: ``{"optimizer.lr": 0.1}``.
    """
    values.setdefault("by_lane", False)
    values.setdefault("label_smoothing", 0.0)
    data = values.setdefault("data", {"kind": "images"})
    if isinstance(data, dict):
        data.setdefault("validation", 0.0)
    teach = values.get("teach")
    if isinstance(teach, dict) and teach and "kind" not in teach:
        raise InputError(
            f"recipe: teach says nothing of who teaches. Give its kind: one of none, "
            f"{', '.join(TEACHERS)}."
        )
    if "alone" in values:
        values["alone"] = _flat(values["alone"])
    for key, defaults in MEANS.items():
        table = values.setdefault(key, {})
        if isinstance(table, dict):
            for name, value in defaults.items():
                table.setdefault(name, deepcopy(value))


def _flat(alone: Any) -> dict[str, dict[str, Any]]:
    """What holds for sub-networks alone, each a table of keys and values."""
    if not (isinstance(alone, dict) and all(isinstance(each, dict) for each in alone.values())):
        raise InputError(
            "recipe: alone must be tables of a sub-network's keys and values, such as "
            "sub2 = { optimizer.lr = 0.1 }."
        )
    return {name: _flatten(own) for name, own in alone.items()}


def _flatten(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Brings ``{"optimizer": {"lr": 0.1}}`` to ``{"optimizer.lr": 0.1}``, the same in TOML."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        own = f"{path}.{key}" if path else key
        parts = isinstance(value, dict) and value and own not in _WHOLE
        for flat, each in (_flatten(value, own) if parts else {own: value}).items():
            if flat in result:
                raise InputError(f"recipe: alone says '{flat}' of one sub-network twice.")
            result[flat] = each
    return result


def check_kinds(values: dict[str, Any]) -> None:
    """Refuses unknown keys, and values of other kinds than their keys have."""
    only(values, _TOP, "recipe")
    for path, default in _KEYS.items():
        table, _, key = path.rpartition(".")
        place = values.get(table, {}) if table else values
        check_value(table, place, dict)
        if key in place or (not table and isinstance(default, type)):
            check_value(path, place.get(key), _kind_of(default))
    for key in ("optimizer", "network"):
        check_value(key, values.get(key), dict)


def check_value(path: str, value: Any, kind: type) -> None:
    """Refuses a value of another kind; numbers are finite, and integers most often positive."""
    is_table = path in _NUMBER_OR_TABLE and isinstance(value, dict)
    if not is_table and not _fits(value, kind):
        raise InputError(f"recipe: '{path}' must be {_kind_name(kind)}, but is {value!r}.")
    least = 0 if path == "sampling.count" else 1
    if kind is int and not least <= value <= _MOST:
        raise InputError(f"recipe: '{path}' must be at least {least}, but is {value}.")
    element = _ELEMENTS.get(path)
    if element is None or not isinstance(value, list | dict):
        return
    for each in value.values() if isinstance(value, dict) else value:
        if not _fits(each, element) or (element is int and not 0 <= each <= _MOST):
            raise InputError(
                f"recipe: each of '{path}' must be {_kind_name(element)}"
                f"{', at least 0' if element is int else ''}, but one is {each!r}."
            )


def check_optimizer(optimizer: dict[str, Any]) -> None:
    """Refuses what is no optimizer, and options that it has not."""
    name = optimizer.get("name")
    options = _options(name)
    if not options:
        raise InputError(
            f"recipe: optimizer.name must be a class of torch.optim, but is {name!r}. Use "
            f"'SGD' or 'AdamW', for example."
        )
    only(optimizer, {"name", *options}, "recipe: optimizer")
    for key, value in optimizer.items():
        if key == "name":
            continue
        check_value(f"optimizer.{key}", value, _kind_of(options[key]))
        if isinstance(value, list) and not all(map(_is_number, value)):
            raise InputError(f"recipe: each of 'optimizer.{key}' must be a number.")


def _options(name: Any) -> dict[str, Any]:
    """The options of a torch optimizer and their defaults, as TOML has them; of all else none."""
    return _options_of(name) if isinstance(name, str) else {}


@cache
def _options_of(name: str) -> dict[str, Any]:
    found = getattr(torch.optim, name, None)
    optimizer = torch.optim.Optimizer
    if not (isinstance(found, type) and issubclass(found, optimizer)) or found is optimizer:
        return {}
    _, *parameters = inspect.signature(found).parameters.values()
    return {each.name: _as_option(each.name, each.default) for each in parameters}


def _as_option(name: str, default: Any) -> Any:
    if default is None:  # as torch chooses; of which kind others are it alone knows
        return False if name in ("fused", "foreach") else object
    if isinstance(default, tuple):
        return [0.0 if each is None else float(each) for each in default]
    return float(default) if _is_number(default) else default


def check_means(values: dict[str, Any]) -> None:
    """Refuses values of the means of training that cannot be, or that have no use together."""
    for key, defaults in MEANS.items():
        only(values[key], set(defaults), f"recipe: {key}")
    teach, average, bound = values["teach"], values["average"], values["bound"]
    _check_sampling(values)
    if teach["kind"] not in ("none", *TEACHERS):
        raise InputError(
            f"recipe: teach.kind must be one of none, {', '.join(TEACHERS)}, but is "
            f"{teach['kind']!r}."
        )
    if values["by_lane"] and teach["kind"] != "none":
        raise InputError(
            "recipe: by_lane runs one sub-network after the other, so that none can learn from "
            "another. Leave by_lane or teach out."
        )
    smoothing = values["label_smoothing"]
    smoothings = (
        {f".{name}": share for name, share in smoothing.items()}
        if isinstance(smoothing, dict)
        else {"": smoothing}
    )
    for name, value, most, limits in (
        *(
            (f"label_smoothing{name}", share, 1.0, "between 0 and 1")
            for name, share in smoothings.items()
        ),
        ("average.decay", average["decay"], math.nextafter(1.0, 0.0), "at least 0 and below 1"),
        ("bound.row_norm", bound["row_norm"], math.inf, "at least 0"),
    ):
        if not 0 <= value <= most:
            raise InputError(f"recipe: {name} must be a number {limits}, but is {value!r}.")
    if bound["row_norm"] > 0 and not bound["blocks"]:
        raise InputError(
            "recipe: bound.row_norm bounds the weights of bound.blocks, but that names none. Name "
            "the blocks, for example the hidden layers."
        )
    _check_alone(values.get("alone", {}))


def _check_alone(alone: dict[str, dict[str, Any]]) -> None:
    """Refuses what would make no comparison, or has no use where one runs by itself."""
    for name, own in alone.items():
        for key in own:
            if _overlap(key, "data"):
                raise InputError(
                    f"recipe: alone.{name} says '{key}', but together and alone are compared on "
                    f"the same data. Say it for all in [data]."
                )
            if is_of_several(key):
                raise InputError(
                    f"recipe: alone.{name} says '{key}', which has no use where one sub-network "
                    f"runs by itself. Leave it out."
                )


def is_of_several(key: str) -> bool:
    """Whether a key has no use where one sub-network runs by itself."""
    path = key.split(".")
    is_rule = path[:2] == ["network", "blocks"] and "merge" in path[3:]
    return is_rule or any(_overlap(key, each) for each in _OF_SEVERAL)


def _overlap(one: str, other: str) -> bool:
    """Whether one of two keys is the other, or in its table."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _check_sampling(values: dict[str, Any]) -> None:
    sampling, teach = values["sampling"], values["teach"]
    kind = sampling["kind"]
    kinds = ("all", "sandwich", "random", "from_epoch")
    if kind not in kinds:
        raise InputError(
            f"recipe: sampling.kind must be one of {', '.join(kinds)}, but is {kind!r}."
        )
    if kind in ("all", "from_epoch") and sampling["count"] != MEANS["sampling"]["count"]:
        raise InputError(f"recipe: sampling.count is not used with kind '{kind}'. Leave it out.")
    if kind == "random" and sampling["count"] == 1 and teach["kind"] in ("next_larger", "mutual"):
        raise InputError(
            f"recipe: sub-networks that run in the same step teach each other with teach.kind "
            f"'{teach['kind']}', but sampling.count is 1. Let more run in each step, or leave "
            f"teach out."
        )
    if kind != "from_epoch" and sampling["first"]:
        raise InputError(f"recipe: sampling.first is not used with kind '{kind}'. Leave it out.")
    for name, first in sampling["first"].items():
        if first >= values["epochs"]:
            raise InputError(
                f"recipe: sampling.first lets '{name}' run from epoch {first} on, counted from 0, "
                f"but there are {values['epochs']}: it would never train. Let it run earlier."
            )
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
    only(table, {"kind", *fields}, "recipe: data")
    defaults = {key: value for key, value in fields.items() if not isinstance(value, type)}
    data: dict[str, Any] = {**defaults, **table}
    for key, default in fields.items():
        check_value(f"data.{key}", data.get(key), _kind_of(default))
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


def check_schedule(schedule: dict[str, Any], epochs: int) -> None:
    """Refuses a table ``schedule`` that cannot be; completes it by defaults."""
    kind = schedule.get("kind")
    if kind not in _SCHEDULES:
        raise InputError(
            f"recipe: schedule.kind must be one of {', '.join(_SCHEDULES)}, but is {kind!r}."
        )
    only(schedule, {"kind", *_SCHEDULES[kind]}, "recipe: schedule")
    for key, default in _SCHEDULES[kind].items():
        schedule.setdefault(key, deepcopy(default))
    if schedule.get("divide_by", 1.0) <= 0:
        raise InputError(
            f"recipe: schedule.divide_by must be a positive number, but is {schedule['divide_by']}."
        )
    if not 0 <= schedule.get("warmup_epochs", 0.0) <= epochs:
        raise InputError(
            f"recipe: schedule.warmup_epochs must be a positive number of the {epochs} epochs, or "
            f"0, but is {schedule['warmup_epochs']}."
        )


def split_values(text: str) -> list[str]:
    """The parts between commas, but those within brackets, braces or quotes: TOML values."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "\"'":
            quote = "" if letter == quote else quote or letter
        elif letter == "," and depth == 0:
            parts.append("")
            continue
        else:
            depth += (letter in "[{") - (letter in "]}")
        parts[-1] += letter
    return parts


def override(values: dict[str, Any], override: str, where: str) -> str:
    """Does what ``--set`` and ``--vary`` say, "key.path=value"; returns the key.

    It holds for sub-networks alone too, in place of what they have of their own.
    """
    path, equals, text = override.partition("=")
    if not equals:
        raise InputError(
            f"{where}: expected key=value, but got '{override}'. Write, for example, "
            f"optimizer.lr=0.05."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a string without quotes
    path = path.strip()
    if is_of_alone(override):
        _put_alone(values, path, value)
        return path
    put(values, path, value, where)
    for own in values.get("alone", {}).values():
        _drop(own, path)
    return path


def is_of_alone(override: str) -> bool:
    """Whether an override says what holds for a sub-network alone, in place of all others."""
    return override.partition("=")[0].strip().partition(".")[0] == "alone"


def _put_alone(values: dict[str, Any], path: str, value: Any) -> None:
    """Puts ``alone``, ``alone.NAME`` or ``alone.NAME.KEY``."""
    _, name, key = (*path.split(".", 2), "", "")[:3]
    alone = values.setdefault("alone", {})
    if key:
        own = alone.setdefault(name, {})
        _drop(own, key)
        own[key] = value
    elif name:
        alone[name] = value
    else:
        alone = value
    values["alone"] = _flat(alone)


def _drop(own: dict[str, Any], path: str) -> None:
    """Takes away what a sub-network alone has of a key, of a part of it, or of its table."""
    for key in [each for each in own if _overlap(each, path)]:
        del own[key]


def put(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Puts a value in the place of another; `where` is who asks for it, for messages."""
    optimizer = values.get("optimizer")
    # Of all optimizers: which one it is to be may be said later.
    options = {key: each for name in dir(torch.optim) for key, each in _options(name).items()}
    if isinstance(optimizer, dict):
        options |= _options(optimizer.get("name"))
    known = {
        **{table: {} for table in _TABLES},
        **_KEYS,
        **{f"optimizer.{key}": default for key, default in options.items()},
    }
    keys = path.split(".")
    place: Any = values
    for depth, key in enumerate(keys[:-1]):
        place = _child(place, key, keys[: depth + 1], known, where)
    last = keys[-1]
    if _is_of_description(place, last, keys):
        place[last] = value
        return
    old = _child(place, last, keys, known, where)
    kind = _kind_of(known.get(path, old))
    # One number for all, or a table by name.
    is_table = path in _NUMBER_OR_TABLE and isinstance(value, dict)
    if not is_table and not _fits(value, kind):
        raise InputError(
            f"{where}: '{path}' is {_kind_name(kind)} ({old!r}), but the value given is "
            f"{value!r}. Give one of the same kind."
        )
    if isinstance(place, list):
        place[place.index(old)] = value
    else:
        # Some options of optimizers have to be whole numbers.
        keeps = is_table or path.startswith("optimizer.")
        place[last] = float(value) if kind is float and not keeps else value


def _child(place: Any, key: str, path: list[str], known: dict[str, Any], where: str) -> Any:
    """What a key means at a place; in a list it is the name of an entry."""
    entries = _by_key(place) or {}
    if key in entries:
        return entries[key]
    if _is_of_description(place, key, path):
        place[key] = {}
        return place[key]
    own, table = ".".join(path), "".join(f"{each}." for each in path[:-1])
    if own in known and isinstance(place, dict):
        default = known[own]
        place[key] = default() if isinstance(default, type) else deepcopy(default)
        return place[key]
    beside = {each.removeprefix(table) for each in known if each.startswith(table)}
    names = [*entries, *sorted(each for each in beside - {*entries} if "." not in each)]
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.0)
    remedy = f" The nearest keys are {', '.join(map(repr, near))}." if near else ""
    raise InputError(f"{where}: the recipe has no key '{own}'.{remedy}")


def _is_of_description(place: Any, key: str, path: list[str]) -> bool:
    """Whether the recipe leaves a key out, and the description is to know or refuse it."""
    return path[0] == "network" and isinstance(place, dict) and key not in place


def only(table: Any, known: set[str], where: str) -> None:
    """Refuses what is no table, and keys that are not known."""
    if not isinstance(table, dict):
        raise InputError(f"{where} must be a table, but is {table!r}.")
    for key in table:
        if key not in known:
            raise InputError(
                f"{where} has an unknown key '{key}'. The keys are {', '.join(sorted(known))}."
            )


def difference(there: Any, here: Any, path: str = "") -> str | None:
    """The first value that two recipes do not share: ``optimizer.lr (0.1 there, 0.3 here)``.

    Its key is written as ``--set`` takes it; None where all are equal.
    """
    if there == here:
        return None
    one, other = _by_key(there), _by_key(here)
    if one is not None and other is not None:
        for key in dict.fromkeys([*one, *other]):
            own = f"{path}.{key}" if path else key
            text = difference(one.get(key, "nothing"), other.get(key, "nothing"), own)
            if text:
                return text
    texts = [str(there), str(here)]
    return path if max(map(len, texts)) > _LONG else f"{path} ({texts[0]} there, {texts[1]} here)"


def _by_key(value: Any) -> dict[str, Any] | None:
    """A table's values, or those of a list of tables that have names; None for anything else."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    ):
        return {each["name"]: each for each in value}
    return None


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a float can hold, and finite."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and -sys.float_info.max <= value <= sys.float_info.max


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return _is_number(value)
    return isinstance(value, kind) and (kind in (bool, object) or not isinstance(value, bool))


def _kind_of(value: Any) -> type:
    """The kind of a default, which may be a type itself."""
    return value if isinstance(value, type) else type(value)


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
