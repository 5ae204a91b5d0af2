// bench attention: one causal tile at prefill sizes, one query against a long
// cache for decode.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

constexpr int64_t kHeads = 9, kKvHeads = 3, kHeadDim = 64;  // SmolLM2's

// Attention of query row t, head h, column c, against keys 0 .. last, naively
// in double. Seeds of q, k, v are 1, 2, 3.
double Naive(int64_t row, int64_t h, int64_t c, int64_t last, double scale) {
  const int64_t g = h / (kHeads / kKvHeads);
  double sum = 0, weighted = 0, largest = -1e30;
  std::vector<double> scores;
  for (int64_t j = 0; j <= last; ++j) {
    double score = 0;
    for (int64_t i = 0; i < kHeadDim; ++i) {
      score += double(BenchValue(1, (row * kHeads + h) * kHeadDim + i)) *
               BenchValue(2, (j * kKvHeads + g) * kHeadDim + i);
    }
    scores.push_back(score * scale);
    largest = std::max(largest, scores.back());
  }
  for (int64_t j = 0; j <= last; ++j) {
    const double p = std::exp(scores[static_cast<size_t>(j)] - largest);
    sum += p;
    weighted += p * BenchValue(3, (j * kKvHeads + g) * kHeadDim + c);
  }
  return weighted / sum;
}

// `queries` rows that end at the last of `keys` positions.
absl::StatusOr<BenchRow> Tiled(Backend& backend, Stream s, const BenchPeaks& peaks, int64_t queries,
                               int64_t keys) {
  BenchMemory memory(backend);
  const Tensor q = memory.Floats({queries, kHeads, kHeadDim}, 1);
  KvView kv;
  kv.k = memory.Floats({keys, kKvHeads, kHeadDim}, 2);
  kv.v = memory.Floats({keys, kKvHeads, kHeadDim}, 3);
  std::vector<int32_t> positions(static_cast<size_t>(keys));
  std::iota(positions.begin(), positions.end(), 0);
  kv.positions = memory.Ints(positions);
  const Tensor q_positions = memory.Ints({positions.end() - queries, positions.end()});
  std::vector<int32_t> index;
  for (int64_t h = 0; h < kHeads; ++h) index.push_back(int32_t(h / (kHeads / kKvHeads)));
  const Tensor kv_index = memory.Ints(index);
  const Tensor o = memory.Empty(DType::kF32, {queries, kHeads, kHeadDim});
  const Tensor lse = memory.Empty(DType::kF32, {queries, kHeads});
  AttentionSpec spec;
  spec.scale = 1 / std::sqrt(double(kHeadDim));
  const Tile tile{0, queries, 0, keys};
  const auto call = [&] {
    backend.Fill(s, o, 0);
    backend.Fill(s, lse, -std::numeric_limits<double>::infinity());
    backend.AttendTile(s, q, q_positions, kv, kv_index, spec, tile, o, lse);
    backend.Synchronize(s);
  };
  call();
  const std::string size = absl::StrCat(queries, " x ", keys, ", 9 heads of 64, 3 KV");
  std::vector<float> got(static_cast<size_t>(o.size()));
  backend.Download(s, o, got.data());
  for (const int64_t row : {int64_t{0}, queries - 1}) {
    TOROID_RETURN_IF_ERROR(BenchCheck(absl::StrCat("attention ", size),
                                      got[static_cast<size_t>((row * kHeads + 4) * kHeadDim + 3)],
                                      Naive(row, 4, 3, keys - queries + row, spec.scale), 1e-5));
  }
  // q k and p v: 4 K operations a pair and head; causal pairs of the last rows.
  const double pairs =
      double(queries) * double(keys - queries) + 0.5 * double(queries) * double(queries + 1);
  const double flops = 4.0 * kHeadDim * kHeads * pairs;
  const double bytes = double(kv.k.bytes() + kv.v.bytes());
  BenchRow row{queries == 1 ? "decode" : "prefill", size, MedianSeconds(call), 0, "", 0, ""};
  if (flops / peaks.flops > bytes / peaks.read) {
    row.unit = "GF/s", row.bound_by = "arithmetic";
    row.rate = flops / row.seconds * 1e-9, row.bound = peaks.flops * 1e-9;
  } else {
    row.unit = "GB/s", row.bound_by = "memory";
    row.rate = bytes / row.seconds * 1e-9, row.bound = peaks.read * 1e-9;
  }
  return row;
}

}  // namespace

absl::StatusOr<std::vector<BenchRow>> BenchAttention(Backend& backend, const BenchPeaks& peaks) {
  const Stream s = backend.NewStream(false);
  std::vector<BenchRow> rows;
  for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
           {512, 512}, {2048, 2048}, {512, 4096}, {1, 4096}, {1, 32768}}) {
    TOROID_ASSIGN_OR_RETURN(BenchRow row, Tiled(backend, s, peaks, queries, keys));
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace toroid
