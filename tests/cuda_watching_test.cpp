// The suite of validation data on the executors of CUDA: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_WATCHING_ON_CUDA
#include "watching_test.cpp"
