# cmake -DREADME=FILE -DPROGRAM=FILE -P extract.cmake: writes the first block of README that is opened by a line of
# exactly three backticks and "cpp". Compiler messages name the lines of README.
file(READ "${README}" text)
set(text "\n${text}")
string(FIND "${text}" "\n```cpp\n" begin)
if(begin EQUAL -1)
  message(FATAL_ERROR "${README}: no block opened by ```cpp")
endif()
string(SUBSTRING "${text}" 0 ${begin} before)
math(EXPR begin "${begin} + 8")
string(SUBSTRING "${text}" ${begin} -1 text)
string(FIND "${text}" "\n```\n" end)
if(end EQUAL -1)
  message(FATAL_ERROR "${README}: the block opened by ```cpp is not closed")
endif()
string(SUBSTRING "${text}" 0 ${end} text)

# The block's first line comes two line ends after what stands before it: that of the line before and of the fence.
string(REGEX REPLACE "[^\n]" "" ends "${before}")
string(LENGTH "${ends}" line)
math(EXPR line "${line} + 2")
file(WRITE "${PROGRAM}" "#line ${line} \"${README}\"\n${text}\n")
