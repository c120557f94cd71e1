# cmake -DPROGRAM=FILE -DFOLDER=FOLDER -P run.cmake: runs PROGRAM without an argument in an empty FOLDER; it must end with
# 0 and print something.
file(REMOVE_RECURSE "${FOLDER}")
file(MAKE_DIRECTORY "${FOLDER}")
execute_process(COMMAND "${PROGRAM}" WORKING_DIRECTORY "${FOLDER}" RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE errors)
message(STATUS "${output}${errors}")
if(NOT result STREQUAL "0")
  message(FATAL_ERROR "${PROGRAM} ended with '${result}', not 0")
endif()
if(output STREQUAL "")
  message(FATAL_ERROR "${PROGRAM} printed nothing")
endif()
