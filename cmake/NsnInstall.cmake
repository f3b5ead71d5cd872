# Installation of the C++ library: component `core`. Inside a Python package the same files lie below
# the package's folder, and torch is found beside it.
include(CMakePackageConfigHelpers)

# Debian's default would be lib/<architecture>; one layout for system and package is simpler to find.
set(NSN_LIBDIR lib)
set(NSN_CONFIGDIR ${NSN_LIBDIR}/cmake/nsn)

if(NSN_IN_WHEEL)
  set_target_properties(nsn PROPERTIES INSTALL_RPATH "$ORIGIN/../../torch/lib")
  # A wheel holds no symbolic links: one file under one name.
  set_target_properties(nsn PROPERTIES VERSION "" SOVERSION "")
else()
  set_target_properties(nsn PROPERTIES
    INSTALL_RPATH "$ORIGIN" INSTALL_RPATH_USE_LINK_PATH ON)
endif()

install(TARGETS nsn EXPORT nsnTargets COMPONENT core
  LIBRARY DESTINATION ${NSN_LIBDIR} COMPONENT core NAMELINK_COMPONENT core)
install(DIRECTORY csrc/include/nsn DESTINATION include COMPONENT core
  FILES_MATCHING PATTERN "*.h")
install(FILES ${PROJECT_BINARY_DIR}/include/nsn/version.h DESTINATION include/nsn COMPONENT core)
install(EXPORT nsnTargets NAMESPACE nsn:: DESTINATION ${NSN_CONFIGDIR} COMPONENT core)

configure_package_config_file(cmake/nsnConfig.cmake.in nsnConfig.cmake
  INSTALL_DESTINATION ${NSN_CONFIGDIR})
write_basic_package_version_file(nsnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/nsnConfig.cmake ${PROJECT_BINARY_DIR}/nsnConfigVersion.cmake
  DESTINATION ${NSN_CONFIGDIR} COMPONENT core)
