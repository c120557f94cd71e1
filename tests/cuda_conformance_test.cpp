// The executors' suite on those of CUDA: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_CONFORMANCE_ON_CUDA
#include "conformance_test.cpp"
