"""Python, the headers and the documents have the rules of the library's table."""

import inspect
import json
import re
from pathlib import Path

import pytest

import nsn
from nsn._C import merge as _merge

ROOT = Path(__file__).parents[2]
RULES = _merge.rules()
NAMES = [name for name, *_ in RULES]
PLAIN = [name for name, _, takes, _ in RULES if takes == "nothing"]


def test_python_has_all_rules_and_no_other() -> None:
    own = {name for name in nsn.merge.__all__ if not inspect.isclass(getattr(nsn.merge, name))}
    assert own == set(NAMES)


@pytest.mark.parametrize(("name", "doc"), [rule[:2] for rule in RULES])
def test_the_docstring_begins_as_the_table_says(name: str, doc: str) -> None:
    begin = doc[0].upper() + doc[1:]
    assert (getattr(nsn.merge, name).__doc__ or "").startswith(begin)


@pytest.mark.parametrize("name", NAMES)
def test_header_stub_and_documents_name_it(name: str) -> None:
    header = (ROOT / "csrc/include/nsn/values/merge.h").read_text()
    assert re.search(rf"^NSN_API Rule {name}\(", header, re.MULTILINE)
    stub = (ROOT / "python/nsn/_C/merge.pyi").read_text()
    assert re.search(rf"^def {name}\(.*\) -> Rule: ...$", stub, re.MULTILINE)
    assert f"`{name}" in (ROOT / "README.md").read_text()
    assert re.search(rf'`{name}`|"{name}"', (ROOT / "docs/description.md").read_text())


@pytest.mark.parametrize("name", PLAIN)
def test_a_rule_goes_to_json_and_back_by_its_name(name: str) -> None:
    rule = getattr(nsn.merge, name)()
    assert (rule.name, rule.is_builtin, repr(rule)) == (name, True, f"nsn.merge.{name}()")
    description = nsn.Description(input=(2,), blocks={"only": nsn.Dense(2, 2)}, merge=rule)
    assert json.loads(description.to_json())["merge"] == {"rule": name}
    again = nsn.Description.from_json(description.to_json())
    assert (again.merge.name, again.merge.is_linear) == (name, rule.is_linear)


def test_an_unknown_name_is_answered_with_all_names() -> None:
    text = nsn.Description(input=(2,), blocks={"only": nsn.Dense(2, 2)}).to_json()
    with pytest.raises(ValueError, match=f"Use one of {', '.join(NAMES)}"):
        nsn.Description.from_json(text.replace('"sum"', '"all"'))
