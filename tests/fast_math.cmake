# cmake -DNVCC=... -DOPTIONS=... -DSOURCE=... -DOUT=... -P fast_math.cmake: compiles a kernel by the project's options alone,
# and behind flags for fast arithmetic as a parent project may have them in CMAKE_CUDA_FLAGS: the code must be the same.
# Without the project's options the flags must change it, or the test would show nothing.
cmake_minimum_required(VERSION 3.22)

# compile(VARIABLE OPTION...): the instructions that nvcc makes of SOURCE, without names, which differ in each run.
function(compile variable)
  execute_process(COMMAND "${NVCC}" ${ARGN} -arch=compute_90 -ptx -o "${OUT}.ptx" "${SOURCE}"
                  RESULT_VARIABLE result ERROR_VARIABLE errors)
  if(NOT result STREQUAL "0")
    message(FATAL_ERROR "nvcc ended with '${result}', not 0\n${errors}")
  endif()
  file(STRINGS "${OUT}.ptx" lines REGEX "^\t[a-z@]")
  list(FILTER lines EXCLUDE REGEX _Z)
  set(${variable} "${lines}" PARENT_SCOPE)
endfunction()

# The host's compiler gets none of them here: host/floating_point.h refuses to be compiled that way.
set(fast --use_fast_math)
set(includes ${OPTIONS})
list(FILTER includes INCLUDE REGEX "^(-I|-std)")
compile(usual ${OPTIONS})
compile(changed ${fast} ${includes})
if(usual STREQUAL changed)
  message(FATAL_ERROR "--use_fast_math does not change ${SOURCE}; take another kernel for this test")
endif()
compile(behind_flags ${fast} -Xcompiler=-ffast-math ${OPTIONS})
if(NOT usual STREQUAL behind_flags)
  message(FATAL_ERROR "--use_fast_math in front of the project's options changes the code of ${SOURCE}")
endif()
