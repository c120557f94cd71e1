# Decides whether the kernels are built: deviceloop_cuda is ON or OFF. Where ON, nvcc is enabled, CMAKE_CUDA_ARCHITECTURES
# is set, deviceloop_cuda_code is a readable list of what the build holds code for, and the target deviceloop_cudart links
# CUDA's runtime into what uses it. Nothing here is seen by a parent project but what CMake itself puts into the cache.
set(deviceloop_cuda OFF)
set(deviceloop_cuda_oldest 12.4)  # C++20 in kernels, and compilers as new as GCC 13

# deviceloop_no_cuda(WHY REMEDY): the end of the search; an error where CUDA was asked for.
macro(deviceloop_no_cuda why remedy)
  if(DEVICELOOP_CUDA STREQUAL AUTO)
    message(STATUS "deviceloop: no CUDA: ${why}")
  else()
    message(FATAL_ERROR "DEVICELOOP_CUDA=${DEVICELOOP_CUDA}, but ${why}: ${remedy}, or take DEVICELOOP_CUDA=OFF")
  endif()
  return()
endmacro()

if(NOT DEVICELOOP_CUDA STREQUAL AUTO AND NOT DEVICELOOP_CUDA MATCHES "^(ON|OFF|1|0|TRUE|FALSE|YES|NO)$")
  message(FATAL_ERROR "DEVICELOOP_CUDA is '${DEVICELOOP_CUDA}'; it must be AUTO, ON or OFF")
elseif(NOT DEVICELOOP_CUDA)
  message(STATUS "deviceloop: no CUDA: DEVICELOOP_CUDA=${DEVICELOOP_CUDA}")
  return()
endif()

# Of a compiler that does not work nothing is kept in the cache: the next configuration looks again.
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)
endif()
if(NOT CMAKE_CUDA_COMPILER_LOADED)
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  unset(CMAKE_CUDA_COMPILER CACHE)
  deviceloop_no_cuda("no CUDA compiler was found that works"
    "install the CUDA toolkit ${deviceloop_cuda_oldest} or newer, name its nvcc in CUDACXX or put it into PATH (what was tried stands in CMakeFiles of the build folder)")
endif()
execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE deviceloop_nvcc ERROR_QUIET)
if(NOT deviceloop_nvcc MATCHES "release ([0-9]+\\.[0-9]+)")
  deviceloop_no_cuda("${CMAKE_CUDA_COMPILER} is not nvcc" "name the toolkit's nvcc in CMAKE_CUDA_COMPILER")
endif()
set(deviceloop_nvcc_version "${CMAKE_MATCH_1}")
if(deviceloop_nvcc_version VERSION_LESS deviceloop_cuda_oldest)
  deviceloop_no_cuda("${CMAKE_CUDA_COMPILER} is of CUDA ${deviceloop_nvcc_version}, older than ${deviceloop_cuda_oldest}"
    "install a newer toolkit and name its nvcc in CMAKE_CUDA_COMPILER")
endif()

# Code for every GPU since Turing that this nvcc knows, and PTX of the last for those to come; unless the user, the
# environment or a parent project has chosen.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  if(NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CUDAARCHS}")
  else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --list-gpu-arch OUTPUT_VARIABLE deviceloop_nvcc ERROR_QUIET)
    set(CMAKE_CUDA_ARCHITECTURES "")
    foreach(architecture IN ITEMS 75 80 86 89 90 100 120)
      if(deviceloop_nvcc MATCHES "compute_${architecture}[^0-9a-z]")
        list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
      endif()
    endforeach()
    string(REGEX REPLACE "-real$" "" CMAKE_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  endif()
endif()

enable_language(CUDA)
find_package(CUDAToolkit ${deviceloop_cuda_oldest} QUIET)
if(NOT CUDAToolkit_FOUND OR NOT TARGET CUDA::cudart_static)
  deviceloop_no_cuda("the headers or libcudart_static.a of ${CMAKE_CUDA_COMPILER} were not found"
    "install the whole toolkit, or name its folder in CUDAToolkit_ROOT")
endif()

# CUDA's runtime by its path, because imported targets are not seen from other folders of a parent project; it is static,
# so that neither the shared library nor the command needs a CUDA library to start.
add_library(deviceloop_cudart INTERFACE)
target_link_libraries(deviceloop_cudart INTERFACE "${CUDA_cudart_static_LIBRARY}" Threads::Threads ${CMAKE_DL_LIBS} rt)
set(CMAKE_CUDA_RUNTIME_LIBRARY None)  # CMake shall not add it a second time, nor another

# "sm_80, sm_90, compute_90": machine code, then PTX.
set(deviceloop_cuda_code "")
foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(architecture STREQUAL native AND CMAKE_CUDA_ARCHITECTURES_NATIVE)
    set(architecture "${CMAKE_CUDA_ARCHITECTURES_NATIVE}")
  elseif(architecture STREQUAL all AND CMAKE_CUDA_ARCHITECTURES_ALL)
    set(architecture "${CMAKE_CUDA_ARCHITECTURES_ALL}")
  elseif(architecture STREQUAL all-major AND CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR)
    set(architecture "${CMAKE_CUDA_ARCHITECTURES_ALL_MAJOR}")
  endif()
  list(TRANSFORM architecture REPLACE "^([0-9]+[a-z]?)-real$" "sm_\\1")
  list(TRANSFORM architecture REPLACE "^([0-9]+[a-z]?)-virtual$" "compute_\\1")
  list(TRANSFORM architecture REPLACE "^([0-9]+[a-z]?)$" "sm_\\1, compute_\\1")
  list(APPEND deviceloop_cuda_code ${architecture})
endforeach()
list(JOIN deviceloop_cuda_code ", " deviceloop_cuda_code)

# What kernels of Hopper's tensor cores are compiled for (cuda/runtime/tensor.cuh): where the build is for Hopper, code for
# sm_90a alone, which no other GPU can run; otherwise code that no plan chooses. A target has one list, so that such
# sources are a target of their own.
set(deviceloop_hopper_architectures ${CMAKE_CUDA_ARCHITECTURES})
if(deviceloop_cuda_code MATCHES "(sm|compute)_90")
  set(deviceloop_hopper_architectures 90a-real)
endif()

set(deviceloop_cuda ON)
message(STATUS "deviceloop: CUDA ${CUDAToolkit_VERSION}, code for ${deviceloop_cuda_code}")
