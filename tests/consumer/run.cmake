# Configures, builds and runs the outside project. Variables: SOURCE, WORK, PYTHON, EXAMPLE, DATA, and
# either BUILD, whose installation it makes and uses, or none, for the one inside the Python package.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
if(BUILD)
  set(prefix ${WORK}/prefix)
  run(${CMAKE_COMMAND} --install ${BUILD} --component core --prefix ${prefix})
  run(${CMAKE_COMMAND} --install ${BUILD} --component development --prefix ${prefix})
else()
  # Outside the checkout, so that the installed package answers.
  execute_process(COMMAND ${PYTHON} -c "import nsn; print(nsn.cmake_prefix_path)"
    WORKING_DIRECTORY ${WORK} OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE
    COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND ${PYTHON} -c "import torch; print(torch.utils.cmake_prefix_path)"
  OUTPUT_VARIABLE torch OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

run(${CMAKE_COMMAND} -S ${SOURCE} -B ${WORK}/build -G Ninja -DCMAKE_BUILD_TYPE=Release
  "-DCMAKE_PREFIX_PATH=${prefix}\;${torch}" -DEXAMPLE=${EXAMPLE})
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer ${WORK}/small.safetensors)
run(${WORK}/build/train_mnist ${DATA} 1 1 20 ${WORK}/mnist.safetensors)
