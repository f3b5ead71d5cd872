# Installation of the C++ library: component `core` (and `development`, the link without a version).
# Inside a Python package the same files lie below the package's folder.
include(CMakePackageConfigHelpers)

# Debian's default would be lib/<architecture>; one layout for system and package is simpler to find.
set(NSN_LIBDIR lib)
set(NSN_CONFIGDIR ${NSN_LIBDIR}/cmake/nsn)

# An application finds torch by its own run path; inside a Python package torch lies beside nsn.
set_target_properties(nsn PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib")

install(TARGETS nsn EXPORT nsnTargets COMPONENT core
  LIBRARY DESTINATION ${NSN_LIBDIR} COMPONENT core NAMELINK_COMPONENT development)
install(DIRECTORY csrc/include/nsn DESTINATION include COMPONENT core
  FILES_MATCHING PATTERN "*.h")
install(FILES ${PROJECT_BINARY_DIR}/include/nsn/version.h DESTINATION include/nsn COMPONENT core)
install(EXPORT nsnTargets NAMESPACE nsn:: DESTINATION ${NSN_CONFIGDIR} COMPONENT core)

configure_package_config_file(cmake/nsnConfig.cmake.in nsnConfig.cmake
  INSTALL_DESTINATION ${NSN_CONFIGDIR})
write_basic_package_version_file(nsnConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/nsnConfig.cmake ${PROJECT_BINARY_DIR}/nsnConfigVersion.cmake
  DESTINATION ${NSN_CONFIGDIR} COMPONENT core)
