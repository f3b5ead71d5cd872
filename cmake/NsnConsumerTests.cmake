# tests/consumer, an outside project, against the installed library and against the one inside the
# installed Python package. Both need the MNIST files unpacked in build/data/mnist, as `make test` does.
foreach(kind installed python_package)
  set(build "")
  if(kind STREQUAL installed)
    set(build --build ${PROJECT_BINARY_DIR})
  endif()
  add_test(NAME consumer.${kind}
    COMMAND ${Python_EXECUTABLE} ${PROJECT_SOURCE_DIR}/tests/consumer/run.py
      --work ${PROJECT_BINARY_DIR}/consumer/${kind}
      --data ${PROJECT_BINARY_DIR}/data/mnist
      --compiler ${CMAKE_CXX_COMPILER}
      "--sanitize=${NSN_SANITIZE}"
      ${build})
  set_tests_properties(consumer.${kind} PROPERTIES LABELS consumer TIMEOUT 600)
endforeach()
