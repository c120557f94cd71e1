// The losses of runs on their way to the host: kernels write those of a launch to one half of a ring in device memory,
// from where they are copied into pinned memory on a second stream, while the next launch runs and writes to the other.
// Each run has memory of its own there, so that the losses of one can be taken while later ones are under way.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "../runtime/owners.h"

namespace deviceloop::cuda {

class LossQueue {
 public:
  /// `ring` is [2, steps_per_launch], in device memory. The host has room for a run of so many steps, or of kRoom, from
  /// the beginning.
  LossQueue(const double* ring, std::int64_t steps_per_launch) : ring_(ring), steps_per_launch_(steps_per_launch) {
    spare_.emplace_back(std::max(steps_per_launch, kRoom));
  }
  /// Copies under way must not lose their memory; what fails now has failed before.
  ~LossQueue() { drop_error(cudaStreamSynchronize(copies_.get())); }
  LossQueue(const LossQueue&) = delete;
  LossQueue& operator=(const LossQueue&) = delete;

  /// A run of `steps`, on the host behind those that were not fetched yet.
  void begin(std::int64_t steps) {
    const auto found = std::find_if(spare_.begin(), spare_.end(), [&](const Run& run) { return run.room() >= steps; });
    if (found == spare_.end()) {
      runs_.emplace_back(steps);
    } else {
      runs_.push_back(std::move(*found));
      spare_.erase(found);
    }
    runs_.back().begin(steps);
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
    Run& run = runs_.back();
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(written_[index].get(), stream));
    DEVICELOOP_CHECK_CUDA(cudaStreamWaitEvent(copies, written_[index].get(), 0));
    DEVICELOOP_CHECK_CUDA(
        cudaMemcpyAsync(run.losses() + run.sent, ring_ + static_cast<std::int64_t>(index) * steps_per_launch_,
                        static_cast<std::size_t>(count) * sizeof(double), cudaMemcpyDeviceToHost, copies));
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(copied_[index].get(), copies));
    last_ = index;
    ++launches_;
    run.sent += count;
    run.mark(copies);
  }

  /// How many of the losses that were not fetched are on the host, as far as that was marked. Never waits.
  std::int64_t here() const {
    std::int64_t count = 0;
    for (const Run& run : runs_) {
      const std::int64_t end = run.end_here();
      count += std::max<std::int64_t>(end - run.fetched, 0);
      if (end < run.steps) break;
    }
    return count;
  }

  /// Takes the next out.size() losses, and waits for them.
  void fetch(std::span<double> out) {
    while (!out.empty()) {
      Run& run = runs_.front();
      const std::size_t count = std::min(out.size(), static_cast<std::size_t>(run.sent - run.fetched));
      run.wait(run.fetched + static_cast<std::int64_t>(count));
      std::memcpy(out.data(), run.losses() + run.fetched, count * sizeof(double));
      run.fetched += static_cast<std::int64_t>(count);
      out = out.subspan(count);
      if (run.fetched < run.steps) continue;
      spare_.push_back(std::move(run));
      runs_.pop_front();
    }
  }

 private:
  static constexpr std::int64_t kRoom = 4096;

  /// A run, with so many marks on its way, which say how far it is.
  struct Run {
    static constexpr std::size_t kMarks = 16;
    struct Mark {
      std::int64_t end = 0;  ///< that many losses are on the host behind it
      EventOwner event;
    };

    explicit Run(std::int64_t most) : pinned(static_cast<std::size_t>(most) * sizeof(double)) {}
    double* losses() const { return static_cast<double*>(pinned.data()); }
    std::int64_t room() const { return static_cast<std::int64_t>(pinned.bytes() / sizeof(double)); }

    void begin(std::int64_t count) {
      steps = count;
      sent = fetched = 0;
      used = 0;
    }

    /// After each copy: where the next sixteenth is done, and at the end.
    void mark(cudaStream_t copies) {
      const std::int64_t before = used == 0 ? 0 : marks[used - 1].end;
      if (sent < steps && (sent - before) * static_cast<std::int64_t>(kMarks) < steps) return;
      if (used == marks.size()) marks.emplace_back();
      marks[used].end = sent;
      DEVICELOOP_CHECK_CUDA(cudaEventRecord(marks[used].event.get(), copies));
      ++used;
    }

    std::int64_t end_here() const {
      std::int64_t end = 0;
      for (std::size_t index = 0; index < used; ++index) {
        if (!marks[index].event.is_done()) break;
        end = marks[index].end;
      }
      return end;
    }

    void wait(std::int64_t needed) const {
      std::size_t index = 0;
      while (index + 1 < used && marks[index].end < needed) ++index;
      if (!marks[index].event.is_done()) marks[index].event.wait();
    }

    PinnedBuffer pinned;
    std::int64_t steps = 0, sent = 0, fetched = 0;
    std::vector<Mark> marks;
    std::size_t used = 0;  ///< of the marks
  };

  const double* ring_;
  std::int64_t steps_per_launch_;
  std::deque<Run> runs_;    ///< that were not fetched yet, in order
  std::vector<Run> spare_;  ///< memory for others
  StreamOwner copies_;
  std::array<EventOwner, 2> written_, copied_;  ///< the launch that wrote to that half; its losses are on the host
  std::size_t launches_ = 0;                    ///< since restart
  std::size_t last_ = 0;                        ///< the half whose event says that all so far were copied
};

}  // namespace deviceloop::cuda
