// bench ops: products at prefill and decode sizes, and the memory-bound ops, at
// SmolLM2's widths.
#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

// out [t, n] = x [t, k] w [n, k]^T in float32, checked at one element by a sum
// in double.
absl::StatusOr<BenchRow> Product(Backend& backend, Stream s, const BenchPeaks& peaks, int64_t t,
                                 int64_t n, int64_t k) {
  BenchMemory memory(backend);
  const Tensor x = memory.Floats({t, k}, 1), w = memory.Floats({n, k}, 2);
  const Tensor out = memory.Empty(DType::kF32, {t, n});
  const std::string size = absl::StrCat("[", t, ",", k, "] x [", n, ",", k, "]^T f32");
  const auto call = [&] {
    backend.MatMul(s, x, w, Tensor(), out);
    backend.Synchronize(s);
  };
  call();
  std::vector<float> got(static_cast<size_t>(t * n));
  backend.Download(s, out, got.data());
  for (const int64_t at : {int64_t{0}, t * n / 2, t * n - 1}) {
    double expected = 0;
    for (int64_t i = 0; i < k; ++i) {
      expected += double(BenchValue(1, at / n * k + i)) * BenchValue(2, at % n * k + i);
    }
    TOROID_RETURN_IF_ERROR(BenchCheck(absl::StrCat("matmul ", size), got[static_cast<size_t>(at)],
                                      expected,
                                      1e-5 * std::sqrt(double(k)) + 1e-5 * std::abs(expected)));
  }
  BenchRow row{"matmul", size, MedianSeconds(call), 0, "", 0, ""};
  const double flops = 2.0 * double(t) * double(n) * double(k), bytes = double(w.bytes());
  if (flops / peaks.flops > bytes / peaks.read) {
    row.unit = "GF/s", row.bound_by = "arithmetic";
    row.rate = flops / row.seconds * 1e-9, row.bound = peaks.flops * 1e-9;
  } else {
    row.unit = "GB/s", row.bound_by = "memory";
    row.rate = bytes / row.seconds * 1e-9, row.bound = peaks.read * 1e-9;
  }
  return row;
}

// A memory-bound op: bytes it must move, over its time.
BenchRow Moved(const BenchPeaks& peaks, const char* name, const std::string& size, double bytes,
               const std::function<void()>& call) {
  BenchRow row{name, size, MedianSeconds(call), 0, "GB/s", peaks.read * 1e-9, "memory"};
  row.rate = bytes / row.seconds * 1e-9;
  return row;
}

}  // namespace

absl::StatusOr<std::vector<BenchRow>> BenchOps(Backend& backend, const BenchPeaks& peaks) {
  const Stream s = backend.NewStream(false);
  std::vector<BenchRow> rows;
  constexpr int64_t kDim = 576, kFfn = 1536, kTokens = 512;
  for (const auto& [t, n, k] : std::vector<std::array<int64_t, 3>>{{kTokens, kFfn, kDim},
                                                                   {kTokens, kDim, kFfn},
                                                                   {kTokens, 2048, 2048},
                                                                   {1, 8192, 2048},
                                                                   {1, 49152, kDim}}) {
    TOROID_ASSIGN_OR_RETURN(BenchRow row, Product(backend, s, peaks, t, n, k));
    rows.push_back(std::move(row));
  }
  BenchMemory memory(backend);
  const Tensor x = memory.Floats({8192, kDim}, 3), gain = memory.Floats({kDim}, 4);
  const Tensor out = memory.Empty(DType::kF32, {8192, kDim});
  const auto norm = [&] {
    backend.RmsNorm(s, x, gain, 1e-5, out);
    backend.Synchronize(s);
  };
  norm();
  std::vector<float> got(static_cast<size_t>(out.size()));
  backend.Download(s, out, got.data());
  double squares = 0;
  for (int64_t i = 0; i < kDim; ++i) squares += std::pow(double(BenchValue(3, i)), 2);
  TOROID_RETURN_IF_ERROR(
      BenchCheck("rms_norm", got[5],
                 BenchValue(3, 5) / std::sqrt(squares / kDim + 1e-5) * BenchValue(4, 5), 1e-5));
  rows.push_back(Moved(peaks, "rms_norm", "[8192,576] f32", 2.0 * double(x.bytes()), norm));
  const Tensor gate = memory.Floats({4096, kFfn}, 5), up = memory.Floats({4096, kFfn}, 6);
  const Tensor product = memory.Empty(DType::kF32, {4096, kFfn});
  const auto swiglu = [&] {
    backend.SwiGlu(s, gate, up, product);
    backend.Synchronize(s);
  };
  swiglu();
  got.resize(static_cast<size_t>(product.size()));
  backend.Download(s, product, got.data());
  const double g = BenchValue(5, 7);
  TOROID_RETURN_IF_ERROR(
      BenchCheck("swiglu", got[7], g / (1 + std::exp(-g)) * BenchValue(6, 7), 1e-5));
  rows.push_back(Moved(peaks, "swiglu", "[4096,1536] f32", 3.0 * double(gate.bytes()), swiglu));
  return rows;
}

}  // namespace toroid
