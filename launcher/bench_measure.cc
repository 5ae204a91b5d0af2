#include "launcher/bench_measure.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <limits>

#include "absl/strings/str_format.h"
#include "core/check.h"
#include "core/random.h"
#include "kernels/fma_rate.h"

namespace toroid {
namespace {

clockid_t clock_id = CLOCK_MONOTONIC;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kSampleSeconds = 0.010;  // far above the clock's grain and a thread's wake-up
constexpr int kBoundSamples = 7;          // of a bound, at least, and for so long at least:
constexpr double kBoundSeconds = 0.5;
constexpr int64_t kSweepBytes = int64_t{256} << 20;  // several times any cache
constexpr int64_t kSweepChunk = int64_t{1} << 20;

// The best of some: a bound is what the machine can do, not what it did while others ran. It takes
// the scheduler a while to move new threads to cores of their own, so few samples may all be late.
double BestSeconds(const std::function<void()>& call) {
  call();
  double best = std::numeric_limits<double>::infinity();
  double spent = 0;
  for (int i = 0; i < kBoundSamples || spent < kBoundSeconds; ++i) {
    const double begin = BenchSeconds();
    call();
    const double seconds = BenchSeconds() - begin;
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

// "17.2 GFLOP", "4.7 MB", "512 tokens"; powers of 1000, as the rates.
std::string SizeText(const BenchRow& row) {
  if (row.unit == "tokens/s") return absl::StrFormat("%.0f tokens", row.size);
  const char* unit = row.unit == "GF/s" ? "FLOP" : "B";
  static constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  double size = row.size;
  int prefix = 0;
  for (; size >= 1000 && prefix < 5; ++prefix) size /= 1000;
  return absl::StrFormat("%.4g %s%s", size, kPrefixes[prefix], unit);
}

std::string TimeText(double seconds) {
  if (seconds < 1e-3) return absl::StrFormat("%.4g us", seconds * 1e6);
  if (seconds < 1) return absl::StrFormat("%.4g ms", seconds * 1e3);
  return absl::StrFormat("%.4g s", seconds);
}

BenchRow RowOf(std::string name, double size, double seconds, double per_unit, const char* unit,
               double bound) {
  const double rate = seconds > 0 ? size / seconds / per_unit : kNaN;
  return {std::move(name), size, seconds, rate, unit, bound, kNaN};
}

}  // namespace

BenchRow FlopsRow(std::string name, double flops, double seconds, double bound_gflops) {
  return RowOf(std::move(name), flops, seconds, 1e9, "GF/s", bound_gflops);
}
BenchRow BytesRow(std::string name, double bytes, double seconds, double bound_gbytes) {
  return RowOf(std::move(name), bytes, seconds, 1e9, "GB/s", bound_gbytes);
}
BenchRow TokensRow(std::string name, double tokens, double seconds, double bound_tokens) {
  return RowOf(std::move(name), tokens, seconds, 1, "tokens/s", bound_tokens);
}

double PercentOfBound(const BenchRow& row) {
  return row.bound > 0 ? 100 * row.rate / row.bound : kNaN;
}

std::vector<std::vector<std::string>> BenchCells(const std::vector<BenchRow>& rows) {
  std::vector<std::vector<std::string>> cells = {
      {"case", "size", "time", "rate", "unit", "bound", "% of bound"}};
  const auto number = [](double x, int digits) {
    return std::isfinite(x) ? absl::StrFormat("%.*g", digits, x) : std::string("-");
  };
  const bool errors = std::any_of(rows.begin(), rows.end(),
                                  [](const BenchRow& row) { return std::isfinite(row.error); });
  if (errors) cells[0].push_back("error");
  for (const BenchRow& row : rows) {
    cells.push_back({row.name, SizeText(row), TimeText(row.seconds), number(row.rate, 4), row.unit,
                     row.bound > 0 ? number(row.bound, 4) : "-", number(PercentOfBound(row), 3)});
    if (errors) cells.back().push_back(number(row.error, 2));
  }
  return cells;
}

void UseBenchClock(BenchClock clock) {
  clock_id = clock == BenchClock::kCpu ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC;
}

double BenchSeconds() {
  timespec now{};
  TOROID_CHECK_EQ(clock_gettime(clock_id, &now), 0);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

double Median(std::vector<double> values) {
  TOROID_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double MedianSeconds(int samples, const std::function<void()>& call) {
  int64_t calls = 1;
  const auto sample = [&] {
    const double begin = BenchSeconds();
    for (int64_t i = 0; i < calls; ++i) call();
    return (BenchSeconds() - begin) / double(calls);
  };
  double once = sample();                                      // cold: pages, caches, threads
  if (once < kSampleSeconds) once = std::min(once, sample());  // warm: how many make a sample
  calls = std::max<int64_t>(1, int64_t(std::ceil(kSampleSeconds / std::max(once, 1e-9))));
  std::vector<double> seconds;
  for (int i = 0; i < samples; ++i) seconds.push_back(sample());
  return Median(std::move(seconds));
}

void FillRandom(uint64_t seed, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += 4) {
    const auto words = Philox(seed, uint64_t(i / 4), 0);
    for (int64_t j = i; j < std::min(count, i + 4); ++j) {
      out[j] = float(int32_t(words[j - i])) * 0x1p-31f;
    }
  }
}

std::vector<uint8_t> RandomStored(DType type, int64_t count, uint64_t seed) {
  const DTypeInfo info = Info(type);
  TOROID_CHECK_EQ(count % info.block, 0);
  std::vector<uint8_t> bytes(RowBytes(type, count));
  if (type == DType::kF32) {
    FillRandom(seed, count, reinterpret_cast<float*>(bytes.data()));
    return bytes;
  }
  for (size_t i = 0; i < bytes.size(); i += 16) {
    const auto words = Philox(seed, i, 1);
    std::memcpy(bytes.data() + i, words.data(), std::min<size_t>(16, bytes.size() - i));
  }
  const int64_t blocks = count / info.block;
  const auto put = [&](int64_t block, int64_t offset, uint16_t bits) {
    std::memcpy(bytes.data() + block * info.bytes + offset, &bits, 2);
  };
  for (int64_t i = 0; i < blocks; ++i) {
    uint8_t* block = bytes.data() + i * info.bytes;
    if (type == DType::kBF16) {
      put(i, 0, ToBf16(float(int8_t(block[0])) / 128));
    } else {
      constexpr uint16_t kHalf0_0625 = 11 << 10;  // of f16: 2^(11 - 15)
      put(i, 0, uint16_t(kHalf0_0625 | (block[0] & 0xff)));
      if (type == DType::kQ4_1) put(i, 2, uint16_t(0x8000 | kHalf0_0625 | (block[2] & 0xff)));
    }
  }
  return bytes;
}

std::vector<float> Poisoned(int64_t count) { return std::vector<float>(count, float(kNaN)); }

double MeasureFmaPeak(ThreadPool& pool) {
  return 1e-9 * BestFmaRate(pool, kBoundSeconds, BenchSeconds);
}

double MeasureMemoryRead(ThreadPool& pool) {
  const std::vector<uint64_t> memory(kSweepBytes / 8, 1);
  std::vector<uint64_t> sums(kSweepBytes / kSweepChunk);
  const double seconds = BestSeconds([&] {
    pool.ParallelFor(kSweepBytes, kSweepChunk, [&](int64_t begin, int64_t end, int) {
      uint64_t sum = 0;
      for (int64_t i = begin / 8; i < end / 8; ++i) sum += memory[i];
      sums[begin / kSweepChunk] = sum;
    });
  });
  for (const uint64_t sum : sums) TOROID_CHECK_EQ(sum, uint64_t(kSweepChunk / 8));
  return 1e-9 * double(kSweepBytes) / seconds;
}

double MeasureMemoryCopy(ThreadPool& pool) {
  std::vector<uint8_t> memory(kSweepBytes, 1);
  uint8_t* const half = memory.data() + kSweepBytes / 2;
  std::memset(half, 0, kSweepBytes / 2);
  const double seconds = BestSeconds([&] {
    pool.ParallelFor(kSweepBytes / 2, kSweepChunk, [&](int64_t begin, int64_t end, int) {
      std::memcpy(half + begin, memory.data() + begin, end - begin);
    });
  });
  TOROID_CHECK(std::memcmp(memory.data(), half, kSweepBytes / 2) == 0);
  return 1e-9 * double(kSweepBytes) / seconds;
}

}  // namespace toroid
