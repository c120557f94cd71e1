// The second definition of what cuda/runtime/tensor.cuh declares, which includes this file behind SharedMatrix.
// Matrices are read as PTX documents their descriptors, at an address from 0x400 on, where a block's dynamic shared
// memory lies on Hopper, and at the latest or the earliest time that the rules allow. What the rules forbid throws
// KernelError.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

namespace simt {

/// What a thread holds of the sums of products.
struct Sums {
  enum class State {
    kTouched,  ///< read or written since they were named to begin_products, or never named
    kNamed,
    kUnderWay
  };

  float* values = nullptr;   ///< NaN while products are under way
  float* results = nullptr;  ///< of the products so far
  unsigned columns = 0;
  State state = State::kTouched;
  unsigned batch = 0;  ///< the last that adds to them
};

/// The thread reads or writes sums.
void touch(Sums& sums);
/// They go out of scope.
void drop(Sums& sums);

/// Names registers: sums, or words of fragments.
void name_registers(Sums& sums);
void name_registers(const std::uint32_t* words, std::size_t count);
void begin_products();

struct Product {
  bool tf32 = false;
  unsigned columns = 0;
  std::uint64_t a = 0, b = 0;  ///< descriptors
  bool a_by_rows = false;      ///< rows of its panels are K
  bool b_by_rows = false;
  bool accumulate = false;
  const std::uint32_t* fragment = nullptr;  ///< A in registers, 4 words, if not null
};
void multiply_async(Sums& sums, const Product& product);

void commit_products();

/// Until at most `batches` are under way, none of them of the named sums.
void wait_products(unsigned batches, Sums* const* named, std::size_t count);

void fence_async_proxy();

/// Of a place in the block's shared memory; throws KernelError where it is none, or not at a multiple of `alignment`.
std::uint32_t shared_address(const void* place, std::size_t alignment);

/// Lands as the stores of store_async do, and reads global memory then.
void copy_bulk(void* to, const void* from, std::size_t bytes, std::uint64_t* barrier);

}  // namespace simt

namespace deviceloop::cuda {

template <TensorType type, Major major>
SharedMatrix<type, major> shared_matrix(const void* first, int panel_bytes) {
  return {detail::matrix_descriptor(simt::shared_address(first, 16), panel_bytes), panel_bytes};
}

template <int columns>
class Accumulator {
 public:
  static constexpr int kValues = columns / 2;

  Accumulator() {
    std::fill_n(values_, kValues, std::numeric_limits<float>::quiet_NaN());
    sums = {values_, results_, columns};
  }
  ~Accumulator() { simt::drop(sums); }
  Accumulator(const Accumulator&) = delete;
  Accumulator& operator=(const Accumulator&) = delete;

  float& operator[](int i) {
    simt::touch(sums);
    return values_[i];
  }

  simt::Sums sums;

 private:
  float values_[kValues];
  float results_[kValues];
};

namespace detail {

template <int columns>
void name_registers(Accumulator<columns>& accumulator) {
  simt::name_registers(accumulator.sums);
}
template <int steps>
void name_registers(std::uint32_t (&words)[steps][4]) {
  simt::name_registers(&words[0][0], steps * 4);
}

}  // namespace detail

template <class... Registers>
void begin_products(Registers&... registers) {
  (detail::name_registers(registers), ...);
  simt::begin_products();
}

template <int columns, TensorType type, Major a_major, Major b_major>
void multiply_async(Accumulator<columns>& accumulator, SharedMatrix<type, a_major> a, SharedMatrix<type, b_major> b,
                    bool accumulate) {
  static_assert(b_major == Major::kK || columns % 64 == 0, "panels of 64 columns");
  simt::multiply_async(accumulator.sums, {type == TensorType::kTf32, columns, a.descriptor, b.descriptor,
                                          a_major == Major::kMn, b_major == Major::kMn, accumulate});
}
template <int columns, TensorType type, Major b_major>
void multiply_async(Accumulator<columns>& accumulator, const std::uint32_t (&a)[4], SharedMatrix<type, b_major> b,
                    bool accumulate) {
  static_assert(b_major == Major::kK || columns % 64 == 0, "panels of 64 columns");
  simt::multiply_async(accumulator.sums, {type == TensorType::kTf32, columns, 0, b.descriptor, false,
                                          b_major == Major::kMn, accumulate, a});
}

inline void commit_products() { simt::commit_products(); }

template <int batches, int... columns>
void wait_products(Accumulator<columns>&... accumulators) {
  simt::Sums* const named[] = {&accumulators.sums..., nullptr};
  simt::wait_products(batches, named, sizeof...(columns));
}

inline void fence_async_proxy() { simt::fence_async_proxy(); }

inline void copy_bulk(void* to, const void* from, unsigned bytes, TransactionBarrier* barrier) {
  simt::copy_bulk(to, from, bytes, &barrier->word);
}

namespace detail {

/// Of a lane of load_matrices and store_matrices: where its row lies, and the words it stores.
struct MatrixLane {
  void* row;
  std::uint32_t words[4];
};

/// Of all lanes.
inline void gather_lanes(const char* name, const void* row, const std::uint32_t* words, MatrixLane* all) {
  simt::shared_address(row, 16);
  MatrixLane mine{const_cast<void*>(row), {}};
  if (words != nullptr) std::copy_n(words, 4, mine.words);
  constexpr unsigned kWords = sizeof(MatrixLane) / 4;
  std::uint32_t bits[kWords], gathered[kWarpThreads * kWords];
  std::memcpy(bits, &mine, sizeof mine);
  simt::warp_gather(name, bits, kWords, gathered);
  std::memcpy(all, gathered, sizeof gathered);
}

}  // namespace detail

template <bool transposed = false>
void store_matrices(void* row, const std::uint32_t (&words)[4]) {
  detail::MatrixLane all[kWarpThreads];
  detail::gather_lanes(transposed ? "store_matrices<true>" : "store_matrices", row, words, all);
  const unsigned lane = thread_index() % kWarpThreads, matrix = lane / 8, r = lane % 8;
  for (unsigned column = 0; column < 8; ++column) {
    const detail::MatrixLane& from = all[transposed ? 4 * column + r / 2 : 4 * r + column / 2];
    const unsigned half = (transposed ? r : column) % 2;
    const auto element = static_cast<std::uint16_t>(from.words[matrix] >> 16 * half);
    std::memcpy(static_cast<std::byte*>(row) + 2 * column, &element, sizeof element);
  }
}

template <bool transposed = false>
void load_matrices(std::uint32_t (&words)[4], const void* row) {
  detail::MatrixLane all[kWarpThreads];
  detail::gather_lanes(transposed ? "load_matrices<true>" : "load_matrices", row, nullptr, all);
  const unsigned lane = thread_index() % kWarpThreads, r = lane / 4, c = lane % 4;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    words[matrix] = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned from_row = transposed ? 2 * c + half : r, column = transposed ? r : 2 * c + half;
      std::uint16_t element;
      std::memcpy(&element, static_cast<const std::byte*>(all[8 * matrix + from_row].row) + 2 * column, sizeof element);
      words[matrix] |= std::uint32_t{element} << 16 * half;
    }
  }
  simt::warp_barrier();  // all have read before any goes on
}

inline std::uint32_t to_bf16(float low, float high) {
  const auto rounded = [](float value) -> std::uint32_t {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

inline std::uint32_t to_tf32(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (value != value) return 0x7fffffff;
  return (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu;
}

}  // namespace deviceloop::cuda
