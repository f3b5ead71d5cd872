"""The machine code of the kernels: what their hot loops are made of, at each level of vectors.

Unlike times, instructions are the same on a busy machine. Three faults would have been found here:
sums of products that lay on the stack, passes over masks without vectors, and products of training
that went to a slower route at one of the levels. Each has a test below that shows it.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import nsn

LIBRARY = next((Path(nsn.__file__).parent / "lib").glob("libnsn.so*"))
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="levels are x86-64's")


@dataclass
class Level:
    """What the code of a level looks like."""

    namespace: str
    register: str
    multiply_add: str
    #: Sums that the largest tiles of a product keep in registers, and how many such tiles: of
    #: packed weights, of images and of matrices; those of two panels are not of matrices.
    largest: dict[int, int]
    #: A tile for each number of rows.
    tiles: int


LEVELS = {
    "v2": Level("N_SSE4", "xmm", "mulps", {8: 3}, 12),
    "v3": Level("N_AVX2", "ymm", "vfmadd...ps", {12: 3}, 18),
    "v4": Level("N_AVX3", "zmm", "vfmadd...ps", {16: 3, 24: 2}, 26),
}


@dataclass
class Instruction:
    address: int
    name: str
    operands: str

    def is_packed_multiply(self, level: Level) -> bool:
        return bool(re.fullmatch(level.multiply_add, self.name)) and (
            f"%{level.register}" in self.operands
        )

    def is_scalar_float(self) -> bool:
        """Arithmetic on one float; a move or a conversion is none."""
        return bool(re.fullmatch(r"v?(mul|add|sub|div|fn?m(add|sub)\d+)s[sd]", self.name))

    def spills(self) -> bool:
        """Puts a vector on the stack. (Reading a constant from there costs nothing much.)"""
        return bool(re.search(r"%[xyz]mm\d+,.*\(%rsp.*\)$", self.operands))


Code = dict[str, list[Instruction]]


def disassemble(path: Path) -> Code:
    """Function (demangled) to its instructions."""
    command = ["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", str(path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code: Code = {}
    instructions: list[Instruction] = []
    for line in output.splitlines():
        if match := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            # Parts that the compiler split off have the same name.
            instructions = code.setdefault(match[1], [])
        elif match := re.match(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)$", line):
            instructions.append(Instruction(int(match[1], 16), match[2], match[3]))
    return code


def inner_loops(instructions: list[Instruction]) -> Iterator[list[Instruction]]:
    """The loops that have no other loop inside."""
    places = {each.address: place for place, each in enumerate(instructions)}
    spans = []
    for place, each in enumerate(instructions):
        target = re.match(r"([0-9a-f]+)\b", each.operands) if each.name.startswith("j") else None
        begin = places.get(int(target[1], 16)) if target else None
        if begin is not None and begin <= place:
            spans.append((begin, place))
    for begin, end in spans:
        inside = (s for s in spans if s != (begin, end) and s[0] >= begin and s[1] <= end)
        if not any(inside):
            yield instructions[begin : end + 1]


def hot_loops(code: Code, level: Level) -> list[list[Instruction]]:
    """The inner loops of a level's products."""
    loops = []
    for name, instructions in code.items():
        if level.namespace not in name or not re.search(
            "multiply_rows|multiply_pair|multiply_narrow|run_matrix|tile", name
        ):
            continue
        for loop in inner_loops(instructions):
            # The epilogue multiplies too, but does other things more often.
            multiplies = sum(each.is_packed_multiply(level) for each in loop)
            if multiplies >= 8 and len(loop) < 5 * multiplies:
                loops.append(loop)
    return loops


def spills(loops: list[list[Instruction]]) -> int:
    return sum(each.spills() for loop in loops for each in loop)


@pytest.fixture(scope="module")
def code() -> Code:
    return disassemble(LIBRARY)


def check_products(code: Code, level: Level, tiles: int, largest: dict[int, int]) -> None:
    """So many tiles do little but multiply and add; `largest`: how many have so many sums."""
    loops = hot_loops(code, level)
    sums = [sum(each.is_packed_multiply(level) for each in loop) for loop in loops]
    assert len(sums) >= tiles, sums
    assert all(sums.count(size) >= count for size, count in largest.items()), sums
    assert spills(loops) == 0
    assert not any(each.is_scalar_float() for loop in loops for each in loop)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_sums_of_products_stay_in_registers(code: Code, level: Level) -> None:
    check_products(code, level, tiles=level.tiles, largest=level.largest)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("kernel", ["forward", "apply"])
@pytest.mark.parametrize(("dtype", "suffix"), [("float", "ps"), ("double", "pd")])
def test_masks_are_made_by_vectors(
    code: Code, level: Level, kernel: str, dtype: str, suffix: str
) -> None:
    instructions = [
        each
        for name, body in code.items()
        if f"{level.namespace}::" in name and f"{kernel}_{dtype}" in name
        for each in body
    ]
    multiplies = [
        each
        for each in instructions
        if re.fullmatch(f"v?mul{suffix}", each.name) and f"%{level.register}" in each.operands
    ]
    # One for each choice of bias, ReLU and dropout at least.
    assert len(multiplies) >= (8 if kernel == "forward" else 1)
    assert not any(each.is_scalar_float() for each in instructions)


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize(
    "kernel",
    [
        "gelu_float",
        "norm_sums",
        "norm_apply",
        "softmax_row",
        "scale_rows",
        "apply_function",
        "grouped_convolution",
        "transposed_convolution",
    ],
)
def test_rows_are_passed_by_vectors(code: Code, level: Level, kernel: str) -> None:
    loops = [
        loop
        for name, body in code.items()
        if f"{level.namespace}::" in name and kernel in name
        for loop in inner_loops(body)
    ]
    packed = [loop for loop in loops if any(each.is_packed_multiply(level) for each in loop)]
    assert packed
    assert spills(packed) == 0
    assert not any(each.is_scalar_float() for loop in packed for each in loop)


@pytest.mark.parametrize("level", nsn.cpu_levels())
def test_products_of_training_take_the_route_of_their_level(level: str) -> None:
    program = (
        "import torch, nsn\n"
        "c, a, b = torch.empty(128, 784), torch.rand(128, 784), torch.rand(784, 784)\n"
        "print(nsn.cpu_level(), nsn._C.product_route(c, a, b.t(), False),\n"
        "      nsn._C.product_route(b, c.t(), a, False), nsn._C.product_route(c, a, b, True))"
    )
    environment = {**os.environ, "NSN_CPU_LEVEL": level}
    command = [sys.executable, "-c", program]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    route = "torch" if level in ("v2", "baseline") else "panels"
    assert output.stdout.split() == [level, route, route, route]


# The faults themselves, compiled here.


def compiled(source: str, folder: Path, *options: str) -> Code:
    path = folder / "kernel.cpp"
    path.write_text(source)
    command = ["g++", "-std=c++20", "-c", *options, str(path), "-o", str(folder / "kernel.o")]
    subprocess.run(command, check=True)
    return disassemble(folder / "kernel.o")


@pytest.mark.parametrize(("bytes", "rows", "is_found"), [(32, 6, False), (64, 8, True)])
def test_vectors_wider_than_the_registers_are_found(
    bytes: int, rows: int, is_found: bool, tmp_path: Path
) -> None:
    source = f"""
    namespace N_AVX2 {{
    using V = float __attribute__((vector_size({bytes}), aligned(4)));
    void tile(const float* const* rows, const float* w, long in, float* y) {{
      V sum[{rows}][2] = {{}};
      for (long k = 0; k < in; ++k, w += {bytes // 2}) {{
        const V *v = (const V*)w;
    #pragma GCC unroll 8
        for (int r = 0; r < {rows}; ++r) {{
          sum[r][0] += rows[r][k] * v[0];
          sum[r][1] += rows[r][k] * v[1];
        }}
      }}
    #pragma GCC unroll 8
      for (int r = 0; r < {rows}; ++r) {{
        ((V*)y)[2 * r] = sum[r][0];
        ((V*)y)[2 * r + 1] = sum[r][1];
      }}
    }}
    }}
    """
    code = compiled(source, tmp_path, "-O3", "-march=x86-64-v3")
    if not is_found:
        check_products(code, LEVELS["v3"], tiles=1, largest={12: 1})
        return
    with pytest.raises(AssertionError):
        check_products(code, LEVELS["v3"], tiles=1, largest={})


def test_scalar_passes_are_found(tmp_path: Path) -> None:
    source = """
    namespace N_AVX2 {
    void forward_float(const float* x, const float* bias, float* y, unsigned long* mask, long n) {
      for (long word = 0; word < n; ++word) {
        unsigned long bits = 0;
        for (int j = 0; j < 64; ++j) {
          const float z = x[64 * word + j] + bias[j];
          const bool keep = !(z <= 0);
          bits |= (unsigned long)keep << j;
          y[64 * word + j] = keep ? z * 2 : 0;
        }
        mask[word] = bits;
      }
    }
    }
    """
    code = compiled(source, tmp_path, "-O2", "-fno-tree-vectorize", "-march=x86-64-v3")
    with pytest.raises(AssertionError):
        test_masks_are_made_by_vectors(code, LEVELS["v3"], "forward", "float", "ps")
