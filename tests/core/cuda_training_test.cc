// What training needs of a GPU, backward ops, dropout and the optimizers: against the CPU, over
// types and awkward sizes.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

constexpr int64_t kSizes[] = {1, 7, 64, 257, 4096};
constexpr int64_t kDims[] = {5, 7, 64, 257, 4096};  // of fewer a norm leaves rounding alone
constexpr double kTolerance = 2e-5;                 // sums over rows differ in their order

using CudaTraining = OnGpu;

std::vector<float> Random(int64_t size, uint64_t seed, double deviation = 1) {
  return As<float>(RandomArray(size, seed, deviation));
}

TEST_F(CudaTraining, LayerNormsAndTheirBackward) {
  for (int64_t dim : kDims) {
    for (int64_t rows : {1, 7, 257, 3000}) {
      if (dim * rows > 2 << 20) continue;
      for (bool wide : {false, true}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << dim);
        ExpectSame(
            [&](BackendSide& side) -> Results {
              std::vector<float> far = Random(rows * dim, 1);
              for (float& value : far) value += 30;  // the mean is not small
              const Tensor x = side.Put(DType::kF32, {rows, dim}, far, 1);
              const auto parameter = [&](uint64_t seed) {
                return wide ? side.Put(DType::kF64, {dim}, RandomArray(dim, seed))
                            : side.Put(DType::kF32, {dim}, Random(dim, seed));
              };
              const Tensor gain = parameter(2), bias = parameter(3);
              const Tensor out = side.Poisoned(DType::kF32, {rows, dim}, 1);
              const Tensor plain = side.Poisoned(DType::kF32, {rows, dim});
              side.ops().LayerNorm(side.s, x, gain, bias, 1e-5, out);
              side.ops().LayerNorm(side.s, x, gain, Tensor(), 1e-5, plain);
              const Tensor dgain = side.Put(DType::kF32, {dim}, Random(dim, 4));
              const Tensor dbias = side.Put(DType::kF32, {dim}, Random(dim, 5));
              const Tensor dout = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 6), 1);
              const Tensor dx = side.Poisoned(DType::kF32, {rows, dim}, 1);
              side.ops().LayerNormBackward(side.s, x, gain, 1e-5, dout, dx, dgain, dbias);
              side.ops().LayerNormBackward(side.s, x, gain, 1e-5, dout, dout, Tensor(), Tensor());
              EXPECT_TRUE(side.FrameIsWhole(out, 1) && side.FrameIsWhole(dx, 1));
              return {side.Floats(out),   side.Floats(plain), side.Floats(dx),
                      side.Floats(dgain), side.Floats(dbias), side.Floats(dout)};
            },
            kTolerance);
      }
    }
  }
}

TEST_F(CudaTraining, RmsNormBackward) {
  for (int64_t dim : kDims) {
    for (int64_t rows : {1, 7, 257, 3000}) {
      if (dim * rows > 2 << 20) continue;
      SCOPED_TRACE(testing::Message() << rows << " x " << dim);
      ExpectSame(
          [&](BackendSide& side) -> Results {
            const Tensor x = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 1), 1);
            const Tensor gain = side.Put(DType::kF32, {dim}, Random(dim, 2));
            const Tensor dgain = side.Put(DType::kF32, {dim}, Random(dim, 3));
            const Tensor dout = side.Put(DType::kF32, {rows, dim}, Random(rows * dim, 4), 1);
            const Tensor dx = side.Poisoned(DType::kF32, {rows, dim}, 1);
            side.ops().RmsNormBackward(side.s, x, gain, 1e-5, dout, dx, dgain);
            side.ops().RmsNormBackward(side.s, x, gain, 1e-5, dout, dout, Tensor());
            EXPECT_TRUE(side.FrameIsWhole(dx, 1));
            return {side.Floats(dx), side.Floats(dgain), side.Floats(dout)};
          },
          kTolerance);
    }
  }
  ExpectSame(  // heads in a fused product
      [](BackendSide& side) -> Results {
        const Tensor x = side.Put(DType::kF32, {300, 5, 64}, Random(300 * 5 * 64, 1), 1);
        const Tensor dx = side.Put(DType::kF32, {300, 5, 64}, Random(300 * 5 * 64, 2), 3);
        const Tensor dgain = side.Put(DType::kF32, {64}, Random(64, 3));
        const Tensor gain = side.Put(DType::kF64, {64}, RandomArray(64, 4));
        side.ops().RmsNormBackward(side.s, x, gain, 1e-5, dx, dx, dgain);
        EXPECT_TRUE(side.FrameIsWhole(dx, 3));
        return {side.Floats(dx), side.Floats(dgain)};
      },
      kTolerance);
}

struct Product {
  DType type;
  int64_t m, n, k;
};

Results MultiplyBackward(BackendSide& side, const Product& p, int64_t before, uint64_t seed = 1) {
  const Tensor x = side.Put(DType::kF32, {p.m, p.k}, Random(p.m * p.k, 2), before);
  const Tensor w = side.Put(p.type, {p.n, p.k}, RandomWeights(p.type, p.n, p.k, seed));
  const Tensor dout = side.Put(DType::kF32, {p.m, p.n}, Random(p.m * p.n, 3), before);
  const Tensor dx = side.Poisoned(DType::kF32, {p.m, p.k}, before);
  const Tensor sum = side.Put(DType::kF32, {p.m, p.k}, Random(p.m * p.k, 4));
  const Tensor dw = side.Put(DType::kF32, {p.n, p.k}, Random(p.n * p.k, 5), before);
  const Tensor dbias = side.Put(DType::kF32, {p.n}, Random(p.n, 6));
  side.ops().MatMulBackward(side.s, x, w, dout, false, dx, dw, dbias);
  side.ops().MatMulBackward(side.s, x, w, dout, true, sum, Tensor(), Tensor());
  EXPECT_TRUE(side.FrameIsWhole(dx, before) && side.FrameIsWhole(dw, before));
  return {side.Floats(dx), side.Floats(sum), side.Floats(dw), side.Floats(dbias)};
}

TEST_F(CudaTraining, MatMulBackward) {
  for (DType type : {DType::kF32, DType::kBF16}) {
    for (const auto& [m, n, k] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                     {1, 64, 7},
                                                                     {7, 257, 257},
                                                                     {8, 7, 1},
                                                                     {64, 257, 64},
                                                                     {257, 64, 4096},
                                                                     {64, 4096, 64},
                                                                     {257, 1, 257},
                                                                     {4096, 7, 64}}) {
      for (int64_t before : {0, 1}) {
        SCOPED_TRACE(testing::Message() << Info(type).name << " " << m << " x " << n << " x " << k);
        const Product p{type, m, n, k};
        ExpectSame([&](BackendSide& side) { return MultiplyBackward(side, p, before); },
                   kTolerance);
        if (m * n * k == 1) continue;  // one bf16 product may cancel what it is added to
        ExpectSame([&](BackendSide& side) { return MultiplyBackward(side, p, before); }, 1e-2,
                   DType::kBF16);
      }
    }
  }
  // Weights, then rows, that the workspace holds in parts alone.
  for (const Product& cut :
       {Product{DType::kF32, 64, 40000, 1000}, {DType::kF32, 17000, 96, 1000}}) {
    ExpectSame([&](BackendSide& side) { return MultiplyBackward(side, cut, 1); }, 1e-2,
               DType::kBF16);
  }
}

TEST_F(CudaTraining, MatMulBackwardNegativeControl) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 2)), cuda(Gpu()), bf16(Gpu(DType::kBF16));
  const Product p{DType::kF32, 64, 72, 80};
  const Results right = MultiplyBackward(cpu, p, 0), other = MultiplyBackward(cuda, p, 0, 2);
  EXPECT_FALSE(AllClose(other[0], right[0], 1e-2));
  EXPECT_FALSE(AllClose(MultiplyBackward(bf16, p, 0)[2], right[2], kTolerance));
}

TEST_F(CudaTraining, ElementwiseBackward) {
  for (int64_t n : kSizes) {
    SCOPED_TRACE(n);
    const int64_t rows = 37, size = rows * n;
    ExpectSame(
        [&](BackendSide& side) -> Results {
          Backend& ops = side.ops();
          const auto put = [&](uint64_t seed) {
            return side.Put(DType::kF32, {rows, n}, Random(size, seed, 3), 1);
          };
          const Tensor gate = put(1), up = put(2), dout = put(3), x = put(4);
          const Tensor dgate = side.Poisoned(DType::kF32, {rows, n}, 1);
          const Tensor dup = side.Poisoned(DType::kF32, {rows, n}, 1);
          const Tensor gelu = side.Poisoned(DType::kF32, {rows, n}, 1);
          const Tensor dgelu = side.Poisoned(DType::kF32, {rows, n}, 1);
          ops.SwiGluBackward(side.s, gate, up, dout, dgate, dup);
          ops.SwiGluBackward(side.s, gate, up, dout, gate, up);  // in place
          ops.Gelu(side.s, x, gelu);
          ops.GeluBackward(side.s, x, dout, dgelu);
          ops.GeluBackward(side.s, x, dout, dout);
          ops.Scale(side.s, x, 1.75);
          const Tensor dy = side.Put(DType::kF32, {1, n}, Random(n, 5));
          ops.AddBackward(side.s, dup, dy);
          EXPECT_TRUE(side.FrameIsWhole(dgate, 1) && side.FrameIsWhole(x, 1));
          return {side.Floats(dgate), side.Floats(dup),  side.Floats(gate),
                  side.Floats(up),    side.Floats(gelu), side.Floats(dgelu),
                  side.Floats(dout),  side.Floats(x),    side.Floats(dy)};
        },
        kTolerance);
  }
}

TEST_F(CudaTraining, RopeTurnsBack) {
  for (int64_t dim : {2, 64, 256}) {
    const int64_t t = 257;
    std::vector<int32_t> positions(t);
    for (int64_t i = 0; i < t; ++i) positions[i] = int32_t(i * 1000003 % 1048576);
    std::vector<double> inv_freq(dim / 2);
    for (int64_t i = 0; i < dim / 2; ++i) {
      inv_freq[i] = std::pow(10000.0, -2.0 * double(i) / double(dim));
    }
    const std::vector<float> given = Random(t * 3 * dim, 1);
    ExpectSame([&](BackendSide& side) -> Results {
      const Tensor x = side.Put(DType::kF32, {t, 3, dim}, given, 1);
      const Tensor at = side.Put(DType::kI32, {t}, positions);
      const Tensor turns = side.Put(DType::kF64, {dim / 2}, inv_freq);
      side.ops().RopeBackward(side.s, x, at, turns, 1.25);
      const std::vector<float> back = side.Floats(x);
      side.ops().Rope(side.s, x, at, turns, 1 / 1.25);
      EXPECT_TRUE(AllClose(side.Floats(x), given));  // there and back
      EXPECT_TRUE(side.FrameIsWhole(x, 1));
      return {back};
    });
  }
}

TEST_F(CudaTraining, DropsTheSameElements) {
  const DropoutSpec spec{.rate = 0.3, .seed = 7, .layer = 3, .site = 1, .width = 1000};
  const int64_t rows = 50, cols = 333;
  std::vector<int64_t> ids(rows);
  for (int64_t i = 0; i < rows; ++i) ids[i] = (i * 7919) << 20;  // past 32 bits
  const auto body = [&](BackendSide& side) -> Results {
    const Tensor x = side.Put(DType::kF32, {rows, cols}, Random(rows * cols, 1), 1);
    const Tensor out = side.Poisoned(DType::kF32, {rows, cols}, 1);
    side.ops().Dropout(side.s, spec, side.Put(DType::kI64, {1}, std::vector<int64_t>{41}),
                       side.Put(DType::kI64, {rows}, ids), 101, x, out);
    EXPECT_TRUE(side.FrameIsWhole(out, 1));
    return {side.Floats(out)};
  };
  ExpectSame(body, 1e-6);
  BackendSide side(Gpu());
  const std::vector<float> out = body(side)[0];
  const double dropped = double(std::count(out.begin(), out.end(), 0.0f)) / double(out.size());
  EXPECT_NEAR(dropped, 0.3, 0.02);
}

TEST_F(CudaTraining, EmbedBackwardAddsEveryTokenOnce) {
  for (int64_t dim : kSizes) {
    for (int64_t t : {1, 7, 257, 4096}) {
      if (t * dim > 1 << 20) continue;
      SCOPED_TRACE(testing::Message() << t << " x " << dim);
      std::vector<int32_t> ids(t);
      for (int64_t i = 0; i < t; ++i) {  // a frequent one, others' rows, ids below zero
        ids[i] = i % 3 == 0 ? 104 : int32_t(95 + Philox(1, uint64_t(i), 0)[0] % 20);
        if (i % 17 == 16) ids[i] = -1;
      }
      ExpectSame(
          [&](BackendSide& side) -> Results {
            const Tensor dtable = side.Put(DType::kF32, {9, dim}, Random(9 * dim, 1), 1);
            side.ops().EmbedBackward(side.s, side.Put(DType::kI32, {t}, ids), 100,
                                     side.Put(DType::kF32, {t, dim}, Random(t * dim, 2), 1),
                                     dtable);
            EXPECT_TRUE(side.FrameIsWhole(dtable, 1));
            return {side.Floats(dtable)};
          },
          1e-6);
    }
  }
}

TEST_F(CudaTraining, TheLossAndItsGradient) {
  for (int64_t n : kSizes) {
    SCOPED_TRACE(n);
    const int64_t t = 7;
    const std::vector<int32_t> labels = {0, int32_t(n / 2), int32_t(n - 1), -1, int32_t(n), 0, 3};
    ExpectSame(
        [&](BackendSide& side) -> Results {
          const Tensor logits = side.Put(DType::kF32, {t, n}, Random(t * n, 1, 5), 1);
          const Tensor label = side.Put(DType::kI32, {t}, labels);
          std::vector<double> log_z(t), weights(t);
          for (int64_t i = 0; i < t; ++i) log_z[i] = 8 + 0.1 * double(i), weights[i] = 0.5 + i;
          const Tensor z = side.Put(DType::kF64, {t}, log_z);
          const Tensor d_log_p = side.Poisoned(DType::kF64, {t});
          const Tensor d_log_z = side.Poisoned(DType::kF64, {t});
          side.ops().LossBackward(side.s, label, side.Put(DType::kF64, {t}, weights), 1e-3, z,
                                  d_log_p, d_log_z);
          const Tensor out = side.Poisoned(DType::kF32, {t, n}, 1);
          side.ops().VocabBackward(side.s, logits, 0, label, z, d_log_p, d_log_z, out);
          side.ops().VocabBackward(side.s, logits, 2, label, z, d_log_p, d_log_z, logits);
          EXPECT_TRUE(side.FrameIsWhole(out, 1));
          const auto p = side.Get<double>(d_log_p), d = side.Get<double>(d_log_z);
          return {side.Floats(out), side.Floats(logits), std::vector<float>(p.begin(), p.end()),
                  std::vector<float>(d.begin(), d.end())};
        },
        kTolerance);
  }
}

template <typename Step>
std::vector<double> Fields(const Step& step) {
  std::vector<double> fields(sizeof(step) / sizeof(double));
  std::memcpy(fields.data(), &step, sizeof(step));
  return fields;
}

TEST_F(CudaTraining, SquaresAndUpdates) {
  for (int64_t n : {1, 7, 4096, 1000003}) {
    SCOPED_TRACE(n);
    ExpectSame(
        [&](BackendSide& side) -> Results {
          const auto put = [&](uint64_t seed) {
            return side.Put(DType::kF32, {n}, Random(n, seed));
          };
          const auto squares = [&](uint64_t seed) {
            std::vector<float> x = Random(n, seed);
            for (float& value : x) value *= value;
            return side.Put(DType::kF32, {n}, x);
          };
          const Tensor sum = side.Put(DType::kF64, {1}, std::vector<double>{3});
          const Tensor gradient = put(1);
          side.ops().SquaredSum(side.s, gradient, sum);
          Tensor w = put(2), m = put(3), v = squares(4);
          const AdamWStep adam{0.5, 1e-3, 1e-4, 0.1, 0.05};
          side.ops().AdamW(side.s, {}, side.Put(DType::kF64, {kAdamWFields}, Fields(adam)),
                           gradient, w, m, v);
          Results results = {
              side.Floats(w), side.Floats(m), side.Floats(v), {float(side.Get<double>(sum)[0])}};
          const AdafactorStep factor{0.5, 1e-3, 1e-4, 0.9};
          side.ops().Adafactor(side.s, {},
                               side.Put(DType::kF64, {kAdafactorFields}, Fields(factor)), gradient,
                               w, m, v);
          for (const Tensor& x : {w, m, v}) results.push_back(side.Floats(x));
          return results;
        },
        1e-6);
  }
  BackendSide side(Gpu());  // a NaN shows in the sum
  std::vector<float> x(5000, 1.0f);
  x[4999] = NAN;
  const Tensor sum = side.Put(DType::kF64, {1}, std::vector<double>{0});
  side.ops().SquaredSum(side.s, side.Put(DType::kF32, {5000}, x), sum);
  EXPECT_TRUE(std::isnan(side.Get<double>(sum)[0]));
}

// --- attention -----------------------------------------------------------------------------------

struct Case {
  int64_t t, n, heads, kv_heads, head_dim;
  int64_t window = 0;
  bool causal = true;
  DType kv_type = DType::kF32;
  int64_t first = -1;              // position of the first query; -1: n - t
  int64_t q_step = 1, k_step = 1;  // stripes: positions so far apart
  int64_t tiles = 1;               // keys come in so many tiles
  int64_t before = 0;              // rows of q, do, dq aside from alignment
  int64_t kv_before = 1;           // rows of dk, dv
  bool q_bf16 = false;             // q and do hold numbers that bf16 can hold
  bool activation = false;         // and are of the backend's type of activations
};

std::string Text(const Case& c) {
  return testing::PrintToString(
      std::vector<int64_t>{c.t, c.n, c.heads, c.kv_heads, c.head_dim, c.window, c.causal,
                           int64_t(c.kv_type), c.first, c.q_step, c.k_step, c.tiles, c.before});
}

Results AttendBackward(BackendSide& side, const Case& c) {
  Backend& ops = side.ops();
  const int64_t g = c.kv_heads, dim = c.head_dim, q_size = c.t * c.heads * dim;
  std::vector<int32_t> q_positions(c.t), k_positions(c.n), kv_index(c.heads);
  const int64_t first = c.first < 0 ? std::max<int64_t>(0, c.n - c.t) : c.first;
  for (int64_t i = 0; i < c.t; ++i) q_positions[i] = int32_t(first + i * c.q_step);
  for (int64_t i = 0; i < c.n; ++i) k_positions[i] = int32_t(i * c.k_step);
  for (int64_t i = 0; i < c.heads; ++i) kv_index[i] = int32_t(i * g / c.heads);
  const auto keys = [&](uint64_t seed) {
    const Tensor x = side.Put(DType::kF32, {c.n, g, dim}, Random(c.n * g * dim, seed));
    const Tensor stored = side.Poisoned(c.kv_type, {c.n, g, dim});
    ops.Copy(side.s, x, stored);
    return stored;
  };
  KvView view;
  view.k = keys(1), view.v = keys(2);
  view.positions = side.Put(DType::kI32, {c.n}, k_positions);
  AttentionSpec spec;
  spec.causal = c.causal, spec.window = c.window, spec.scale = 1.5 / std::sqrt(double(dim));
  Tensor q = side.Put(DType::kF32, {c.t, c.heads, dim}, Random(q_size, 3), c.before);
  Tensor d_o = side.Put(DType::kF32, {c.t, c.heads, dim}, Random(q_size, 4), c.before);
  if (c.q_bf16) {
    const Tensor narrow = side.Poisoned(DType::kBF16, {c.t, c.heads, dim});
    for (const Tensor& x : {q, d_o}) ops.Copy(side.s, x, narrow), ops.Copy(side.s, narrow, x);
  }
  if (c.activation) {
    for (Tensor* x : {&q, &d_o}) {
      const Tensor kept = side.Poisoned(ops.activation(), {c.t, c.heads, dim}, c.before);
      ops.Copy(side.s, *x, kept);
      *x = kept;
    }
  }
  const Tensor o = side.Poisoned(DType::kF32, {c.t, c.heads, dim});
  const Tensor lse = side.Poisoned(DType::kF32, {c.t, c.heads}, 1);
  const Tensor delta = side.Poisoned(DType::kF32, {c.t, c.heads}, 1);
  ops.Fill(side.s, o, 0), ops.Fill(side.s, lse, -INFINITY);
  const Tensor positions = side.Put(DType::kI32, {c.t}, q_positions);
  const Tensor index = side.Put(DType::kI32, {c.heads}, kv_index);
  ops.AttendTile(side.s, q, positions, view, index, spec, Tile{0, c.t, 0, c.n}, o, lse);
  ops.AttentionDelta(side.s, o, d_o, delta);
  const Tensor dq = side.Put(DType::kF32, {c.t, c.heads, dim}, Random(q_size, 5), c.before);
  const Tensor dk = side.Put(DType::kF32, {c.n, g, dim}, Random(c.n * g * dim, 6), c.kv_before);
  const Tensor dv = side.Put(DType::kF32, {c.n, g, dim}, Random(c.n * g * dim, 7), c.kv_before);
  for (int64_t i = 0; i < c.tiles; ++i) {
    const int64_t begin = c.n * i / c.tiles, end = c.n * (i + 1) / c.tiles;
    ops.AttendTileBackward(side.s, q, positions, view, index, spec,
                           Tile{0, c.t, begin, end - begin}, d_o, lse, delta, dq, dk, dv);
  }
  EXPECT_TRUE(side.FrameIsWhole(dq, c.before) && side.FrameIsWhole(dk, c.kv_before) &&
              side.FrameIsWhole(dv, c.kv_before));
  return {side.Floats(delta), side.Floats(dq), side.Floats(dk), side.Floats(dv)};
}

TEST_F(CudaTraining, AttentionBackwardInEveryWay) {
  std::vector<Case> cases;
  for (int64_t t : {1, 15, 100, 257}) {
    Case c{t, 300, 5, 2, 64};
    cases.push_back(c);
    c.causal = false, cases.push_back(c);
    c.window = 40, cases.push_back(c);
    c.causal = true, cases.push_back(c);
    c = {t, 300, 4, 4, 64}, c.kv_type = DType::kBF16, c.tiles = 3, cases.push_back(c);
    c = {t, 300, 8, 1, 64}, c.before = 1, cases.push_back(c);
    c = {t, 300, 4, 2, 64}, c.first = 0, cases.push_back(c);      // the first queries see few keys
    c.q_step = 2, c.k_step = 2, c.first = 1, cases.push_back(c);  // striped
    c.k_step = 5, c.first = 3, c.tiles = 2, cases.push_back(c);
    for (int64_t dim : {1, 7, 32, 65, 128, 200, 256, 512}) {
      c = {t, 130, 3, 3, dim}, c.tiles = 2, cases.push_back(c);
    }
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(Text(c));
    ExpectSame([&](BackendSide& side) { return AttendBackward(side, c); }, kTolerance);
  }
}

// Shapes that tensor cores take where they are, and shapes next to them that they do not.
TEST_F(CudaTraining, AttentionBackwardInBf16InEveryWay) {
  std::vector<Case> cases;
  for (int64_t dim : {64, 128, 256}) {
    for (int64_t t : {63, 64, 257}) {
      Case c{t, 300, 6, 2, dim};
      c.kv_type = DType::kBF16, c.q_bf16 = true, c.kv_before = 4, cases.push_back(c);
      c.causal = false, cases.push_back(c);
      c.tiles = 3, cases.push_back(c);
      c.causal = true, cases.push_back(c);
      c.window = 100, cases.push_back(c);
      c.window = 0, c.heads = 8, c.kv_heads = 1, c.before = 4, cases.push_back(c);
      c.first = 0, cases.push_back(c);
      c.q_step = 2, c.k_step = 2, c.first = 1, cases.push_back(c);
      c.k_step = 5, c.first = 3, c.tiles = 2, cases.push_back(c);  // the last keys: seen by nobody
      c.kv_before = 1, cases.push_back(c);                         // aside from 16 bytes
    }
  }
  for (const Case& c : cases) {
    SCOPED_TRACE(Text(c));
    ExpectSame([&](BackendSide& side) { return AttendBackward(side, c); }, 1e-2, DType::kBF16);
  }
}

TEST_F(CudaTraining, AttentionBackwardOfManyQueriesInBf16) {
  Case c{2100, 64, 64, 1, 128};
  c.kv_type = DType::kBF16, c.q_bf16 = true, c.kv_before = 0, c.first = 0;
  ExpectSame([&](BackendSide& side) { return AttendBackward(side, c); }, 1e-2, DType::kBF16);
}

// Negative controls, as of the forward.
TEST_F(CudaTraining, AttentionBackwardInBf16IsToldFromFloat32) {
  BackendSide f32(Gpu()), bf16(Gpu(DType::kBF16));
  Case c{100, 300, 4, 2, 64};
  c.kv_type = DType::kBF16, c.q_bf16 = true, c.kv_before = 0;
  const Results exact = AttendBackward(f32, c), rounded = AttendBackward(bf16, c);
  c.window = 150;  // half of the keys
  const Results wrong = AttendBackward(bf16, c);
  for (size_t i = 1; i < exact.size(); ++i) {
    EXPECT_TRUE(AllClose(rounded[i], exact[i], 1e-2)) << i;
    EXPECT_FALSE(AllClose(rounded[i], exact[i], 1e-5)) << i;
    EXPECT_FALSE(AllClose(wrong[i], exact[i], 1e-2)) << i;
  }
}

TEST_F(CudaTraining, AttentionBackwardHasTheSameBitsEachTime) {
  BackendSide side(Gpu());
  const Case c{200, 1000, 4, 2, 128};
  const Results once = AttendBackward(side, c);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(AttendBackward(side, c), once);
}

// On tensor cores many thread blocks add to the same sums, in a fixed order.
TEST_F(CudaTraining, AttentionBackwardInBf16HasTheSameBitsEachTime) {
  for (Case c : {Case{1500, 1500, 16, 2, 64},
                 {1500, 1500, 6, 2, 128},
                 {1100, 2500, 4, 4, 128},
                 {1100, 1500, 6, 1, 256}}) {
    BackendSide side(Gpu(DType::kBF16));
    c.kv_type = DType::kBF16, c.q_bf16 = true, c.kv_before = 0;
    const Results once = AttendBackward(side, c);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(AttendBackward(side, c), once) << Text(c);
    c.q_step = 3, c.k_step = 2, c.first = 1;  // stripes: keys' first queries are at odd places
    const Results striped = AttendBackward(side, c);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(AttendBackward(side, c), striped) << Text(c);
  }
}

TEST_F(CudaTraining, AttentionBackwardNegativeControl) {
  BackendSide cpu(NewCpuBackend(DType::kF32, 2)), cuda(Gpu());
  Case c{100, 300, 4, 2, 64};
  const Results right = AttendBackward(cpu, c);
  c.window = 299;  // one key less for the last queries
  const Results wrong = AttendBackward(cuda, c);
  for (size_t i = 1; i < right.size(); ++i) {
    EXPECT_FALSE(AllClose(wrong[i], right[i], kTolerance)) << i;
  }
}

}  // namespace
}  // namespace toroid
