// The Hopper backward against gradients in float64, with random bf16 inputs and the lse and o of
// the forward kernel. An error may be twice that of the dense formulas with P and dS rounded to
// bf16 (TLOW of spec 0.2). Skipped where there is no device of compute capability 9.0.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "kernels/attention_hopper.h"
#include "kernels/attention_hopper_backward.h"
#include "tests/support/hopper.cuh"

#pragma nv_diag_suppress 177  // GoogleTest's test_info_, unused by design

namespace toroid {
namespace {

struct Gradients {
  double *dq, *dk, *dv;
};

__device__ double AsBf16(double x) { return __bfloat162float(__double2bfloat16(x)); }

// One thread block per (token, head). All tiles count in the softmax, `part` tells whose gradients
// are summed: the keys of tiles part_begin .. part_end - 1. `rounded`: P and dS to bf16, as the
// forward's P was for o and with it delta.
__global__ void ReferenceKernel(AttentionHopperBackwardArgs a, int part_begin, int part_end,
                                bool rounded, Gradients out) {
  extern __shared__ double p[];  // then dp, from the middle on
  const auto* q = static_cast<const __nv_bfloat16*>(a.q);
  const auto* k = static_cast<const __nv_bfloat16*>(a.k);
  const auto* v = static_cast<const __nv_bfloat16*>(a.v);
  const auto* d_o = static_cast<const __nv_bfloat16*>(a.d_o);
  const int token = blockIdx.x, head = blockIdx.y, kv_head = a.kv_index[head];
  q += token * a.q_stride + head * a.head_dim;
  d_o += token * a.d_o_stride + head * a.head_dim;
  int keys = 0;
  for (int t = 0; t < a.tile_count; ++t) keys += a.tiles[t].k_count;
  double* dp = p + keys;
  int count = 0;
  for (int t = 0; t < a.tile_count; ++t) {
    const AttentionTile tile = a.tiles[t];
    const int i = token - tile.q_begin;
    if (i < 0 || i >= tile.q_count) continue;
    for (int j = 0; j < tile.k_count && j <= i + tile.diagonal; ++j, ++count) {
      if (count % blockDim.x != threadIdx.x) continue;
      double score = 0, product = 0;
      for (int d = 0; d < a.head_dim; ++d) {
        const int64_t key = tile.k_begin + j, column = kv_head * a.head_dim + d;
        score += double{__bfloat162float(q[d])} * __bfloat162float(k[key * a.k_stride + column]);
        product +=
            double{__bfloat162float(d_o[d])} * __bfloat162float(v[key * a.v_stride + column]);
      }
      p[count] = score * a.scale;
      dp[count] = product;
    }
  }
  __syncthreads();
  double top = -INFINITY, sum = 0, delta = 0;
  for (int j = 0; j < count; ++j) top = fmax(top, p[j]);
  for (int j = 0; j < count; ++j) {
    const double weight = exp(p[j] - top);
    sum += weight;
    delta += (rounded ? AsBf16(weight) : weight) * dp[j];
  }
  delta /= sum;
  for (int d = threadIdx.x; d < a.head_dim; d += blockDim.x) {
    double dq = 0;
    int index = 0;
    for (int t = 0; t < a.tile_count; ++t) {
      const AttentionTile tile = a.tiles[t];
      const int i = token - tile.q_begin;
      if (i < 0 || i >= tile.q_count) continue;
      for (int j = 0; j < tile.k_count && j <= i + tile.diagonal; ++j, ++index) {
        if (t < part_begin || t >= part_end) continue;
        double probability = exp(p[index] - top) / sum;
        if (rounded) probability = AsBf16(probability);
        double ds = probability * (dp[index] - delta);
        if (rounded) ds = AsBf16(ds);
        ds *= a.scale;
        const int64_t key = tile.k_begin + j, column = kv_head * a.head_dim + d;
        dq += ds * __bfloat162float(k[key * a.k_stride + column]);
        const int64_t to = (key * a.kv_heads + kv_head) * a.head_dim + d;
        atomicAdd(&out.dk[to], ds * __bfloat162float(q[d]));
        atomicAdd(&out.dv[to], probability * __bfloat162float(d_o[d]));
      }
    }
    out.dq[(int64_t{token} * a.heads + head) * a.head_dim + d] = dq;
  }
}

double RelativeError(const std::vector<float>& got, const std::vector<double>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

struct Shape {
  int head_dim, heads, kv_heads, q_tokens, k_tokens;
};

// Sums in float32 and the lse of the forward: all of the error where few keys are seen.
constexpr double kRounding = 1e-5;

class Case {
 public:
  explicit Case(const Shape& s)
      : s_(s),
        random_(std::random_device()()),
        q_(NormalBf16(QSize(), 1, random_)),
        d_o_(NormalBf16(QSize(), 1, random_)),
        k_(NormalBf16(KSize(), 1, random_)),
        v_(NormalBf16(KSize(), 1, random_)),
        o_(QSize()),
        lse_(QSize() / s.head_dim),
        rows_(2 * lse_.size),
        dq_(QSize()),
        dk_(KSize()),
        dv_(KSize()),
        kv_index_(s.heads),
        counters_(std::vector<int32_t>{0, 0}) {
    std::vector<int32_t> index(s.heads);
    for (int h = 0; h < s.heads; ++h) index[h] = h * s.kv_heads / s.heads;
    kv_index_.Set(index);
  }

  // The forward over all tiles, one launch each, then delta.
  void Forward(const std::vector<AttentionTile>& tiles) {
    Ok(cudaMemset(o_.data, 0, o_.size * sizeof(float)));
    lse_.Set(std::vector<float>(lse_.size, -INFINITY));
    for (const AttentionTile& tile : tiles) {
      DeviceArray<AttentionTile> cut(CutTiles({tile}, s_.head_dim, false));
      AttentionHopperArgs a;
      a.q = q_.data, a.k = k_.data, a.v = v_.data;
      a.q_tokens = s_.q_tokens, a.k_tokens = s_.k_tokens;
      a.q_stride = a.o_stride = int64_t{s_.heads} * s_.head_dim;
      a.k_stride = a.v_stride = int64_t{s_.kv_heads} * s_.head_dim;
      a.kv_index = kv_index_.data, a.scale = Scale();
      a.heads = s_.heads, a.kv_heads = s_.kv_heads, a.head_dim = s_.head_dim;
      a.tiles = cut.data, a.tile_count = int(cut.size), a.fresh = false;
      a.o = o_.data, a.lse = lse_.data, a.lse_stride = s_.heads, a.counters = counters_.data;
      Ok(AttendTilesHopper(nullptr, a));
      Ok(cudaDeviceSynchronize());
    }
    Ok(AttentionRowsHopper(nullptr, o_.data, int64_t{s_.heads} * s_.head_dim, lse_.data, s_.heads,
                           d_o_.data, int64_t{s_.heads} * s_.head_dim, s_.q_tokens, s_.heads,
                           s_.head_dim, rows_.data));
    for (auto* gradient : {&dq_, &dk_, &dv_}) {
      Ok(cudaMemset(gradient->data, 0, gradient->size * sizeof(float)));
    }
  }

  void Backward(const std::vector<AttentionTile>& tiles) {
    DeviceArray<AttentionTile> cut(CutTilesByKeys(tiles, s_.head_dim));
    Ok(AttendTilesBackwardHopper(nullptr, Args(cut)));
    Ok(cudaDeviceSynchronize());
    EXPECT_EQ(counters_.Get(), (std::vector<int32_t>{0, 0}));
  }

  // The backward of causal attention to as many keys, from lists as kernels/attention_bf16_cuda.cu
  // makes them; the gradients.
  std::vector<float> BackwardByFirstQueries(bool in_order) {
    const int keys = AttentionHopperBackwardKeys(s_.head_dim);
    std::vector<AttentionTile> list;
    std::vector<int32_t> firsts(s_.k_tokens);
    for (int key = 0; key < s_.k_tokens; ++key) firsts[key] = key;
    for (int key = 0; key < s_.k_tokens; key += keys) {
      list.push_back({key, s_.q_tokens - key, key, std::min(keys, s_.k_tokens - key), 0});
    }
    DeviceArray<AttentionTile> tiles(list);
    DeviceArray<int32_t> first_queries(firsts);
    DeviceArray<int32_t> turns(AttentionHopperBackwardTurns(s_.head_dim, s_.q_tokens, s_.heads,
                                                            int(list.size()), s_.kv_heads));
    AttentionHopperBackwardArgs args = Args(tiles);
    args.first_queries = first_queries.data;
    if (in_order) args.turns = turns.data;
    Ok(AttendTilesBackwardHopper(nullptr, args));
    Ok(cudaDeviceSynchronize());
    EXPECT_EQ(counters_.Get(), (std::vector<int32_t>{0, 0}));
    std::vector<float> all;
    for (const auto* gradient : {&dq_, &dk_, &dv_}) {
      const std::vector<float> part = gradient->Get();
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  // The largest relative error (Frobenius) of dq, dk, dv against those of tiles begin .. end - 1,
  // as a share of what is allowed.
  double Error(const std::vector<AttentionTile>& tiles, int begin, int end) {
    const auto want = Reference(tiles, begin, end, false);
    const auto dense = Reference(tiles, begin, end, true);
    double worst = 0;
    std::printf("  hd%d h%d:%d q%d k%d:", s_.head_dim, s_.heads, s_.kv_heads, s_.q_tokens,
                s_.k_tokens);
    const DeviceArray<float>* got[] = {&dq_, &dk_, &dv_};
    for (int i = 0; i < 3; ++i) {
      const double error = RelativeError(got[i]->Get(), want[i]);
      const double allowed =
          2 * RelativeError({dense[i].begin(), dense[i].end()}, want[i]) + kRounding;
      std::printf(" error of %s %.2e of %.2e",
                  i == 0   ? "dq"
                  : i == 1 ? "dk"
                           : "dv",
                  error, allowed);
      if (!(error / allowed <= worst)) worst = error / allowed;
    }
    std::printf("\n");
    return worst;
  }

 private:
  size_t QSize() const { return size_t(s_.q_tokens) * s_.heads * s_.head_dim; }
  size_t KSize() const { return size_t(s_.k_tokens) * s_.kv_heads * s_.head_dim; }
  float Scale() const { return 1 / std::sqrt(float(s_.head_dim)); }

  // dq, dk, dv.
  std::vector<std::vector<double>> Reference(const std::vector<AttentionTile>& tiles, int begin,
                                             int end, bool rounded) {
    DeviceArray<AttentionTile> on_device(tiles);
    DeviceArray<double> dq(dq_.size), dk(dk_.size), dv(dv_.size);
    for (auto* gradient : {&dq, &dk, &dv}) {
      Ok(cudaMemset(gradient->data, 0, gradient->size * sizeof(double)));
    }
    size_t keys = 0;
    for (const AttentionTile& tile : tiles) keys += tile.k_count;
    ReferenceKernel<<<dim3(s_.q_tokens, s_.heads), 128, 2 * keys * sizeof(double)>>>(
        Args(on_device), begin, end, rounded, {dq.data, dk.data, dv.data});
    Ok(cudaGetLastError());
    Ok(cudaDeviceSynchronize());
    return {dq.Get(), dk.Get(), dv.Get()};
  }

  AttentionHopperBackwardArgs Args(const DeviceArray<AttentionTile>& tiles) {
    AttentionHopperBackwardArgs a;
    a.q = q_.data, a.d_o = d_o_.data, a.k = k_.data, a.v = v_.data;
    a.q_tokens = s_.q_tokens, a.k_tokens = s_.k_tokens;
    a.q_stride = a.d_o_stride = a.dq_stride = int64_t{s_.heads} * s_.head_dim;
    a.k_stride = a.v_stride = a.dk_stride = a.dv_stride = int64_t{s_.kv_heads} * s_.head_dim;
    a.kv_index = kv_index_.data, a.scale = Scale();
    a.heads = s_.heads, a.kv_heads = s_.kv_heads, a.head_dim = s_.head_dim;
    a.tiles = tiles.data, a.tile_count = int(tiles.size);
    a.rows = rows_.data, a.dq = dq_.data, a.dk = dk_.data, a.dv = dv_.data;
    a.counters = counters_.data;
    return a;
  }

  Shape s_;
  std::mt19937 random_;
  DeviceArray<__nv_bfloat16> q_, d_o_, k_, v_;
  DeviceArray<float> o_, lse_, rows_, dq_, dk_, dv_;
  DeviceArray<int32_t> kv_index_, counters_;
};

using AttentionHopperBackwardTest = HopperTest;

TEST_F(AttentionHopperBackwardTest, AwkwardSizes) {
  for (const int head_dim : {64, 128, 256}) {
    for (const auto& [heads, kv_heads] : {std::pair{1, 1}, {6, 2}, {5, 1}}) {
      for (const auto& [q, k] : {std::pair{2, 2}, {7, 64}, {64, 7}, {257, 257}, {200, 700}}) {
        for (const int diagonal : {kAllVisible, k - q}) {
          Case test({head_dim, heads, kv_heads, q, k});
          const std::vector<AttentionTile> tiles = {{0, q, 0, k, diagonal}};
          test.Forward(tiles);
          test.Backward(tiles);
          EXPECT_LE(test.Error(tiles, 0, 1), 1) << q << " " << k << " " << diagonal;
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// In order the bits are the same each time. Negative control: in any order they are not.
TEST_F(AttentionHopperBackwardTest, SumsInOrderHaveTheSameBits) {
  for (const auto& shape :
       {Shape{64, 16, 2, 1500, 1500}, {128, 16, 4, 1500, 1500}, {256, 8, 1, 1500, 1500}}) {
    Case test(shape);
    const std::vector<AttentionTile> tiles = {{0, 1500, 0, 1500, 0}};
    for (const bool in_order : {true, false}) {
      test.Forward(tiles);
      const std::vector<float> once = test.BackwardByFirstQueries(in_order);
      EXPECT_LE(test.Error(tiles, 0, 1), 1);
      int others = 0;
      for (int i = 0; i < 8; ++i) {
        test.Forward(tiles);
        others += test.BackwardByFirstQueries(in_order) != once;
      }
      if (in_order) {
        EXPECT_EQ(others, 0);
      } else {
        EXPECT_GT(others, 0);
      }
    }
  }
}

TEST_F(AttentionHopperBackwardTest, ManyTasksPerThreadBlock) {
  for (const int head_dim : {64, 128, 256}) {
    Case test({head_dim, 16, 4, 1536, 1536});
    const std::vector<AttentionTile> tiles = {{0, 1536, 0, 1536, 0}};
    test.Forward(tiles);
    test.Backward(tiles);
    EXPECT_LE(test.Error(tiles, 0, 1), 1);
  }
}

// Rounds of a ring: each adds its part of the gradients of the whole.
TEST_F(AttentionHopperBackwardTest, PartsAddUp) {
  for (const int head_dim : {64, 128, 256}) {
    Case test({head_dim, 4, 2, 500, 777});
    const std::vector<AttentionTile> rounds = {
        {0, 500, 0, 130, 277}, {0, 500, 130, 270, 147}, {0, 500, 400, 377, -123}};
    test.Forward(rounds);
    for (int round = 0; round < 3; ++round) {
      test.Backward({rounds[round]});
      EXPECT_LE(test.Error(rounds, 0, round + 1), 1);
    }
    // Negative control: a round more than was done.
    test.Forward(rounds);
    test.Backward({rounds[0], rounds[1]});
    EXPECT_GT(test.Error(rounds, 0, 3), 10);
  }
}

TEST_F(AttentionHopperBackwardTest, DocumentsAndRowsThatSeeNothing) {
  for (const int head_dim : {64, 128, 256}) {
    Case test({head_dim, 4, 1, 1024, 1024});
    const std::vector<AttentionTile> documents = {{0, 300, 0, 300, 0},
                                                  {300, 2, 300, 2, 0},
                                                  {302, 499, 302, 499, 0},
                                                  {801, 223, 801, 223, -40}};
    test.Forward(documents);
    test.Backward(documents);
    EXPECT_LE(test.Error(documents, 0, 4), 1);
  }
}

}  // namespace
}  // namespace toroid
