// The mean of what pods gave of one group: what PodSwap computes, and what a replay of its log does
// again, bit for bit.
//
//   (n_0 d(x_0) + n_1 d(x_1) + ..) / (n_0 + n_1 + ..)      in the order of pods, summed in double
//
// where d(x) is what the codec leaves of x, of the own pod too (spec A9). A function of its
// arguments: the same bits on every instruction set and machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/exchange_layout.h"

namespace toroid {

// What one pod gave to a rank's range of a group.
struct PodShare {
  int64_t pod = 0;
  double weight = 0;  // 0: it had nothing to add, and sent nothing
  CodedRange own;     // of the rank's own pod
  // Of another pod: payloads of its ranks, in the order of ExchangeLayout::receives.
  std::vector<SharedBytes> parts;
};

// How a rank takes the shares of a group. Layouts by pod; null: the rank's own.
struct MergeRule {
  Codec codec = Codec::kFp32;
  std::vector<const ExchangeLayout*> layouts;
};

// Sees elements [begin, begin + count) of what is merged: what the codes of a share stand for, or
// their mean (share: null). Of threads of the pool, several at once.
template <typename T>
using MergeObserver =
    std::function<void(const PodShare* share, int64_t begin, int64_t count, const T* values)>;

// The mean into `out`, [n], the stored range of the group, and the sum of the weights: 0: `out` is
// 0. shares: in the order of pods, at most one of each. `observe`, unless empty, sees each element
// of each share with a weight, and of the mean, once. It is made a few thousand elements at a time,
// which stay in the cache from their codes to their mean. InvalidArgument: a payload of a wrong
// size.
template <typename T>
absl::StatusOr<double> MeanOfShares(ThreadPool& pool, const MergeRule& rule, int64_t group,
                                    int64_t n, const std::vector<PodShare>& shares,
                                    const MergeObserver<T>& observe, T* out);

}  // namespace toroid
