// Every gradient of the ops other than attention against central differences of the op itself, all
// in double: sum(dout * out(x + h e_i)) for each element of each operand, by the five-point rule,
// whose error is of order h^4.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/layer_norm.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/support/all_close.h"
#include "tests/support/differences.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

ThreadPool& Pool() {
  static ThreadPool pool(2);
  return pool;
}

Array Zeros(size_t n) { return Array(n); }

TEST(FiniteDifferences, SeeAWrongGradient) {
  const auto square = [](const Array& x) { return Array{x[0] * x[0], x[1] * x[1]}; };
  const Array dout = {1, 3};
  EXPECT_TRUE(MatchesDifferences(square, {5, 7}, dout, {10, 42}));
  EXPECT_FALSE(MatchesDifferences(square, {5, 7}, dout, {10, 42.0001}));
}

TEST(FiniteDifferences, MatMul) {
  const int64_t m = 5, n = 6, k = 7;
  const Array x = RandomArray(m * k, 1), w = RandomArray(n * k, 2), bias = RandomArray(n, 3);
  const Array dout = RandomArray(m * n, 4);
  const auto forward = [&](const Array& x_mk, const Array& w_nk, const Array& bias_n) {
    Array out(m * n);
    MatMulArgs<double> args;
    args.x = x_mk.data(), args.x_stride = k, args.m = m, args.n = n, args.k = k;
    args.w_type = args.bias_type = DType::kF64, args.w = w_nk.data(), args.w_stride = k;
    args.bias = bias_n.data(), args.out = out.data(), args.out_stride = n;
    MatMul(Pool(), args);
    return out;
  };
  Array dx(m * k), dw(n * k), dbias(n);
  MatMulBackwardArgs<double> args;
  args.x = x.data(), args.x_stride = k, args.m = m, args.n = n, args.k = k;
  args.w_type = DType::kF64, args.w = w.data(), args.w_stride = k;
  args.dout = dout.data(), args.dout_stride = n, args.dx = dx.data(), args.dx_stride = k;
  args.dw = dw.data(), args.dw_stride = k, args.dbias = dbias.data();
  MatMulBackward(Pool(), args);
  EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return forward(a, w, bias); }, x, dout, dx));
  EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return forward(x, a, bias); }, w, dout, dw));
  EXPECT_TRUE(
      MatchesDifferences([&](const Array& a) { return forward(x, w, a); }, bias, dout, dbias));
}

TEST(FiniteDifferences, Embedding) {
  const std::vector<int32_t> ids = {3, 5, 3, 9, 4, 3};
  const int64_t t = 6, v = 4, dim = 5, begin = 2;
  const Array table = RandomArray(v * dim, 1), dout = RandomArray(t * dim, 2);
  const auto forward = [&](const Array& rows) {
    Array out(t * dim);
    Embed(Pool(), ids.data(), t, DType::kF64, rows.data(), dim, v, dim, begin, out.data(), dim);
    return out;
  };
  Array dtable(v * dim);
  EmbedBackward(Pool(), ids.data(), t, dout.data(), dim, v, dim, begin, dtable.data(), dim);
  EXPECT_TRUE(MatchesDifferences(forward, table, dout, dtable));
}

TEST(FiniteDifferences, Norms) {
  for (int64_t dim : {1, 7, 64}) {
    const int64_t t = 3;
    const double epsilon = 0.1;
    const Array x = RandomArray(t * dim, 1), gain = RandomArray(dim, 2), bias = RandomArray(dim, 3);
    const Array dout = RandomArray(t * dim, 4);
    const auto rms = [&](const Array& a, const Array& g) {
      Array out(t * dim);
      RmsNorm<double>(Pool(), a.data(), dim, t, 1, dim, DType::kF64, g.data(), epsilon, out.data(),
                      dim);
      return out;
    };
    const auto layer = [&](const Array& a, const Array& g, const Array& b) {
      Array out(t * dim);
      LayerNorm<double>(Pool(), a.data(), dim, t, dim, DType::kF64, g.data(), b.data(), epsilon,
                        out.data(), dim);
      return out;
    };
    Array dx(t * dim), dgain(dim), dbias(dim);
    RmsNormBackward<double>(Pool(), x.data(), dim, t, 1, dim, DType::kF64, gain.data(), epsilon,
                            dout.data(), dim, dx.data(), dim, dgain.data());
    EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return rms(a, gain); }, x, dout, dx));
    EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return rms(x, a); }, gain, dout, dgain));
    dgain = Zeros(dim);
    LayerNormBackward<double>(Pool(), x.data(), dim, t, dim, DType::kF64, gain.data(), epsilon,
                              dout.data(), dim, dx.data(), dim, dgain.data(), dbias.data());
    EXPECT_TRUE(
        MatchesDifferences([&](const Array& a) { return layer(a, gain, bias); }, x, dout, dx));
    EXPECT_TRUE(
        MatchesDifferences([&](const Array& a) { return layer(x, a, bias); }, gain, dout, dgain));
    EXPECT_TRUE(
        MatchesDifferences([&](const Array& a) { return layer(x, gain, a); }, bias, dout, dbias));
  }
}

TEST(FiniteDifferences, Rope) {
  const std::vector<int32_t> positions = {0, 3, 1000};
  const Array inv_freq = {1, 0.3, 0.01}, x = RandomArray(3 * 2 * 6, 1);
  Array dx = RandomArray(3 * 2 * 6, 2);
  const Array dout = dx;
  const auto forward = [&](Array a) {
    Rope(Pool(), a.data(), 12, 3, 2, 6, positions.data(), inv_freq.data(), 1.5);
    return a;
  };
  RopeBackward(Pool(), dx.data(), 12, 3, 2, 6, positions.data(), inv_freq.data(), 1.5);
  EXPECT_TRUE(MatchesDifferences(forward, x, dout, dx));
}

TEST(FiniteDifferences, Activations) {
  const int64_t n = 64;
  const Array gate = RandomArray(n, 1, 2), up = RandomArray(n, 2), dout = RandomArray(n, 3);
  const auto swiglu = [&](const Array& a, const Array& b) {
    Array out(n);
    SwiGlu(Pool(), a.data(), n, b.data(), n, out.data(), n, 1, n);
    return out;
  };
  const auto gelu = [&](const Array& a) {
    Array out(n);
    Gelu(Pool(), a.data(), n, out.data(), n, 1, n);
    return out;
  };
  Array dgate(n), dup(n), dx(n);
  SwiGluBackward(Pool(), gate.data(), n, up.data(), n, dout.data(), n, dgate.data(), n, dup.data(),
                 n, 1, n);
  GeluBackward(Pool(), gate.data(), n, dout.data(), n, dx.data(), n, 1, n);
  EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return swiglu(a, up); }, gate, dout, dgate));
  EXPECT_TRUE(MatchesDifferences([&](const Array& a) { return swiglu(gate, a); }, up, dout, dup));
  EXPECT_TRUE(MatchesDifferences(gelu, gate, dout, dx));
}

TEST(FiniteDifferences, CrossEntropy) {
  const int64_t t = 3, n = 20;
  const std::vector<int32_t> labels = {0, 19, 7};
  const Array logits = RandomArray(t * n, 1, 2), dout = RandomArray(2 * t, 2);
  const auto forward = [&](const Array& x) {  // log p of all rows, then log Z
    Array stat, out(2 * t);
    for (int64_t i = 0; i < t; ++i) stat.insert(stat.end(), {-INFINITY, 0, -INFINITY});
    VocabStatistics(Pool(), x.data(), n, t, n, 0, labels.data(), stat.data());
    VocabMerge(Pool(), stat.data(), 1, t, out.data(), out.data() + t);
    return out;
  };
  const Array both = forward(logits);
  Array dlogits(t * n);
  VocabBackward(Pool(), logits.data(), n, t, n, 0, labels.data(), both.data() + t, dout.data(),
                dout.data() + t, dlogits.data(), n);
  EXPECT_TRUE(MatchesDifferences(forward, logits, dout, dlogits));
}

}  // namespace
}  // namespace toroid
