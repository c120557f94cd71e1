# Run by cpack before it packs Debian packages: compresses texts and strips binaries in its own folder as Debian wants it;
# see packaging/cpack.cmake.
file(GLOB_RECURSE files RELATIVE "${CPACK_TEMPORARY_DIRECTORY}" "${CPACK_TEMPORARY_DIRECTORY}/*")
set(texts ${files})
list(FILTER texts INCLUDE REGEX "/changelog(\\.Debian)?$|/man/.*\\.[0-9]$")
execute_process(COMMAND gzip -9nf ${texts} WORKING_DIRECTORY "${CPACK_TEMPORARY_DIRECTORY}" COMMAND_ERROR_IS_FATAL ANY)
# Of static libraries only what debuggers read: linkers need the names of their symbols.
set(binaries ${files})
list(FILTER binaries INCLUDE REGEX "/bin/|\\.a$|\\.so\\.[0-9]+\\.[0-9]+\\.[0-9]+$")
execute_process(COMMAND strip --strip-debug --remove-section=.comment --enable-deterministic-archives ${binaries}
                WORKING_DIRECTORY "${CPACK_TEMPORARY_DIRECTORY}" COMMAND_ERROR_IS_FATAL ANY)
