// Pods on unlike machines apply the same update: the arithmetic of optimizers, codecs and the outer
// step gives these very bits, whichever instruction set is chosen, compiled for or emulated.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/exchange_codec.h"
#include "kernels/exchange_loops.h"
#include "kernels/outer_step.h"
#include "kernels/reduce.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

constexpr int64_t kCount = 20011;

// Numbers made of integers alone: exact everywhere.
template <typename T>
std::vector<T> Numbers(uint64_t stream) {
  std::vector<T> x(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    x[i] = std::ldexp(T(int32_t(Philox(3, uint64_t(i), stream)[0])), -31 - int(i % 5));
  }
  return x;
}

template <typename T>
uint64_t Hash(const std::vector<T>& x) {
  return HashName(reinterpret_cast<const char*>(x.data()), x.size() * sizeof(T));
}

// fused: as a machine would that makes one rounding of a multiplication and an addition.
template <typename T>
uint64_t AdamWBits(bool fused = false) {
  ThreadPool pool(2);
  std::vector<T> w = Numbers<T>(1), m(kCount), v(kCount);
  for (int k = 1; k <= 3; ++k) {
    const std::vector<T> g = Numbers<T>(uint64_t(k) + 1);
    const AdamWStep step = {0.75, 1e-3, 1e-4, 0.1 * k, 0.05 * k};
    const AdamWSpec spec;
    if (!fused) {
      AdamW<T>(pool, spec, &step, kCount, g.data(), w.data(), m.data(), v.data());
      continue;
    }
    const T kept = T(1 - step.shrink), size = T(step.learning_rate / step.m_correction);
    const T v_factor = T(1 / step.v_correction);
    for (int64_t i = 0; i < kCount; ++i) {
      const T gradient = g[i] * T(step.gradient_scale);
      m[i] = std::fma(T(spec.beta1), m[i], T(1 - spec.beta1) * gradient);
      v[i] = std::fma(T(spec.beta2), v[i], T(1 - spec.beta2) * gradient * gradient);
      w[i] = kept * w[i] - size * m[i] / (std::sqrt(v[i] * v_factor) + T(spec.epsilon));
    }
  }
  return Hash(w) ^ Hash(m) * 3 ^ Hash(v) * 5;
}

template <typename T>
uint64_t AdafactorBits() {
  ThreadPool pool(2);
  std::vector<T> w = Numbers<T>(1), m(kCount), v(kCount);
  for (int k = 1; k <= 3; ++k) {
    const std::vector<T> g = Numbers<T>(uint64_t(k) + 1);
    const AdafactorStep step = {0.75, 1e-3, 1e-4, 0.25 * (k - 1)};
    Adafactor<T>(pool, {}, &step, kCount, g.data(), w.data(), m.data(), v.data());
  }
  return Hash(w) ^ Hash(m) * 3 ^ Hash(v) * 5;
}

template <typename T>
uint64_t OuterBits() {
  ThreadPool pool(2);
  std::vector<T> theta = Numbers<T>(1), v(kCount), own = Numbers<T>(9);
  for (int k = 1; k <= 3; ++k) {
    const std::vector<T> delta = Numbers<T>(uint64_t(k) + 1);
    OuterStep<T>(pool, {}, kCount, delta.data(), theta.data(), v.data());
    MixWeights<T>(pool, 0.3, kCount, theta.data(), own.data());
  }
  return Hash(theta) ^ Hash(v) * 3 ^ Hash(own) * 5;
}

template <typename T>
uint64_t CodecBits(Codec codec, bool stochastic) {
  ThreadPool pool(2);
  const std::vector<T> x = Numbers<T>(1);
  std::vector<uint8_t> codes(CodeBytes(codec, kCount));
  std::vector<uint16_t> scales((kCount + 63) / 64);
  EncodeBlocks<T>(pool, codec, {stochastic, 5, 9}, {2, 0, 0, kCount, kCount}, 64, kCount, x.data(),
                  codes.data(), scales.data());
  std::vector<T> back(kCount);
  DecodeBlocks<T>(codec, 64, 0, kCount, codes.data(), 0, scales.data(), back.data());
  return Hash(codes) ^ Hash(back) * 3;
}

template <typename T>
uint64_t SumBits() {
  ThreadPool pool(2);
  const std::vector<T> x = Numbers<T>(1);
  double sum = 0;
  AddSquaredSum(pool, x.data(), kCount, &sum);
  return std::bit_cast<uint64_t>(sum);
}

TEST(SameBits, OfOptimizers) {
  ForEachIsa([](Isa) {
    EXPECT_EQ(AdamWBits<float>(), 0x0d48b457f67854e9u);
    EXPECT_EQ(AdamWBits<double>(), 0xf30e061204cd1f60u);
    EXPECT_EQ(AdafactorBits<float>(), 0xda6c792641f00608u);
    EXPECT_EQ(AdafactorBits<double>(), 0xede2c4d29c8e6e67u);
    EXPECT_EQ(OuterBits<float>(), 0xeca3351736b89d22u);
    EXPECT_EQ(OuterBits<double>(), 0x873511cf280e9025u);
    EXPECT_EQ(SumBits<float>(), 0x409ba7fcb9de02a6u);
    EXPECT_EQ(SumBits<double>(), 0x409ba7fcb98e1aa4u);
  });
  // Control: one rounding where there should be two would show.
  EXPECT_NE(AdamWBits<float>(true), AdamWBits<float>());
  EXPECT_NE(AdamWBits<double>(true), AdamWBits<double>());
}

TEST(SameBits, OfCodecs) {
  struct Bits {
    Codec codec;
    bool stochastic;
    uint64_t of_float, of_double;
  };
  const Bits expected[] = {
      {Codec::kFp64, false, 0xc0febd7fa19888d2, 0xaaa415508552a514},
      {Codec::kFp32, false, 0xa525522284a55014, 0xcd717bf96c1cda66},
      {Codec::kBf16, false, 0x51f55e10889d8e40, 0x9d19ba903bc00138},
      {Codec::kBf16, true, 0x65dacf9be5c512f0, 0x1ce4e68a781cdd51},
      {Codec::kInt8, false, 0x9f210bbe92c38e09, 0xaf7a1ed2f411aef8},
      {Codec::kInt8, true, 0x6aef68cd25d7e9d9, 0xed619107b7930a5d},
      {Codec::kE3m0, false, 0x9027cb720329bd7c, 0x4b959ef52c080c8b},
      {Codec::kE3m0, true, 0xcc163273a3ad9f37, 0x0a4a8a71e197e2fa},
  };
  ForEachIsa([&](Isa) {
    for (const Bits& bits : expected) {
      SCOPED_TRACE(CodecName(bits.codec));
      EXPECT_EQ(CodecBits<float>(bits.codec, bits.stochastic), bits.of_float);
      EXPECT_EQ(CodecBits<double>(bits.codec, bits.stochastic), bits.of_double);
    }
  });
}

// What is merged: numbers of all kinds, of any count, from any place.
std::vector<float> Specials() {
  std::vector<float> x = Numbers<float>(4);
  const float infinity = std::numeric_limits<float>::infinity();
  const float specials[] = {0.0f,
                            -0.0f,
                            infinity,
                            -infinity,
                            0x1p-149f,
                            -0x1p-133f,
                            0x1.fffffep127f,
                            0x1.018p0f,
                            0x1.008p0f,
                            std::numeric_limits<float>::quiet_NaN(),
                            std::bit_cast<float>(0xff800001u),
                            std::bit_cast<float>(0x7fffffffu)};
  for (size_t i = 0; i < x.size(); i += 3) x[i] = specials[i / 3 % std::size(specials)];
  return x;
}

TEST(SameBits, OfLoopsOverWhatIsMerged) {
  const std::vector<float> x = Specials();
  const double weight = 0.1, weights = 4093.0;
  bool fused_differs = false;
  ForEachIsa([&](Isa isa) {
    const ExchangeLoops& loops = CurrentExchangeLoops();
    for (const int64_t first : {0, 1, 5}) {
      for (const int64_t n : {0, 1, 7, 8, 31, 64, 257, 20000}) {
        SCOPED_TRACE(testing::Message() << IsaName(isa) << ": " << n << " from " << first);
        const float* const from = x.data() + first;
        std::vector<uint8_t> codes(size_t(2 * n + 1), 0xee);
        std::vector<float> back(size_t(n + 1), -7), mean(size_t(n + 1), -7);
        std::vector<double> sum(size_t(n + 1), 0.25);
        loops.to_bf16(from, n, codes.data());
        loops.from_bf16(codes.data(), n, back.data());
        loops.add_weighted(from, weight, n, sum.data());
        loops.divide(sum.data(), weights, n, mean.data());
        uint64_t hash = 0, place = 12345;
        for (int64_t i = 0; i < n; ++i, place += kHashStep) {
          uint16_t code;
          std::memcpy(&code, &codes[size_t(2 * i)], 2);
          ASSERT_EQ(code, ToBf16(from[i])) << i;
          ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), uint32_t{code} << 16) << i;
          const double product = weight * double(from[i]), added = 0.25 + product;
          ASSERT_EQ(std::bit_cast<uint64_t>(sum[i]), std::bit_cast<uint64_t>(added)) << i;
          ASSERT_EQ(std::bit_cast<uint32_t>(mean[i]),
                    added == added ? std::bit_cast<uint32_t>(float(added / weights)) : 0x7fc00000u);
          hash += HashElement(from[i], place);
          fused_differs |= added == added && std::fma(weight, double(from[i]), 0.25) != added;
        }
        EXPECT_EQ(loops.hash(from, 12345, n), hash);
        if (n > 0) {  // control: one bit, one place
          EXPECT_NE(loops.hash(from, 12346, n), hash);
          std::vector<float> other(from, from + n);
          other.back() = std::bit_cast<float>(std::bit_cast<uint32_t>(other.back()) ^ 1);
          EXPECT_NE(loops.hash(other.data(), 12345, n), hash);
        }
        EXPECT_EQ(codes.back(), 0xee);  // nothing behind the end
        EXPECT_EQ(back.back(), -7);
        EXPECT_EQ(mean.back(), -7);
        EXPECT_EQ(sum.back(), 0.25);
      }
    }
    std::vector<float> plain(1000);  // logs that were written before say the same of the same
    for (int i = 0; i < 1000; ++i) plain[size_t(i)] = float(i * 37 % 1001 - 500) / 8;
    EXPECT_TRUE(fused_differs);  // control: one rounding would show
    EXPECT_EQ(loops.hash(plain.data(), 1, 1000), 0x206e91c9fdeb4b12u);
  });
}

// A pod whose gradient is no number spoils a step, which all pods skip; they must agree on its bits
// too, for what was merged is logged and compared. Which NaN a sum of two has is left to the
// processor, and which operand comes first to the compiler.
TEST(SameBits, OfMeansThatAreNoNumbers) {
  const uint32_t kinds[] = {0x7fc00000, 0xffc00000, 0x7f800001, 0xff812345,
                            0x7fffffff, 0x7f800000, 0xff800000, 0x3f800000};
  std::vector<float> a, b;
  for (const uint32_t x : kinds) {
    for (const uint32_t y : kinds) {
      a.push_back(std::bit_cast<float>(x));
      b.push_back(std::bit_cast<float>(y));
    }
  }
  const auto count = static_cast<int64_t>(a.size());
  ForEachIsa([&](Isa) {
    const ExchangeLoops& loops = CurrentExchangeLoops();
    std::vector<double> sum(a.size(), 0.0);
    std::vector<float> mean(a.size());
    loops.add_weighted(a.data(), 3, count, sum.data());
    loops.add_weighted(b.data(), 5, count, sum.data());
    loops.divide(sum.data(), 8, count, mean.data());
    int numbers = 0;
    bool others = false;  // control: sums have several kinds of NaN
    for (size_t i = 0; i < a.size(); ++i) {
      if (sum[i] == sum[i]) {
        EXPECT_EQ(mean[i], float(sum[i] / 8));
        ++numbers;
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(mean[i]), 0x7fc00000u) << i;
        others |= std::bit_cast<uint64_t>(sum[i]) != 0x7ff8000000000000u;
      }
    }
    EXPECT_EQ(numbers, 7);  // two 1s, an infinity with a 1, two of one sign
    EXPECT_TRUE(others);
  });
}

}  // namespace
}  // namespace toroid
