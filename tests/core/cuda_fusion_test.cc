// Ops of few rows that are put together where work is kept: all that they write, against the CPU's
// one by one.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using CudaFusion = OnGpu;

constexpr double kEpsilon = 1e-5;
constexpr DType kTypes[] = {DType::kF32,  DType::kBF16, DType::kF16,
                            DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};

std::vector<float> Random(int64_t size, uint64_t seed, double deviation = 1) {
  return As<float>(RandomArray(size, seed, deviation));
}

// One layer of a decoder for t tokens of one sequence of `keys` keys.
struct Layer {
  DType type = DType::kF32;
  int64_t t = 1, D = 64, heads = 4, kv_heads = 2, head_dim = 16, F = 96, keys = 40;
  bool in_place = false;  // the gate's product is where the hidden ones will be
};

Results Decode(BackendSide& side, const Layer& l) {
  Backend& ops = side.ops();
  const Stream s = side.s;
  const int64_t hK = l.heads * l.head_dim, gK = l.kv_heads * l.head_dim;
  const auto weight = [&](int64_t n, int64_t k, uint64_t seed) {
    return side.Put(l.type, {n, k}, RandomWeights(l.type, n, k, seed));
  };
  const auto room = [&](int64_t rows, int64_t cols) {
    return side.Poisoned(DType::kF32, {rows, cols});
  };
  const Tensor x = side.Put(DType::kF32, {l.t, l.D}, Random(l.t * l.D, 1));
  const Tensor gain = side.Put(DType::kF32, {l.D}, Random(l.D, 2));
  const Tensor wq = weight(hK, l.D, 3), wk = weight(gK, l.D, 4), wv = weight(gK, l.D, 5);
  const Tensor wo = weight(l.D, hK, 6), w1 = weight(l.F, l.D, 7), w3 = weight(l.F, l.D, 8);
  const Tensor w2 = weight(l.D, l.F, 9);
  const Tensor bias = side.Put(DType::kF32, {hK}, Random(hK, 10));
  const Tensor a = room(l.t, l.D), a2 = room(l.t, l.D), y = room(l.t, l.D), y2 = room(l.t, l.D);
  const Tensor q = side.Poisoned(DType::kF32, {l.t, l.heads, l.head_dim});
  const Tensor kv = side.Poisoned(DType::kF32, {2 * l.t, l.kv_heads, l.head_dim});
  const Tensor stored = side.Poisoned(DType::kBF16, {2 * l.t, l.kv_heads, l.head_dim});
  const Tensor o = side.Poisoned(DType::kF32, {l.t, l.heads, l.head_dim});
  const Tensor lse = side.Poisoned(DType::kF32, {l.t, l.heads});
  const Tensor up = room(l.t, l.F), hidden = room(l.t, l.F);
  const Tensor gate = l.in_place ? hidden : room(l.t, l.F);

  const Tensor cache_f32 =
      side.Put(DType::kF32, {2 * l.keys, l.kv_heads, l.head_dim}, Random(2 * l.keys * gK, 11));
  const Tensor cache = side.Poisoned(DType::kBF16, {2 * l.keys, l.kv_heads, l.head_dim});
  ops.Copy(s, cache_f32, cache);
  std::vector<int32_t> positions, key_positions, index;
  std::vector<int64_t> slots;
  for (int64_t i = 0; i < l.t; ++i) {
    positions.push_back(int32_t(l.keys - l.t + i)), slots.push_back(l.keys - l.t + i);
  }
  if (l.t > 2) slots[1] = -1;  // another rank's
  for (int64_t i = 0; i < l.keys; ++i) key_positions.push_back(int32_t(i));
  for (int64_t h = 0; h < l.heads; ++h) index.push_back(int32_t(h * l.kv_heads / l.heads));
  std::vector<double> frequencies;
  for (int64_t i = 0; i < l.head_dim / 2; ++i) frequencies.push_back(std::pow(0.3, double(i)));
  const Tensor positions_t = side.Put(DType::kI32, {l.t}, positions);
  const Tensor slots_t = side.Put(DType::kI64, {l.t}, slots);
  const Tensor inv_freq = side.Put(DType::kF64, {l.head_dim / 2}, frequencies);
  const Tensor kv_index = side.Put(DType::kI32, {l.heads}, index);
  KvView view;
  view.k = cache.Rows(0, l.keys), view.v = cache.Rows(l.keys, l.keys);
  view.positions = side.Put(DType::kI32, {l.keys}, key_positions);
  AttentionSpec spec;
  spec.scale = 0.1 / (double(l.D) * std::sqrt(double(l.head_dim)));  // no key takes all

  ops.Repeat(s, {l.t, int64_t(l.type), l.D, l.in_place}, [&] {
    ops.RmsNorm(s, x, gain, kEpsilon, a);
    ops.MatMul(s, a, wq, bias, q.Reshape({l.t, hK}));
    ops.MatMul(s, a, wk, Tensor(), kv.Rows(0, l.t).Reshape({l.t, gK}));
    ops.MatMul(s, a, wv, Tensor(), kv.Rows(l.t, l.t).Reshape({l.t, gK}));
    ops.Rope(s, q, positions_t, inv_freq, 1.1);
    ops.Rope(s, kv.Rows(0, l.t), positions_t, inv_freq, 1.1);
    ops.Copy(s, kv, stored);
    ops.Fill(s, o, 0);
    ops.Fill(s, lse, -std::numeric_limits<double>::infinity());
    ops.KvWrite(s, stored.Rows(0, l.t), slots_t, view.k);
    ops.KvWrite(s, stored.Rows(l.t, l.t), slots_t, view.v);
    ops.AttendTile(s, q, positions_t, view, kv_index, spec, {0, l.t, 0, l.keys}, o, lse);
    ops.MatMul(s, o.Reshape({l.t, hK}), wo, Tensor(), y);
    ops.Add(s, x, y);
    ops.RmsNorm(s, x, gain, kEpsilon, a2);
    ops.MatMul(s, a2, w1, Tensor(), gate);
    ops.MatMul(s, a2, w3, Tensor(), up);
    ops.SwiGlu(s, gate, up, hidden);
    ops.MatMul(s, hidden, w2, Tensor(), y2);
    ops.Add(s, x, y2);
  });
  const Tensor wide = side.Poisoned(DType::kF32, {2 * l.keys, l.kv_heads, l.head_dim});
  ops.Copy(s, cache, wide);
  Results results;
  for (const Tensor& tensor : {a, q, kv, o, lse, y, a2, gate, up, hidden, y2, x}) {
    results.push_back(side.Floats(tensor));
  }
  results.push_back(side.Floats(wide));
  return results;
}

TEST_F(CudaFusion, ALayerOfFewRowsIsTheCpus) {
  for (const DType type : kTypes) {
    for (const int64_t t : {1, 2, 3, 8, 9}) {
      for (const bool in_place : {false, true}) {
        SCOPED_TRACE(testing::Message() << Info(type).name << " " << t << " tokens " << in_place);
        // K and V pass through bf16: where the two sides round apart, by an ulp of it.
        ExpectSame(
            [&](BackendSide& side) {
              return Decode(side, {.type = type, .t = t, .in_place = in_place});
            },
            4e-3);
        if (HasFailure()) return;
      }
    }
  }
  ExpectSame(
      [&](BackendSide& side) {
        return Decode(
            side,
            {.type = DType::kBF16, .D = 1024, .heads = 8, .head_dim = 64, .F = 2000, .keys = 700});
      },
      4e-3);
}

// Products of m rows with w [n, k], kept: after a norm, alone with a bias, and added to a residual.
Results Products(BackendSide& side, DType type, int64_t m, int64_t n, int64_t k,
                 uint64_t weight_seed = 1) {
  Backend& ops = side.ops();
  const Stream s = side.s;
  const auto room = [&](int64_t cols) { return side.Poisoned(DType::kF32, {m, cols}); };
  const Tensor x = side.Put(DType::kF32, {m, k}, Random(m * k, 2));
  const Tensor gain = side.Put(DType::kF32, {k}, Random(k, 3));
  const Tensor w = side.Put(type, {n, k}, RandomWeights(type, n, k, weight_seed));
  const Tensor v = side.Put(type, {n, k}, RandomWeights(type, n, k, 4));
  const Tensor bias = side.Put(DType::kF32, {n}, Random(n, 5));
  const Tensor a = room(k), gate = room(n), up = room(n), hidden = room(n);
  const Tensor y = room(n), z = room(n);
  const Tensor residual = side.Put(DType::kF32, {m, n}, Random(m * n, 6));
  ops.Repeat(s, {m, int64_t(type), n, k}, [&] {
    ops.RmsNorm(s, x, gain, kEpsilon, a);
    ops.MatMul(s, a, w, bias, gate);
    ops.MatMul(s, a, v, Tensor(), up);
    ops.SwiGlu(s, gate, up, hidden);
    ops.MatMul(s, x, w, bias, y);
    ops.MatMul(s, x, v, Tensor(), z);
    ops.Add(s, residual, z);
  });
  Results results;
  for (const Tensor& tensor : {a, gate, up, hidden, y, z, residual}) {
    results.push_back(side.Floats(tensor));
  }
  return results;
}

// Every type that keeps its blocks, rows that end within a warp's share, and products long enough
// for a warp to take several rows.
TEST_F(CudaFusion, ProductsOfStoredTypesAreTheCpus) {
  struct Size {
    int64_t m, n, k;
  };
  for (const DType type : kTypes) {
    for (const Size& size : std::vector<Size>{{1, 3, 32},
                                              {1, 7, 64},
                                              {7, 7, 96},
                                              {1, 257, 256},
                                              {2, 64, 576},
                                              {3, 257, 320},
                                              {8, 64, 1536},
                                              {1, 3301, 320},
                                              {1, 6401, 576},
                                              {1, 130, 8192}}) {
      SCOPED_TRACE(testing::Message()
                   << Info(type).name << " " << size.m << " x " << size.n << " x " << size.k);
      ExpectSame([&](BackendSide& side) { return Products(side, type, size.m, size.n, size.k); });
      if (HasFailure()) return;
    }
  }
}

// Negative control: of other weights, and of blocks read as another type's.
TEST_F(CudaFusion, OtherWeightsAreSeen) {
  BackendSide gpu(Gpu()), cpu(NewCpuBackend(DType::kF32, 2));
  for (const DType type : kTypes) {
    const Results right = Products(cpu, type, 1, 64, 576);
    EXPECT_TRUE(AllClose(Products(gpu, type, 1, 64, 576)[1], right[1])) << Info(type).name;
    gpu.Clear();
    EXPECT_FALSE(AllClose(Products(gpu, type, 1, 64, 576, 9)[1], right[1])) << Info(type).name;
    gpu.Clear(), cpu.Clear();
  }
}

// What looks alike and is not: sums that others read, rows in each other's place.
TEST_F(CudaFusion, WhatDependsOnEachOtherKeepsItsOrder) {
  ExpectSame(
      [&](BackendSide& side) {
        Backend& ops = side.ops();
        const Stream s = side.s;
        constexpr int64_t D = 64;
        const auto put = [&](int64_t rows, uint64_t seed) {
          return side.Put(DType::kF32, {rows, D}, Random(rows * D, seed, 0.3));
        };
        const Tensor x = put(2, 1), y = put(2, 2), z = put(2, 3), a = put(2, 4), b = put(2, 5);
        const Tensor w = put(D, 6), v = put(D, 7), gain = put(1, 8).Reshape({D});
        ops.Repeat(s, {1, 2, 3, 4}, [&] {
          ops.RmsNorm(s, x, gain, kEpsilon, a);  // a = norm(x)
          ops.MatMul(s, a, w, Tensor(), x);      // over the norm's own input
          ops.MatMul(s, a, v, Tensor(), y);      // of a, which is still norm of the old x
          ops.Add(s, z, x);                      // of the first product, which is not the last
          ops.MatMul(s, y, w, Tensor(), b);      // of a product
          ops.Add(s, b, y);                      // to a product, of another
          ops.MatMul(s, b, w, Tensor(), y);
          ops.Add(s, b, y);                      // to what the product reads
          ops.RmsNorm(s, b, gain, kEpsilon, a);  // without a product behind it
          ops.Scale(s, a, 2);
          ops.MatMul(s, a, w, Tensor(), x);
          ops.Scale(s, x, 0.5);  // of a product that waits
          ops.MatMul(s, a, w, Tensor(), y);
          ops.MatMul(s, a, v, Tensor(), z);
          ops.SwiGlu(s, z, y, b);  // the other way round
          ops.MatMul(s, b, w, Tensor(), y);
          ops.Fill(s, b, 3);  // over what a waiting product reads
          ops.Copy(s, y, a);
          ops.Add(s, a, b);
          ops.Copy(s, a.Rows(0, 1), a.Rows(1, 1));
          ops.MatMul(s, a, w, Tensor(), b);
        });
        return Results{side.Floats(x), side.Floats(y), side.Floats(z), side.Floats(a),
                       side.Floats(b)};
      },
      1e-4);
}

// Negative control: the results tell one text from another.
TEST_F(CudaFusion, AnotherTextIsSeen) {
  BackendSide gpu(Gpu());
  const Results one = Decode(gpu, {});
  gpu.Clear();  // what was kept is of other addresses
  const Results other = Decode(gpu, {.keys = 41});
  EXPECT_TRUE(AllClose(one[0], other[0]));  // of the same x
  EXPECT_FALSE(AllClose(other[3], one[3], 4e-3));
}

}  // namespace
}  // namespace toroid
