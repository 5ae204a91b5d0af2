#include "parallel/reduction.h"

#include <algorithm>

namespace toroid {
namespace {

constexpr int64_t kTile = 1024;  // elements: the accumulators stay in the nearest cache

template <typename A>
A Combine(A a, A b, ReduceOp op) {
  if (op == ReduceOp::kSum) return a + b;
  return b > a || b != b ? b : a;  // a NaN in `a` stays: no b is greater
}

// Load and Store convert between the stored element and the accumulator.
template <typename Stored, typename A, typename Load, typename Store>
void Reduce(const std::vector<const void*>& in, void* out, int64_t count, ReduceOp op, Load load,
            Store store) {
  A sum[kTile];
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int64_t n = std::min(kTile, count - begin);
    const Stored* first = static_cast<const Stored*>(in[0]) + begin;
    for (int64_t i = 0; i < n; ++i) sum[i] = load(first[i]);
    for (size_t r = 1; r < in.size(); ++r) {
      const Stored* x = static_cast<const Stored*>(in[r]) + begin;
      if (op == ReduceOp::kSum) {
        for (int64_t i = 0; i < n; ++i) sum[i] += load(x[i]);
      } else {
        for (int64_t i = 0; i < n; ++i) sum[i] = Combine(sum[i], A(load(x[i])), op);
      }
    }
    Stored* y = static_cast<Stored*>(out) + begin;
    for (int64_t i = 0; i < n; ++i) y[i] = store(sum[i]);
  }
}

template <typename T, typename A = T>
void ReducePlain(const std::vector<const void*>& in, void* out, int64_t count, ReduceOp op) {
  Reduce<T, A>(
      in, out, count, op, [](T x) { return static_cast<A>(x); },
      [](A x) { return static_cast<T>(x); });
}

}  // namespace

void ReduceInRankOrder(const std::vector<const void*>& in, void* out, int64_t count, DType type,
                       ReduceOp op) {
  switch (type) {
    case DType::kF32:
      return ReducePlain<float>(in, out, count, op);
    case DType::kF64:
      return ReducePlain<double>(in, out, count, op);
    // Sums of integers wrap, as they do on a GPU: added without sign, where that is defined.
    case DType::kI32:
      return op == ReduceOp::kSum ? ReducePlain<uint32_t>(in, out, count, op)
                                  : ReducePlain<int32_t>(in, out, count, op);
    case DType::kI64:
      return op == ReduceOp::kSum ? ReducePlain<uint64_t>(in, out, count, op)
                                  : ReducePlain<int64_t>(in, out, count, op);
    case DType::kBF16:
      return Reduce<uint16_t, float>(in, out, count, op, FromBf16, ToBf16);
    default:
      TOROID_CHECK_MSG(false, std::string("no reduction of ") + Info(type).name);
  }
}

ReductionBlock BlockOf(int rank, int size, int64_t total) {
  constexpr int64_t kGranule = 64;
  const int64_t each = ((total + size - 1) / size + kGranule - 1) / kGranule * kGranule;
  const int64_t begin = std::min(total, rank * each);
  return {begin, std::min(total, begin + each) - begin};
}

int64_t ReductionSlotBytes(int size, int64_t message, int64_t limit) {
  constexpr int64_t kPage = 4096, kAllSlots = 32 << 20;
  const int64_t share = kAllSlots / (2 * (size - 1)) / kPage * kPage;
  const int64_t wanted = (message + kPage - 1) / kPage * kPage;
  return std::max(kPage, std::min({wanted, limit, share}));
}

int64_t AllReduceMessageBytes(int size, int64_t total, DType type) {
  const int64_t bytes = RowBytes(type, total);
  if (bytes <= kSmallReduction) return bytes;
  return RowBytes(type, BlockOf(0, size, total).count);
}

}  // namespace toroid
