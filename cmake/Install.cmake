# What `cmake --install` puts where: headers, libraries, the command, and what CMake and pkg-config need to find them. A
# moved prefix keeps working: nothing here holds an absolute path, but where the static library's BLAS was found, which
# is looked for again where it is not there, and in deviceloop.pc the folders of CUDA's runtime and of a static OpenBLAS.
# Each file belongs to one of three components: deviceloop_runtime, the shared library; deviceloop_development, what a
# program is built with; deviceloop_command.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

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
# A compiler of C leaves out the runtime of C++.
foreach(library IN LISTS CMAKE_CXX_IMPLICIT_LINK_LIBRARIES)
  if(library MATCHES "^(stdc\\+\\+|c\\+\\+|c\\+\\+abi|m)$")
    string(APPEND deviceloop_pc_private " -l${library}")
  endif()
endforeach()

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
  set(deviceloop_${kind}_target ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME deviceloop)
endforeach()
if(deviceloop_has_shared)
  set(deviceloop_pc_public "")
else()
  set(deviceloop_pc_public " ${deviceloop_pc_private}")
endif()

write_basic_package_version_file("${PROJECT_BINARY_DIR}/install/deviceloopConfigVersion.cmake"
                                 VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)

# deviceloop_install(LAYOUT BINDIR LIBDIR INCLUDEDIR MANDIR PC_PREFIX [EXCLUDE_FROM_ALL]): the rules for one layout of
# folders, by the components LAYOUT_runtime, LAYOUT_development and LAYOUT_command. deviceloop.pc says prefix=PC_PREFIX.
function(deviceloop_install layout bindir libdir includedir mandir deviceloop_pc_prefix)
  set(runtime COMPONENT ${layout}_runtime ${ARGN})
  set(development COMPONENT ${layout}_development ${ARGN})
  set(command COMPONENT ${layout}_command ${ARGN})
  set(cmake_folder "${libdir}/cmake/deviceloop")
  set(generated "${PROJECT_BINARY_DIR}/install/${layout}")

  if(TARGET deviceloop_command)
    install(TARGETS deviceloop_command RUNTIME DESTINATION "${bindir}" ${command})
    install(FILES host/cli/deviceloop.1 DESTINATION "${mandir}/man1" ${command})
  endif()
  install(DIRECTORY include/deviceloop DESTINATION "${includedir}" ${development} FILES_MATCHING PATTERN "*.h" PATTERN "*.f90")
  foreach(kind IN ITEMS shared static)
    if(NOT deviceloop_has_${kind})
      continue()
    endif()
    install(TARGETS ${deviceloop_${kind}_target} EXPORT ${layout}-${kind}
            LIBRARY DESTINATION "${libdir}" ${runtime} NAMELINK_COMPONENT ${layout}_development
            ARCHIVE DESTINATION "${libdir}" ${development}
            INCLUDES DESTINATION "${includedir}")
    install(EXPORT ${layout}-${kind} FILE deviceloop-${kind}.cmake NAMESPACE deviceloop:: DESTINATION "${cmake_folder}"
            ${development})
  endforeach()

  configure_package_config_file(cmake/deviceloopConfig.cmake.in "${generated}/deviceloopConfig.cmake"
                                INSTALL_DESTINATION "${cmake_folder}" PATH_VARS includedir NO_SET_AND_CHECK_MACRO)
  install(FILES "${generated}/deviceloopConfig.cmake" "${PROJECT_BINARY_DIR}/install/deviceloopConfigVersion.cmake"
          DESTINATION "${cmake_folder}" ${development})

  set(deviceloop_pc_LIBDIR "${libdir}")
  set(deviceloop_pc_INCLUDEDIR "${includedir}")
  foreach(folder IN ITEMS LIBDIR INCLUDEDIR)
    if(NOT IS_ABSOLUTE "${deviceloop_pc_${folder}}")
      set(deviceloop_pc_${folder} "\${prefix}/${deviceloop_pc_${folder}}")
    endif()
  endforeach()
  configure_file(cmake/deviceloop.pc.in "${generated}/deviceloop.pc" @ONLY)
  install(FILES "${generated}/deviceloop.pc" DESTINATION "${libdir}/pkgconfig" ${development})
endfunction()

# Into the folders that the user names; the folder of deviceloop.pc leads to the prefix, unless it was given as an
# absolute path.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH pc_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
  string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
  set(pc_prefix "\${pcfiledir}/${pc_prefix}")
endif()
deviceloop_install(deviceloop "${CMAKE_INSTALL_BINDIR}" "${CMAKE_INSTALL_LIBDIR}" "${CMAKE_INSTALL_INCLUDEDIR}"
                   "${CMAKE_INSTALL_MANDIR}" "${pc_prefix}")
# With the library and the command both, since either may be had without the other.
foreach(component IN ITEMS runtime development command)
  install(FILES LICENSE packaging/copyright DESTINATION "${CMAKE_INSTALL_DATAROOTDIR}/doc/deviceloop"
          COMPONENT deviceloop_${component})
endforeach()
