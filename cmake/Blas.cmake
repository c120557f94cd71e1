# Defines deviceloop_blas: what host/cpu/gemm.cpp needs to call a CBLAS, or nothing where there is none.
include(CheckCXXSourceCompiles)
add_library(deviceloop_blas INTERFACE)
set(deviceloop_blas_found "")
set(deviceloop_openblas_extra "")  # what a static OpenBLAS needs beside threads, as names for -l

# deviceloop_openblas_links(VARIABLE LINK_OPTIONS LIBRARY...): whether those libraries give all that host/cpu/gemm.cpp calls of
# OpenBLAS. Kept in the cache for each LIBRARY...
function(deviceloop_openblas_links variable options)
  set(CMAKE_REQUIRED_LIBRARIES ${ARGN} Threads::Threads)
  set(CMAKE_REQUIRED_LINK_OPTIONS ${options})
  set(CMAKE_REQUIRED_FLAGS -fPIC)
  set(CMAKE_REQUIRED_QUIET ON)
  string(MD5 key "${ARGN};${options}")
  check_cxx_source_compiles("extern \"C\" {
char* openblas_get_config();
char* openblas_get_corename();
int openblas_get_parallel();
int openblas_get_num_threads();
void openblas_set_num_threads(int);
void cblas_sgemm();
void cblas_dgemm();
}
int main() {
  openblas_set_num_threads(openblas_get_num_threads() + openblas_get_parallel());
  cblas_sgemm();
  cblas_dgemm();
  return *openblas_get_config() + *openblas_get_corename();
}" DEVICELOOP_OPENBLAS_LINKS_${key})
  mark_as_advanced(DEVICELOOP_OPENBLAS_LINKS_${key})
  set(${variable} "${DEVICELOOP_OPENBLAS_LINKS_${key}}" PARENT_SCOPE)
endfunction()

if(DEVICELOOP_BLAS MATCHES "^(AUTO|OPENBLAS)$")
  find_library(DEVICELOOP_OPENBLAS_LIBRARY openblas)
  find_path(DEVICELOOP_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas openblas-pthread openblas-openmp openblas-serial
            aarch64-linux-gnu/openblas-pthread)
  if(DEVICELOOP_OPENBLAS_LIBRARY AND DEVICELOOP_CBLAS_INCLUDE)
    set(deviceloop_blas_found openblas)
    # A static one may want the run-time libraries of OpenMP and of Fortran.
    set(links NO)
    foreach(extra IN ITEMS "" m gomp gfortran "gomp;gfortran")
      deviceloop_openblas_links(links "" "${DEVICELOOP_OPENBLAS_LIBRARY}" ${extra})
      if(links)
        set(deviceloop_openblas_extra ${extra})
        break()
      endif()
      if(NOT DEVICELOOP_OPENBLAS_LIBRARY MATCHES "\\.a$")
        break()
      endif()
    endforeach()
    if(NOT links)
      message(FATAL_ERROR "a program that calls OpenBLAS does not link with ${DEVICELOOP_OPENBLAS_LIBRARY}: name one "
                          "that was built with CBLAS and -fPIC in DEVICELOOP_OPENBLAS_LIBRARY, or take "
                          "DEVICELOOP_BLAS=OWN")
    endif()
    # deviceloop_library() makes a shared library where BUILD_SHARED_LIBS does not say otherwise.
    if(DEVICELOOP_OPENBLAS_LIBRARY MATCHES "\\.a$" AND CMAKE_SYSTEM_NAME STREQUAL Linux AND
       (BUILD_SHARED_LIBS OR (PROJECT_IS_TOP_LEVEL AND NOT DEFINED BUILD_SHARED_LIBS)))
      deviceloop_openblas_links(
        links "-shared;LINKER:-z,defs;LINKER:-z,text;LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map"
        "${DEVICELOOP_OPENBLAS_LIBRARY}" ${deviceloop_openblas_extra})
      if(NOT links)
        message(FATAL_ERROR "${DEVICELOOP_OPENBLAS_LIBRARY} cannot be linked into a shared library, having been compiled "
                            "without -fPIC: take BUILD_SHARED_LIBS=OFF, or another DEVICELOOP_OPENBLAS_LIBRARY")
      endif()
    endif()
    target_link_libraries(deviceloop_blas INTERFACE "${DEVICELOOP_OPENBLAS_LIBRARY}" ${deviceloop_openblas_extra})
    target_compile_definitions(deviceloop_blas INTERFACE DEVICELOOP_OPENBLAS=1)
  elseif(DEVICELOOP_BLAS STREQUAL OPENBLAS)
    message(FATAL_ERROR "DEVICELOOP_BLAS=OPENBLAS, but libopenblas or cblas.h was not found: install libopenblas-dev, "
                        "add its folder to CMAKE_PREFIX_PATH, or take DEVICELOOP_BLAS=AUTO")
  endif()
endif()
if(NOT deviceloop_blas_found AND DEVICELOOP_BLAS MATCHES "^(AUTO|CBLAS)$")
  find_package(BLAS)
  find_path(DEVICELOOP_CBLAS_INCLUDE cblas.h PATH_SUFFIXES cblas blis)
  if(BLAS_FOUND AND DEVICELOOP_CBLAS_INCLUDE)
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
      # A shared one may turn out to be OpenBLAS when a program starts, a static one has to be linked as such.
      set(links NO)
      if(BLAS_LIBRARIES MATCHES "\\.a(;|$)")
        deviceloop_openblas_links(links "" ${BLAS_LIBRARIES})
      endif()
      if(links)
        target_compile_definitions(deviceloop_blas INTERFACE DEVICELOOP_OPENBLAS=1)
      endif()
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
