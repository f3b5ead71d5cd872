"""Writes what docs/blocks.md and the docstrings of python/nsn/blocks.py say of blocks' options.

    python tools/block_docs.py [--check] [ROOT]

Names, meanings, defaults and what a value has to be come from the one list of each block
(`list_options` in csrc/src/blocks), as the installed `nsn` has them. In docs/blocks.md that is
the table of each section, in python/nsn/blocks.py the `Attributes:` of each dataclass; all else
there is written by hand. With --check nothing is written: what differs is printed, and the status
is 1.
"""

import argparse
import difflib
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from nsn import _C

MARKDOWN, PYTHON = Path("docs/blocks.md"), Path("python/nsn/blocks.py")
WIDTH = 100


class Option(NamedTuple):
    """One option as the library lists it (csrc/src/blocks/options.h)."""

    name: str
    kind: str
    standard: str | None
    doc: str
    check: str

    def meaning(self) -> tuple[str, list[str], str | None]:
        """What it is with what it has to be, what is to be added, and what its absence means."""
        head, *added = self.doc.split("; ")
        if self.check:
            head += ", " + self.check.removeprefix("a probability ")
        none = None
        if added and added[-1].startswith("none is "):
            none = added.pop().removeprefix("none is ")
        return head, added, none


Types = dict[str, list[Option]]


def block_types() -> Types:
    """Each type's options, in the order of its list."""
    return {name: [Option(*each) for each in options] for name, options in _C.block_types()}


# --------------------------------------------------------------------------------------------------
# docs/blocks.md


def _one_line(text: str) -> str:
    """As Markdown has it: strings are code too."""
    return re.sub(r"(?<!\w)'(\w+)'", r"`\1`", text)


def _standard(option: Option) -> str:
    """The column of defaults."""
    if option.standard is None:
        return "required"
    value = json.loads(option.standard)
    if value is None:
        return option.meaning()[2] or "none"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"`{value if isinstance(value, str) else option.standard}`"


def table(types: Types, names: list[str]) -> list[str]:
    """The table of a section that tells of `names`: one row an option, whoever has it."""
    rows = ["| field | meaning | default |", "| --- | --- | --- |"]
    for name in dict.fromkeys(option.name for each in names for option in types[each]):
        having = {each: o for each in names for o in types[each] if o.name == name}
        owners = list(having)
        meanings = {
            owner: "; ".join([o.meaning()[0], *o.meaning()[1]]) for owner, o in having.items()
        }
        if len(set(meanings.values())) == 1:
            text = meanings[owners[0]]
            if len(owners) < len(names):
                text = f"{' and '.join(owners)} alone: {text}"
        else:
            text = "; ".join(f"{owner}: {meaning}" for owner, meaning in meanings.items())
        several = [owner for owner, option in having.items() if option.kind == "extents2"]
        if several:
            who = "" if len(several) == len(owners) else f"for {' and '.join(several)} "
            text += f"; {who}an integer or `[height, width]`"
        standards = dict.fromkeys(_standard(option) for option in having.values())
        if len(standards) != 1:
            raise ValueError(
                f"{', '.join(names)}: '{name}' has several defaults; split the section"
            )
        rows.append(f"| `{name}` | {_one_line(text)} | {_one_line(next(iter(standards)))} |")
    return rows if len(rows) > 2 else []


def with_tables(text: str, types: Types) -> str:
    """docs/blocks.md with each section's table as it has to be."""
    head, *sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    told = []
    for i, section in enumerate(sections):
        names = section.split("\n", 1)[0].removeprefix("## ").split(", ")
        told += names
        lines = section.split("\n")
        rows = [n for n, line in enumerate(lines) if line.startswith("|")]
        wanted = table(types, names)
        if wanted and (not rows or rows[-1] - rows[0] != len(rows) - 1):
            raise ValueError(
                f"{MARKDOWN}: '{', '.join(names)}' needs one table, to be written over"
            )
        if rows:
            lines[rows[0] : rows[-1] + 1] = wanted
        sections[i] = "\n".join(lines)
    if sorted(told) != sorted(types):
        raise ValueError(f"{MARKDOWN}: its sections are not the types: {set(told) ^ set(types)}")
    return head + "".join(sections)


# --------------------------------------------------------------------------------------------------
# python/nsn/blocks.py


def _attribute(option: Option) -> list[str]:
    """An option's lines below `Attributes:`."""
    head, added, none = option.meaning()
    if option.kind == "extents2":
        added.append("a number, or `(height, width)`")
    if none is not None:
        added.append(f"None is {none}")
    text = "; ".join([head, *added]).replace("`", "``")
    text = re.sub(r"(?<!\w)'(\w+)'", r'"\1"', text)
    # Code stays on one line.
    text = re.sub(r"``.+?``", lambda code: code[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(
        f"{option.name}: {text}.",
        WIDTH,
        initial_indent=" " * 8,
        subsequent_indent=" " * 12,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]


def with_attributes(text: str, types: Types) -> str:
    """python/nsn/blocks.py with each docstring's attributes as they have to be.

    What they say of a field that is no option of the library stays, behind the others.
    """
    for name, listed in types.items():
        own = re.search(rf"^class {name}\(BlockOptions\):\n.*?(?=^@|\Z)", text, re.M | re.S)
        if own is None:
            raise ValueError(f"{PYTHON}: there is no class {name}")
        found = re.search(r"^    Attributes:\n(.*?)(?=^    \"\"\")", own[0], re.M | re.S)
        if found is None:
            if listed:
                raise ValueError(f"{PYTHON}: {name} needs 'Attributes:', to be written over")
            continue
        fields = re.findall(r"^    (\w+): ", own[0][found.end() :], re.M)
        options = {option.name: option for option in listed}
        if missing := set(options) - set(fields):
            raise ValueError(f"{PYTHON}: {name} lacks {', '.join(sorted(missing))}")
        lines = [line for each in fields if each in options for line in _attribute(options[each])]
        for each in re.findall(r"^ {8}\w.*\n(?: {12}.*\n)*", found[1], re.M):
            if each.split(":")[0].strip() in set(fields) - set(options):
                lines += each.rstrip("\n").split("\n")
        start = own.start() + found.start(1)
        text = text[:start] + "\n".join(lines) + "\n" + text[own.start() + found.end(1) :]
    return text


def main(arguments: list[str]) -> int:
    """Writes both, or checks them."""
    description = inspect.cleandoc(__doc__ or "")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, print what differs")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    options = parser.parse_args(arguments)
    types, differs = block_types(), False
    for path, write in ((MARKDOWN, with_tables), (PYTHON, with_attributes)):
        committed = (options.root / path).read_text()
        wanted = write(committed, types)
        differs = differs or committed != wanted
        if not options.check:
            (options.root / path).write_text(wanted)
            continue
        diff = difflib.unified_diff(
            committed.splitlines(), wanted.splitlines(), str(path), "make docs", lineterm="", n=1
        )
        sys.stdout.writelines(f"{line}\n" for line in diff)
    return int(options.check and differs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
