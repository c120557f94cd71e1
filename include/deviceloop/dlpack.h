/// \file
/// Tensors of other libraries by DLPack 1 (https://dmlc.github.io/dlpack): views of those that PyTorch, JAX, CuPy or
/// NumPy give, and tensors for them. This header only names DLPack's two structs; <dlpack/dlpack.h> defines them.
///
/// To import: take a view of the tensor, pass it to the functions that take one, and call the tensor's deleter after
/// the last of these calls, or, where the tensor stays in a Python capsule, leave that to the capsule. A view owns
/// nothing, and no function here calls a deleter of a tensor that it is given, except legacy_dlpack, which takes it
/// over.
///
/// A tensor in a GPU's memory holds its values once the work that makes them is done. Its producer gives them to the
/// stream that it is asked for, in Python by tensor.__dlpack__(stream=...): ask for CudaOptions::stream of the trainer,
/// as an integer, or wait for the producer's work before the view is used.
///
/// To export: the functions below make a tensor that owns a copy, aligned to 256 bytes, in the trainer's working
/// precision, in the host's memory or, by cudaMalloc, in that of the plan's GPU. Whoever receives it calls its deleter.
/// One in a GPU's memory is written on the trainer's stream: who reads it on another stream makes that wait for it.
#pragma once

#include <deviceloop/export.h>
#include <deviceloop/matrix.h>
#include <deviceloop/trainer.h>

struct DLManagedTensor;
struct DLManagedTensorVersioned;

namespace deviceloop {

/// The view of a tensor [rows, columns], or of one [rows], which is a column. Elements are floats of 16, 32 or 64
/// bits or bfloat16; rows have no gaps, but may lie apart from each other, in ascending order. Memory of the CPU, also
/// pinned by CUDA, is MemorySpace::host; that of a CUDA device, managed memory too, is MemorySpace::device. Throws
/// Unsupported for all else, with the value that the tensor has, and what to do; InvalidArgument for one that
/// contradicts itself.
/// @{
DEVICELOOP_EXPORT ConstMatrix view_of_dlpack(const DLManagedTensorVersioned& tensor);
DEVICELOOP_EXPORT ConstMatrix view_of_dlpack(const DLManagedTensor& tensor);
/// @}

/// The same to write into. Throws InvalidArgument, too, for elements of 16 bits and for a tensor that says that it is
/// read-only; those from before DLPack 1.0 cannot say so.
/// @{
DEVICELOOP_EXPORT Matrix writable_view_of_dlpack(const DLManagedTensorVersioned& tensor);
DEVICELOOP_EXPORT Matrix writable_view_of_dlpack(const DLManagedTensor& tensor);
/// @}

/// A copy of the weight [in_features, out_features] or the bias [out_features] of a layer, counted from 0. Throws as
/// Trainer::read_weight does.
/// @{
DEVICELOOP_EXPORT DLManagedTensorVersioned* weight_to_dlpack(const Trainer& trainer, int layer,
                                                             MemorySpace space = MemorySpace::host);
DEVICELOOP_EXPORT DLManagedTensorVersioned* bias_to_dlpack(const Trainer& trainer, int layer,
                                                           MemorySpace space = MemorySpace::host);
/// @}

/// The predictions [rows, outputs] for x [rows, inputs], in the memory in which x lies. Throws as Trainer::predict
/// does.
DEVICELOOP_EXPORT DLManagedTensorVersioned* predict_to_dlpack(Trainer& trainer, ConstMatrix x);

/// The same tensor for consumers that know only DLPack before 1.0, such as NumPy before 2.1. It takes over `tensor`,
/// whose deleter its own deleter calls; not where it throws: InvalidArgument for null and for a read-only tensor,
/// Unsupported for another version of DLPack, std::bad_alloc.
DEVICELOOP_EXPORT DLManagedTensor* legacy_dlpack(DLManagedTensorVersioned* tensor);

}  // namespace deviceloop
