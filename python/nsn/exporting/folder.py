"""The folder that an export is: complete or absent, with a manifest of what is in it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nsn import files

MANIFEST = "manifest.json"
_SCHEMA = 1

#: What weights may be held as, beside the dtype of the outputs.
NARROW = ("float16", "bfloat16", "int8")


@dataclass(frozen=True)
class Program:
    """Something of an export that runs: one sub-network, in one file.

    Attributes:
        subnetwork: its name.
        variant: what kind of program, where a format has several; "" otherwise.
        file: in the export's folder.
        method: its name inside the file, where that holds several.
        input, output: each with ``name``, ``shape`` (the batch dimension as "batch") and ``dtype``.
        max_batch: the largest batch; None where there is no limit.
        weights: the dtype that weights are held as, where it is another than the outputs'.
    """

    subnetwork: str
    variant: str
    file: str
    method: str
    input: dict[str, Any]
    output: dict[str, Any]
    max_batch: int | None = None
    weights: str | None = None

    @property
    def label(self) -> str:
        """Format's variant and file, for a person."""
        return self.variant or self.file


@dataclass(frozen=True)
class Export:
    """A folder that ``nsn.export`` wrote.

    Attributes:
        folder: where it is.
        format: ``executorch``, ``onnx``, ``pt2`` or ``runtime``.
        programs: all that runs.
        files: name to ``bytes`` and ``sha256``, of all files but the manifest.
        made_with: packages to the versions that wrote it.
    """

    folder: Path
    format: str
    programs: tuple[Program, ...]
    files: dict[str, dict[str, Any]]
    made_with: dict[str, str]

    @classmethod
    def open(cls, folder: Path) -> "Export":
        """Reads the manifest; :meth:`check` then holds the files against it.

        Raises:
            OSError: where there is none.
            ValueError: where it is no manifest of an export.
        """
        path = Path(folder) / MANIFEST
        try:
            document = json.loads(files.read(path))
            programs = tuple(Program(**each) for each in document["programs"])
            unknown = {each.weights for each in programs} - {None, *NARROW}
            if unknown:
                raise ValueError(f"weights of {', '.join(map(str, unknown))}")
            facts, made_with = dict(document["files"]), dict(document["made_with"])
            kind, schema = str(document["format"]), document["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"nsn: '{path}' is no manifest of an export: {error!r}. Export again."
            ) from None
        if schema != _SCHEMA:
            raise ValueError(
                f"nsn: '{path}' has schema {schema!r}, but this nsn reads {_SCHEMA}. Export again."
            )
        return cls(Path(folder), kind, programs, facts, made_with)

    def check(self) -> list[str]:
        """Holds the files against the manifest; one message for each that is not as it was."""
        messages = []
        for name, expected in self.files.items():
            try:
                found = _facts(self.folder / name)
            except OSError as error:
                messages.append(f"{name}: cannot read it: {error.strerror}")
                continue
            for key, label in (("bytes", "bytes"), ("sha256", "the SHA-256")):
                if found[key] != expected[key]:
                    messages.append(f"{name}: has {label} {found[key]}, but had {expected[key]}")
                    break
        return messages


def write_manifest(
    folder: Path, kind: str, programs: Sequence[Program], made_with: dict[str, str]
) -> dict[str, Any]:
    """Writes manifest.json over all files of a folder; its contents."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    document = {
        "schema": _SCHEMA,
        "format": kind,
        "made_with": made_with,
        "programs": [
            {key: value for key, value in asdict(each).items() if (key, value) != ("weights", None)}
            for each in programs
        ],
        "files": {name: _facts(folder / name) for name in names if (folder / name).is_file()},
    }
    (folder / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return document


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
