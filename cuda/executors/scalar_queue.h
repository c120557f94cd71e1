// The scalars of a run's steps on their way to the device: computed by the host for the steps of a launch, copied in
// the stream before it. Where all steps have the same, they lie there from the beginning.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <utility>

#include "../../host/step/scalars.h"
#include "../runtime/owners.h"

namespace deviceloop::cuda {

template <class T>
class ScalarQueue {
 public:
  using Scalars = elementwise::StepScalars<T>;

  /// `device` has room for `sets` of them: as many as a launch has steps, or 1 where all steps have the same.
  ScalarQueue(const TrainingSpec& training, Scalars* device, std::int64_t sets)
      : optimizer_(training.optimizer), varies_(scalars_vary(training)), device_(device), sets_(sets) {
    for (int i = 0; i < 2; ++i) tables_.emplace_back(sets_);
  }
  /// Copies under way must not lose their memory; what fails now has failed before.
  ~ScalarQueue() {
    for (const Table& table : tables_) drop_error(cudaEventSynchronize(table.sent.get()));
  }
  ScalarQueue(const ScalarQueue&) = delete;
  ScalarQueue& operator=(const ScalarQueue&) = delete;

  bool varies() const { return varies_; }

  /// Computes those of `count` steps from `first_step` on, in memory that no copy under way reads: the host gets ahead
  /// of the device by kMostTables launches, and then waits for the first of them.
  const Scalars* prepare(std::int64_t first_step, std::int64_t count) {
    // In the order in which they were sent.
    if (!tables_.front().sent.is_done()) {
      if (tables_.size() < kMostTables)
        tables_.emplace_front(sets_);
      else
        tables_.front().sent.wait();
    }
    tables_.push_back(std::move(tables_.front()));
    tables_.pop_front();
    Scalars* const prepared = static_cast<Scalars*>(tables_.back().pinned.data());
    for (std::int64_t i = 0; i < count; ++i) prepared[i] = step_scalars<T>(optimizer_, first_step + i);
    return prepared;
  }

  /// Sends some of what was prepared last; what follows in `stream` finds them from the beginning of the table on.
  void send(const Scalars* prepared, std::int64_t count, cudaStream_t stream) {
    DEVICELOOP_CHECK_CUDA(cudaMemcpyAsync(device_, prepared, static_cast<std::size_t>(count) * sizeof(Scalars),
                                          cudaMemcpyHostToDevice, stream));
    DEVICELOOP_CHECK_CUDA(cudaEventRecord(tables_.back().sent.get(), stream));
  }

 private:
  static constexpr std::size_t kMostTables = 32;

  struct Table {
    explicit Table(std::int64_t sets) : pinned(static_cast<std::size_t>(sets) * sizeof(Scalars)) {}
    PinnedBuffer pinned;  ///< [sets]
    EventOwner sent;
  };

  const Optimizer optimizer_;
  const bool varies_;
  Scalars* device_;
  std::int64_t sets_;
  std::deque<Table> tables_;  ///< the one that was used last at the end
};

}  // namespace deviceloop::cuda
