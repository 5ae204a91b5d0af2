// The Hopper kernel against softmax attention in float64, with random bf16 inputs. Outputs begin as
// NaN, so what is not written is seen. Skipped where there is no device of compute capability 9.0.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention_hopper.h"
#include "tests/support/hopper.cuh"

#pragma nv_diag_suppress 177  // GoogleTest's test_info_, unused by design

namespace toroid {
namespace {

// One thread block per (token, head): all scores of the token, then their softmax times V, for
// every tile that holds the token.
__global__ void ReferenceKernel(const __nv_bfloat16* q, const __nv_bfloat16* k,
                                const __nv_bfloat16* v, AttentionHopperArgs a, double* o,
                                double* lse) {
  extern __shared__ double scores[];
  const int token = blockIdx.x, head = blockIdx.y, kv_head = a.kv_index[head];
  double top = -INFINITY, sum = 0;
  int count = 0;
  for (int t = 0; t < a.tile_count; ++t) {
    const AttentionTile tile = a.tiles[t];
    const int i = token - tile.q_begin;
    if (i < 0 || i >= tile.q_count) continue;
    for (int j = 0; j < tile.k_count && j <= i + tile.diagonal; ++j, ++count) {
      if (count % blockDim.x != threadIdx.x) continue;
      double dot = 0;
      for (int d = 0; d < a.head_dim; ++d) {
        dot +=
            double{__bfloat162float(q[token * a.q_stride + head * a.head_dim + d])} *
            double{__bfloat162float(k[(tile.k_begin + j) * a.k_stride + kv_head * a.head_dim + d])};
      }
      scores[count] = dot * a.scale;
    }
  }
  __syncthreads();
  for (int j = 0; j < count; ++j) top = fmax(top, scores[j]);
  for (int j = 0; j < count; ++j) sum += exp(scores[j] - top);
  for (int d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
    double out = 0;
    int index = 0;
    for (int t = 0; t < a.tile_count; ++t) {
      const AttentionTile tile = a.tiles[t];
      const int i = token - tile.q_begin;
      if (i < 0 || i >= tile.q_count) continue;
      for (int j = 0; j < tile.k_count && j <= i + tile.diagonal; ++j, ++index) {
        out += exp(scores[index] - top) *
               __bfloat162float(v[(tile.k_begin + j) * a.v_stride + kv_head * a.head_dim + d]);
      }
    }
    o[(int64_t{token} * a.heads + head) * a.head_dim + d] = count == 0 ? 0 : out / sum;
  }
  if (threadIdx.x == 0) lse[token * a.heads + head] = count == 0 ? -INFINITY : top + log(sum);
}

struct Shape {
  int head_dim, heads, kv_heads, q_tokens, k_tokens;
  float spread = 1;  // of q
  int pad = 0;       // elements between tokens beyond the dense ones
};

using AttentionHopperTest = HopperTest;

// Inputs of one shape on the device, outputs, and what both ways make of a list of tiles.
class Case {
 public:
  explicit Case(const Shape& shape, unsigned seed = std::random_device()())
      : shape_(shape),
        random_(seed),
        q_(Normal(shape.q_tokens, shape.heads, shape.spread)),
        k_(Normal(shape.k_tokens, shape.kv_heads, 1)),
        v_(Normal(shape.k_tokens, shape.kv_heads, 1)),
        o(size_t(shape.q_tokens) * shape.heads * shape.head_dim),
        lse(size_t(shape.q_tokens) * shape.heads),
        kv_index_(shape.heads),
        counters_(std::vector<int32_t>{0, 0}) {
    std::vector<int32_t> index(shape.heads);
    for (int h = 0; h < shape.heads; ++h) index[h] = h * shape.kv_heads / shape.heads;
    kv_index_.Set(index);
  }

  void SetKvIndex(const std::vector<int32_t>& index) { kv_index_.Set(index); }

  void Attend(const std::vector<AttentionTile>& tiles, bool fresh) {
    const std::vector<AttentionTile> cut = CutTiles(tiles, shape_.head_dim, fresh);
    DeviceArray<AttentionTile> on_device(cut);
    AttentionHopperArgs args = Args(on_device, cut.size());
    args.fresh = fresh;
    Ok(AttendTilesHopper(nullptr, args));
    Ok(cudaDeviceSynchronize());
    EXPECT_EQ(counters_.Get(), (std::vector<int32_t>{0, 0}));
  }

  // Relative error of o (Frobenius) and the largest absolute one of lse; NaN where one is NaN.
  std::pair<double, double> Errors(const std::vector<AttentionTile>& tiles) {
    DeviceArray<AttentionTile> on_device(tiles);
    DeviceArray<double> o_ref(o.size), lse_ref(lse.size);
    size_t keys = 0;
    for (const AttentionTile& tile : tiles) keys += tile.k_count;
    ReferenceKernel<<<dim3(shape_.q_tokens, shape_.heads), 128, keys * sizeof(double) + 8>>>(
        q_.data, k_.data, v_.data, Args(on_device, tiles.size()), o_ref.data, lse_ref.data);
    Ok(cudaGetLastError());
    const std::vector<double> o_want = o_ref.Get(), lse_want = lse_ref.Get();
    const std::vector<float> o_got = o.Get(), lse_got = lse.Get();
    double difference = 0, norm = 0, lse_error = 0;
    for (size_t i = 0; i < o_want.size(); ++i) {
      difference += (o_got[i] - o_want[i]) * (o_got[i] - o_want[i]);
      norm += o_want[i] * o_want[i];
    }
    for (size_t i = 0; i < lse_want.size(); ++i) {
      if (lse_want[i] == lse_got[i]) continue;  // both -inf
      const double error = std::abs(lse_got[i] - lse_want[i]);
      if (!(error <= lse_error)) lse_error = error;
    }
    return {std::sqrt(difference / (norm > 0 ? norm : 1)), lse_error};
  }

 private:
  std::vector<__nv_bfloat16> Normal(int tokens, int heads, float spread) {
    return NormalBf16(size_t(tokens) * Stride(heads), spread, random_);
  }
  int64_t Stride(int heads) const { return int64_t{heads} * shape_.head_dim + shape_.pad; }

  AttentionHopperArgs Args(const DeviceArray<AttentionTile>& tiles, size_t count) {
    AttentionHopperArgs args;
    args.q = q_.data, args.k = k_.data, args.v = v_.data;
    args.q_tokens = shape_.q_tokens, args.k_tokens = shape_.k_tokens;
    args.q_stride = Stride(shape_.heads);
    args.k_stride = args.v_stride = Stride(shape_.kv_heads);
    args.kv_index = kv_index_.data;
    args.heads = shape_.heads, args.kv_heads = shape_.kv_heads, args.head_dim = shape_.head_dim;
    args.scale = 1 / std::sqrt(float(shape_.head_dim));
    args.tiles = tiles.data, args.tile_count = int(count);
    args.o = o.data, args.o_stride = int64_t{shape_.heads} * shape_.head_dim;
    args.lse = lse.data, args.lse_stride = shape_.heads;
    args.counters = counters_.data;
    return args;
  }

  Shape shape_;
  std::mt19937 random_;
  DeviceArray<__nv_bfloat16> q_, k_, v_;

 public:
  DeviceArray<float> o, lse;

 private:
  DeviceArray<int32_t> kv_index_, counters_;
};

// Rounding P to bf16 alone gives about 1.2e-3; lse is summed in float32.
constexpr double kOutputError = 2.5e-3, kLseError = 2e-5;

void ExpectRight(Case& test, const std::vector<AttentionTile>& tiles, const std::string& name) {
  const auto [output, lse] = test.Errors(tiles);
  std::printf("  %-44s error of o %.2e, of lse %.1e\n", name.c_str(), output, lse);
  EXPECT_LE(output, kOutputError) << name;
  EXPECT_LE(lse, kLseError) << name;
}

TEST_F(AttentionHopperTest, AwkwardSizes) {
  for (const int head_dim : {64, 128, 256}) {
    for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {6, 2}, {5, 1}}) {
      for (const auto& [q, k] : {std::pair{1, 1}, {7, 64}, {64, 7}, {257, 257}, {200, 1000}}) {
        for (const int diagonal : {kAllVisible, k - q}) {
          Case test({head_dim, heads, kv_heads, q, k});
          const std::vector<AttentionTile> tiles = {{0, q, 0, k, diagonal}};
          test.Attend(tiles, true);
          char name[80];
          std::snprintf(name, sizeof(name), "hd%d h%d:%d q%d k%d %s", head_dim, heads, kv_heads, q,
                        k, diagonal == kAllVisible ? "full" : "causal");
          ExpectRight(test, tiles, name);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(AttentionHopperTest, ManyTilesPerThreadBlock) {
  for (const int head_dim : {64, 128, 256}) {
    Case test({head_dim, 16, 4, 2048, 2048});
    const std::vector<AttentionTile> tiles = {{0, 2048, 0, 2048, 0}};
    for (int run = 0; run < 3; ++run) {
      test.Attend(tiles, true);
      ExpectRight(test, tiles, "causal 2048, hd" + std::to_string(head_dim));
    }
  }
}

TEST_F(AttentionHopperTest, CarryContinues) {
  for (const int head_dim : {64, 128, 256}) {
    Case test({head_dim, 4, 2, 500, 777});
    const std::vector<AttentionTile> whole = {{0, 500, 0, 777, 277}};
    for (const std::vector<int>& cuts :
         {std::vector<int>{0, 777}, {0, 300, 777}, {0, 1, 400, 777}, {0, 129, 640, 777}}) {
      for (size_t i = 0; i + 1 < cuts.size(); ++i) {
        test.Attend({{0, 500, cuts[i], cuts[i + 1] - cuts[i], 277 - cuts[i]}}, i == 0);
      }
      ExpectRight(test, whole, std::to_string(cuts.size() - 1) + " tiles of keys in turn");
    }
    // Negative control: a round left out is an error far above the tolerance.
    test.Attend({{0, 500, 0, 300, 277}}, true);
    EXPECT_GT(test.Errors(whole).first, 10 * kOutputError);
  }
}

TEST_F(AttentionHopperTest, RowsThatSeeNothing) {
  Case test({128, 3, 1, 300, 200});
  const std::vector<AttentionTile> none_before_row_150 = {{0, 300, 0, 200, -150}};
  test.Attend(none_before_row_150, true);
  ExpectRight(test, none_before_row_150, "150 rows see nothing: 0 and -inf");
  EXPECT_EQ(test.o.Get()[0], 0);
  EXPECT_EQ(test.lse.Get()[0], -std::numeric_limits<float>::infinity());

  // They get their keys from a later tile; then a tile that they do not see leaves their bits.
  test.Attend({{0, 150, 0, 40, kAllVisible}}, false);
  const std::vector<float> before = test.o.Get(), lse_before = test.lse.Get();
  test.Attend({{0, 300, 40, 100, -150}}, false);
  const std::vector<float> after = test.o.Get(), lse_after = test.lse.Get();
  EXPECT_EQ(std::memcmp(before.data(), after.data(), 150 * 3 * 128 * sizeof(float)), 0);
  EXPECT_EQ(std::memcmp(lse_before.data(), lse_after.data(), 150 * 3 * sizeof(float)), 0);
  EXPECT_NE(before.back(), after.back());
}

TEST_F(AttentionHopperTest, PackedDocumentsZigzagAndStripes) {
  Case test({128, 4, 2, 1024, 1024});
  const std::vector<AttentionTile> documents = {
      {0, 300, 0, 300, 0}, {300, 1, 300, 1, 0}, {301, 500, 301, 500, 0}, {801, 223, 801, 223, 0}};
  test.Attend(documents, true);
  ExpectRight(test, documents, "four packed documents");

  // Rank 0 of 2, zigzag: chunks 0 and 3 of 512; its own round, then the keys of chunks 1 and 2.
  const std::vector<AttentionTile> own = {{0, 512, 0, 512, 0}, {512, 512, 0, 1024, 512}};
  test.Attend(own, true);
  ExpectRight(test, own, "zigzag, own keys");
  // Striped by one token: a key of a later rank is visible one step later.
  const std::vector<AttentionTile> stripe = {{0, 1024, 0, 1024, -1}};
  test.Attend(stripe, true);
  ExpectRight(test, stripe, "stripe of a later rank");
  // Negative control: one key more per row is seen as an error.
  EXPECT_GT(test.Errors({{0, 1024, 0, 1024, 0}}).first, 2 * kOutputError);
}

TEST_F(AttentionHopperTest, OnlyTheRowsOfItsTiles) {
  Case test({128, 2, 2, 400, 400});
  test.Attend({{100, 130, 0, 400, 100}}, true);
  const std::vector<float> o = test.o.Get(), lse = test.lse.Get();
  for (int token = 0; token < 400; ++token) {
    const bool inside = token >= 100 && token < 230;
    for (int i = 0; i < 256; ++i) ASSERT_EQ(std::isnan(o[token * 256 + i]), !inside) << token;
    for (int i = 0; i < 2; ++i) ASSERT_EQ(std::isnan(lse[token * 2 + i]), !inside) << token;
  }
}

TEST_F(AttentionHopperTest, StridesIndicesAndLargeScores) {
  const std::vector<AttentionTile> tiles = {{0, 333, 0, 333, 0}};
  Case padded({128, 5, 3, 333, 333, 1, 64});
  padded.SetKvIndex({2, 0, 0, 1, 2});
  padded.Attend(tiles, true);
  ExpectRight(padded, tiles, "strides, any KV index per head");
  padded.SetKvIndex({2, 0, 1, 1, 2});
  EXPECT_GT(padded.Errors(tiles).first, 10 * kOutputError);  // negative control

  Case large({128, 2, 2, 333, 333, 100});
  large.Attend(tiles, true);
  const auto [output, lse] = large.Errors(tiles);
  std::printf("  scores of hundreds: error of o %.2e, of lse %.1e\n", output, lse);
  EXPECT_LE(output, kOutputError);
  EXPECT_LE(lse, 1e-3);  // of lse near 400
}

TEST_F(AttentionHopperTest, SameBitsEveryTime) {
  Case test({128, 8, 2, 1500, 1500});
  const std::vector<AttentionTile> tiles = {{0, 1500, 0, 1500, 0}};
  test.Attend(tiles, true);
  const std::vector<float> first = test.o.Get();
  for (int run = 0; run < 100; ++run) {
    test.Attend(tiles, true);
    const std::vector<float> again = test.o.Get();
    ASSERT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)), 0) << run;
  }
}

TEST_F(AttentionHopperTest, RefusesWhatItCannotDo) {
  AttentionHopperArgs args;
  args.tile_count = args.heads = args.kv_heads = 1;
  args.head_dim = 96;
  EXPECT_EQ(AttendTilesHopper(nullptr, args), cudaErrorInvalidValue);
  args.head_dim = 128;
  args.scale = 0;
  EXPECT_EQ(AttendTilesHopper(nullptr, args), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace toroid
