#include "parallel/pod_merge.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "kernels/exchange_loops.h"

namespace toroid {
namespace {

constexpr int64_t kAtOnce = 2048;  // elements: codes, values and sums lie in the first cache

// What a share with a weight stands for.
class ShareReader {
 public:
  // The layouts of the rule and the share outlive the reader.
  static absl::StatusOr<ShareReader> Open(const MergeRule& rule, int64_t group, int64_t n,
                                          const PodShare& share) {
    const ExchangeLayout* layout = rule.layouts[size_t(share.pod)];
    ShareReader reader(share, layout == nullptr);
    if (layout == nullptr) {
      TOROID_CHECK_EQ(share.own.size, n);
      return reader;
    }
    const std::vector<ExchangePart>& parts = layout->receives(group);
    TOROID_CHECK_EQ(parts.size(), share.parts.size());
    for (size_t i = 0; i < parts.size(); ++i) {
      auto part = PartReader::Open(parts[i], rule.codec, share.parts[i]);
      if (!part.ok()) {
        return absl::Status(part.status().code(),
                            absl::StrCat("from rank ", parts[i].rank, " of pod ", share.pod, ": ",
                                         part.status().message()));
      }
      reader.parts_.push_back(*std::move(part));
    }
    return reader;
  }

  const PodShare& share() const { return *share_; }
  // What none of its ranks sent (pads) is 0.
  template <typename T>
  void Read(int64_t begin, int64_t count, T* values) const {
    if (own_) return Decode(share_->own, begin, count, values);
    std::fill_n(values, count, T(0));
    for (const PartReader& part : parts_) part.Read(begin, count, values);
  }

 private:
  ShareReader(const PodShare& share, bool own) : share_(&share), own_(own) {}
  const PodShare* share_;
  bool own_;
  std::vector<PartReader> parts_;
};

template <typename T>
void AddWeighted(const T* x, double weight, int64_t n, double* sum) {
  if constexpr (std::is_same_v<T, float>) {
    CurrentExchangeLoops().add_weighted(x, weight, n, sum);
  } else {
    for (int64_t i = 0; i < n; ++i) sum[i] += weight * double(x[i]);
  }
}

template <typename T>
void Divide(const double* sum, double weights, int64_t n, T* out) {
  if constexpr (std::is_same_v<T, float>) {
    CurrentExchangeLoops().divide(sum, weights, n, out);
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const double mean = sum[i] / weights;
      out[i] = mean == mean ? T(mean) : std::numeric_limits<T>::quiet_NaN();
    }
  }
}

}  // namespace

template <typename T>
absl::StatusOr<double> MeanOfShares(ThreadPool& pool, const MergeRule& rule, int64_t group,
                                    int64_t n, const std::vector<PodShare>& shares,
                                    const MergeObserver<T>& observe, T* out) {
  std::vector<ShareReader> readers;
  double weights = 0;
  for (const PodShare& share : shares) {
    if (!(share.weight > 0)) continue;
    auto reader = ShareReader::Open(rule, group, n, share);
    if (!reader.ok()) return reader.status();
    readers.push_back(*std::move(reader));
    weights += share.weight;
  }
  pool.ParallelFor(n, kAtOnce, [&](int64_t begin, int64_t end, int worker) {
    const int64_t count = end - begin;
    static_assert(kAtOnce * sizeof(double) <= ThreadPool::kScratchBytes);
    double* const sum = static_cast<double*>(pool.scratch(worker));
    T* const values = out + begin;
    std::fill_n(sum, count, 0.0);
    for (const ShareReader& reader : readers) {
      reader.Read(begin, count, values);
      if (observe) observe(&reader.share(), begin, count, values);
      AddWeighted(values, reader.share().weight, count, sum);
    }
    if (weights > 0) {
      Divide(sum, weights, count, values);
    } else {
      std::fill_n(values, count, T(0));
    }
    if (observe) observe(nullptr, begin, count, values);
  });
  return weights;
}

#define TOROID_INSTANTIATE(T)                                                                   \
  template absl::StatusOr<double> MeanOfShares(ThreadPool&, const MergeRule&, int64_t, int64_t, \
                                               const std::vector<PodShare>&,                    \
                                               const MergeObserver<T>&, T*);
TOROID_INSTANTIATE(float)
TOROID_INSTANTIATE(double)
#undef TOROID_INSTANTIATE

}  // namespace toroid
