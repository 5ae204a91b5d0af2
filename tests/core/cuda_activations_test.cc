// Ops on activations in bf16 (Backend::activation): the GPU on bf16 numbers against the CPU on the
// same numbers in float32. They differ by the rounding of results, 2^-9, and of operands that only
// the GPU keeps in bf16.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/backend_side.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

constexpr double kRounded = 4e-3;
constexpr double kRoundedTwice = 8e-3;
constexpr double kExact = 2e-5;  // results that are float32 on both sides

class CudaActivations : public OnGpu {
 protected:
  void ExpectNear(const std::function<Results(BackendSide&)>& body, double tolerance = kRounded) {
    ExpectSame(body, tolerance, DType::kBF16);
  }
};

std::vector<float> Random(int64_t size, uint64_t seed, double deviation = 1) {
  return As<float>(RandomArray(size, seed, deviation));
}

// Numbers that bf16 holds, in the backend's type of activations.
Tensor Put(BackendSide& side, std::initializer_list<int64_t> shape, uint64_t seed,
           int64_t before = 0) {
  const Tensor x = side.Poisoned(side.ops().activation(), shape, before);
  std::vector<float> host = Random(x.size(), seed);
  for (float& value : host) value = FromBf16(ToBf16(value));
  side.ops().Copy(side.s, side.Put(DType::kF32, shape, host), x);
  return x;
}

Tensor Empty(BackendSide& side, std::initializer_list<int64_t> shape, int64_t before = 0) {
  return side.Poisoned(side.ops().activation(), shape, before);
}

// Of an activation whose frame must still be whole.
std::vector<float> Values(BackendSide& side, const Tensor& x, int64_t before) {
  EXPECT_TRUE(side.FrameIsWhole(x, before));
  if (x.dtype == DType::kF32) return side.Floats(x);
  std::vector<float> values;
  for (uint16_t bits : side.Get<uint16_t>(x)) values.push_back(FromBf16(bits));
  return values;
}

struct Shape {
  int64_t rows, cols, before;
};
// Taken eight at a time, and one at a time: odd sizes, odd places.
const Shape kShapes[] = {{1, 8, 0},     {7, 64, 0},    {7, 64, 1},    {3, 257, 0},
                         {64, 264, 8},  {257, 257, 3}, {5, 4096, 0},  {2, 4097, 1},
                         {40, 2048, 0}, {33, 6144, 8}, {17, 12288, 0}};

std::string Text(const Shape& shape) {
  return testing::PrintToString(std::vector<int64_t>{shape.rows, shape.cols, shape.before});
}

TEST_F(CudaActivations, Copies) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Text(shape));
    ExpectNear(
        [&](BackendSide& side) -> Results {
          const auto [rows, cols, before] = shape;
          const Tensor x = Put(side, {rows, cols}, 1, before);
          const Tensor wide = side.Poisoned(DType::kF32, {rows, cols}, before);
          const Tensor back = Empty(side, {rows, cols}, before);
          side.ops().Copy(side.s, x, wide), side.ops().Copy(side.s, wide, back);
          side.ops().Add(side.s, wide, wide);
          return {Values(side, wide, before), Values(side, back, before)};
        },
        1e-30);
  }
}

TEST_F(CudaActivations, Norms) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Text(shape));
    ExpectNear([&](BackendSide& side) -> Results {
      const auto [rows, cols, before] = shape;
      const Tensor gain = side.Put(DType::kF32, {cols}, Random(cols, 1));
      const Tensor x = side.Put(DType::kF32, {rows, cols}, Random(rows * cols, 2), before);
      const Tensor rms = Empty(side, {rows, cols}, before);
      const Tensor layer = Empty(side, {rows, cols}, before);
      side.ops().RmsNorm(side.s, x, gain, 1e-5, rms);
      side.ops().LayerNorm(side.s, x, gain, side.Put(DType::kF32, {cols}, Random(cols, 3)), 1e-5,
                           layer);
      const Tensor in_place = Put(side, {rows, cols}, 4, before);
      side.ops().RmsNorm(side.s, in_place, gain, 1e-5, in_place);
      return {Values(side, rms, before), Values(side, layer, before),
              Values(side, in_place, before)};
    });
    ExpectNear(
        [&](BackendSide& side) -> Results {
          const auto [rows, cols, before] = shape;
          const Tensor x = Put(side, {rows, cols}, 2, before);
          const Tensor dx = side.Put(DType::kF32, {rows, cols}, Random(rows * cols, 3), before);
          const Tensor dgain = side.Put(DType::kF32, {cols}, Random(cols, 4));
          side.ops().RmsNormBackward(side.s, x, side.Put(DType::kF32, {cols}, Random(cols, 1)),
                                     1e-5, dx, dx, dgain);
          return {Values(side, dx, before), side.Floats(dgain)};
        },
        kExact);
  }
}

TEST_F(CudaActivations, SwiGlusAndGelus) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Text(shape));
    ExpectNear([&](BackendSide& side) -> Results {
      const auto [rows, cols, before] = shape;
      Backend& ops = side.ops();
      const Tensor gate = Put(side, {rows, cols}, 1, before), up = Put(side, {rows, cols}, 2);
      const Tensor out = Empty(side, {rows, cols}, before);
      ops.SwiGlu(side.s, gate, up, out);
      const Tensor dhidden = Put(side, {rows, cols}, 3, before);
      const Tensor dup = Empty(side, {rows, cols}, before);
      ops.SwiGluBackward(side.s, gate, up, dhidden, dhidden, dup);  // as the block has it
      const Tensor gelu = Empty(side, {rows, cols}, before);
      ops.Gelu(side.s, gate, gelu);
      ops.GeluBackward(side.s, gate, up, up);
      return {Values(side, out, before), Values(side, dhidden, before), Values(side, dup, before),
              Values(side, gelu, before), Values(side, up, 0)};
    });
  }
}

TEST_F(CudaActivations, SumsScalesAndDrops) {
  for (const Shape& shape : kShapes) {
    SCOPED_TRACE(Text(shape));
    ExpectNear([&](BackendSide& side) -> Results {
      const auto [rows, cols, before] = shape;
      const Tensor x = Put(side, {rows, cols}, 1, before);
      const Tensor sum = side.Put(DType::kF32, {1, cols}, Random(cols, 2));
      side.ops().AddBackward(side.s, x, sum);
      std::vector<int64_t> ids(static_cast<size_t>(rows));
      for (int64_t i = 0; i < rows; ++i) ids[size_t(i)] = i * 31;
      const DropoutSpec spec{.rate = 0.3, .seed = 7, .layer = 3, .site = 1, .width = cols + 5};
      const Tensor out = Empty(side, {rows, cols}, before);
      side.ops().Dropout(side.s, spec, side.Put(DType::kI64, {1}, std::vector<int64_t>{41}),
                         side.Put(DType::kI64, {rows}, ids), 5, x, out);
      side.ops().Scale(side.s, x, 0.37);
      return {side.Floats(sum), Values(side, out, before), Values(side, x, before)};
    });
  }
}

TEST_F(CudaActivations, Ropes) {
  for (int64_t heads : {1, 5}) {
    for (int64_t dim : {2, 64, 128}) {
      ExpectNear([&](BackendSide& side) -> Results {
        const int64_t t = 33;
        std::vector<int32_t> positions(t);
        std::vector<double> turns(size_t(dim / 2));
        for (int64_t i = 0; i < t; ++i) positions[size_t(i)] = int32_t(i * i * 31);
        for (size_t i = 0; i < turns.size(); ++i) turns[i] = std::pow(0.7, double(i));
        const Tensor at = side.Put(DType::kI32, {t}, positions);
        const Tensor frequencies = side.Put(DType::kF64, {dim / 2}, turns);
        const Tensor x = Put(side, {t, heads, dim}, 1, 1), dx = Put(side, {t, heads, dim}, 2, 3);
        side.ops().Rope(side.s, x, at, frequencies, 1.25);
        side.ops().RopeBackward(side.s, dx, at, frequencies, 1.25);
        return {Values(side, x, 1), Values(side, dx, 3)};
      });
    }
  }
}

TEST_F(CudaActivations, Logits) {
  for (int64_t n : {1, 7, 64, 257, 4096}) {
    for (int64_t before : {0, 1}) {
      SCOPED_TRACE(testing::Message() << n << " aside " << before);
      const std::vector<int32_t> labels = {0, int32_t(n / 2), int32_t(n - 1), -1, int32_t(n)};
      ExpectNear([&](BackendSide& side) -> Results {
        const int64_t t = 5;
        const Tensor logits = side.Put(DType::kF32, {t, n}, Random(t * n, 1, 5), before);
        const Tensor label = side.Put(DType::kI32, {t}, labels);
        const Tensor stat = side.Put(DType::kF64, {t, 3}, [] {
          std::vector<double> fresh;
          for (int i = 0; i < 5; ++i) fresh.insert(fresh.end(), {-INFINITY, 0, -INFINITY});
          return fresh;
        }());
        side.ops().VocabStatistics(side.s, logits, 0, label, stat);
        const Tensor log_p = side.Poisoned(DType::kF64, {t});
        const Tensor log_z = side.Poisoned(DType::kF64, {t});
        side.ops().VocabMerge(side.s, stat.Reshape({1, t, 3}), log_p, log_z);
        const Tensor d_log_p = side.Put(DType::kF64, {t}, std::vector<double>{-1, -2, -.5, 0, -1});
        const Tensor d_log_z = side.Put(DType::kF64, {t}, std::vector<double>{.1, .2, 0, 0, .1});
        const Tensor dlogits = Empty(side, {t, n}, before);
        side.ops().VocabBackward(side.s, logits, 0, label, log_z, d_log_p, d_log_z, dlogits);
        const auto z = side.Get<double>(log_z);
        return {Values(side, dlogits, before), std::vector<float>(z.begin(), z.end())};
      });
    }
  }
}

// --- products ------------------------------------------------------------------------------------

struct Product {
  DType weights;
  int64_t m, n, k, before;
};
const Product kProducts[] = {{DType::kBF16, 1, 64, 64, 0},      {DType::kF32, 7, 257, 64, 0},
                             {DType::kBF16, 64, 257, 64, 0},    {DType::kBF16, 64, 64, 257, 1},
                             {DType::kF32, 257, 64, 7, 0},      {DType::kQ4_1, 64, 40, 64, 0},
                             {DType::kBF16, 130, 512, 4096, 0}, {DType::kF32, 33, 1, 8, 3},
                             {DType::kF32, 9, 9000, 4096, 0}};

std::string Text(const Product& p) {
  return testing::PrintToString(std::vector<int64_t>{int64_t(p.weights), p.m, p.n, p.k, p.before});
}

// Weights that bf16 holds, so that only results are rounded.
Tensor Weights(BackendSide& side, const Product& p) {
  if (p.weights != DType::kF32) {
    return side.Put(p.weights, {p.n, p.k}, RandomWeights(p.weights, p.n, p.k, 1));
  }
  std::vector<float> w = Random(p.n * p.k, 1);
  for (float& value : w) value = FromBf16(ToBf16(value));
  return side.Put(DType::kF32, {p.n, p.k}, w);
}

TEST_F(CudaActivations, MatMuls) {
  for (const Product& p : kProducts) {
    SCOPED_TRACE(Text(p));
    const auto multiply = [&](bool narrow) {
      return [&p, narrow](BackendSide& side) -> Results {
        const Tensor x = Put(side, {p.m, p.k}, 2, p.before), w = Weights(side, p);
        const Tensor bias = side.Put(DType::kF32, {p.n}, Random(p.n, 3));
        const Tensor out = narrow ? Empty(side, {p.m, p.n}, p.before)
                                  : side.Poisoned(DType::kF32, {p.m, p.n}, p.before);
        side.ops().MatMul(side.s, x, w, bias, out);
        return {Values(side, out, p.before)};
      };
    };
    ExpectNear(multiply(true), kRoundedTwice);  // before the bias, and with it
    ExpectNear(multiply(false), p.weights == DType::kQ4_1 ? kRoundedTwice : kExact);
  }
}

TEST_F(CudaActivations, MatMulBackwards) {
  for (const Product& p : kProducts) {
    if (IsQuantised(p.weights)) continue;
    SCOPED_TRACE(Text(p));
    const auto backward = [&](BackendSide& side) -> Results {
      Backend& ops = side.ops();
      const Tensor x = Put(side, {p.m, p.k}, 2, p.before), w = Weights(side, p);
      const Tensor dout = Put(side, {p.m, p.n}, 3, p.before);
      const Tensor dx = Empty(side, {p.m, p.k}, p.before);
      const Tensor sum = side.Put(DType::kF32, {p.m, p.k}, Random(p.m * p.k, 4), p.before);
      const Tensor dw = side.Put(DType::kF32, {p.n, p.k}, Random(p.n * p.k, 5), p.before);
      const Tensor dbias = side.Put(DType::kF32, {p.n}, Random(p.n, 6));
      ops.MatMulBackward(side.s, x, w, dout, false, dx, dw, dbias);
      ops.MatMulBackward(side.s, x, w, dout, true, sum, Tensor(), Tensor());
      // a gradient that is a float32 sum beside an activation
      const Tensor mixed = side.Put(DType::kF32, {p.n, p.k}, Random(p.n * p.k, 7));
      const Tensor wide = side.Poisoned(DType::kF32, {p.m, p.n});
      ops.Copy(side.s, dout, wide);
      ops.MatMulBackward(side.s, x, w, wide, false, Tensor(), mixed, Tensor());
      return {Values(side, dx, p.before), Values(side, sum, p.before), Values(side, dw, p.before),
              side.Floats(dbias), side.Floats(mixed)};
    };
    ExpectNear(backward, kRoundedTwice);  // dx, where w is cut
  }
}

// Negative controls: results in bf16 are told from float32 ones, and another operand from this one.
TEST_F(CudaActivations, TheComparisonSeesRoundingAndAnotherOperand) {
  const auto multiply = [](BackendSide& side, uint64_t seed) {
    const Product p{DType::kBF16, 64, 64, 64, 0};
    const Tensor out = Empty(side, {p.m, p.n});
    side.ops().MatMul(side.s, Put(side, {p.m, p.k}, seed), Weights(side, p), Tensor(), out);
    return Values(side, out, 0);
  };
  BackendSide cpu(NewCpuBackend(DType::kF32, 1)), gpu(Gpu(DType::kBF16));
  EXPECT_TRUE(AllClose(multiply(gpu, 2), multiply(cpu, 2), kRounded));
  EXPECT_FALSE(AllClose(multiply(gpu, 2), multiply(cpu, 2), 1e-5));
  EXPECT_FALSE(AllClose(multiply(gpu, 3), multiply(cpu, 2), 0.1));
}

}  // namespace
}  // namespace toroid
