#include "parallel/pod_merge.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

// What the share stands for into `out`; what none of its ranks sent (pads) is 0.
template <typename T>
absl::Status DecodeShare(ThreadPool& pool, const MergeRule& rule, int64_t group, int64_t n,
                         const PodShare& share, T* out) {
  const ExchangeLayout* layout = rule.layouts[size_t(share.pod)];
  if (layout == nullptr) {
    TOROID_CHECK_EQ(share.own.size, n);
    Decode(pool, share.own, out);
    return absl::OkStatus();
  }
  std::fill_n(out, n, T(0));
  const std::vector<ExchangePart>& parts = layout->receives(group);
  TOROID_CHECK_EQ(parts.size(), share.parts.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const absl::Status unpacked = UnpackPart(pool, parts[i], rule.codec, share.parts[i], out);
    if (!unpacked.ok()) {
      return absl::Status(unpacked.code(), absl::StrCat("from rank ", parts[i].rank, " of pod ",
                                                        share.pod, ": ", unpacked.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <typename T>
absl::StatusOr<double> MeanOfShares(
    ThreadPool& pool, const MergeRule& rule, int64_t group, int64_t n,
    const std::vector<PodShare>& shares,
    const std::function<void(const PodShare& share, const T* values)>& on_share, T* out) {
  std::vector<double> sum(size_t(n), 0.0);
  double weights = 0;
  for (const PodShare& share : shares) {
    if (!(share.weight > 0)) continue;
    const absl::Status decoded = DecodeShare(pool, rule, group, n, share, out);
    if (!decoded.ok()) return decoded;
    if (on_share) on_share(share, out);
    weights += share.weight;
    for (int64_t i = 0; i < n; ++i) sum[size_t(i)] += share.weight * double(out[i]);
  }
  for (int64_t i = 0; i < n; ++i) out[i] = weights > 0 ? T(sum[size_t(i)] / weights) : T(0);
  return weights;
}

template absl::StatusOr<double> MeanOfShares<float>(
    ThreadPool&, const MergeRule&, int64_t, int64_t, const std::vector<PodShare>&,
    const std::function<void(const PodShare&, const float*)>&, float*);
template absl::StatusOr<double> MeanOfShares<double>(
    ThreadPool&, const MergeRule&, int64_t, int64_t, const std::vector<PodShare>&,
    const std::function<void(const PodShare&, const double*)>&, double*);

}  // namespace toroid
