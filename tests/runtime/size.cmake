# Fails where the stripped LIBRARY has 400 KB or more.
execute_process(COMMAND ${STRIP} -o ${TO} ${LIBRARY} COMMAND_ERROR_IS_FATAL ANY)
file(SIZE ${TO} bytes)
message(STATUS "${bytes} bytes")
if(bytes GREATER_EQUAL 400000)
  message(FATAL_ERROR "the stripped library has ${bytes} bytes, and must have less than 400000")
endif()
