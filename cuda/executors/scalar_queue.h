// The scalars of a run's steps on their way to the device: computed by the host for the steps of a launch, copied in
// the stream before it. Where all steps have the same, they lie there from the beginning.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "../../host/step/scalars.h"
#include "../runtime/owners.h"

namespace deviceloop::cuda {

template <class T>
class ScalarQueue {
 public:
  using Scalars = elementwise::StepScalars<T>;

  /// `device` has room for `sets` of them: as many as a launch has steps, or 1 where all steps have the same.
  ScalarQueue(const TrainingSpec& training, Scalars* device, std::int64_t sets)
      : optimizer_(training.optimizer),
        varies_(scalars_vary(training)),
        device_(device),
        sets_(sets),
        pinned_(static_cast<std::size_t>(2 * sets) * sizeof(Scalars)) {}
  /// Copies under way must not lose their memory; what fails now has failed before.
  ~ScalarQueue() {
    for (const EventOwner& sent : sent_) cudaEventSynchronize(sent.get());
  }
  ScalarQueue(const ScalarQueue&) = delete;
  ScalarQueue& operator=(const ScalarQueue&) = delete;

  bool varies() const { return varies_; }

  /// Computes those of `count` steps from `first_step` on. They stay until the call after the next.
  const Scalars* prepare(std::int64_t first_step, std::int64_t count) {
    half_ ^= 1;
    DEVICELOOP_CHECK_CUDA(cudaEventSynchronize(sent_[half_].get()));
    Scalars* const prepared = static_cast<Scalars*>(pinned_.data()) + static_cast<std::int64_t>(half_) * sets_;
    for (std::int64_t i = 0; i < count; ++i) prepared[i] = step_scalars<T>(optimizer_, first_step + i);
    return prepared;
  }

  /// Sends some of what was prepared last; what follows in `stream` finds them from the beginning of the table on.
  void send(const Scalars* prepared, std::int64_t count, cudaStream_t stream) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(device_, prepared, static_cast<std::size_t>(count) * sizeof(Scalars),
                                          cudaMemcpyHostToDevice, stream));
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(sent_[half_].get(), stream));
  }

 private:
  const Optimizer optimizer_;
  const bool varies_;
  Scalars* device_;
  std::int64_t sets_;
  PinnedBuffer pinned_;  ///< [2, sets]
  std::array<EventOwner, 2> sent_;
  std::size_t half_ = 0;
};

}  // namespace deviceloop::cuda
