// The optimizers' suite on the executors of CUDA: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_OPTIMIZERS_ON_CUDA
#include "optimizer_test.cpp"
