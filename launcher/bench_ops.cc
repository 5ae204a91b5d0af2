// Ops but attention, in the shapes of SmolLM2-135M (D 576, F 1536, H 9, G 3, K 64, V 49152).
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "kernels/dequantize.h"
#include "kernels/isa.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

constexpr int64_t kD = 576, kF = 1536, kG = 3, kH = 9, kK = 64, kV = 49152;
// Weights of a case with few rows lie in so many bytes and take turns: as in decode, each is read
// from memory, not from a cache.
constexpr int64_t kColdBytes = int64_t{128} << 20;

// x [m, k] w [n, k]^T against double sums at 64 places spread over the result.
absl::Status VerifyMatMul(const std::string& name, const MatMulArgs<float>& a) {
  std::vector<double> row(a.k);
  for (int64_t i = 0; i < 64; ++i) {
    const int64_t at = i * (a.m * a.n - 1) / 63, r = at / a.n, c = at % a.n;
    DecodeRow(a.w_type, static_cast<const char*>(a.w) + c * RowBytes(a.w_type, a.k), 0, a.k,
              row.data());
    double sum = 0, absolute = 0;
    for (int64_t j = 0; j < a.k; ++j) {
      sum += double(a.x[r * a.k + j]) * row[j];
      absolute += std::abs(double(a.x[r * a.k + j]) * row[j]);
    }
    TOROID_RETURN_IF_ERROR(ExpectClose(name, a.out[r * a.n + c] / absolute, sum / absolute, 1e-5));
  }
  return absl::OkStatus();
}

absl::Status MatMulCase(BenchRun& run, DType type, int64_t m, int64_t n, int64_t k) {
  const std::string name =
      absl::StrCat(m == 1 ? "matvec " : "matmul ", Info(type).name, " ", m, "x", n, "x", k);
  if (!run.Wants(name)) return absl::OkStatus();
  const int64_t bytes = n * RowBytes(type, k);
  const int64_t copies = m == 1 ? kColdBytes / bytes + 1 : 1;
  std::vector<float> x(m * k), out = Poisoned(m * n);
  FillRandom(1, m * k, x.data());
  const std::vector<uint8_t> w = RandomStored(type, copies * n * k, 2);
  MatMulArgs<float> args;
  args.x = x.data(), args.x_stride = k, args.m = m, args.n = n, args.k = k;
  args.w_type = type, args.w = w.data(), args.w_stride = k;
  args.out = out.data(), args.out_stride = n;
  int64_t turn = 0;
  return run.Case(
      name,
      [&] {
        args.w = w.data() + turn * bytes;
        turn = (turn + 1) % copies;
        MatMul(run.pool(), args);
      },
      [&] { return VerifyMatMul(name, args); },
      [&](double seconds) {
        return m == 1 ? BytesRow(name, double(bytes), seconds, run.memory_read())
                      : FlopsRow(name, 2.0 * double(m * n * k), seconds, run.fma_peak());
      });
}

// Ops of elements run on arrays larger than the caches: their bound is copying.
absl::Status RmsNormCase(BenchRun& run) {
  const int64_t t = 32768;
  const std::string name = absl::StrCat("rms_norm f32 ", t, "x", kD);
  if (!run.Wants(name)) return absl::OkStatus();
  std::vector<float> x(t * kD), gain(kD), out = Poisoned(t * kD);
  FillRandom(1, t * kD, x.data());
  FillRandom(2, kD, gain.data());
  return run.Case(
      name,
      [&] {
        RmsNorm(run.pool(), x.data(), kD, t, 1, kD, DType::kF32, gain.data(), 1e-5, out.data(), kD);
      },
      [&]() -> absl::Status {
        for (int64_t row = 0; row < t; row += 997) {
          double squares = 0;
          for (int64_t i = 0; i < kD; ++i) squares += double(x[row * kD + i]) * x[row * kD + i];
          for (int64_t i = 0; i < kD; ++i) {
            const int64_t at = row * kD + i;
            TOROID_RETURN_IF_ERROR(ExpectClose(
                name, out[at], x[at] / std::sqrt(squares / double(kD) + 1e-5) * gain[i], 1e-5));
          }
        }
        return absl::OkStatus();
      },
      [&](double seconds) {
        return BytesRow(name, 8.0 * double(t * kD), seconds, run.memory_copy());
      });
}

absl::Status RopeCase(BenchRun& run) {
  const int64_t t = 32768, cols = kH * kK;
  const std::string name = absl::StrCat("rope f32 ", t, "x", kH, "x", kK);
  if (!run.Wants(name)) return absl::OkStatus();
  std::vector<float> x(t * cols), before;
  FillRandom(1, t * cols, x.data());
  before.assign(x.begin(), x.end());
  std::vector<int32_t> positions(t);
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<double> inv_freq(kK / 2);
  for (int64_t i = 0; i < kK / 2; ++i) inv_freq[i] = std::pow(10000.0, -2.0 * double(i) / kK);
  return run.Case(
      name,
      [&] { Rope(run.pool(), x.data(), cols, t, kH, kK, positions.data(), inv_freq.data(), 1.0); },
      [&]() -> absl::Status {  // after one call: it works in place
        for (int64_t row = 0; row < t; row += 997) {
          for (int64_t i = 0; i < kK / 2; ++i) {
            const int64_t a = row * cols + i, b = a + kK / 2;
            const double angle = double(row) * inv_freq[i];
            TOROID_RETURN_IF_ERROR(ExpectClose(
                name, x[a], before[a] * std::cos(angle) - before[b] * std::sin(angle), 1e-5));
            TOROID_RETURN_IF_ERROR(ExpectClose(
                name, x[b], before[b] * std::cos(angle) + before[a] * std::sin(angle), 1e-5));
          }
        }
        return absl::OkStatus();
      },
      [&](double seconds) {
        return BytesRow(name, 8.0 * double(t * cols), seconds, run.memory_copy());
      });
}

absl::Status SwiGluCase(BenchRun& run) {
  const int64_t t = 8192;
  const std::string name = absl::StrCat("swiglu f32 ", t, "x", kF);
  if (!run.Wants(name)) return absl::OkStatus();
  std::vector<float> gate(t * kF), up(t * kF), out = Poisoned(t * kF);
  FillRandom(1, t * kF, gate.data());
  FillRandom(2, t * kF, up.data());
  return run.Case(
      name, [&] { SwiGlu(run.pool(), gate.data(), kF, up.data(), kF, out.data(), kF, t, kF); },
      [&]() -> absl::Status {
        for (int64_t i = 0; i < t * kF; i += 997) {
          const double x = gate[i];
          TOROID_RETURN_IF_ERROR(ExpectClose(name, out[i], x / (1 + std::exp(-x)) * up[i], 1e-5));
        }
        return absl::OkStatus();
      },
      [&](double seconds) {
        return BytesRow(name, 12.0 * double(t * kF), seconds, run.memory_copy());
      });
}

// The bounds themselves; each loop checks its own result.
void BoundCases(BenchRun& run) {
  const std::string fma = absl::StrCat("peak fma f32 ", IsaName(CurrentIsa()));
  const auto add = [&](const std::string& name, const char* unit, double (BenchRun::*measure)()) {
    if (!run.Wants(name)) return;
    run.Begin(name);
    const double rate = (run.*measure)();
    run.Add({name, rate * 1e9, 1.0, rate, unit, 0});
  };
  add(fma, "GF/s", &BenchRun::fma_peak);
  add("peak memory read", "GB/s", &BenchRun::memory_read);
  add("peak memory copy", "GB/s", &BenchRun::memory_copy);
}

}  // namespace

absl::Status BenchOps(BenchRun& run) {
  static constexpr int64_t kPrefillShapes[][2] = {{kF, kD}, {kD, kF}, {kD, kD}, {kG * kK, kD}};
  static constexpr int64_t kDecodeShapes[][2] = {{kF, kD}, {kD, kF}, {kV, kD}};
  BoundCases(run);
  TOROID_RETURN_IF_ERROR(MatMulCase(run, DType::kF32, 2048, 2048, 2048));
  for (const DType type : {DType::kF32, DType::kBF16, DType::kQ4_1}) {
    for (const auto& [n, k] : kPrefillShapes) {
      TOROID_RETURN_IF_ERROR(MatMulCase(run, type, 512, n, k));
    }
  }
  for (const DType type : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_1}) {
    for (const auto& [n, k] : kDecodeShapes) {
      TOROID_RETURN_IF_ERROR(MatMulCase(run, type, 1, n, k));
    }
  }
  TOROID_RETURN_IF_ERROR(RmsNormCase(run));
  TOROID_RETURN_IF_ERROR(RopeCase(run));
  return SwiGluCase(run);
}

}  // namespace toroid
