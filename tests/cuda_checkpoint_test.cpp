// The suite of checkpoints on the executors of CUDA: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_CHECKPOINTS_ON_CUDA
#include "checkpoint_test.cpp"
