# tests/consumer, an outside project, against the installed library and against the one inside the
# installed Python package. Both need the MNIST files unpacked in build/data/mnist, as `make test` does.
foreach(kind installed python_package)
  set(build "")
  if(kind STREQUAL installed)
    set(build -DBUILD=${PROJECT_BINARY_DIR})
  endif()
  add_test(NAME consumer.${kind}
    COMMAND ${CMAKE_COMMAND}
      -DSOURCE=${PROJECT_SOURCE_DIR}/tests/consumer
      -DWORK=${PROJECT_BINARY_DIR}/consumer/${kind}
      -DEXAMPLE=${PROJECT_SOURCE_DIR}/examples/cpp/train_mnist.cpp
      -DDATA=${PROJECT_BINARY_DIR}/data/mnist
      -DPYTHON=${Python_EXECUTABLE}
      ${build}
      -P ${PROJECT_SOURCE_DIR}/tests/consumer/run.cmake)
  set_tests_properties(consumer.${kind} PROPERTIES LABELS consumer TIMEOUT 600)
endforeach()
