// The backward of every op other than attention, against the double reference: sizes, strides,
// instruction sets, threads. That the reference is the gradient: finite_difference_test.cc.
#include "tests/reference/backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/layer_norm.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kSizes[] = {1, 7, 64, 257};

template <typename T>
testing::AssertionResult GradientClose(const std::vector<T>& x, const Array& reference) {
  return AllClose(x, reference, Tolerance<T>::kGradient);
}

Array Sum(Array a, const Array& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

template <typename T>
constexpr DType kTypeOf = sizeof(T) == 8 ? DType::kF64 : DType::kF32;

// One call in rows that lie apart, on gradients that hold something already.
template <typename T>
struct MatMulCase {
  int64_t m, n, k;
  Array x, dout, dx, dw, dbias;
  std::vector<uint8_t> w;
  std::vector<T> wide_x, wide_dout, wide_dx, wide_dw, narrow_dbias;
  MatMulBackwardArgs<T> args;

  MatMulCase(DType type, int64_t rows, int64_t outputs, int64_t inputs)
      : m(rows), n(outputs), k(inputs) {
    x = RandomArray(m * k, 1), dout = RandomArray(m * n, 2), dx = RandomArray(m * k, 3);
    dw = RandomArray(n * k, 4), dbias = RandomArray(n, 5), w = RandomWeights(type, n, k, 6);
    wide_x = Spread(As<T>(x), m, k + 3, T(NAN)), wide_dout = Spread(As<T>(dout), m, n + 2, T(NAN));
    wide_dx = Spread(As<T>(dx), m, k + 1, T(7)), wide_dw = Spread(As<T>(dw), n, k + 4, T(8));
    narrow_dbias = As<T>(dbias);
    args.x = wide_x.data(), args.x_stride = k + 3, args.m = m, args.n = n, args.k = k;
    args.w_type = type, args.w = w.data(), args.w_stride = k;
    args.dout = wide_dout.data(), args.dout_stride = n + 2;
    args.dx = wide_dx.data(), args.dx_stride = k + 1;
    args.dw = wide_dw.data(), args.dw_stride = k + 4, args.dbias = narrow_dbias.data();
  }
};

template <typename T>
void ExpectMatMulBackward(DType type, int64_t m, int64_t n, int64_t k, int threads = 2) {
  SCOPED_TRACE(testing::Message() << Info(type).name << " " << m << " x " << n << " x " << k);
  ThreadPool pool(threads);
  for (bool add : {false, true}) {
    MatMulCase<T> c(type, m, n, k);
    const auto expected = reference::MatMulBackward(c.x, Decoded(type, c.w), c.dout, m, n, k);
    c.args.add_dx = add;
    MatMulBackward(pool, c.args);
    EXPECT_TRUE(GradientClose(Gather(c.wide_dx, k, k + 1, T(7)),
                              add ? Sum(c.dx, expected.dx_mk) : expected.dx_mk));
    EXPECT_TRUE(GradientClose(Gather(c.wide_dw, k, k + 4, T(8)), Sum(c.dw, expected.dw_nk)));
    EXPECT_TRUE(GradientClose(c.narrow_dbias, Sum(c.dbias, expected.dbias_n)));
    // Negative control: the product is seen, not only what was there before.
    EXPECT_FALSE(GradientClose(Gather(c.wide_dw, k, k + 4, T(8)), c.dw));
    if (add) {
      EXPECT_FALSE(GradientClose(Gather(c.wide_dx, k, k + 1, T(7)), expected.dx_mk));
    }
  }
}

TEST(MatMulBackward, MatchesReferenceForEveryStoredType) {
  ForEachIsa([](Isa isa) {
    for (DType type : {DType::kF32, DType::kF64, DType::kBF16, DType::kF16, DType::kQ8_0,
                       DType::kQ4_0, DType::kQ4_1}) {
      const int64_t k = IsQuantised(type) ? 96 : 77;
      ExpectMatMulBackward<float>(type, 9, 65, k);
      if (isa == Isa::kScalar) ExpectMatMulBackward<double>(type, 9, 65, k);
      ExpectMatMulBackward<float>(type, 12, 20, 2112);  // k in two turns
    }
  });
  for (int64_t m : kSizes) {
    for (int64_t n : kSizes) {
      for (int64_t k : kSizes) {
        ExpectMatMulBackward<float>(DType::kF32, m, n, k);
        if (m * n * k < 1e6) ExpectMatMulBackward<double>(DType::kF64, m, n, k);
      }
    }
  }
  ExpectMatMulBackward<float>(DType::kBF16, 11, 1500, 70);  // n in pieces
  ExpectMatMulBackward<float>(DType::kF32, 600, 300, 20);   // several panels and blocks
}

TEST(MatMulBackward, BitsDoNotDependOnThreads) {
  const auto run = [](int threads) {
    ThreadPool pool(threads);
    MatMulCase<float> c(DType::kBF16, 300, 700, 520);
    MatMulBackward(pool, c.args);
    std::vector<float> all = c.wide_dx;
    all.insert(all.end(), c.wide_dw.begin(), c.wide_dw.end());
    all.insert(all.end(), c.narrow_dbias.begin(), c.narrow_dbias.end());
    return all;
  };
  const std::vector<float> one = run(1);
  EXPECT_EQ(one, run(2));
  EXPECT_EQ(one, run(5));
}

TEST(MatMulBackward, PartsAloneAndEmptySizes) {
  ThreadPool pool(2);
  MatMulCase<float> all(DType::kF32, 9, 20, 30), part = all, none = all;
  MatMulBackward(pool, all.args);
  part.args = all.args;
  part.args.dx = nullptr, part.args.w = nullptr, part.args.dbias = nullptr;
  part.args.dw = part.wide_dw.data();
  MatMulBackward(pool, part.args);
  EXPECT_EQ(part.wide_dw, all.wide_dw);
  part.args = all.args;
  part.args.x = nullptr, part.args.dw = nullptr, part.args.dbias = nullptr;
  part.args.dx = part.wide_dx.data();
  MatMulBackward(pool, part.args);
  EXPECT_EQ(part.wide_dx, all.wide_dx);
  part = none;
  part.args.m = 0, part.args.dw = part.wide_dw.data(), part.args.dx = part.wide_dx.data();
  MatMulBackward(pool, part.args);
  EXPECT_EQ(part.wide_dw, none.wide_dw);
  part.args.m = 9, part.args.n = 0;  // a rank that holds no column: the sum of nothing
  MatMulBackward(pool, part.args);
  EXPECT_EQ(part.wide_dw, none.wide_dw);
  EXPECT_EQ(Gather(part.wide_dx, 30, 31, 7.0f), std::vector<float>(9 * 30, 0.0f));
}

TEST(EmbedBackward, AddsRowsOfEqualIdsInOrder) {
  const int64_t t = 257, v = 10, dim = 70, begin = 20;
  std::vector<int32_t> ids(t);
  for (int64_t i = 0; i < t; ++i) ids[i] = int32_t(15 + Philox(1, i, 0)[0] % 20);
  const Array dout = RandomArray(t * dim, 2), before = RandomArray(v * dim, 3);
  Array expected = before;
  for (int64_t i = 0; i < t; ++i) {
    if (ids[i] < begin || ids[i] >= begin + v) continue;
    for (int64_t d = 0; d < dim; ++d) expected[(ids[i] - begin) * dim + d] += dout[i * dim + d];
  }
  const auto run = [&](auto zero, int threads) {
    using T = decltype(zero);
    ThreadPool pool(threads);
    const std::vector<T> wide = Spread(As<T>(dout), t, dim + 5, T(NAN));
    std::vector<T> table = Spread(As<T>(before), v, dim + 2, T(6));
    EmbedBackward(pool, ids.data(), t, wide.data(), dim + 5, v, dim, begin, table.data(), dim + 2);
    return Gather(table, dim, dim + 2, T(6));
  };
  EXPECT_TRUE(GradientClose(run(0.0f, 2), expected));
  EXPECT_TRUE(GradientClose(run(0.0, 2), expected));
  EXPECT_EQ(run(0.0f, 1), run(0.0f, 5));
  ids[0] = ids[0] == 20 ? 21 : 20;  // negative control: one wrong id shows
  EXPECT_FALSE(GradientClose(run(0.0f, 2), expected));
}

template <typename T>
void ExpectNorms(int64_t rows, int64_t dim, int threads = 2) {
  SCOPED_TRACE(testing::Message() << rows << " x " << dim);
  ThreadPool pool(threads);
  const int64_t stride = dim + 3;
  const Array x = RandomArray(rows * dim, 1, 3), dout = RandomArray(rows * dim, 2);
  const Array gain = RandomArray(dim, 3), dgain = RandomArray(dim, 4), dbias = RandomArray(dim, 5);
  const std::vector<float> narrow_gain = As<float>(gain);
  const std::vector<T> wide_x = Spread(As<T>(x), rows, stride, T(NAN));
  std::vector<T> wide = Spread(As<T>(dout), rows, stride, T(5));
  std::vector<T> gain_sum = As<T>(dgain), bias_sum = As<T>(dbias);

  auto expected = reference::RmsNormBackward(x, gain, 1e-2, dout);
  RmsNormBackward<T>(pool, wide_x.data(), stride, rows, 1, dim, DType::kF32, narrow_gain.data(),
                     1e-2, wide.data(), stride, wide.data(), stride, gain_sum.data());
  EXPECT_TRUE(GradientClose(Gather(wide, dim, stride, T(5)), expected.dx_tD));
  EXPECT_TRUE(GradientClose(gain_sum, Sum(dgain, expected.dgain_D)));

  gain_sum = As<T>(dgain), wide = Spread(As<T>(dout), rows, stride, T(5));
  expected = reference::LayerNormBackward(x, gain, 1e-2, dout);
  LayerNormBackward<T>(pool, wide_x.data(), stride, rows, dim, DType::kF64, gain.data(), 1e-2,
                       wide.data(), stride, wide.data(), stride, gain_sum.data(), bias_sum.data());
  const std::vector<T> dx = Gather(wide, dim, stride, T(5));
  EXPECT_TRUE(AllClose(dx, expected.dx_tD, dim == 1 ? 1e-4 : Tolerance<T>::kGradient));
  EXPECT_TRUE(GradientClose(gain_sum, Sum(dgain, expected.dgain_D)));
  EXPECT_TRUE(GradientClose(bias_sum, Sum(dbias, expected.dbias_D)));
  if (dim > 1) {  // negative control: without the term along x the gradient is another
    const Array other = reference::RmsNormBackward(x, gain, 1e-2, dout).dx_tD;
    EXPECT_FALSE(GradientClose(dx, other));
  }
}

TEST(NormBackward, MatchesReference) {
  ForEachIsa([](Isa) {
    for (int64_t rows : kSizes) {
      for (int64_t dim : kSizes) {
        ExpectNorms<float>(rows, dim);
        ExpectNorms<double>(rows, dim);
      }
    }
  });
  ExpectNorms<double>(33, 130000);  // more partial sums than the scratch holds at once
}

TEST(NormBackward, HeadsInsideAFusedRowAndNoGainGradient) {
  ThreadPool pool(2);
  const int64_t t = 67, heads = 3, dim = 16, stride = heads * dim + 11;
  const Array x = RandomArray(t * heads * dim, 1), dout = RandomArray(t * heads * dim, 2);
  const Array gain = RandomArray(dim, 3);
  const auto expected = reference::RmsNormBackward(x, gain, 1e-6, dout);
  const std::vector<double> wide_x = Spread(x, t, stride, double(NAN));
  std::vector<double> wide = Spread(dout, t, stride, 8.0), dx(t * stride, 8.0), dgain(dim);
  RmsNormBackward<double>(pool, wide_x.data(), stride, t, heads, dim, DType::kF64, gain.data(),
                          1e-6, wide.data(), stride, dx.data(), stride, dgain.data());
  EXPECT_TRUE(GradientClose(Gather(dx, heads * dim, stride, 8.0), expected.dx_tD));
  EXPECT_TRUE(GradientClose(dgain, expected.dgain_D));
  RmsNormBackward<double>(pool, wide_x.data(), stride, t, heads, dim, DType::kF64, gain.data(),
                          1e-6, wide.data(), stride, wide.data(), stride, nullptr);
  EXPECT_EQ(wide, dx);
}

TEST(NormBackward, BitsDoNotDependOnThreads) {
  const int64_t rows = 1000, dim = 300;
  const std::vector<float> x = As<float>(RandomArray(rows * dim, 1));
  const std::vector<float> dout = As<float>(RandomArray(rows * dim, 2));
  const std::vector<float> gain = As<float>(RandomArray(dim, 3));
  const auto run = [&](int threads) {
    ThreadPool pool(threads);
    std::vector<float> all(rows * dim + 3 * dim);
    RmsNormBackward<float>(pool, x.data(), dim, rows, 1, dim, DType::kF32, gain.data(), 1e-5,
                           dout.data(), dim, all.data(), dim, &all[rows * dim]);
    LayerNormBackward<float>(pool, x.data(), dim, rows, dim, DType::kF32, gain.data(), 1e-5,
                             dout.data(), dim, all.data(), dim, &all[rows * dim + dim],
                             &all[rows * dim + 2 * dim]);
    return all;
  };
  const std::vector<float> one = run(1);
  EXPECT_EQ(one, run(2));
  EXPECT_EQ(one, run(5));
}

template <typename T>
void ExpectActivations(int64_t rows, int64_t cols) {
  SCOPED_TRACE(testing::Message() << rows << " x " << cols);
  ThreadPool pool(2);
  const int64_t stride = cols + 3;
  const Array x = RandomArray(rows * cols, 1, 3), y = RandomArray(rows * cols, 2);
  const Array dout = RandomArray(rows * cols, 3);
  const auto spread = [&](const Array& a) { return Spread(As<T>(a), rows, stride, T(5)); };
  const auto gather = [&](const std::vector<T>& a) { return Gather(a, cols, stride, T(5)); };
  std::vector<T> wide_x = spread(x), wide_y = spread(y), wide_d = spread(dout);
  std::vector<T> dx = spread(dout);
  GeluBackward(pool, wide_x.data(), stride, dx.data(), stride, dx.data(), stride, rows, cols);
  EXPECT_TRUE(GradientClose(gather(dx), reference::GeluBackward(x, dout)));
  dx = wide_x;
  Gelu(pool, dx.data(), stride, dx.data(), stride, rows, cols);
  EXPECT_TRUE(AllClose(gather(dx), reference::Gelu(x)));
  const auto expected = reference::SwiGluBackward(x, y, dout);
  SwiGluBackward(pool, wide_x.data(), stride, wide_y.data(), stride, wide_d.data(), stride,
                 wide_x.data(), stride, wide_y.data(), stride, rows, cols);  // in place
  EXPECT_TRUE(GradientClose(gather(wide_x), expected.dgate));
  EXPECT_TRUE(GradientClose(gather(wide_y), expected.dup));
  EXPECT_FALSE(GradientClose(gather(wide_x), expected.dup));  // negative control
}

TEST(ActivationBackward, MatchesReference) {
  ForEachIsa([](Isa) {
    for (int64_t rows : kSizes) {
      for (int64_t cols : kSizes) {
        ExpectActivations<float>(rows, cols);
        ExpectActivations<double>(rows, cols);
      }
    }
    ExpectActivations<float>(1, 10000);
  });
}

template <typename T>
void ExpectExtremes() {
  ThreadPool pool(1);
  const std::vector<T> x = {T(-1e30), -200, -89, T(-0.0), 0, 89, 200, T(1e30)};
  const std::vector<T> ones(8, T(1)), slope = {0, 0, 0, T(0.5), T(0.5), 1, 1, 1};
  std::vector<T> out(8), dx(8), dup(8);
  Gelu(pool, x.data(), 8, out.data(), 8, 1, 8);
  GeluBackward(pool, x.data(), 8, ones.data(), 8, dx.data(), 8, 1, 8);
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(dx[i], slope[i], 1e-6);
    EXPECT_NEAR(out[i], x[i] > 0 ? x[i] : T(0), 1e-7);
  }
  SwiGluBackward(pool, x.data(), 8, ones.data(), 8, ones.data(), 8, dx.data(), 8, dup.data(), 8, 1,
                 8);
  for (int i = 0; i < 8; ++i) {
    EXPECT_NEAR(dx[i], slope[i], 1e-6);
    EXPECT_NEAR(dup[i], x[i] > 0 ? x[i] : T(0), 1e-7);
  }
  const std::vector<T> nan(8, T(NAN));  // never hidden
  Gelu(pool, nan.data(), 8, out.data(), 8, 1, 8);
  GeluBackward(pool, nan.data(), 8, ones.data(), 8, dx.data(), 8, 1, 8);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(std::isnan(out[i]) && std::isnan(dx[i]));
}

TEST(ActivationBackward, ExtremesAreFiniteAndNanIsNotHidden) {
  ForEachIsa([](Isa) {
    ExpectExtremes<float>();
    ExpectExtremes<double>();
  });
}

TEST(LayerNorm, MatchesReferenceFarFromZero) {
  ThreadPool pool(2);
  for (int64_t rows : {1, 33}) {
    for (int64_t dim : kSizes) {
      Array x = RandomArray(rows * dim, 1);
      for (double& value : x) value = float(value + 1000);
      const Array gain = RandomArray(dim, 2), bias = RandomArray(dim, 3);
      std::vector<float> out = As<float>(x);
      LayerNorm<float>(pool, out.data(), dim, rows, dim, DType::kF64, gain.data(), bias.data(),
                       1e-5, out.data(), dim);
      EXPECT_TRUE(AllClose(out, reference::LayerNorm(x, gain, bias, 1e-5), 3e-4));
      std::vector<double> exact = x;
      LayerNorm<double>(pool, exact.data(), dim, rows, dim, DType::kF64, gain.data(), nullptr, 1e-5,
                        exact.data(), dim);
      EXPECT_TRUE(AllClose(exact, reference::LayerNorm(x, gain, {}, 1e-5), 1e-11));
      if (dim > 1) {
        EXPECT_FALSE(AllClose(exact, reference::LayerNorm(x, gain, bias, 1e-5), 1e-4));
      }
    }
  }
}

TEST(RopeBackward, TurnsBackAndIsTheTranspose) {
  ThreadPool pool(2);
  for (int64_t head_dim : {2, 16, 64, 100}) {
    const int64_t t = 5, heads = 3, stride = heads * head_dim + 5;
    Array inv_freq;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      inv_freq.push_back(std::pow(10000.0, -2.0 * double(i) / double(head_dim)));
    }
    const std::vector<int32_t> positions = {0, 1, 100, 65536, 1000001};
    const Array d = RandomArray(t * heads * head_dim, 1);
    const Array expected = reference::RopeBackward(d, positions, heads, inv_freq, 1.25);
    std::vector<float> narrow = Spread(As<float>(d), t, stride, 6.0f);
    RopeBackward(pool, narrow.data(), stride, t, heads, head_dim, positions.data(), inv_freq.data(),
                 1.25);
    EXPECT_TRUE(GradientClose(Gather(narrow, heads * head_dim, stride, 6.0f), expected));
    std::vector<double> wide = Spread(d, t, stride, 6.0);
    RopeBackward(pool, wide.data(), stride, t, heads, head_dim, positions.data(), inv_freq.data(),
                 1.25);
    EXPECT_TRUE(GradientClose(Gather(wide, heads * head_dim, stride, 6.0), expected));
    // Forward after backward gives scale^2 times what was there.
    Rope(pool, wide.data(), stride, t, heads, head_dim, positions.data(), inv_freq.data(), 1.25);
    Array scaled = d;
    for (double& x : scaled) x *= 1.25 * 1.25;
    EXPECT_TRUE(GradientClose(Gather(wide, heads * head_dim, stride, 6.0), scaled));
    EXPECT_FALSE(GradientClose(Gather(narrow, heads * head_dim, stride, 6.0f), scaled));
  }
}

TEST(SumRows, AddsColumnsAndScaleRowsScales) {
  for (int64_t rows : kSizes) {
    for (int64_t cols : kSizes) {
      const Array x = RandomArray(rows * cols, 1), before = RandomArray(cols, 2);
      Array expected = before;
      for (int64_t i = 0; i < rows * cols; ++i) expected[i % cols] += x[i];
      std::vector<float> wide = Spread(As<float>(x), rows, cols + 2, 3.0f);
      const auto run = [&](int threads) {
        ThreadPool pool(threads);
        std::vector<float> sum = As<float>(before);
        SumRows(pool, wide.data(), cols + 2, rows, cols, sum.data());
        return sum;
      };
      EXPECT_TRUE(GradientClose(run(2), expected));
      EXPECT_FALSE(GradientClose(run(2), before));
      EXPECT_EQ(run(1), run(5));
      ThreadPool pool(2);
      ScaleRows(pool, wide.data(), cols + 2, rows, cols, -0.5);
      Array scaled = x;
      for (double& value : scaled) value *= -0.5;
      EXPECT_EQ(Gather(wide, cols, cols + 2, 3.0f), As<float>(scaled));
    }
  }
}

template <typename T>
void ExpectVocabBackward(int64_t t, int64_t n, int64_t tile) {
  SCOPED_TRACE(testing::Message() << t << " x " << n << " tiles of " << tile);
  ThreadPool pool(2);
  const Array logits = RandomArray(t * n, 1, 4), d_log_p = RandomArray(t, 2);
  const Array d_log_z = RandomArray(t, 3);
  std::vector<int32_t> labels(t);
  for (int64_t i = 0; i < t; ++i) labels[i] = int32_t(Philox(2, i, 0)[0] % n);
  Array log_p, log_z;
  reference::LogProbabilities(logits, labels, &log_p, &log_z);
  const Array expected = reference::LogProbabilitiesBackward(logits, labels, d_log_p, d_log_z);
  std::vector<T> x = Spread(As<T>(logits), t, n + 3, T(9));
  for (int64_t begin = 0; begin < n; begin += tile) {
    VocabBackward(pool, x.data() + begin, n + 3, t, std::min(tile, n - begin), begin, labels.data(),
                  log_z.data(), d_log_p.data(), d_log_z.data(), x.data() + begin, n + 3);
  }
  EXPECT_TRUE(GradientClose(Gather(x, n, n + 3, T(9)), expected));
  if (n > 1) {  // negative control: labels off by one
    for (int32_t& label : labels) label = int32_t((label + 1) % n);
    EXPECT_FALSE(GradientClose(Gather(x, n, n + 3, T(9)), reference::LogProbabilitiesBackward(
                                                              logits, labels, d_log_p, d_log_z)));
  }
}

TEST(CrossEntropyBackward, TilesMatchTheWholeVocabulary) {
  ForEachIsa([](Isa) {
    for (int64_t n : {1, 7, 64, 257, 5000}) {
      for (int64_t tile : {int64_t{13}, n}) {
        ExpectVocabBackward<float>(7, n, tile);
        ExpectVocabBackward<double>(3, n, tile);
      }
    }
  });
}

// Where the weights are known before, loss and gradient take one pass over blocks of tokens: the
// logits of a block live once, [block, n], and [t, n] never exists.
TEST(CrossEntropyBackward, OnePassOverTokenBlocksGivesLossAndBothGradients) {
  const int64_t t = 29, n = 301, dim = 12;
  const Array x = RandomArray(t * dim, 1), w = RandomArray(n * dim, 2), weights = RandomArray(t, 3);
  constexpr double kZ = 0.01;  // z-loss kZ ln^2 Z on each token
  std::vector<int32_t> labels(t);
  for (int64_t i = 0; i < t; ++i) labels[i] = int32_t(Philox(4, i, 0)[0] % n);
  const auto pass = [&](int64_t block, Array* dx, Array* dw) {
    ThreadPool pool(2);
    double loss = 0;
    for (int64_t begin = 0; begin < t; begin += block) {
      const int64_t b = std::min(block, t - begin);
      Array logits(b * n), stat, log_p(b), log_z(b), d_log_p(b), d_log_z(b);
      for (int64_t i = 0; i < b; ++i) stat.insert(stat.end(), {-INFINITY, 0, -INFINITY});
      MatMulArgs<double> forward;
      forward.x = &x[begin * dim], forward.x_stride = dim, forward.m = b, forward.n = n;
      forward.k = dim, forward.w_type = DType::kF64, forward.w = w.data(), forward.w_stride = dim;
      forward.out = logits.data(), forward.out_stride = n;
      MatMul(pool, forward);
      VocabStatistics(pool, logits.data(), n, b, n, 0, &labels[begin], stat.data());
      VocabMerge(pool, stat.data(), 1, b, log_p.data(), log_z.data());
      for (int64_t i = 0; i < b; ++i) {
        loss += -weights[begin + i] * log_p[i] + kZ * log_z[i] * log_z[i];
        d_log_p[i] = -weights[begin + i], d_log_z[i] = 2 * kZ * log_z[i];
      }
      VocabBackward(pool, logits.data(), n, b, n, 0, &labels[begin], log_z.data(), d_log_p.data(),
                    d_log_z.data(), logits.data(), n);
      MatMulBackwardArgs<double> back;
      back.x = forward.x, back.x_stride = dim, back.m = b, back.n = n, back.k = dim;
      back.w_type = DType::kF64, back.w = w.data(), back.w_stride = dim;
      back.dout = logits.data(), back.dout_stride = n;
      back.dx = &(*dx)[begin * dim], back.dx_stride = dim, back.dw = dw->data();
      back.dw_stride = dim;
      MatMulBackward(pool, back);
    }
    return loss;
  };
  Array log_p, log_z, d_log_p, d_log_z;
  reference::LogProbabilities(reference::MatMul(x, w, {}, t, n, dim), labels, &log_p, &log_z);
  double expected_loss = 0;
  for (int64_t i = 0; i < t; ++i) {
    expected_loss += -weights[i] * log_p[i] + kZ * log_z[i] * log_z[i];
    d_log_p.push_back(-weights[i]), d_log_z.push_back(2 * kZ * log_z[i]);
  }
  const auto expected = reference::MatMulBackward(
      x, w,
      reference::LogProbabilitiesBackward(reference::MatMul(x, w, {}, t, n, dim), labels, d_log_p,
                                          d_log_z),
      t, n, dim);
  for (int64_t block : {1, 8, 29}) {
    Array dx(t * dim), dw(n * dim);
    EXPECT_NEAR(pass(block, &dx, &dw), expected_loss, 1e-11 * std::abs(expected_loss));
    EXPECT_TRUE(GradientClose(dx, expected.dx_mk));
    EXPECT_TRUE(GradientClose(dw, expected.dw_nk));
    dw[5] += 1e-8;  // negative control
    EXPECT_FALSE(GradientClose(dw, expected.dw_nk));
  }
}

}  // namespace
}  // namespace toroid
