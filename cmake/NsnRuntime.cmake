# The runtime: what runs sub-networks of a file without LibTorch. A library of its own, component
# `runtime` of the installation and of find_package.
include(CMakePackageConfigHelpers)
include(NsnLayout)

# WebAssembly has all in one module; elsewhere who builds says whether, as always.
set(kind SHARED)
if(EMSCRIPTEN OR (NSN_RUNTIME_ONLY AND DEFINED BUILD_SHARED_LIBS AND NOT BUILD_SHARED_LIBS))
  set(kind STATIC)
endif()
add_library(nsn_runtime ${kind} $<TARGET_OBJECTS:nsn_without_torch> csrc/src/runtime/c.cpp)
add_library(nsn::runtime ALIAS nsn_runtime)
nsn_target(nsn_runtime)
target_include_directories(nsn_runtime
  PUBLIC
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include>
  $<BUILD_INTERFACE:${CMAKE_CURRENT_BINARY_DIR}/include>
  $<INSTALL_INTERFACE:include>
  PRIVATE csrc/src)
target_link_libraries(nsn_runtime PRIVATE Threads::Threads)
set_target_properties(nsn_runtime PROPERTIES
  VERSION ${nsn_soversion} SOVERSION ${nsn_soversion} EXPORT_NAME runtime)
# Constants share pages with the code: filling up pages would be 12 KB.
if(kind STREQUAL SHARED)
  target_link_options(nsn_runtime PRIVATE -Wl,--gc-sections -Wl,-z,noseparate-code)
endif()

if(EMSCRIPTEN)
  # What links it needs exceptions too, and more than the 64 KB of stack that newer versions give.
  target_compile_options(nsn_runtime INTERFACE -fexceptions)
  target_link_options(nsn_runtime INTERFACE -fexceptions -sTOTAL_STACK=512KB)
endif()

add_executable(nsn-run csrc/run/main.cpp csrc/run/npy.cpp)
nsn_target(nsn-run)
target_link_libraries(nsn-run PRIVATE nsn_runtime)
if(EMSCRIPTEN)
  # For node.
  target_link_options(nsn-run PRIVATE -sALLOW_MEMORY_GROWTH -sNODERAWFS -sEXIT_RUNTIME)
endif()
set_target_properties(nsn-run PROPERTIES INSTALL_RPATH "$ORIGIN/../${NSN_LIBDIR}")
install(TARGETS nsn-run COMPONENT runtime)

install(TARGETS nsn_runtime EXPORT nsnRuntimeTargets COMPONENT runtime
  LIBRARY DESTINATION ${NSN_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT development
  ARCHIVE DESTINATION ${NSN_LIBDIR} COMPONENT runtime)
install(FILES csrc/include/nsn_runtime.h DESTINATION include COMPONENT runtime)
install(DIRECTORY csrc/include/nsn/runtime DESTINATION include/nsn COMPONENT runtime)
install(FILES csrc/include/nsn/visibility.h
  DESTINATION include/nsn COMPONENT runtime)
install(EXPORT nsnRuntimeTargets NAMESPACE nsn:: DESTINATION ${NSN_CONFIGDIR} COMPONENT runtime)

# The package's own files, which both components bring.
configure_package_config_file(cmake/nsnConfig.cmake.in nsnConfig.cmake
  INSTALL_DESTINATION ${NSN_CONFIGDIR})
write_basic_package_version_file(nsnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
foreach(component core runtime)
  install(FILES ${PROJECT_BINARY_DIR}/nsnConfig.cmake ${PROJECT_BINARY_DIR}/nsnConfigVersion.cmake
    DESTINATION ${NSN_CONFIGDIR} COMPONENT ${component})
endforeach()

if(NSN_RUNTIME_ONLY AND NSN_BUILD_TESTS)
  enable_testing()
  add_subdirectory(tests/runtime)
endif()
if(EMSCRIPTEN)
  add_subdirectory(examples/web)
endif()
