# Where an installation has what.
# Debian's default would be lib/<architecture>; one layout for system and package is simpler to find.
set(NSN_LIBDIR lib)
set(NSN_CONFIGDIR ${NSN_LIBDIR}/cmake/nsn)
# Before 1.0 each minor version may change the binary interface.
set(nsn_soversion ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
