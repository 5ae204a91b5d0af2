// The op Sample: on a CPU what the sampler draws, on a GPU what the CPU draws.
#include <gtest/gtest.h>

#include <cmath>

#include "core/model/sampler.h"
#include "kernels/philox.h"
#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using CudaSample = OnGpu;

constexpr double kNearEdge = 1e-9;  // what integers for w may move an edge by

// Of every kind, each with the seed, sequence and position that its number gives it.
std::vector<SampleRow> Rows(uint64_t seed) {
  std::vector<SampleRow> rows = {
      {},
      {.temperature = 1},
      {.temperature = 0.7, .top_k = 40},
      {.temperature = 1, .top_p = 0.9},
      {.temperature = 1.3, .min_p = 0.05},
      {.temperature = 0.8, .top_p = 0.95, .min_p = 0.01, .top_k = 50},
      {.temperature = 2, .top_p = 0.3, .top_k = 3},
      {.temperature = 0.02, .top_k = 50},  // most ids too light to be drawn
      {.temperature = 100, .top_p = 0.5},  // all ids in a few bins
      {.temperature = 1e-6, .top_p = 0.999},
      {.temperature = 1, .top_k = 1},
      {.temperature = 1, .top_p = 1e-12},
      {.temperature = 1, .top_k = 1 << 20},
  };
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].seed = seed, rows[i].sequence = i % 3, rows[i].position = int64_t(17 * i);
  }
  return rows;
}

SampleWork Most(const std::vector<SampleRow>& rows, int64_t vocab) {
  SampleWork most = SampleWork::kGreedy;
  for (const SampleRow& row : rows) most = std::max(most, WorkOf(row, vocab));
  return most;
}

std::vector<SampledRow> Draw(BackendSide& side, const std::vector<float>& logits, int64_t vocab,
                             const std::vector<SampleRow>& rows, int64_t before = 0) {
  const int64_t count = int64_t(rows.size());
  const Tensor logits_bV = side.Put(DType::kF32, {count, vocab}, logits, before);
  const Tensor rows_b7 = side.Poisoned(DType::kI64, {count, kSampleRowWords});
  side.ops().Upload(side.s, rows.data(), rows_b7);
  const Tensor out_b3 = side.Poisoned(DType::kI64, {count, kSampledRowWords});
  side.ops().Sample(side.s, logits_bV, Most(rows, vocab), rows_b7, out_b3);
  const std::vector<SampledRow> drawn = side.Get<SampledRow>(out_b3);
  side.Clear();
  return drawn;
}

// levels: 0, or of how many values each logit is one, so that there are equals.
std::vector<float> Logits(int64_t size, uint64_t seed, double deviation, double levels = 0) {
  std::vector<float> logits = As<float>(RandomArray(size, seed, deviation));
  for (float& l : logits) {
    if (levels > 0) l = float(std::round(double(l) * levels) / levels);
  }
  return logits;
}

TEST(Sample, OnACpuIsTheSampler) {
  constexpr int64_t kVocab = 257;
  BackendSide cpu(NewCpuBackend(DType::kF32, 2));
  const std::vector<SampleRow> rows = Rows(5);
  const std::vector<float> logits = Logits(int64_t(rows.size()) * kVocab, 1, 2);
  const std::vector<SampledRow> drawn = Draw(cpu, logits, kVocab, rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    SamplingParams params{.temperature = row.temperature, .top_p = row.top_p, .top_k = row.top_k};
    params.min_p = row.min_p, params.seed = row.seed;
    auto sampler = Sampler::Create(params, kVocab, row.sequence, {});
    ASSERT_TRUE(sampler.ok());
    const auto expected = sampler->Sample(
        std::span<const float>(logits.data() + int64_t(i) * kVocab, kVocab), row.position);
    ASSERT_TRUE(expected.ok());
    EXPECT_EQ(drawn[i].id, expected->id) << i;
    EXPECT_EQ(drawn[i].log_p, expected->log_p) << i;
    EXPECT_EQ(drawn[i].margin, expected->margin) << i;
    const SampleRow same = sampler->Row(row.position);  // what a device is asked in its place
    EXPECT_EQ(std::memcmp(&same, &row, sizeof(row)), 0) << i;
  }
}

TEST_F(CudaSample, DrawsTheCpusTokens) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 2)), gpu(Gpu());
  int compared = 0, near = 0;
  for (const int64_t vocab : {1, 2, 7, 63, 64, 257, 5000, 128256}) {
    for (const double levels : {0.0, 4.0}) {
      for (uint64_t seed = 1; seed <= (vocab > 10000 ? 3u : 8u); ++seed) {
        const std::vector<SampleRow> rows = Rows(seed);
        const std::vector<float> logits =
            Logits(int64_t(rows.size()) * vocab, seed, seed % 2 == 0 ? 0.5 : 3, levels);
        const int64_t before = int64_t(seed % 3);
        const std::vector<SampledRow> expected = Draw(cpu, logits, vocab, rows, before);
        const std::vector<SampledRow> drawn = Draw(gpu, logits, vocab, rows, before);
        for (size_t i = 0; i < rows.size(); ++i) {
          SCOPED_TRACE(testing::Message() << "vocab " << vocab << " levels " << levels << " seed "
                                          << seed << " row " << i);
          const bool greedy = rows[i].temperature == 0;
          if (!greedy && expected[i].margin < kNearEdge) {
            ++near;
            continue;
          }
          ++compared;
          ASSERT_EQ(drawn[i].id, expected[i].id) << expected[i].margin << " " << drawn[i].margin;
          EXPECT_NEAR(drawn[i].log_p, expected[i].log_p, 1e-9);
          if (greedy) {
            EXPECT_EQ(drawn[i].margin, expected[i].margin);
            continue;
          }
          // On a GPU what weighs nothing makes no edge: the first and the last edge may be missing.
          const SampleRow& row = rows[i];
          const double u = UniformDouble(Philox(row.seed, uint64_t(row.position), row.sequence));
          const double ends =
              std::min(std::abs(expected[i].margin - u), std::abs(expected[i].margin - (1 - u)));
          if (std::isinf(expected[i].margin) || ends > kNearEdge) {
            EXPECT_TRUE(drawn[i].margin == expected[i].margin ||
                        std::abs(drawn[i].margin - expected[i].margin) < kNearEdge)
                << drawn[i].margin << " " << expected[i].margin;
          } else {
            EXPECT_GE(drawn[i].margin, expected[i].margin - kNearEdge);
          }
        }
      }
    }
  }
  EXPECT_GT(compared, 1000);
  EXPECT_LT(near, 5);
}

TEST_F(CudaSample, OneRowIsThatRowOfMany) {
  constexpr int64_t kVocab = 5000;
  BackendSide gpu(Gpu());
  const std::vector<SampleRow> rows = Rows(9);
  const std::vector<float> logits = Logits(int64_t(rows.size()) * kVocab, 2, 2);
  const std::vector<SampledRow> all = Draw(gpu, logits, kVocab, rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto begin = logits.begin() + int64_t(i) * kVocab;
    const std::vector<SampledRow> one = Draw(gpu, {begin, begin + kVocab}, kVocab, {rows[i]});
    EXPECT_EQ(std::memcmp(&one[0], &all[i], sizeof(SampledRow)), 0) << i;
  }
}

TEST_F(CudaSample, NamesTheFirstLogitThatIsNotFinite) {
  constexpr int64_t kVocab = 5000;
  BackendSide gpu(Gpu());
  const std::vector<SampleRow> rows = Rows(9);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> logits = Logits(int64_t(rows.size()) * kVocab, 2, 2);
    for (size_t i = 0; i < rows.size(); ++i) {
      for (const int64_t id : {4000, 123, 4999}) logits[i * kVocab + size_t(id)] = bad;
    }
    for (const SampledRow& drawn : Draw(gpu, logits, kVocab, rows)) {
      EXPECT_EQ(drawn.id, -1 - 123);
      EXPECT_EQ(std::isnan(drawn.log_p), std::isnan(bad));
    }
  }
}

// Negative control: what a row asks for is looked at.
TEST_F(CudaSample, SeedPositionAndCutsMatter) {
  constexpr int64_t kVocab = 5000;
  BackendSide gpu(Gpu());
  const std::vector<float> logits = Logits(kVocab, 2, 1);
  const auto id = [&](const SampleRow& row) { return Draw(gpu, logits, kVocab, {row})[0].id; };
  const SampleRow row{.temperature = 1, .seed = 1};
  SampleRow other = row;
  other.seed = 2;
  EXPECT_NE(id(row), id(other));
  other = row, other.position = 1;
  EXPECT_NE(id(row), id(other));
  other = row, other.sequence = 1;
  EXPECT_NE(id(row), id(other));
  int differs = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    other = {.temperature = 1, .top_p = 0.5, .seed = seed};
    const SampleRow whole{.temperature = 1, .seed = seed};
    differs += id(whole) != id(other);
  }
  EXPECT_GT(differs, 5);
}

}  // namespace
}  // namespace toroid
