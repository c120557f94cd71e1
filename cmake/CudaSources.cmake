# The CUDA part of deviceloop_objects: .cpp by the host's compiler, .cu by nvcc; and of deviceloop_options: nvcc's options.
target_sources(deviceloop_objects PRIVATE
  cuda/device_arrays.cpp
  cuda/device_query.cpp
  cuda/executors/fused_executor.cpp
  cuda/executors/graph_executor.cpp
  cuda/executors/persistent_executor.cpp
  cuda/kernels/arrays.cu
  cuda/kernels/bias.cu
  cuda/kernels/elementwise.cu
  cuda/kernels/evaluation.cu
  cuda/kernels/gather.cu
  cuda/kernels/gram_two_layer.cu
  cuda/kernels/loss.cu
  cuda/kernels/narrow_linear.cu
  cuda/kernels/on_chip.cu
  cuda/kernels/on_chip_clusters.cu
  cuda/kernels/public.cpp
  cuda/kernels/small_product.cu
  cuda/kernels/tile_product.cu
  cuda/kernels/two_layer.cu
  cuda/kernels/update.cu
  cuda/runtime/check.cpp
  cuda/runtime/cublaslt.cpp
  cuda/runtime/cublaslt_error.cpp
  cuda/runtime/gemm.cpp
  cuda/runtime/gpu.cpp
  cuda/runtime/launch.cpp
  cuda/runtime/owners.cpp)
target_include_directories(deviceloop_objects SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
target_link_libraries(deviceloop_objects PUBLIC deviceloop_cudart)

# Kernels for Hopper's tensor cores, which are compiled for other architectures than the rest: their objects go wherever
# those of deviceloop_objects go.
add_library(deviceloop_hopper_objects OBJECT cuda/kernels/fused.cu cuda/kernels/fused_clusters.cu
                                              cuda/kernels/fused_tf32.cu)
target_include_directories(deviceloop_hopper_objects PRIVATE "${PROJECT_SOURCE_DIR}/include")
target_link_libraries(deviceloop_hopper_objects PRIVATE deviceloop_options)
set_target_properties(deviceloop_hopper_objects PROPERTIES CUDA_ARCHITECTURES "${deviceloop_hopper_architectures}"
                      POSITION_INDEPENDENT_CODE ON)
target_sources(deviceloop_objects INTERFACE $<TARGET_OBJECTS:deviceloop_hopper_objects>)
list(APPEND deviceloop_library_objects $<TARGET_OBJECTS:deviceloop_hopper_objects>)
set_target_properties(deviceloop_objects deviceloop_hopper_objects PROPERTIES
                      CUDA_VISIBILITY_PRESET hidden CUDA_SEPARABLE_COMPILATION OFF)
set_source_files_properties(cuda/runtime/check.cpp PROPERTIES
                            COMPILE_DEFINITIONS "DEVICELOOP_CUDA_ARCHITECTURES=\"${deviceloop_cuda_code}\"")

# Where a kernel wants a fused multiply-add it calls fma: with nothing fused behind its back, the same source gives the
# same bits on the host and on every GPU. What --use_fast_math in CMAKE_CUDA_FLAGS does to + - * / and square roots is
# undone, and kernels use no other function that it changes. -std here because CMake before 3.26 does not know C++20 for
# nvcc.
list(JOIN floating_point_options "," host_options)
set(nvcc_options --fmad=false --ftz=false --prec-div=true --prec-sqrt=true -std=c++20
    -Xcompiler=${host_options},-Wall,-Wextra,-Wshadow,-Werror=switch)
if(DEVICELOOP_WERROR)
  list(APPEND nvcc_options --Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(deviceloop_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:${nvcc_options}>")
