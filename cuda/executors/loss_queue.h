// The losses of a run on their way to the host: kernels write those of a launch to one half of a ring in device memory,
// from where they are copied into pinned memory on a second stream, while the next launch runs and writes to the other.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "../runtime/owners.h"

namespace deviceloop::cuda {

class LossQueue {
 public:
  /// `ring` is [2, steps_per_launch], in device memory. The host has room for so many, or kRoom, from the beginning.
  LossQueue(const double* ring, std::int64_t steps_per_launch)
      : ring_(ring),
        steps_per_launch_(steps_per_launch),
        pinned_(static_cast<std::size_t>(std::max(steps_per_launch, kRoom)) * sizeof(double)) {}
  /// Copies under way must not lose their memory; what fails now has failed before.
  ~LossQueue() { cudaStreamSynchronize(copies_.get()); }
  LossQueue(const LossQueue&) = delete;
  LossQueue& operator=(const LossQueue&) = delete;

  /// A run of `steps`: make_room and restart.
  void begin(std::int64_t steps, cudaStream_t stream) {
    make_room(steps);
    restart(stream);
  }

  /// Room on the host for `steps` more, behind those that were not fetched yet.
  void make_room(std::int64_t steps) {
    if (fetched_ == sent_) sent_ = fetched_ = 0;
    const std::size_t needed = static_cast<std::size_t>(sent_ + steps) * sizeof(double);
    if (needed <= pinned_.bytes()) return;
    const std::int64_t kept = sent_ - fetched_;
    if (kept > 0) DEVICELOOP_CHECK_CUDA(cudaEventSynchronize(copied_[last_].get()));
    // Twice what is needed, so that a run that is enqueued in pieces seldom waits for room.
    PinnedBuffer larger(2 * needed);
    if (kept > 0) std::memcpy(larger.data(), host() + fetched_, static_cast<std::size_t>(kept) * sizeof(double));
    pinned_ = std::move(larger);
    sent_ = kept;
    fetched_ = 0;
  }

  /// `stream` writes to half 0 next, once all that was written has been copied.
  void restart(cudaStream_t stream) {
    DEVICELOOP_CHECK_CUDA(cudaStreamWaitEvent(stream, copied_[last_].get(), 0));
    launches_ = 0;
  }

  /// The half that the next launch on `stream` writes to, free from there on.
  std::int64_t next_half(cudaStream_t stream) {
    const std::size_t index = launches_ % 2;
    if (launches_ >= 2) DEVICELOOP_CHECK_CUDA(cudaStreamWaitEvent(stream, copied_[index].get(), 0));
    return static_cast<std::int64_t>(index);
  }

  /// Sends the `count` losses that the launch now on `stream` writes to its half.
  void send(std::int64_t count, cudaStream_t stream) {
    const std::size_t index = launches_ % 2;
    const cudaStream_t copies = copies_.get();
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(written_[index].get(), stream));
    DEVICELOOP_CHECK_CUDA(cudaStreamWaitEvent(copies, written_[index].get(), 0));
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(host() + sent_, ring_ + static_cast<std::int64_t>(index) * steps_per_launch_,
                                          static_cast<std::size_t>(count) * sizeof(double), cudaMemcpyDeviceToHost,
                                          copies));
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(copied_[index].get(), copies));
    last_ = index;
    ++launches_;
    sent_ += count;
  }

  /// Waits for all that was sent, and takes the next out.size() of it.
  void fetch(std::span<double> out) {
    DEVICELOOP_CHECK_CUDA(cudaEventSynchronize(copied_[last_].get()));
    std::memcpy(out.data(), host() + fetched_, out.size_bytes());
    fetched_ += static_cast<std::int64_t>(out.size());
  }

 private:
  static constexpr std::int64_t kRoom = 4096;

  double* host() const { return static_cast<double*>(pinned_.data()); }

  const double* ring_;
  std::int64_t steps_per_launch_;
  PinnedBuffer pinned_;  ///< those not fetched yet from fetched_ to sent_
  std::int64_t sent_ = 0;
  std::int64_t fetched_ = 0;
  StreamOwner copies_;
  std::array<EventOwner, 2> written_, copied_;  ///< the launch that wrote to that half; its losses are on the host
  std::size_t launches_ = 0;                    ///< since restart
  std::size_t last_ = 0;                        ///< the half whose event says that all so far were copied
};

}  // namespace deviceloop::cuda
