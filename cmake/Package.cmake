# What `cpack` packs of a build folder: packages for Debian and its relatives, and one archive that may be unpacked into
# any folder. packaging/README.md says how; packaging/cpack.cmake is read by cpack itself, once for each of the two.
#
# Debian has folders of its own, with those of several architectures side by side. So its packages have install rules of
# their own, by components that nothing else installs, and whatever CMAKE_INSTALL_PREFIX and CMAKE_INSTALL_LIBDIR say,
# any build folder can be packed.
set(CPACK_PACKAGE_NAME deviceloop)
set(CPACK_PACKAGE_VENDOR deviceloop)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_PACKAGE_FILE_NAME "deviceloop-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR}")
set(CPACK_STRIP_FILES YES)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ
                                                WORLD_EXECUTE)
set(CPACK_PROJECT_CONFIG_FILE "${PROJECT_SOURCE_DIR}/packaging/cpack.cmake")
set(CPACK_SOURCE_IGNORE_FILES "/\\\\.git/" "^${PROJECT_SOURCE_DIR}/build" "/__pycache__/")
set(CPACK_GENERATOR TGZ)

# Revision, maintainer and time are those of the newest entry of the Debian changelog, as in Debian's own packages.
set(changelog "${PROJECT_SOURCE_DIR}/packaging/deb/changelog")
set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${changelog}")
file(STRINGS "${changelog}" lines REGEX "^(deviceloop \\(| -- )")
list(GET lines 0 heading)
list(GET lines 1 signature)
if(NOT heading MATCHES "^deviceloop \\(([^)]+)-([^)-]+)\\) " OR NOT CMAKE_MATCH_1 STREQUAL PROJECT_VERSION)
  set(DEVICELOOP_NO_DEB "packaging/deb/changelog begins with '${heading}', but the version is ${PROJECT_VERSION}: add an entry for it")
endif()
set(revision "${CMAKE_MATCH_2}")
string(REGEX REPLACE "^ -- (.*>)  .*" "\\1" CPACK_PACKAGE_CONTACT "${signature}")

if(NOT CMAKE_LIBRARY_ARCHITECTURE)
  set(DEVICELOOP_NO_DEB "the compiler names no folder for the libraries of its architecture, as those of Debian do")
elseif(NOT deviceloop_has_shared OR NOT deviceloop_has_static OR NOT TARGET deviceloop_command)
  set(DEVICELOOP_NO_DEB "the Debian packages hold the shared library, the static one and the command: configure with DEVICELOOP_COMMAND=ON and without BUILD_SHARED_LIBS")
else()
  set(lib "lib/${CMAKE_LIBRARY_ARCHITECTURE}")
  deviceloop_install(debian bin "${lib}" include share/man /usr EXCLUDE_FROM_ALL)

  set(soname_version "${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}")
  set(package_runtime "libdeviceloop${soname_version}")
  set(package_development libdeviceloop-dev)
  set(package_command deviceloop)
  foreach(component IN ITEMS runtime development command)
    set(doc DESTINATION "share/doc/${package_${component}}" COMPONENT debian_${component} EXCLUDE_FROM_ALL)
    install(FILES packaging/copyright ${doc})
    install(FILES CHANGELOG.md ${doc} RENAME changelog)
    install(FILES packaging/deb/changelog ${doc} RENAME changelog.Debian)
  endforeach()
  install(FILES README.md DESTINATION share/doc/deviceloop COMPONENT debian_command EXCLUDE_FROM_ALL)

  find_program(DEVICELOOP_DPKG_DEB dpkg-deb)
  mark_as_advanced(DEVICELOOP_DPKG_DEB)
  if(DEVICELOOP_DPKG_DEB)
    list(APPEND CPACK_GENERATOR DEB)
  endif()

  # The first line of each is the summary.
  set(about "neural networks trained wholly on the device")
  set(detail "The host describes the network and the run, copies the data to the device
once, starts the training loop there, and reads the losses at the end. The
same description runs on the CPU, so that a GPU's results can be checked.
.")
  set(CPACK_COMPONENT_DEBIAN_RUNTIME_DESCRIPTION "${about} - shared library
${detail}
This package has the shared library.")
  set(CPACK_COMPONENT_DEBIAN_DEVELOPMENT_DESCRIPTION "${about} - development files
${detail}
This package has what programs are built with: the headers, the static
library, and the files for CMake and pkg-config.")
  set(CPACK_COMPONENT_DEBIAN_COMMAND_DESCRIPTION "${about} - command
${detail}
This package has the command, which trains on files, applies the weights to
new rows, and compares devices.")
  set(CPACK_DEBIAN_DEBIAN_RUNTIME_PACKAGE_SECTION libs)
  set(CPACK_DEBIAN_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
  set(CPACK_DEBIAN_DEBIAN_COMMAND_PACKAGE_SECTION science)
  foreach(component IN ITEMS runtime development command)
    string(TOUPPER "DEBIAN_${component}" name)
    set(CPACK_DEBIAN_${name}_PACKAGE_NAME "${package_${component}}")
    set(CPACK_DEBIAN_${name}_PACKAGE_SOURCE deviceloop)
  endforeach()
  set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
  set(CPACK_DEBIAN_PACKAGE_VERSION "${PROJECT_VERSION}")
  set(CPACK_DEBIAN_PACKAGE_RELEASE "${revision}")
  set(CPACK_DEBIAN_PACKAGE_MAINTAINER "${CPACK_PACKAGE_CONTACT}")
  set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION YES)
  set(CPACK_DEBIAN_COMPRESSION_TYPE gzip)  # quickly, since dpkg-deb packs them again: packaging/after_packing.cmake

  # What the binaries need is found by dpkg-shlibdeps. The packages of programs that are linked with the library get their
  # dependency from `shlibs`.
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS YES)
  set(control "${PROJECT_BINARY_DIR}/install/debian")
  file(WRITE "${control}/shlibs" "libdeviceloop ${soname_version} ${package_runtime} (>= ${PROJECT_VERSION})\n")
  file(WRITE "${control}/triggers" "activate-noawait ldconfig\n")
  set(CPACK_DEBIAN_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA "${control}/shlibs" "${control}/triggers")
  # The static library is linked with its BLAS.
  set(depends "${package_runtime} (= ${PROJECT_VERSION}-${revision})")
  if(deviceloop_blas_found STREQUAL openblas)
    string(APPEND depends ", libopenblas-dev")
  elseif(deviceloop_blas_found STREQUAL cblas)
    string(APPEND depends ", libblas-dev | libblas.so")
  endif()
  set(CPACK_DEBIAN_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "${depends}")

  set(suggests "")
  if(deviceloop_cuda)
    # The driver and cuBLASLt are loaded where there are any: by the names of Debian and of NVIDIA's packages. CUDA's
    # static runtime is in the shared library and the command; it is what the static library leaves to its user.
    set(toolkit "${CUDAToolkit_VERSION_MAJOR}-${CUDAToolkit_VERSION_MINOR}")
    set(suggests "libcuda1, libcublas-${toolkit} | libcublaslt${CUDAToolkit_VERSION_MAJOR}")
    set(CPACK_DEBIAN_DEBIAN_RUNTIME_PACKAGE_SUGGESTS "${suggests}")
    set(CPACK_DEBIAN_DEBIAN_DEVELOPMENT_PACKAGE_SUGGESTS "cuda-cudart-dev-${toolkit} | nvidia-cuda-toolkit")
    string(APPEND suggests ", ")
  endif()
  set(CPACK_DEBIAN_DEBIAN_COMMAND_PACKAGE_SUGGESTS "${suggests}gnuplot")
endif()
set(CPACK_DEVICELOOP_NO_DEB "${DEVICELOOP_NO_DEB}")
set(CPACK_DEVICELOOP_SOURCE "${PROJECT_SOURCE_DIR}")
set(CPACK_VERBATIM_VARIABLES YES)
include(CPack)
