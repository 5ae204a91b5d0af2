// What `toroid bench` measures with: rows, medians, random inputs, and the bounds of this machine.
//
// A row says how much work one call does, how long it takes (the median of the samples), the rate
// that follows, and the bound beside it: what the machine could do at best. Bounds are measured by
// loops of this file, not taken from data sheets. One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/thread_pool.h"

namespace toroid {

struct BenchRow {
  std::string name;  // "matmul f32 2048x2048x2048"
  double size = 0;   // work of one call: FLOPs, bytes or tokens
  double seconds = 0;
  double rate = 0;  // in `unit`; NaN if the time was too short to tell
  std::string unit;
  double bound = 0;                                         // in `unit`; 0: none is known
  double error = std::numeric_limits<double>::quiet_NaN();  // against float64, relative, if told
};

// rate = size / seconds, in 1e9 FLOPs, 1e9 bytes or tokens per second.
BenchRow FlopsRow(std::string name, double flops, double seconds, double bound_gflops);
BenchRow BytesRow(std::string name, double bytes, double seconds, double bound_gbytes);
BenchRow TokensRow(std::string name, double tokens, double seconds, double bound_tokens);
// 100 rate / bound; NaN without a bound.
double PercentOfBound(const BenchRow& row);

// case, size, time, rate, bound, percent of bound, error where a row has one; the first row is the
// heading.
std::vector<std::vector<std::string>> BenchCells(const std::vector<BenchRow>& rows);

// The clock of every measurement, wall time unless told otherwise before the first: CPU time of
// this process still tells what one thread needs on a machine that others keep busy.
enum class BenchClock { kWall, kCpu };
void UseBenchClock(BenchClock clock);
// Monotonic.
double BenchSeconds();
// REQUIRES: not empty. Of an even number the mean of the middle two.
double Median(std::vector<double> values);
// Seconds of one call: a warm-up, then the median of `samples` samples, each of so many calls that
// it lasts at least 10 ms.
double MedianSeconds(int samples, const std::function<void()>& call);

// Uniform in [-1, 1), a function of (seed, index) alone.
void FillRandom(uint64_t seed, int64_t count, float* out);
// Random blocks of `count` stored elements, ordinary numbers: f32, bf16, q8_0, q4_0 or q4_1.
std::vector<uint8_t> RandomStored(DType type, int64_t count, uint64_t seed);
// Every output begins as NaN, so that what a kernel does not write is seen.
std::vector<float> Poisoned(int64_t count);

// 1e9 FLOPs/s of independent fused multiply-adds in registers, in the vectors of CurrentIsa(), on
// all threads of the pool.
double MeasureFmaPeak(ThreadPool& pool);
// 1e9 bytes/s of reading 256 MiB, and of copying one half of it to the other (read plus written).
double MeasureMemoryRead(ThreadPool& pool);
double MeasureMemoryCopy(ThreadPool& pool);

}  // namespace toroid
