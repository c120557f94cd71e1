# Run by cpack when it has written the Debian packages: packs them again by dpkg-deb, without the scripts that cpack adds to
# call ldconfig, for which `triggers` is enough, with the field Multi-Arch, which cpack has only since CMake 3.31, and with
# all files of the time SOURCE_DATE_EPOCH; see packaging/cpack.cmake.
foreach(package IN LISTS CPACK_PACKAGE_FILES)
  set(folder "${package}.unpacked")
  execute_process(COMMAND dpkg-deb --raw-extract "${package}" "${folder}" COMMAND_ERROR_IS_FATAL ANY)
  file(REMOVE "${folder}/DEBIAN/postinst" "${folder}/DEBIAN/postrm")
  file(READ "${folder}/DEBIAN/control" control)
  if(control MATCHES "\nPackage: lib")
    string(REGEX REPLACE "\nPackage: [^\n]*" "\\0\nMulti-Arch: same" control "${control}")
    file(WRITE "${folder}/DEBIAN/control" "${control}")
  endif()
  execute_process(COMMAND find "${folder}" -exec touch -h -d "@$ENV{SOURCE_DATE_EPOCH}" {} +
                  COMMAND_ERROR_IS_FATAL ANY)
  execute_process(COMMAND dpkg-deb --root-owner-group --build "${folder}" "${package}" OUTPUT_QUIET
                  COMMAND_ERROR_IS_FATAL ANY)
  file(REMOVE_RECURSE "${folder}")
endforeach()
