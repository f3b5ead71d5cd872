# Installation of the C++ library: component `core` (and `development`, the link without a version).
# Inside a Python package the same files lie below the package's folder.
include(NsnLayout)

# An application finds torch by its own run path; inside a Python package torch lies beside nsn.
set_target_properties(nsn PROPERTIES INSTALL_RPATH "$ORIGIN;$ORIGIN/../../torch/lib")

install(TARGETS nsn EXPORT nsnTargets COMPONENT core
  LIBRARY DESTINATION ${NSN_LIBDIR} COMPONENT core NAMELINK_COMPONENT development)
install(DIRECTORY csrc/include/nsn DESTINATION include COMPONENT core
  FILES_MATCHING PATTERN "*.h")
install(FILES ${PROJECT_BINARY_DIR}/include/nsn/version.h DESTINATION include/nsn COMPONENT core)
install(EXPORT nsnTargets NAMESPACE nsn:: DESTINATION ${NSN_CONFIGDIR} COMPONENT core)
