# What `cmake --install` puts where: headers, libraries, the command, and what CMake and pkg-config need to find them. A
# moved prefix keeps working: nothing here holds an absolute path, but where the static library's BLAS was found, which
# is looked for again where it is not there, and in deviceloop.pc the folders of CUDA's runtime and of a static OpenBLAS.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(deviceloop_cmake_folder "${CMAKE_INSTALL_LIBDIR}/cmake/deviceloop")

install(DIRECTORY include/deviceloop DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/doc/deviceloop")
if(TARGET deviceloop_command)
  install(TARGETS deviceloop_command RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

# Both kinds are deviceloop::deviceloop to a consumer; deviceloopConfig.cmake takes one of the two files.
set(deviceloop_has_shared NO)
set(deviceloop_has_static NO)
foreach(target IN ITEMS deviceloop deviceloop_static)
  if(NOT TARGET ${target})
    continue()
  endif()
  get_target_property(type ${target} TYPE)
  if(type STREQUAL SHARED_LIBRARY)
    set(kind shared)
  else()
    set(kind static)
  endif()
  set(deviceloop_has_${kind} YES)
  set_target_properties(${target} PROPERTIES EXPORT_NAME deviceloop)
  install(TARGETS ${target} EXPORT deviceloop-${kind}
          LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
          ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
          INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT deviceloop-${kind} NAMESPACE deviceloop:: DESTINATION "${deviceloop_cmake_folder}")
endforeach()

configure_package_config_file(cmake/deviceloopConfig.cmake.in
                              "${PROJECT_BINARY_DIR}/install/deviceloopConfig.cmake"
                              INSTALL_DESTINATION "${deviceloop_cmake_folder}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/install/deviceloopConfigVersion.cmake"
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/install/deviceloopConfig.cmake"
              "${PROJECT_BINARY_DIR}/install/deviceloopConfigVersion.cmake"
        DESTINATION "${deviceloop_cmake_folder}")

# deviceloop.pc; its folder leads to the prefix, unless the folders were given as absolute paths.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(deviceloop_pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH deviceloop_pc_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(REGEX REPLACE "/$" "" deviceloop_pc_prefix "${deviceloop_pc_prefix}")
  set(deviceloop_pc_prefix "\${pcfiledir}/${deviceloop_pc_prefix}")
endif()
foreach(folder IN ITEMS LIBDIR INCLUDEDIR)
  set(deviceloop_pc_${folder} "${CMAKE_INSTALL_${folder}}")
  if(NOT IS_ABSOLUTE "${CMAKE_INSTALL_${folder}}")
    set(deviceloop_pc_${folder} "\${prefix}/${CMAKE_INSTALL_${folder}}")
  endif()
endforeach()
# What the static library asks of the linker.
set(deviceloop_pc_private "-pthread")
foreach(library IN LISTS CMAKE_DL_LIBS)
  string(APPEND deviceloop_pc_private " -l${library}")
endforeach()
if(deviceloop_blas_found STREQUAL openblas AND DEVICELOOP_OPENBLAS_LIBRARY MATCHES "\\.a$")
  get_filename_component(folder "${DEVICELOOP_OPENBLAS_LIBRARY}" DIRECTORY)
  get_filename_component(library "${DEVICELOOP_OPENBLAS_LIBRARY}" NAME)
  string(APPEND deviceloop_pc_private " -L${folder} -l:${library}")
  foreach(library IN LISTS deviceloop_openblas_extra)
    string(APPEND deviceloop_pc_private " -l${library}")
  endforeach()
elseif(deviceloop_blas_found STREQUAL openblas)
  string(APPEND deviceloop_pc_private " -lopenblas")
elseif(deviceloop_blas_found STREQUAL cblas)
  foreach(library IN LISTS BLAS_LIBRARIES)
    if(IS_ABSOLUTE "${library}")
      get_filename_component(library "${library}" NAME_WE)
      string(REGEX REPLACE "^lib" "-l" library "${library}")
    endif()
    string(APPEND deviceloop_pc_private " ${library}")
  endforeach()
endif()
if(deviceloop_cuda)
  get_filename_component(folder "${CUDA_cudart_static_LIBRARY}" DIRECTORY)
  string(APPEND deviceloop_pc_private " -L${folder} -lcudart_static -lrt")
endif()
if(deviceloop_has_shared)
  set(deviceloop_pc_public "")
else()
  set(deviceloop_pc_public " ${deviceloop_pc_private}")
endif()
configure_file(cmake/deviceloop.pc.in "${PROJECT_BINARY_DIR}/install/deviceloop.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/install/deviceloop.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
