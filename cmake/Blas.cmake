# Defines deviceloop_blas: what host/cpu/gemm.cpp needs to call a CBLAS, or nothing where there is none.
add_library(deviceloop_blas INTERFACE)
set(deviceloop_blas_found "")

if(DEVICELOOP_BLAS MATCHES "^(AUTO|OPENBLAS)$")
  find_library(DEVICELOOP_OPENBLAS_LIBRARY openblas)
  find_path(DEVICELOOP_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas openblas-pthread openblas-openmp openblas-serial
            aarch64-linux-gnu/openblas-pthread)
  if(DEVICELOOP_OPENBLAS_LIBRARY AND DEVICELOOP_CBLAS_INCLUDE)
    set(deviceloop_blas_found openblas)
    target_link_libraries(deviceloop_blas INTERFACE "${DEVICELOOP_OPENBLAS_LIBRARY}")
  elseif(DEVICELOOP_BLAS STREQUAL OPENBLAS)
    message(FATAL_ERROR "DEVICELOOP_BLAS=OPENBLAS, but libopenblas or cblas.h was not found: install libopenblas-dev, "
                        "add its folder to CMAKE_PREFIX_PATH, or take DEVICELOOP_BLAS=AUTO")
  endif()
endif()
if(NOT deviceloop_blas_found AND DEVICELOOP_BLAS MATCHES "^(AUTO|CBLAS)$")
  find_package(BLAS)
  find_path(DEVICELOOP_CBLAS_INCLUDE cblas.h PATH_SUFFIXES cblas blis)
  if(BLAS_FOUND AND DEVICELOOP_CBLAS_INCLUDE)
    include(CheckCXXSourceCompiles)
    set(CMAKE_REQUIRED_LIBRARIES BLAS::BLAS)
    set(CMAKE_REQUIRED_INCLUDES "${DEVICELOOP_CBLAS_INCLUDE}")
    check_cxx_source_compiles("extern \"C\" {
#include <cblas.h>
}
int main() { return static_cast<int>(cblas_ddot(0, nullptr, 1, nullptr, 1)); }" DEVICELOOP_CBLAS_LINKS)
    unset(CMAKE_REQUIRED_LIBRARIES)
    unset(CMAKE_REQUIRED_INCLUDES)
    if(DEVICELOOP_CBLAS_LINKS)
      set(deviceloop_blas_found cblas)
      target_link_libraries(deviceloop_blas INTERFACE BLAS::BLAS)
    endif()
  endif()
  if(NOT deviceloop_blas_found AND DEVICELOOP_BLAS STREQUAL CBLAS)
    message(FATAL_ERROR "DEVICELOOP_BLAS=CBLAS, but no BLAS with a CBLAS interface was found: install one, name it with "
                        "BLA_VENDOR or CMAKE_PREFIX_PATH, or take DEVICELOOP_BLAS=AUTO")
  endif()
endif()

if(deviceloop_blas_found)
  target_include_directories(deviceloop_blas SYSTEM INTERFACE "${DEVICELOOP_CBLAS_INCLUDE}")
  target_compile_definitions(deviceloop_blas INTERFACE DEVICELOOP_HAVE_CBLAS=1)
  message(STATUS "deviceloop: GEMM by ${deviceloop_blas_found}")
else()
  message(STATUS "deviceloop: GEMM by own code (no CBLAS; install libopenblas-dev for speed)")
endif()
