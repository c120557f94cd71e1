# Read by cpack before it packs for a generator; see cmake/Package.cmake.
if(NOT CPACK_GENERATOR STREQUAL "DEB")
  return()
endif()
if(CPACK_DEVICELOOP_NO_DEB)
  message(FATAL_ERROR "no Debian packages: ${CPACK_DEVICELOOP_NO_DEB}")
endif()
# cpack would leave out the dependencies where it cannot find the first two.
foreach(program IN ITEMS dpkg-shlibdeps file strip)
  find_program(found_${program} ${program})
  if(NOT found_${program})
    message(FATAL_ERROR "no Debian packages: there is no ${program} here; install the packages dpkg-dev, file and binutils")
  endif()
endforeach()

# The time of the newest entry in the Debian changelog stands for every file's, so that the same sources make the same
# packages, byte for byte. SOURCE_DATE_EPOCH in the environment is another one.
if(NOT DEFINED ENV{SOURCE_DATE_EPOCH})
  file(STRINGS "${CPACK_DEVICELOOP_SOURCE}/packaging/deb/changelog" lines REGEX "^ -- ")
  list(GET lines 0 line)
  string(REGEX REPLACE ".*>  " "" time "${line}")
  execute_process(COMMAND date -u -d "${time}" +%s OUTPUT_VARIABLE epoch OUTPUT_STRIP_TRAILING_WHITESPACE
                  COMMAND_ERROR_IS_FATAL ANY)
  set(ENV{SOURCE_DATE_EPOCH} "${epoch}")
endif()
set(CPACK_PRE_BUILD_SCRIPTS "${CPACK_DEVICELOOP_SOURCE}/packaging/before_packing.cmake")
set(CPACK_POST_BUILD_SCRIPTS "${CPACK_DEVICELOOP_SOURCE}/packaging/after_packing.cmake")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "")  # each package has its own
set(CPACK_DEB_COMPONENT_INSTALL YES)
set(CPACK_COMPONENTS_ALL debian_runtime debian_development debian_command)
