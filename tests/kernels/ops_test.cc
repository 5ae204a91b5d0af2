// The ops other than attention, against the double reference.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/kv_write.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"
#include "tests/support/all_close.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

constexpr DType kStored[] = {DType::kF32,  DType::kF64,  DType::kBF16, DType::kF16,
                             DType::kQ8_0, DType::kQ4_0, DType::kQ4_1};
constexpr int64_t kSizes[] = {1, 7, 64, 257};

template <typename T>
void ExpectMatMul(DType type, int64_t m, int64_t n, int64_t k, bool with_bias) {
  SCOPED_TRACE(testing::Message() << Info(type).name << " " << m << " x " << n << " x " << k);
  ThreadPool pool(2);
  const reference::Array x = RandomArray(m * k, 1), bias = RandomArray(with_bias ? n : 0, 2);
  const std::vector<uint8_t> w = RandomWeights(type, n, k, 3);
  const std::vector<T> wide_x = Spread(As<T>(x), m, k + 3, T(NAN));
  std::vector<T> out(m * (n + 5), T(-1));
  const std::vector<float> narrow_bias = As<float>(bias);
  MatMulArgs<T> args;
  args.x = wide_x.data(), args.x_stride = k + 3, args.m = m, args.n = n, args.k = k;
  args.w_type = type, args.w = w.data(), args.w_stride = k;
  args.bias = with_bias ? narrow_bias.data() : nullptr;
  args.out = out.data(), args.out_stride = n + 5;
  MatMul(pool, args);
  EXPECT_TRUE(AllClose(Gather(out, n, n + 5, T(-1)),
                       reference::MatMul(x, Decoded(type, w), bias, m, n, k)));
}

TEST(MatMul, MatchesReferenceForEveryStoredType) {
  ForEachIsa([](Isa isa) {
    for (DType type : kStored) {
      for (int64_t m : {1, 2, 3, 7, 8, 9, 64, 257}) {
        const int64_t k = IsQuantised(type) ? 96 : 77;
        ExpectMatMul<float>(type, m, 65, k, m % 2 == 0);
        if (isa == Isa::kScalar) ExpectMatMul<double>(type, m, 65, k, m % 2 == 0);
      }
      ExpectMatMul<float>(type, 1, 1, IsQuantised(type) ? 32 : 1, true);
      ExpectMatMul<float>(type, 70, 300, 2400, false);  // k in pieces, several panels
      ExpectMatMul<float>(type, 20, 2100, 64, true);    // columns in two turns
    }
  });
}

TEST(MatMul, ReadsAColumnRangeOfAPlainWeight) {
  ThreadPool pool(1);
  const reference::Array x = RandomArray(12 * 40, 1), w = RandomArray(20 * 40, 2);
  const std::vector<float> wide = Spread(As<float>(w), 20, 100, float(NAN));
  const std::vector<float> narrow_x = As<float>(x);
  for (int64_t m : {1, 12}) {
    std::vector<float> out(m * 20);
    MatMulArgs<float> args;
    args.x = narrow_x.data(), args.x_stride = 40, args.m = m, args.n = 20, args.k = 40;
    args.w = wide.data(), args.w_stride = 100, args.out = out.data(), args.out_stride = 20;
    MatMul(pool, args);
    EXPECT_TRUE(AllClose(out, reference::MatMul(x, w, {}, m, 20, 40)));
  }
}

TEST(MatMul, BitsDoNotDependOnThreadsAndRowsNotOnOtherRows) {
  const int64_t n = 700, k = 640, most = 300;
  const std::vector<float> x = As<float>(RandomArray(most * k, 1));
  const std::vector<uint8_t> w = RandomWeights(DType::kQ4_1, n, k, 2);
  const auto product = [&](int threads, int64_t m) {
    ThreadPool pool(threads);
    std::vector<float> out(m * n);
    MatMulArgs<float> args;
    args.x = x.data(), args.x_stride = k, args.m = m, args.n = n, args.k = k;
    args.w_type = DType::kQ4_1, args.w = w.data(), args.w_stride = k;
    args.out = out.data(), args.out_stride = n;
    MatMul(pool, args);
    return out;
  };
  for (int64_t m : {1, 5, 300}) {
    const std::vector<float> one = product(1, m);
    EXPECT_EQ(one, product(2, m));
    EXPECT_EQ(one, product(5, m));
  }
  const std::vector<float> all = product(2, most);
  const reference::Array first(all.begin(), all.begin() + n);
  for (int64_t m : {1, 3, 8, 9, 64}) {
    std::vector<float> some = product(2, m);
    some.resize(n);
    EXPECT_TRUE(AllClose(some, first, 2e-6)) << m;
    if (m <= kMatVecRows) continue;
    EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << m;
  }
}

TEST(Dequantize, DoubleIsExactAndFloatItsRounding) {
  for (int type = 0; type <= int(DType::kQ6_K); ++type) {
    const DType t = DType(type);
    if (t == DType::kI32 || t == DType::kI64 || t == DType::kU8) continue;
    const std::vector<uint8_t> bytes = RandomWeights(t, 3, 512, type);
    const reference::Array exact = Decoded(t, bytes);
    std::vector<float> rounded(exact.size());
    DecodeRow(t, bytes.data(), 0, int64_t(rounded.size()), rounded.data());
    for (size_t i = 0; i < exact.size(); ++i) {
      EXPECT_EQ(rounded[i], float(exact[i])) << Info(t).name;
    }
    // A range in the middle is that part of the whole.
    reference::Array part(256);
    DecodeRow(t, bytes.data(), 512, 256, part.data());
    EXPECT_EQ(part, reference::Array(exact.begin() + 512, exact.begin() + 768)) << Info(t).name;
  }
}

// Values worked out by hand from the block layouts.
TEST(Dequantize, KnownBlocks) {
  uint8_t block[210] = {};
  const auto put_half = [&](int at, uint16_t half) { std::memcpy(block + at, &half, 2); };
  double x[256];
  put_half(0, 0x4000);  // d = 2
  block[2] = 0x7b;      // elements 0 and 16: 11 and 7
  DecodeRow(DType::kQ4_0, block, 0, 32, x);
  EXPECT_EQ(x[0], 2.0 * (11 - 8));
  EXPECT_EQ(x[16], 2.0 * (7 - 8));
  put_half(2, 0x3c00);  // m = 1
  block[4] = 0x7b;
  DecodeRow(DType::kQ4_1, block, 0, 32, x);
  EXPECT_EQ(x[0], 23.0);
  EXPECT_EQ(x[16], 15.0);
  block[4] = 1, block[5] = 0, block[6] = 1, block[7] = 0;  // fifth bits of elements 0 and 16
  block[8] = 0x7b;
  DecodeRow(DType::kQ5_1, block, 0, 32, x);
  EXPECT_EQ(x[0], 2.0 * 27 + 1);
  EXPECT_EQ(x[16], 2.0 * 23 + 1);
  std::memset(block, 0, sizeof(block));
  put_half(0, 0x4000), put_half(2, 0x3c00);  // d = 2, d_min = 1
  block[4] = 3, block[8] = 5;                // scale and minimum of sub-block 0
  block[16] = 0x7b;
  DecodeRow(DType::kQ4_K, block, 0, 256, x);
  EXPECT_EQ(x[0], 2.0 * 3 * 11 - 5);
  std::memset(block, 0, sizeof(block));
  put_half(208, 0x4000);
  block[192] = uint8_t(-3), block[0] = 0x0b, block[128] = 2;
  DecodeRow(DType::kQ6_K, block, 0, 256, x);
  EXPECT_EQ(x[0], 2.0 * -3 * ((11 | 32) - 32));
}

TEST(Embed, TakesRowsItHoldsAndZerosOtherwise) {
  ThreadPool pool(2);
  for (DType type : kStored) {
    const int64_t v = 10, dim = 64, stride = 70;
    const std::vector<uint8_t> table = RandomWeights(type, v, dim, 5);
    const reference::Array rows = Decoded(type, table);
    const std::vector<int32_t> ids = {20, 29, 19, 30, 25, 0};
    std::vector<float> out(ids.size() * stride, 9.0f);
    Embed(pool, ids.data(), int64_t(ids.size()), type, table.data(), dim, v, dim, 20, out.data(),
          stride);
    reference::Array expected;
    for (int32_t id : ids) {
      for (int64_t d = 0; d < dim; ++d) {
        expected.push_back(id >= 20 && id < 30 ? rows[(id - 20) * dim + d] : 0.0);
      }
    }
    EXPECT_TRUE(AllClose(Gather(out, dim, stride, 9.0f), expected, 1e-7));
  }
}

template <typename T>
void ExpectRowOps(int64_t rows, int64_t cols) {
  SCOPED_TRACE(testing::Message() << rows << " x " << cols);
  ThreadPool pool(2);
  const int64_t stride = cols + 3;
  const reference::Array x = RandomArray(rows * cols, 1, 3), y = RandomArray(rows * cols, 2);
  const reference::Array gain = RandomArray(cols, 3);
  const std::vector<float> narrow_gain = As<float>(gain);
  const std::vector<T> wide_y = Spread(As<T>(y), rows, stride, T(4));
  std::vector<T> wide = Spread(As<T>(x), rows, stride, T(5));
  RmsNorm<T>(pool, wide.data(), stride, rows, 1, cols, DType::kF32, narrow_gain.data(), 1e-5,
             wide.data(), stride);
  EXPECT_TRUE(AllClose(Gather(wide, cols, stride, T(5)), reference::RmsNorm(x, gain, 1e-5)));

  wide = Spread(As<T>(x), rows, stride, T(5));
  SwiGlu(pool, wide.data(), stride, wide_y.data(), stride, wide.data(), stride, rows, cols);
  EXPECT_TRUE(AllClose(Gather(wide, cols, stride, T(5)), reference::SwiGlu(x, y)));

  wide = Spread(As<T>(x), rows, stride, T(5));
  AddRows<T>(pool, wide.data(), stride, wide_y.data(), stride, rows, cols);
  AddRows<T>(pool, wide.data(), stride, wide_y.data(), 0, rows, cols);  // row 0 to every row
  reference::Array sum = x;
  for (int64_t i = 0; i < rows * cols; ++i) sum[i] += y[i] + y[i % cols];
  EXPECT_TRUE(AllClose(Gather(wide, cols, stride, T(5)), sum));
}

TEST(RowOps, MatchReference) {
  ForEachIsa([](Isa) {
    for (int64_t rows : kSizes) {
      for (int64_t cols : kSizes) {
        ExpectRowOps<float>(rows, cols);
        ExpectRowOps<double>(rows, cols);
      }
    }
    ExpectRowOps<float>(1, 10000);
  });
}

TEST(RowOps, SwiGluOfExtremesIsFinite) {
  ForEachIsa([](Isa) {
    ThreadPool pool(1);
    const std::vector<float> gate = {-1e30f, -200.0f, -89.0f, -0.0f, 0.0f, 89.0f, 200.0f, 1e30f};
    const std::vector<float> up(8, 1.0f);
    std::vector<float> out(8);
    SwiGlu(pool, gate.data(), 8, up.data(), 8, out.data(), 8, 1, 8);
    for (int i = 1; i < 3; ++i) EXPECT_NEAR(out[i], 0.0f, 1e-30f);
    for (int i = 5; i < 8; ++i) EXPECT_EQ(out[i], gate[i]);
    const std::vector<float> nan(8, NAN);  // never hidden
    SwiGlu(pool, nan.data(), 8, up.data(), 8, out.data(), 8, 1, 8);
    for (float x : out) EXPECT_TRUE(std::isnan(x));
  });
}

TEST(RmsNorm, HeadsInsideAFusedRow) {
  ThreadPool pool(2);
  const int64_t t = 7, heads = 3, dim = 16, stride = heads * dim + 11;
  const reference::Array x = RandomArray(t * heads * dim, 1), gain = RandomArray(dim, 2);
  std::vector<double> wide = Spread(x, t, stride, 8.0);
  RmsNorm<double>(pool, wide.data(), stride, t, heads, dim, DType::kF64, gain.data(), 1e-6,
                  wide.data(), stride);
  EXPECT_TRUE(AllClose(Gather(wide, heads * dim, stride, 8.0), reference::RmsNorm(x, gain, 1e-6)));
}

TEST(Rope, MatchesReferenceAtFarPositions) {
  ThreadPool pool(2);
  for (int64_t head_dim : {2, 16, 64, 100}) {
    const int64_t t = 9, heads = 3, stride = heads * head_dim + 5;
    reference::Array inv_freq;
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      inv_freq.push_back(std::pow(10000.0, -2.0 * double(i) / double(head_dim)));
    }
    const std::vector<int32_t> positions = {0, 1, 2, 100, 4095, 65536, 1000000, 1000001, 7};
    const reference::Array x = RandomArray(t * heads * head_dim, 1);
    const reference::Array expected = reference::Rope(x, positions, heads, inv_freq, 1.25);
    std::vector<float> narrow = Spread(As<float>(x), t, stride, 6.0f);
    Rope(pool, narrow.data(), stride, t, heads, head_dim, positions.data(), inv_freq.data(), 1.25);
    EXPECT_TRUE(AllClose(Gather(narrow, heads * head_dim, stride, 6.0f), expected, 1e-6));
    std::vector<double> wide = Spread(x, t, stride, 6.0);
    Rope(pool, wide.data(), stride, t, heads, head_dim, positions.data(), inv_freq.data(), 1.25);
    EXPECT_TRUE(AllClose(Gather(wide, heads * head_dim, stride, 6.0), expected));
  }
}

// Turning (1, 0) shows cosine and sine themselves: rounded from double at any position.
TEST(Rope, AnglesAreExactAtAnyPosition) {
  ThreadPool pool(1);
  const int64_t half = 37;
  reference::Array inv_freq;
  for (int64_t i = 0; i < half; ++i) inv_freq.push_back(std::pow(1e5, -double(i) / double(half)));
  ForEachIsa([&](Isa) {
    float error_in_float = 0;
    for (uint64_t i = 0; i < 2000; ++i) {
      const int32_t position = int32_t(Philox(1, i, 0)[0] >> (1 + i % 31));
      std::vector<float> x(2 * half);
      std::fill_n(x.begin(), half, 1.0f);
      Rope(pool, x.data(), 2 * half, 1, 1, 2 * half, &position, inv_freq.data(), 1);
      for (int64_t d = 0; d < half; ++d) {
        const double angle = position * inv_freq[d];
        ASSERT_NEAR(x[d], std::cos(angle), 6.1e-8) << position << " * " << inv_freq[d];
        ASSERT_NEAR(x[half + d], std::sin(angle), 6.1e-8) << position << " * " << inv_freq[d];
        error_in_float = std::max(error_in_float, std::abs(x[d] - std::cos(float(angle))));
      }
    }
    EXPECT_GT(error_in_float, 1e-3f);  // negative control: angles in float
  });
}

TEST(KvWrite, ScattersConvertsAndLeavesOut) {
  ThreadPool pool(2);
  const std::vector<float> x = As<float>(RandomArray(4 * 10, 1));
  const std::vector<int64_t> slots = {5, -1, 0, 3};
  std::vector<uint16_t> cache(6 * 12, 0xffff);
  KvWrite(pool, DType::kF32, x.data(), 10, 4, 10, slots.data(), DType::kBF16, cache.data(), 12);
  std::vector<uint16_t> expected(6 * 12, 0xffff);
  for (int64_t i : {0, 2, 3}) {
    for (int64_t c = 0; c < 10; ++c) expected[slots[i] * 12 + c] = ToBf16(x[i * 10 + c]);
  }
  EXPECT_EQ(cache, expected);
}

TEST(CopyRows, ConvertsEveryPairAndHonoursStrides) {
  ThreadPool pool(2);
  const int64_t rows = 7, cols = 33;
  const reference::Array x = RandomArray(rows * cols, 1);
  std::vector<uint16_t> half(rows * 40, 7);
  std::vector<float> narrow = Spread(As<float>(x), rows, 35, 0.0f), back(rows * cols);
  std::vector<double> wide(rows * 50, 1.5);
  CopyRows(pool, DType::kF32, narrow.data(), 35, DType::kF64, wide.data(), 50, rows, cols);
  EXPECT_EQ(Gather(wide, cols, 50, 1.5), x);
  CopyRows(pool, DType::kF64, wide.data(), 50, DType::kBF16, half.data(), 40, rows, cols);
  CopyRows(pool, DType::kBF16, half.data(), 40, DType::kF32, back.data(), cols, rows, cols);
  EXPECT_TRUE(AllClose(back, x, 1.0 / 256));
  for (size_t i = 0; i < back.size(); ++i) EXPECT_EQ(back[i], FromBf16(ToBf16(float(x[i]))));
  FillRows(pool, DType::kF64, wide.data(), 50, rows, cols, -2.5);
  EXPECT_EQ(Gather(wide, cols, 50, 1.5), reference::Array(rows * cols, -2.5));
}

// Rows without gaps, so short that a chunk has thousands of them.
TEST(CopyRows, DenseRowsOfOneElement) {
  ThreadPool pool(2);
  const int64_t rows = 3 * 4096 + 5;
  const std::vector<float> x = As<float>(RandomArray(rows, 1));
  std::vector<float> same(rows + 1, 7.0f);
  std::vector<uint16_t> half(rows + 1, 7);
  CopyRows(pool, DType::kF32, x.data(), 1, DType::kF32, same.data(), 1, rows, 1);
  CopyRows(pool, DType::kF32, x.data(), 1, DType::kBF16, half.data(), 1, rows, 1);
  for (int64_t i = 0; i < rows; ++i) {
    EXPECT_EQ(same[i], x[i]);
    EXPECT_EQ(half[i], ToBf16(x[i]));
  }
  EXPECT_EQ(same[rows], 7.0f);  // nothing behind them
  EXPECT_EQ(half[rows], 7);
}

template <typename T>
void ExpectLogProbabilities(int64_t t, int64_t n, int64_t tile, int64_t shards) {
  SCOPED_TRACE(testing::Message() << t << " x " << n << " tiles of " << tile);
  ThreadPool pool(2);
  const reference::Array logits = RandomArray(t * n, 1, 4);
  std::vector<int32_t> labels(t);
  for (int64_t i = 0; i < t; ++i) labels[i] = int32_t(Philox(2, i, 0)[0] % n);
  const std::vector<T> x = As<T>(logits);
  std::vector<double> parts(shards * t * 3), log_p(t), log_z(t);
  const int64_t each = (n + shards - 1) / shards;
  for (int64_t shard = 0; shard < shards; ++shard) {
    double* stat = &parts[shard * t * 3];
    for (int64_t i = 0; i < t; ++i) stat[3 * i] = stat[3 * i + 2] = -INFINITY, stat[3 * i + 1] = 0;
    const int64_t end = std::min(n, (shard + 1) * each);
    for (int64_t begin = shard * each; begin < end; begin += tile) {
      VocabStatistics(pool, x.data() + begin, n, t, std::min(tile, end - begin), begin,
                      labels.data(), stat);
    }
  }
  VocabMerge(pool, parts.data(), shards, t, log_p.data(), log_z.data());
  reference::Array expected_p, expected_z;
  reference::LogProbabilities(logits, labels, &expected_p, &expected_z);
  EXPECT_TRUE(AllClose(log_p, expected_p, Tolerance<T>::kForward));
  EXPECT_TRUE(AllClose(log_z, expected_z, Tolerance<T>::kForward));
  if (shards > 1 && n > 100) {  // negative control: a lost shard shows
    VocabMerge(pool, parts.data(), shards - 1, t, log_p.data(), log_z.data());
    EXPECT_FALSE(AllClose(log_z, expected_z, Tolerance<T>::kForward));
  }
}

TEST(CrossEntropy, TilesAndShardsMatchTheWholeVocabulary) {
  ForEachIsa([](Isa) {
    for (int64_t n : {1, 7, 64, 257, 5000}) {
      for (int64_t tile : {int64_t{13}, n}) {
        ExpectLogProbabilities<float>(7, n, tile, 1);
        ExpectLogProbabilities<float>(7, n, tile, 3);
        ExpectLogProbabilities<double>(3, n, tile, 2);
      }
    }
  });
}

}  // namespace
}  // namespace toroid
