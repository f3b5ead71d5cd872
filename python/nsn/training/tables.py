"""The tables of a recipe: what they may hold, with defaults, and how a value is replaced."""

import difflib
import math
import tomllib
from copy import deepcopy
from typing import Any

import nsn
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
MEANS: dict[str, dict[str, Any]] = {
    "sampling": {"kind": "all", "count": 1, "first": {}},
    "teach": {"kind": "none", "weight": 0.5, "temperature": 1.0},
    "average": {"decay": 0.0},
    "bound": {"row_norm": 0.0, "blocks": []},
}
# Keys whose value is a table, such as of sub-networks' names, and no part of the recipe's.
_NUMBER_OR_TABLE = {"label_smoothing", "teach.weight"}
_WHOLE = {*_NUMBER_OR_TABLE, "sampling.first", "network.merge"}
_LONG = 60  # characters of a value that a message repeats
TEACHERS = {
    "base": nsn.teach.base,
    "next_larger": nsn.teach.next_larger,
    "mutual": nsn.teach.mutual,
}


def complete(values: dict[str, Any]) -> None:
    """Adds what leaves a means of training out, where nothing is said of it."""
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
    alone = values.get("alone")
    if isinstance(alone, dict):
        for name, own in alone.items():
            alone[name] = _flatten(own) if isinstance(own, dict) else own
    for key, defaults in MEANS.items():
        table = values.setdefault(key, {})
        if isinstance(table, dict):
            for name, value in defaults.items():
                table.setdefault(name, deepcopy(value))


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
        if not _is_number(value) or not 0 <= value <= most:
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


def _flatten(table: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Brings ``{"optimizer": {"lr": 0.1}}`` to ``{"optimizer.lr": 0.1}``, the same in TOML."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        own = f"{path}.{key}" if path else key
        parts = isinstance(value, dict) and own not in _WHOLE
        result |= _flatten(value, own) if parts else {own: value}
    return result


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
    if kind != "from_epoch" and sampling["first"]:
        raise InputError(f"recipe: sampling.first is not used with kind '{kind}'. Leave it out.")
    if not isinstance(sampling["first"], dict):
        raise InputError(
            f"recipe: sampling.first must be a table of epochs, but is {sampling['first']!r}."
        )
    for name, first in sampling["first"].items():
        if isinstance(first, int) and first >= values["epochs"]:
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
        check_kind(data, key, default if isinstance(default, type) else type(default), "data.")
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


def check_kind(table: dict[str, Any], key: str, kind: type, where: str) -> None:
    """Refuses a value of another kind; an integer has to be positive."""
    value: Any = table.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"recipe: '{where}{key}' must be {_kind_name(kind)}, but is {value!r}.")
    if kind is int and isinstance(value, int) and value < 1:
        raise InputError(f"recipe: '{where}{key}' must be at least 1, but is {value}.")


def check_decay(decay: dict[str, Any]) -> None:
    """Refuses a table ``decay`` that cannot be."""
    only(decay, {"weight_decay", "of"}, "recipe: decay")
    if not _is_number(decay.get("weight_decay", 0.0)):
        raise InputError(
            f"recipe: decay.weight_decay must be a number, but is {decay['weight_decay']!r}."
        )
    if not isinstance(decay.get("of", ""), str):
        raise InputError(f"recipe: decay.of must be a sub-network's name, but is {decay['of']!r}.")


def check_schedule(schedule: dict[str, Any]) -> None:
    """Refuses a table ``schedule`` that cannot be; completes it by defaults."""
    kind = schedule.get("kind")
    if kind not in _SCHEDULES:
        raise InputError(
            f"recipe: schedule.kind must be one of {', '.join(_SCHEDULES)}, but is {kind!r}."
        )
    only(schedule, {"kind", *_SCHEDULES[kind]}, "recipe: schedule")
    for key, default in _SCHEDULES[kind].items():
        schedule.setdefault(key, default)
    milestones = schedule.get("milestones", [])
    if not (isinstance(milestones, list) and all(isinstance(each, int) for each in milestones)):
        raise InputError(f"recipe: schedule.milestones must be epochs, but is {milestones!r}.")
    for key in ("divide_by", "warmup_epochs"):
        value = schedule.get(key, 1.0)
        if not _is_number(value) or value < 0 or (key == "divide_by" and value == 0):
            raise InputError(f"recipe: schedule.{key} must be a positive number, but is {value!r}.")


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


def override(values: dict[str, Any], override: str) -> None:
    """Does what ``--set`` says, "key.path=value"."""
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
    put(values, path, value, "--set")


def put(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Puts a value in the place of another; `where` is who asks for it, for messages."""
    keys = path.strip().split(".")
    place: Any = values
    for depth, key in enumerate(keys[:-1]):
        place = _child(place, key, keys[: depth + 1], where)
    last = keys[-1]
    old = _child(place, last, keys, where)
    # One number for all, or a table by name.
    is_either = path in _NUMBER_OR_TABLE and (isinstance(value, dict) or _is_number(value))
    if not is_either and not _same_kind(old, value):
        raise InputError(
            f"{where}: '{path}' is {_kind_name(type(old))} ({old!r}), but the value given is "
            f"{value!r}. Give one of the same kind."
        )
    if isinstance(place, list):
        place[place.index(old)] = value
    else:
        place[last] = float(value) if isinstance(old, float) and _is_number(value) else value


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
    if isinstance(value, list) and all(isinstance(each, dict) and "name" in each for each in value):
        return {each["name"]: each for each in value}
    return None


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
