# Programs on the library that include all of LibTorch: tests, examples, benchmarks. They share one
# precompiled header, and are optimized little, since what takes time in them is the library.
function(nsn_program target)
  nsn_target(${target})
  # -fPIC for programs too, so that modules and they can share the header.
  target_compile_options(${target} PRIVATE -O1 -fPIC)
  # OpenMP, as in the library: at::parallel_for would be serial without it.
  target_link_libraries(${target} PRIVATE nsn::nsn $<TARGET_NAME_IF_EXISTS:OpenMP::OpenMP_CXX>)
  if(NOT TARGET nsn_program_headers)
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/nsn_program_headers.cpp CONTENT "")
    add_library(nsn_program_headers OBJECT EXCLUDE_FROM_ALL
      ${CMAKE_BINARY_DIR}/nsn_program_headers.cpp)
    nsn_program(nsn_program_headers)
    target_precompile_headers(nsn_program_headers PRIVATE <torch/nn/module.h> <torch/types.h>)
  endif()
  if(NOT target STREQUAL nsn_program_headers)
    target_precompile_headers(${target} REUSE_FROM nsn_program_headers)
  endif()
endfunction()
