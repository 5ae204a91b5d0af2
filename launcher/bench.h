// What the benchmarks share: rows, timing, and what this machine can do at
// best.
//
// Each case checks its result before it is timed: a wrong answer is an error,
// never a number. Bounds are measured in the same run (BenchPeaks), so a row
// says how near the code is to this machine, as it is loaded now.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/backend.h"
#include "core/communicator.h"
#include "launcher/command_line.h"
#include "launcher/json_output.h"

namespace toroid {

struct BenchPeaks {
  double flops = 0;  // float32 fused multiply-adds of all threads, 2 a lane, per second
  double read = 0;   // bytes per second read from memory by all threads
  double copy = 0;   // bytes per second copied by memcpy of one thread
};
BenchPeaks MeasurePeaks(int threads);

// Seconds of one call: the median of at least 5 calls and `seconds` of time,
// after one warm-up.
double MedianSeconds(const std::function<void()>& call, double seconds = 0.3);

struct BenchRow {
  std::string name, size;
  double seconds = 0;
  double rate = 0;       // in `unit`
  std::string unit;      // "GF/s", "GB/s", "tokens/s"
  double bound = 0;      // in `unit`; 0: none
  std::string bound_by;  // "arithmetic", "memory", "copy"
};

// The report on stdout: a table, or one JSON object with the peaks and the
// rows.
void PrintBench(const Arguments& arguments, const std::string& suite, int ranks, int threads,
                const BenchPeaks& peaks, const std::vector<BenchRow>& rows);

// bench_ops.cc, bench_attention.cc: one process. bench_comm.cc: collective over
// `world`; rows are rank 0's.
absl::StatusOr<std::vector<BenchRow>> BenchOps(Backend& backend, const BenchPeaks& peaks);
absl::StatusOr<std::vector<BenchRow>> BenchAttention(Backend& backend, const BenchPeaks& peaks);
absl::StatusOr<std::vector<BenchRow>> BenchCollectives(Backend& backend, Communicator& world,
                                                       const BenchPeaks& peaks);
absl::StatusOr<std::vector<BenchRow>> BenchRing(Backend& backend, Communicator& world,
                                                const BenchPeaks& peaks);
// bench_model.cc: prefill and decode of a model on this world.
absl::Status BenchModel(const Arguments& arguments);

// Device memory for the length of a benchmark.
class BenchMemory {
 public:
  explicit BenchMemory(Backend& backend) : backend_(backend) {}
  ~BenchMemory();
  // Filled with numbers in [-1, 1), different for every element. CHECK: out of
  // memory.
  Tensor Floats(std::initializer_list<int64_t> shape, uint32_t seed);
  Tensor Ints(const std::vector<int32_t>& values);
  Tensor Empty(DType type, std::initializer_list<int64_t> shape);

 private:
  Backend& backend_;
  std::vector<std::pair<void*, int64_t>> held_;
};

// The value that Floats put at flat index i.
float BenchValue(uint32_t seed, int64_t i);

// OK if |got - expected| <= tolerance; else DataLoss naming the case.
absl::Status BenchCheck(const std::string& name, double got, double expected, double tolerance);

}  // namespace toroid
