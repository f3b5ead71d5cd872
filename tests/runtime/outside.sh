#!/bin/sh
# Installs the runtime of a build, and builds and runs a project in C outside of it, which finds it by
# find_package and knows neither torch nor C++. Arguments: the build's folder, and one to work in.
set -eux
rm -rf "$2" && mkdir -p "$2/project"
build=$(cd "$1" && pwd)
cmake --install "$build" --component runtime --prefix "$2/prefix"
cmake --install "$build" --component development --prefix "$2/prefix"
cp "$(dirname "$0")/c_interface.c" "$2/project/main.c"
cat > "$2/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(application LANGUAGES C)
find_package(nsn REQUIRED COMPONENTS runtime)
add_executable(application main.c)
target_link_libraries(application PRIVATE nsn::runtime)
END
cmake -S "$2/project" -B "$2/project/build" -G Ninja -DCMAKE_PREFIX_PATH="$(cd "$2/prefix" && pwd)"
cmake --build "$2/project/build"
"$build/tests/runtime/nsn_write_sample" "$2/sample.nsnrt"
"$2/project/build/application" "$2/sample.nsnrt"
