// The workloads of `toroid bench`. Each case is verified, warmed up, timed, and becomes one row;
// bench.cc has the list. A wrong result is an Internal error that names the case.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/communicator.h"
#include "core/model/block.h"
#include "launcher/bench_measure.h"
#include "parallel/request.h"

namespace toroid {

// What was asked, the rows so far, and the bounds of this machine, each measured when first asked.
class BenchRun {
 public:
  // threads, samples >= 1. only: cases whose name contains it, empty for all. on_case: called with
  // each case's name before it is timed.
  BenchRun(
      int threads, int samples, std::string only,
      std::function<void(const std::string&)> on_case = [](const std::string&) {})
      : pool_(threads), samples_(samples), only_(std::move(only)), on_case_(std::move(on_case)) {}

  bool Wants(const std::string& name) const { return name.find(only_) != std::string::npos; }
  // Verifies and times one case, if it is wanted: `verify` after one call on poisoned outputs, then
  // `row` with the median seconds of `call`.
  absl::Status Case(const std::string& name, const std::function<void()>& call,
                    const std::function<absl::Status()>& verify,
                    const std::function<BenchRow(double seconds)>& row);
  void Begin(const std::string& name) const { on_case_(name); }
  void Add(BenchRow row) { rows_.push_back(std::move(row)); }

  ThreadPool& pool() { return pool_; }
  int threads() const { return pool_.threads(); }
  int samples() const { return samples_; }
  const std::vector<BenchRow>& rows() const { return rows_; }
  // Of a device in place of this machine's, 1e9 FLOPs/s and 1e9 bytes/s.
  void UseBounds(double flops, double bytes) { fma_peak_ = flops, memory_read_ = bytes; }
  double fma_peak();     // 1e9 FLOPs/s
  double memory_read();  // 1e9 bytes/s
  double memory_copy();

 private:
  ThreadPool pool_;
  const int samples_;
  const std::string only_;
  const std::function<void(const std::string&)> on_case_;
  std::vector<BenchRow> rows_;
  double fma_peak_ = 0, memory_read_ = 0, memory_copy_ = 0;
};

// The one object of `-o json`.
std::string BenchJson(const std::string& workload, int ranks, const BenchRun& run);

// OK if |actual - expected| <= tolerance (1 + |expected|); NaN is not.
absl::Status ExpectClose(const std::string& name, double actual, double expected, double tolerance);

absl::Status BenchOps(BenchRun& run);
absl::Status BenchAttention(BenchRun& run);
// Collective over `world`; rows on rank 0. REQUIRES two ranks or more.
absl::Status BenchCollectives(BenchRun& run, Communicator& world);
// Collective over `world`. load.mesh: all on the ring. tokens: of the text. load.model empty:
// attention alone, of SmolLM2-135M's shape.
absl::Status BenchRing(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                       int64_t tokens);
// Collective over `world`. lengths: of the prompts; batch: answers to each, made together.
absl::Status BenchModel(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                        const std::vector<int64_t>& lengths, int64_t batch);
// Collective over `world`. lengths: of each data rank's text in a step. A preset or random model
// with learned positions is given as many as the longest needs.
absl::Status BenchTrain(BenchRun& run, std::unique_ptr<Communicator> world, const LoadRequest& load,
                        const std::vector<int64_t>& lengths, Remat remat);

}  // namespace toroid
