// The suite of optimizers in the Gram formulation on the executors of CUDA: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_OPTIMIZERS_ON_CUDA
#include "gram_optimizer_test.cpp"
