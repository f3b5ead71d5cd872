"""The products' machine code on 64-bit ARM: python arm_code.py OBJDUMP OBJECT...

What tests/python/test_kernel_code.py is for x86-64: each number of rows has loops of multiply-adds
on vectors, and none of them keeps a sum on the stack.
"""

import re
import subprocess
import sys

#: Multiply-adds of the tiles of one row (with several sums) and two to five.
TILES = {8, 12, 16, 20}


def inner_loops(text: str) -> list[list[str]]:
    """The loops of what objdump prints that have no other loop inside."""
    loops = []
    for function in text.split("\n\n"):
        lines = re.findall(r"^ +([0-9a-f]+):\t(.*)$", function, re.MULTILINE)
        places = {address: place for place, (address, _) in enumerate(lines)}
        spans = []
        for end, (_, code) in enumerate(lines):
            target = re.match(r"(?:b|cb|tb)\S*\t.*?([0-9a-f]+) <", code)
            begin = places.get(target[1]) if target else None
            if begin is not None and begin <= end:
                spans.append((begin, end))
        for begin, end in spans:
            if not any(s != (begin, end) and s[0] >= begin and s[1] <= end for s in spans):
                loops.append([code for _, code in lines[begin : end + 1]])
    return loops


def check(objdump: str, path: str) -> None:
    command = [objdump, "--disassemble", "--no-show-raw-insn", path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = set()
    for loop in inner_loops(text):
        multiplies = sum(bool(re.match(r"fmla\tv\d+\.4s", code)) for code in loop)
        # The epilogue multiplies too, but does other things more often.
        if multiplies < 4 or len(loop) >= 5 * multiplies:
            continue
        found.add(multiplies)
        for code in loop:
            assert not re.match(r"st\S+\tq.*\[sp", code), f"{path}: on the stack: {code}"
            assert not re.match(r"f(mul|n?m(add|sub)|add)\ts", code), f"{path}: one float: {code}"
    assert found >= TILES, f"{path}: loops of {sorted(found)} multiply-adds, not {sorted(TILES)}"


for each in sys.argv[2:]:
    check(sys.argv[1], each)
