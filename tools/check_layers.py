"""Checks that no include of csrc, and no import of python/nsn, goes against the order of layers.

The order stands here alone. Each file may use those of its own layer and of the layers before it.
Among Python's modules there is no cycle either.

    python tools/check_layers.py [ROOT]
"""

import ast
import re
import sys
from pathlib import Path

#: The folders of csrc/src and csrc/include/nsn, the lowest first.
CPP_LAYERS = (
    "kernels",  # vectorized loops on pointers, without torch
    "plan",  # fused steps over placed buffers, and what runs them, without torch
    "runtime",  # files of plans and weights, and what runs them, without torch
    "values",  # layouts, merge rules, JSON
    "operations",  # what ATen lacks: kernels on tensors, buffers, autograd's helpers
    "functional",  # what a lane-aware operation computes, forward and merging backward
    "program",  # primitives, and programs of them
    "blocks",  # what a block is, and the built-in ones
    "description",  # a network as a value, and its lowering
    "network",  # the joint pass, views, losses, optimizers
    "inference",  # packs
    "extract",  # copies as torch::nn modules
    "checkpoint",  # files
)

#: Headers of no layer: what includes all, what all include, and the interface in C.
NO_LAYER = ("nsn/nsn.h", "nsn/visibility.h", "nsn_runtime.h")

#: The modules and folders of python/nsn, the lowest first.
PYTHON_LAYERS = (
    ("_build_info", "summary"),
    ("_C",),
    ("files", "checks"),
    ("runtime",),
    ("merge", "blocks"),
    ("description",),
    ("parameters",),
    ("view", "pack", "extract"),
    ("network",),
    ("optim", "schedule", "teach", "checkpoint", "exporting", "paths"),
    ("functional",),
    ("picture", "training", "verifying"),
    ("recipes", "describing"),
    ("cli",),
)

INCLUDE = re.compile(r'^\s*#include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def cpp_layer(path: str) -> str | None:
    """The layer of a header as it is included, or of a file below csrc/src or csrc/include."""
    folder, _, rest = path.removeprefix("nsn/").partition("/")
    return folder if rest and folder in CPP_LAYERS else None


def check_cpp(root: Path) -> list[str]:
    """The includes that go up, and the files that are in no layer."""
    problems = []
    for base in (root / "csrc/src", root / "csrc/include"):
        for file in sorted((*base.rglob("*.cpp"), *base.rglob("*.h"))):
            inside = str(file.relative_to(base))
            layer = cpp_layer(inside)
            if layer is None:
                if inside not in NO_LAYER:
                    problems.append(f"{file.relative_to(root)}: is in the folder of no layer")
                continue
            for included in INCLUDE.findall(file.read_text()):
                other = cpp_layer(included)
                if other and CPP_LAYERS.index(other) > CPP_LAYERS.index(layer):
                    problems.append(
                        f"{file.relative_to(root)}: {layer} includes {included}, but {other} "
                        f"stands above it"
                    )
    return problems


def python_layer(module: str) -> int | None:
    """The place of a module of nsn, "nsn.exporting.job"."""
    parts = module.split(".")
    if len(parts) < 2 or parts[0] != "nsn":
        return None
    return next((i for i, layer in enumerate(PYTHON_LAYERS) if parts[1] in layer), None)


def imports_of(file: Path, modules: set[str]) -> list[str]:
    """The modules that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for name in node.names:
                inside = f"{node.module}.{name.name}"
                found.append(inside if inside in modules else node.module)
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return found


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; empty where there is none."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            found = search(other, [*way, module])
            if found:
                return found
        done.add(module)
        return []

    for module in sorted(graph):
        found = search(module, [])
        if found:
            return found
    return []


def check_python(root: Path) -> list[str]:
    """The imports that go up, modules in no layer, and a cycle."""
    problems = []
    base = root / "python"
    files = sorted((*(base / "nsn").rglob("*.py"), *(base / "nsn").rglob("*.pyi")))
    names = {
        file: ".".join(file.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
        for file in files
    }
    modules = set(names.values())
    graph: dict[str, set[str]] = {}
    for file, module in names.items():
        if module == "nsn":  # which imports all
            continue
        layer = python_layer(module)
        if layer is None:
            problems.append(f"{file.relative_to(root)}: is in no layer")
            continue
        for other in imports_of(file, modules):
            place = python_layer(other)
            if place is not None and place > layer:
                problems.append(f"{file.relative_to(root)}: imports {other}, which stands above it")
            if place is not None and other != module:
                graph.setdefault(module, set()).add(other)
    if circle := cycle_in(graph):
        problems.append(f"python/nsn: {' -> '.join(circle)} is a cycle")
    return problems


def main(root: Path) -> int:
    """Prints what is wrong; 1 where something is."""
    problems = [*check_cpp(root), *check_python(root)]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]))
