"""Does as README.md tells an application to, in an empty folder, and runs what comes out.

The CMakeLists.txt and the commands are README's own text. `--build FOLDER` installs the library that
was built there first, and uses it as README's second list of commands does; without it, the first
list's one inside the Python package is used.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def blocks(language: str) -> list[str]:
    """The blocks of code of README's part about C++."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index("\n## From C++") : text.index("\n## From Python")]
    return re.findall(rf"```{language}\n(.*?)```", part, re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--sanitize", default="")
    options = parser.parse_args()

    # `python` and `cmake` as in an activated environment; outside the checkout, so that the
    # installed package answers.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CXX": options.compiler}
    if options.sanitize:
        environment["CXXFLAGS"] = f"-fsanitize={options.sanitize}"
    shutil.rmtree(options.work, ignore_errors=True)
    prefix = options.work / "prefix"
    if options.build:
        for component in ("core", "development"):
            install = ["cmake", "--install", options.build, "--component", component]
            subprocess.run([*install, "--prefix", prefix], check=True)

    (lists,) = blocks("cmake")
    in_package, installed = blocks("sh")
    # Of the second list the application's own commands; the library is built already.
    commands = installed.partition("# in the application\n")[2] if options.build else in_package
    assert "cmake --build" in commands and ("DIR" in commands) == bool(options.build), commands
    programs = {
        ROOT / "tests/consumer/consumer.cpp": [options.work / "small.safetensors"],
        ROOT / "examples/cpp/train_mnist.cpp": [
            *(options.data, "1", "1", "20"),
            options.work / "mnist.safetensors",
        ],
    }
    for source, arguments in programs.items():
        folder = options.work / source.stem
        folder.mkdir(parents=True)
        (folder / "CMakeLists.txt").write_text(lists, encoding="utf-8")
        shutil.copy(source, folder / "main.cpp")
        script = commands.replace("DIR", str(prefix))
        subprocess.run(
            ["sh", "-ex"], input=script, text=True, cwd=folder, env=environment, check=True
        )
        subprocess.run([folder / "build/application", *arguments], env=environment, check=True)


main()
