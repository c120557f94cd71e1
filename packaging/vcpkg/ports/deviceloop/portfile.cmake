# An overlay port: it builds the checkout that DEVICELOOP_SOURCE names, since there is no release whose archive could be
# downloaded and checked by its hash. packaging/README.md says how to use it.
if(NOT EXISTS "$ENV{DEVICELOOP_SOURCE}/include/deviceloop/version.h")
  message(FATAL_ERROR "DEVICELOOP_SOURCE is '$ENV{DEVICELOOP_SOURCE}': set it to a checkout of deviceloop")
endif()
file(STRINGS "$ENV{DEVICELOOP_SOURCE}/include/deviceloop/version.h" line REGEX "define DEVICELOOP_VERSION \"")
if(NOT line MATCHES "\"${VERSION}\"")
  message(FATAL_ERROR "the port is of version ${VERSION}, and $ENV{DEVICELOOP_SOURCE} says '${line}'")
endif()
set(SOURCE_PATH "$ENV{DEVICELOOP_SOURCE}")

vcpkg_check_features(OUT_FEATURE_OPTIONS features FEATURES command DEVICELOOP_COMMAND cuda DEVICELOOP_CUDA)
if("openblas" IN_LIST FEATURES)
  list(APPEND features -DDEVICELOOP_BLAS=OPENBLAS)
else()
  list(APPEND features -DDEVICELOOP_BLAS=OWN)
endif()

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS ${features} -DDEVICELOOP_TESTS=OFF -DDEVICELOOP_BENCH=OFF -DDEVICELOOP_EXAMPLES=OFF)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH lib/cmake/deviceloop)
vcpkg_fixup_pkgconfig()
if("command" IN_LIST FEATURES)
  vcpkg_copy_tools(TOOL_NAMES deviceloop AUTO_CLEAN)
endif()
file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/debug/include" "${CURRENT_PACKAGES_DIR}/debug/share"
     "${CURRENT_PACKAGES_DIR}/share/doc" "${CURRENT_PACKAGES_DIR}/share/man")
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE" "${SOURCE_PATH}/packaging/copyright")
