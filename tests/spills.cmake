# cmake -DNVCC=... -DOPTIONS=... -DARCH=... -DSOURCE=... -DOUT=... -DREPORT=... -P spills.cmake: compiles a file of
# kernels for ARCH, sm_90 or sm_90a, or takes ptxas' report of the build, and fails where the registers of one do not
# suffice, which ptxas reports as spill stores and loads, or where it lets the asynchronous products of a warpgroup wait
# for each other.

# find_spills(OUT REPORT): a line for each kernel that spills; "no kernel" where the report tells of none.
function(find_spills out report)
  string(REGEX MATCHALL "Function properties for [^ \n]+\n[^\n]*bytes spill loads" functions "${report}")
  set(spills "")
  if(NOT functions)
    set(spills "no kernel")
  endif()
  foreach(function IN LISTS functions)
    if(NOT function MATCHES " 0 bytes spill stores, 0 bytes spill loads")
      string(APPEND spills "\n${function}")
    endif()
  endforeach()
  string(REGEX MATCHALL "[^\n]*instructions are serialized[^\n]*" serialized "${report}")
  foreach(line IN LISTS serialized)
    string(APPEND spills "\n${line}")
  endforeach()
  set(${out} "${spills}" PARENT_SCOPE)
endfunction()

# The report is understood, or this test could not fail.
set(clean "ptxas info    : Function properties for a_kernel\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n")
string(REPLACE "a_kernel" "b_kernel" planted "${clean}")
string(REPLACE "0 bytes spill loads" "20 bytes spill loads" planted "${planted}")
find_spills(none "${clean}")
find_spills(one "${clean}${planted}${clean}")
find_spills(nothing "ptxas info    : 0 bytes gmem")
find_spills(serial "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to\n${clean}")
if(none OR NOT one MATCHES "b_kernel.* 20 bytes" OR one MATCHES "a_kernel" OR NOT nothing OR NOT serial MATCHES "C7510")
  message(FATAL_ERROR "planted reports are not understood: '${none}' '${one}' '${nothing}' '${serial}'")
endif()

if(REPORT)
  file(READ "${REPORT}" report)
else()
  execute_process(COMMAND "${NVCC}" ${OPTIONS} -arch=${ARCH} -cubin -Xptxas -v -o "${OUT}" "${SOURCE}"
                  RESULT_VARIABLE status OUTPUT_VARIABLE report ERROR_VARIABLE report)
  file(REMOVE "${OUT}")
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "nvcc failed:\n${report}")
  endif()
endif()
if(NOT report MATCHES "for '${ARCH}'")
  message(FATAL_ERROR "no report of code for ${ARCH}:\n${report}")
endif()
find_spills(spills "${report}")
if(spills)
  message(FATAL_ERROR "${SOURCE}: registers do not suffice: ${spills}")
endif()
