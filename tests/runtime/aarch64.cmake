# Tests of 64-bit ARM alone, built for it by cmake/aarch64.cmake or on it.

# There is one level, whatever x86-64's are called.
add_test(NAME runtime.level.unknown COMMAND nsn_runtime_tests --gtest_filter=Session.SaysWhatIsWrong)
set_tests_properties(runtime.level.unknown PROPERTIES ENVIRONMENT NSN_CPU_LEVEL=v3
  PASS_REGULAR_EXPRESSION "must name a level that this processor has \\(baseline\\), but is 'v3'")

find_package(Python3 REQUIRED COMPONENTS Interpreter)
set(products ${PROJECT_SOURCE_DIR}/csrc/src/kernels/panel_tiles.cpp
  ${PROJECT_SOURCE_DIR}/csrc/src/kernels/matrix_product.cpp)
set(objects $<TARGET_OBJECTS:nsn_without_torch>)
add_test(NAME runtime.code COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/arm_code.py
  ${CMAKE_OBJDUMP} "$<FILTER:${objects},INCLUDE,panel_tiles.cpp|matrix_product.cpp>" COMMAND_EXPAND_LISTS)
if(NOT CMAKE_BUILD_TYPE STREQUAL Release)
  set_tests_properties(runtime.code PROPERTIES DISABLED TRUE)
endif()

# Processors that have SVE too, which whoever compiles for them gets by default.
add_test(NAME runtime.sve COMMAND ${CMAKE_CXX_COMPILER} -std=c++20 -march=armv8.2-a+sve -fsyntax-only
  -I${PROJECT_SOURCE_DIR}/csrc/src -isystem ${NSN_HIGHWAY_INCLUDE} ${products})

# A build of another machine, whose files and outputs have to be the same here.
set(NSN_ELSEWHERE "" CACHE PATH "A build of the runtime's tests that this machine can run")
if(NSN_ELSEWHERE)
  add_test(NAME runtime.written_elsewhere
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/written_elsewhere.sh ${NSN_ELSEWHERE}
      ${CMAKE_CURRENT_BINARY_DIR}/elsewhere ${CMAKE_CROSSCOMPILING_EMULATOR} $<TARGET_FILE:nsn-run>)
endif()
