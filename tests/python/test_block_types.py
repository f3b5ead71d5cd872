"""Python's dataclasses and docs/blocks.md say what the library's lists of options say."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from nsn import _C, blocks

DOCUMENT = (Path(__file__).parents[2] / "docs/blocks.md").read_text()
TYPES: dict[str, list[tuple[str, str, str | None]]] = dict(_C.block_types())
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
    assert {option for option, _, _ in TYPES[name]} == set(fields)
    for option, kind, standard in TYPES[name]:
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


@pytest.mark.parametrize("name", TYPES)
def test_the_document_names_the_options(name: str) -> None:
    section = section_of(name)
    for option, _, _ in TYPES[name]:
        assert f"`{option}`" in section, option
