// What this machine can do at best, measured: arithmetic, memory, copying.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "core/check.h"
#include "launcher/bench.h"

namespace toroid {
namespace {

constexpr int kRepeats = 8;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Twelve independent sums hide the latency of a fused multiply-add (4 to 5 cycles, two a cycle).
// Returns a value that depends on all of them, so that none is left out. The vector is split by the
// compiler where the target has narrower ones.
typedef float Vector512 __attribute__((vector_size(64)));
typedef float Vector256 __attribute__((vector_size(32)));
typedef float Vector128 __attribute__((vector_size(16)));

#define TOROID_MULTIPLY_ADD(name, Vector)                       \
  float name(int64_t times) {                                   \
    Vector sums[12] = {};                                       \
    const Vector x = Vector{} + factor, y = Vector{} + summand; \
    for (int64_t i = 0; i < times; ++i) {                       \
      for (Vector & sum : sums) sum = sum * x + y;              \
    }                                                           \
    float all = 0;                                              \
    for (const Vector& sum : sums) all += sum[0];               \
    return all;                                                 \
  }

// Not constants, so that the loop is not folded into a formula.
volatile float factor = 0.999f, summand = 0.001f;

__attribute__((target("avx512f"))) TOROID_MULTIPLY_ADD(MultiplyAdd512, Vector512)
    __attribute__((target("avx2,fma"))) TOROID_MULTIPLY_ADD(MultiplyAdd256, Vector256)
        TOROID_MULTIPLY_ADD(MultiplyAdd128, Vector128)
#undef TOROID_MULTIPLY_ADD

    // Runs `work` on every thread at once; seconds until the last has ended.
    double OnThreads(int threads, const std::function<void(int)>& work) {
  std::vector<std::thread> pool;
  const double begin = Now();
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, t);
  for (std::thread& thread : pool) thread.join();
  return Now() - begin;
}

volatile float sink;  // what is measured must not be left out as useless

}  // namespace

BenchPeaks MeasurePeaks(int threads) {
  BenchPeaks peaks;
  const bool wide = __builtin_cpu_supports("avx512f");
  const bool narrow = !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma");
  const auto chains = wide ? MultiplyAdd512 : narrow ? MultiplyAdd128 : MultiplyAdd256;
  const double lanes = wide ? 16 : narrow ? 4 : 8;
  constexpr int64_t kTimes = 4'000'000;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {  // the best: others may use the machine
    const double seconds = OnThreads(threads, [&](int) { sink = chains(kTimes); });
    peaks.flops = std::max(peaks.flops, 2 * 12 * lanes * double(kTimes) * threads / seconds);
  }
  constexpr int64_t kEach = int64_t{64} << 20;  // beyond the caches
  std::vector<std::vector<float>> blocks(static_cast<size_t>(threads));
  for (auto& block : blocks) block.assign(kEach / sizeof(float), 1.0f);
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double seconds = OnThreads(threads, [&](int t) {
      typedef float Vector __attribute__((vector_size(16), aligned(4)));
      Vector sums[8] = {};
      const float* x = blocks[static_cast<size_t>(t)].data();
      for (int64_t i = 0; i < kEach / 4; i += 32) {
        for (int j = 0; j < 8; ++j) sums[j] += *reinterpret_cast<const Vector*>(x + i + 4 * j);
      }
      Vector all = {};
      for (const Vector& sum : sums) all += sum;
      sink = all[0];
    });
    peaks.read = std::max(peaks.read, double(kEach) * threads / seconds);
  }
  std::vector<float> copy(blocks[0].size());
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    const double begin = Now();
    std::memcpy(copy.data(), blocks[0].data(), kEach);
    sink = copy[static_cast<size_t>(repeat)];
    peaks.copy = std::max(peaks.copy, double(kEach) / (Now() - begin));
  }
  return peaks;
}

double MedianSeconds(const std::function<void()>& call, double seconds) {
  call();
  std::vector<double> times;
  const double begin = Now();
  while (times.size() < 5 || (Now() - begin < seconds && times.size() < 10000)) {
    const double start = Now();
    call();
    times.push_back(Now() - start);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

float BenchValue(uint32_t seed, int64_t i) {
  uint32_t x = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u;  // Knuth's hash
  x ^= x >> 15;
  return static_cast<float>(x % 65536) / 32768.0f - 1.0f;
}

BenchMemory::~BenchMemory() {
  for (const auto& [data, bytes] : held_) backend_.Free(data, bytes);
}

Tensor BenchMemory::Empty(DType type, std::initializer_list<int64_t> shape) {
  Tensor tensor(type, shape, nullptr);
  const auto data = backend_.Allocate(tensor.bytes());
  TOROID_CHECK_MSG(data.ok(), std::string(data.status().message()));
  tensor.data = *data;
  held_.emplace_back(*data, tensor.bytes());
  return tensor;
}

Tensor BenchMemory::Floats(std::initializer_list<int64_t> shape, uint32_t seed) {
  const Tensor tensor = Empty(DType::kF32, shape);
  std::vector<float> values(static_cast<size_t>(tensor.size()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = BenchValue(seed, static_cast<int64_t>(i));
  const Stream s = backend_.NewStream(false);
  backend_.Upload(s, values.data(), tensor);
  backend_.Synchronize(s);
  return tensor;
}

Tensor BenchMemory::Ints(const std::vector<int32_t>& values) {
  const Tensor tensor = Empty(DType::kI32, {static_cast<int64_t>(values.size())});
  const Stream s = backend_.NewStream(false);
  backend_.Upload(s, values.data(), tensor);
  backend_.Synchronize(s);
  return tensor;
}

}  // namespace toroid
