#include "launcher/bench_cuda.h"

#include <algorithm>
#include <cmath>

#include "core/arena.h"
#include "core/status_macros.h"

namespace toroid {

double MedianSecondsOnDevice(int samples, Backend& ops, Stream s,
                             const std::function<void()>& enqueue) {
  constexpr double kSampleSeconds = 0.010;
  const auto sample = [&](int64_t calls) {
    const double begin = BenchSeconds();
    for (int64_t i = 0; i < calls; ++i) enqueue();
    ops.Synchronize(s);
    return (BenchSeconds() - begin) / double(calls);
  };
  sample(1);
  const double once = std::max(sample(1), 1e-6);
  const int64_t calls = std::max<int64_t>(1, int64_t(std::ceil(kSampleSeconds / once)));
  std::vector<double> seconds;
  for (int i = 0; i < samples; ++i) seconds.push_back(sample(calls));
  return Median(std::move(seconds));
}

absl::StatusOr<DeviceBounds> MeasureDevice(Backend& ops, Stream s, int samples) {
  constexpr int64_t kSide = 8192, kCopied = int64_t{512} << 20;
  const DType type = ops.activation();
  const int64_t matrix = RowBytes(type, kSide * kSide);
  Arena arena(ops, "benchmark");
  TOROID_RETURN_IF_ERROR(arena.Reserve(std::max(3 * matrix, 2 * kCopied) + 4096));
  DeviceBounds bounds;
  {
    const Arena::Mark mark(arena);
    const Tensor x = arena.New("x", type, {kSide, kSide});
    const Tensor w = arena.New("w", type, {kSide, kSide});
    const Tensor out = arena.New("out", type, {kSide, kSide});
    std::vector<float> random(kSide * kSide);  // constant operands would draw less power
    FillRandom(1, int64_t(random.size()), random.data());
    std::vector<uint16_t> narrow(random.size());
    std::transform(random.begin(), random.end(), narrow.begin(), ToBf16);
    for (const Tensor& operand : {x, w}) {
      ops.Upload(s, type == DType::kBF16 ? (const void*)narrow.data() : random.data(), operand);
    }
    const double seconds =
        MedianSecondsOnDevice(samples, ops, s, [&] { ops.MatMul(s, x, w, Tensor(), out); });
    bounds.product = 2e-9 * double(kSide) * kSide * kSide / seconds;
  }
  const Arena::Mark mark(arena);
  const Tensor from = arena.New("from", DType::kF32, {kCopied / 4});
  const Tensor to = arena.New("to", DType::kF32, {kCopied / 4});
  ops.Fill(s, from, 1);
  const double seconds = MedianSecondsOnDevice(samples, ops, s, [&] { ops.Copy(s, from, to); });
  bounds.copy = 2e-9 * double(kCopied) / seconds;
  return bounds;
}

}  // namespace toroid
