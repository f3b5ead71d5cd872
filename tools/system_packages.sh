#!/bin/sh
# Installs the Debian packages that the build, the tests and the recipes' data need and that are
# missing, where it may; otherwise names them and stops. Arguments: the Python interpreter, and packages
# that are needed beside these.
set -eu
python=$1
shift

missing=""
for package in libgtest-dev nlohmann-json3-dev libhwy-dev valgrind clang libclang-rt-14-dev \
    dataset-fashion-mnist "$@"; do
  if ! dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
    missing="$missing $package"
  fi
done
# Debian splits off what other distributions' Python brings along.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  missing="$missing python3-venv"
fi
if ! "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
  missing="$missing python3-dev"
fi
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
  sudo=""
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
  sudo="sudo"
else
  echo "nsn: these Debian packages are missing:$missing" >&2
  echo "nsn: install them and run make again: sudo apt-get install$missing" >&2
  exit 1
fi
echo "nsn: installing the missing Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086 # a list of names
$sudo apt-get install -y -qq $missing >/dev/null
