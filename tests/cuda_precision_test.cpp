// The suite of precisions below fp32 on the plan graph: on a GPU, or on the host by tests/simt.
#define DEVICELOOP_PRECISIONS_ON_CUDA
#include "precision_test.cpp"
