#!/bin/sh
# Installs the runtime of a build, and builds and runs a project in C outside of it, which finds it by
# find_package and knows no torch. Arguments: the build's folder, one to work in, a runtime file with
# sample.cpp's networks, and the build's toolchain file where it has one.
set -eux
rm -rf "$2" && mkdir -p "$2/project"
build=$(cd "$1" && pwd)
sample=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
cmake --install "$build" --component runtime --prefix "$2/prefix"
cmake --install "$build" --component development --prefix "$2/prefix"
cp "$(dirname "$0")/c_interface.c" "$2/project/main.c"
cat > "$2/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.25)
project(application LANGUAGES C ${ALSO})
find_package(nsn REQUIRED COMPONENTS runtime)
add_executable(application main.c)
target_link_libraries(application PRIVATE nsn::runtime)
enable_testing()
add_test(NAME application COMMAND application ${SAMPLE})
END
prefix=$(cd "$2/prefix" && pwd)
# A shared library asks for nothing else; what links a static one has to know C++.
also=
if [ -e "$prefix"/lib*/libnsn_runtime.a ]; then also=CXX; fi
cmake -S "$2/project" -B "$2/project/build" -G Ninja ${4:+"-DCMAKE_TOOLCHAIN_FILE=$4"} \
  -DCMAKE_PREFIX_PATH="$prefix" -DSAMPLE="$sample" -DALSO=$also
cmake --build "$2/project/build"
ctest --test-dir "$2/project/build" --output-on-failure --no-tests=error
# The default component, which needs torch, is not there: the message says so.
sed -i 's/ COMPONENTS runtime//' "$2/project/CMakeLists.txt"
if cmake -S "$2/project" -B "$2/project/core" -G Ninja ${4:+"-DCMAKE_TOOLCHAIN_FILE=$4"} \
  -DCMAKE_PREFIX_PATH="$prefix" 2> "$2/refused"; then
  exit 1
fi
tr -s ' \n' ' ' < "$2/refused" | grep -q "has no component 'core' (the default is core); it has: runtime"
