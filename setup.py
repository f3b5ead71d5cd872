"""The package's build: the same CMake as the C++ library's, installed into the package's folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
# Shared with the Makefile, so that a checkout is compiled once.
BUILD = Path(os.environ.get("NSN_BUILD_DIR", ROOT / "build"))
TARGETS = ("nsn", "nsn_runtime", "nsn-run", "_C")


class CMakeBuild(build_ext):
    """Builds the extension module and the library, and installs both below nsn/."""

    def run(self) -> None:
        package = Path(self.build_lib).resolve() / "nsn"
        if self.editable_mode:
            raise SystemExit("nsn has no editable install. Use: pip install --no-build-isolation .")
        options = ["-DNSN_BUILD_PYTHON=ON", f"-DPython_EXECUTABLE={sys.executable}"]
        configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *options]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(BUILD), "--target", *TARGETS], check=True)
        for component in ("core", "runtime", "python"):
            install = ["cmake", "--install", str(BUILD), "--component", component]
            subprocess.run([*install, "--prefix", str(package)], check=True)


version = re.search(r"project\(nsn VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text())
assert version is not None
setup(
    version=version[1],
    ext_modules=[Extension("nsn._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
