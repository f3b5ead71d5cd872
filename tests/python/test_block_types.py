"""Python's dataclasses and docs/blocks.md say what the library's lists of options say."""

import dataclasses
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import nsn
from nsn import _C, blocks

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/blocks.md").read_text()
TYPES: dict[str, list[tuple[str, str, str | None, str, str]]] = dict(_C.block_types())
#: The annotation of an option of each kind.
KINDS = {
    "bool": "bool",
    "int": "int",
    "float": "float",
    "str": "str",
    "activation": "str",
    "weight_init": "str",
    "parts": "Iterable[str]",
    "float?": "float | None",
    "int?": "int | None",
    "extents1": "int",
    "extents2": "Extents",
    "blocks": "Mapping[str, BlockOptions]",
}
ANNOTATIONS = {
    name: inspect.getsource(each)
    for name, each in inspect.getmembers(blocks, inspect.isclass)
    if issubclass(each, blocks.BlockOptions) and each is not blocks.BlockOptions
}


def fields_of(name: str) -> dict[str, dataclasses.Field[Any]]:
    return {each.name: each for each in dataclasses.fields(getattr(blocks, name))}


def section_of(name: str) -> str:
    """The part of the document that tells of a type."""
    sections = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[1:]
    return next(text for text in sections if name in re.split(r", ", text.split("\n", 1)[0]))


def test_both_languages_have_the_same_types() -> None:
    assert set(TYPES) == set(ANNOTATIONS)
    for name in TYPES:
        assert section_of(name)


@pytest.mark.parametrize("name", TYPES)
def test_the_dataclass_has_the_options(name: str) -> None:
    fields = fields_of(name)
    fields.pop("keeps_dropout", None)  # written at each inner block
    assert {option for option, *_ in TYPES[name]} == set(fields)
    for option, kind, standard, _, _ in TYPES[name]:
        field = fields[option]
        annotation = re.search(rf"^    {option}: ([^=\n]+)", ANNOTATIONS[name], re.MULTILINE)
        assert annotation is not None
        optional = standard == "null" and not kind.endswith("?")
        assert annotation[1].strip() == KINDS[kind] + (" | None" if optional else ""), option
        if standard is None:
            assert field.default is dataclasses.MISSING, option
        else:
            expected = json.loads(standard)
            assert field.default == (() if expected == [] else expected), option


def check(root: Path) -> subprocess.CompletedProcess[str]:
    """Whether the documents below ``root`` are those that `make docs` writes."""
    command = [sys.executable, str(ROOT / "tools/block_docs.py"), "--check", str(root)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_documents_are_those_of_the_options() -> None:
    result = check(ROOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("file", "text", "spoiled"),
    [
        ("docs/blocks.md", "| whether to add a bias |", "| whether there is a bias |"),
        ("docs/blocks.md", "Conv1d alone: ", ""),
        ("docs/blocks.md", "| `kaiming_uniform` |", "| `xavier_uniform` |"),
        ("python/nsn/blocks.py", "length: the largest T", "length: the smallest T"),
    ],
)
def test_drift_is_noticed(tmp_path: Path, file: str, text: str, spoiled: str) -> None:
    for each in ("docs/blocks.md", "python/nsn/blocks.py"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / each, tmp_path / each)
    committed = (tmp_path / file).read_text()
    assert text in committed
    (tmp_path / file).write_text(committed.replace(text, spoiled))
    result = check(tmp_path)
    assert result.returncode == 1
    assert f"--- {file}" in result.stdout
    assert any(line.startswith("+") and text in line for line in result.stdout.split("\n"))


def wrong_values(kind: str, rule: str) -> list[Any]:
    """Values of the kind that the rule does not allow."""
    if found := re.fullmatch(r"at least (\d+)", rule):
        wrong = int(found[1]) - 1
        return [wrong, (3, wrong)] if kind == "extents2" else [wrong]
    if found := re.fullmatch(r"(?:a probability )?from (\S+) to (\S+)", rule):
        return [float(found[1]) - 0.5, float(found[2]) * 1.5]
    if rule.startswith("of "):
        return [["nothing"]]
    # Of numbers that are not finite JSON knows none; C++'s tests have them.
    return {"finite": [], "not gated": ["glu"]}.get(rule, ["nothing"])


CHECKED = [
    (name, option, kind, rule)
    for name, options in TYPES.items()
    for option, kind, _, _, rule in options
    if rule
]


@pytest.mark.parametrize(("name", "option", "kind", "rule"), CHECKED)
def test_a_wrong_value_is_refused_by_its_rule(name: str, option: str, kind: str, rule: str) -> None:
    plain = {"int": 4, "float": 0.5, "str": "x", "activation": "relu", "extents1": 4, "extents2": 4}
    required = {each: plain[kind] for each, kind, standard, _, _ in TYPES[name] if standard is None}
    for wrong in wrong_values(kind, rule):
        block = getattr(blocks, name)(**{**required, option: wrong})
        with pytest.raises(ValueError, match=rf"nsn\.{name}: {option} (must|names)") as refused:
            nsn.Description(input=(4, 8, 8), blocks={"block": block})
        said = "not be gated" if rule == "not gated" else rule
        assert said in str(refused.value) or rule.startswith("of ")
