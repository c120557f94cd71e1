# Run by cpack between the installation into its own folder and the packing: compresses texts and strips binaries as Debian
# wants it, and gives all files the time SOURCE_DATE_EPOCH; see packaging/cpack.cmake.
if(CPACK_GENERATOR STREQUAL "DEB")
  file(GLOB_RECURSE files RELATIVE "${CPACK_TEMPORARY_DIRECTORY}" "${CPACK_TEMPORARY_DIRECTORY}/*")
  set(texts ${files})
  list(FILTER texts INCLUDE REGEX "/changelog(\\.Debian)?$|/man/.*\\.[0-9]$")
  execute_process(COMMAND gzip -9nf ${texts} WORKING_DIRECTORY "${CPACK_TEMPORARY_DIRECTORY}" COMMAND_ERROR_IS_FATAL ANY)
  # Of static libraries only what debuggers read: linkers need the names of their symbols.
  set(binaries ${files})
  list(FILTER binaries INCLUDE REGEX "/bin/|\\.a$|\\.so\\.[0-9.]+$")
  execute_process(COMMAND strip --strip-debug --remove-section=.comment --enable-deterministic-archives ${binaries}
                  WORKING_DIRECTORY "${CPACK_TEMPORARY_DIRECTORY}" COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND find "${CPACK_TEMPORARY_DIRECTORY}" -exec touch -h -d "@$ENV{SOURCE_DATE_EPOCH}" {} +
                COMMAND_ERROR_IS_FATAL ANY)
