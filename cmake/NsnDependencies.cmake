# What the build needs from elsewhere. Torch comes from the Python environment unless
# CMAKE_PREFIX_PATH names another; the rest from the system, else from a pinned source.
include(FetchContent)

# Of Highway the headers alone: which level runs is nsn's choice (csrc/src/kernels/level.h).
find_path(NSN_HIGHWAY_INCLUDE hwy/foreach_target.h)
if(NOT NSN_HIGHWAY_INCLUDE)
  message(STATUS "nsn: Google Highway's headers are not found, and are fetched. Where they are there \
(Debian's libhwy-dev), name their folder: -DNSN_HIGHWAY_INCLUDE=DIR")
  FetchContent_Declare(highway
    GIT_REPOSITORY https://github.com/google/highway.git GIT_TAG 1.0.3 GIT_SHALLOW ON
    SOURCE_SUBDIR headers-only)
  FetchContent_MakeAvailable(highway)
  set(NSN_HIGHWAY_INCLUDE ${highway_SOURCE_DIR})
endif()

if(NSN_BUILD_TESTS)
  FetchContent_Declare(googletest
    GIT_REPOSITORY https://github.com/google/googletest.git GIT_TAG v1.12.1 GIT_SHALLOW ON
    FIND_PACKAGE_ARGS NAMES GTest)
  FetchContent_MakeAvailable(googletest)
endif()

find_package(Threads REQUIRED)

if(NSN_RUNTIME_ONLY)
  return()
endif()

find_package(Python COMPONENTS Interpreter QUIET)
if(Python_FOUND)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path)"
    OUTPUT_VARIABLE NSN_TORCH_HINT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_package(Torch REQUIRED HINTS ${NSN_TORCH_HINT})
# Debian's clang comes without OpenMP; what nsn would spread over threads then runs on one.
find_package(OpenMP COMPONENTS CXX)
if(NOT OpenMP_CXX_FOUND)
  message(WARNING "nsn: ${CMAKE_CXX_COMPILER} has no OpenMP; nsn's own passes will run on one thread.")
endif()

FetchContent_Declare(nlohmann_json
  GIT_REPOSITORY https://github.com/nlohmann/json.git GIT_TAG v3.11.2 GIT_SHALLOW ON
  FIND_PACKAGE_ARGS 3.10)
FetchContent_MakeAvailable(nlohmann_json)
