// Codecs of what pods exchange: every code, both ways of rounding, bounds, what is not finite.
#include "kernels/exchange_codec.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>

#include "kernels/dtype.h"
#include "tests/support/kernel_inputs.h"

namespace toroid {
namespace {

using reference::Array;

constexpr int64_t kSizes[] = {0, 1, 7, 63, 64, 65, 257, 40001};

struct Coded {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> scales;
  bool operator==(const Coded&) const = default;
};

template <typename T>
Coded Encode(Codec codec, const std::vector<T>& x, const CodecRounding& rounding = {},
             int64_t block = kCodecBlock, CodecPlace place = {}, int threads = 2) {
  ThreadPool pool(threads);
  const int64_t n = int64_t(x.size());
  if (place.cols == 1) place.cols = place.stride = std::max<int64_t>(n, 1);
  // A byte and a scale more than there must be: what is written beyond shows.
  Coded coded{std::vector<uint8_t>(CodeBytes(codec, n) + 1, 0xee),
              std::vector<uint16_t>((n + block - 1) / block + 1, 0xeeee)};
  EncodeBlocks(pool, codec, rounding, place, block, n, x.data(), coded.codes.data(),
               coded.scales.data());
  EXPECT_EQ(coded.codes.back(), 0xee);
  EXPECT_EQ(coded.scales.back(), 0xeeee);
  coded.codes.pop_back();
  coded.scales.pop_back();
  return coded;
}

template <typename T>
std::vector<T> Decode(Codec codec, const Coded& coded, int64_t n, int64_t block = kCodecBlock) {
  ThreadPool pool(2);
  std::vector<T> x(n);
  DecodeBlocks(codec, block, 0, n, coded.codes.data(), 0, coded.scales.data(), x.data());
  return x;
}

template <typename T>
std::vector<T> RoundTrip(Codec codec, const std::vector<T>& x, const CodecRounding& rounding = {},
                         int64_t block = kCodecBlock) {
  return Decode<T>(codec, Encode(codec, x, rounding, block), int64_t(x.size()), block);
}

const CodecRounding kStochastic = {true, 5, 9};

// What the sixteen codes mean with a scale, by their definition.
std::vector<float> E3m0Values(float scale) {
  std::vector<float> values;
  for (int code = 0; code < 16; ++code) {
    const int m = code & 7;
    const float magnitude = m == 0 ? 0 : std::ldexp(scale, m - 7);
    values.push_back(code & 8 ? -magnitude : magnitude);
  }
  return values;
}

TEST(ExchangeCodec, AllSixteenE3m0CodesRoundTrip) {
  for (float scale : {1.0f, 0x1.54p-3f, 0x1.fep+5f, 0x1p-133f, 0x1.fep+127f, 0x1p-126f}) {
    const std::vector<float> values = E3m0Values(scale);
    for (const CodecRounding& rounding : {CodecRounding{}, kStochastic}) {
      const Coded coded = Encode(Codec::kE3m0, values, rounding);
      EXPECT_EQ(coded.scales[0], std::bit_cast<uint32_t>(scale) >> 16);
      for (int code = 0; code < 16; ++code) {
        EXPECT_EQ(coded.codes[code / 2] >> (code % 2 * 4) & 15, code);
      }
      const std::vector<float> back = Decode<float>(Codec::kE3m0, coded, 16);
      for (int code = 0; code < 16; ++code) {
        EXPECT_EQ(std::bit_cast<uint32_t>(back[code]), std::bit_cast<uint32_t>(values[code]));
      }
    }
  }
  // Control: what is no code does not.
  EXPECT_NE(RoundTrip<float>(Codec::kE3m0, {1, 0.7f})[1], 0.7f);
}

TEST(ExchangeCodec, AllInt8CodesRoundTrip) {
  std::vector<float> values;
  for (int code = -127; code <= 127; ++code) values.push_back(float(code) * 0x1.7p-4f);
  for (size_t i = 0; i < values.size(); i += 63) {  // the largest in every block of 64
    std::vector<float> block = {127 * 0x1.7p-4f};
    block.insert(block.end(), values.begin() + i, values.begin() + std::min(i + 63, values.size()));
    EXPECT_EQ(RoundTrip(Codec::kInt8, block), block);
    EXPECT_EQ(RoundTrip(Codec::kInt8, block, kStochastic), block);
  }
}

TEST(ExchangeCodec, NearestTakesTheNearestValue) {
  const Array x = RandomArray(6400, 3);
  const std::vector<float> wide = As<float>(x);
  for (Codec codec : {Codec::kE3m0, Codec::kInt8}) {
    const Coded coded = Encode(codec, wide);
    const std::vector<float> back = Decode<float>(codec, coded, 6400);
    const std::vector<float> random = RoundTrip(codec, wide, kStochastic);
    int64_t farther = 0;
    for (int64_t i = 0; i < 6400; ++i) {
      const float scale = FromBf16(coded.scales[i / 64]);
      double nearest = INFINITY;
      if (codec == Codec::kE3m0) {
        for (float value : E3m0Values(scale)) nearest = std::min(nearest, std::abs(value - x[i]));
      } else {
        for (int code = -127; code <= 127; ++code) {
          nearest = std::min(nearest, std::abs(double(code) * scale - x[i]));
        }
      }
      ASSERT_LE(std::abs(back[i] - x[i]), nearest * (1 + 1e-6));
      farther += std::abs(random[i] - x[i]) > nearest * (1 + 1e-3) ? 1 : 0;
    }
    EXPECT_GT(farther, 500);  // control: stochastic rounding does not
  }
}

TEST(ExchangeCodec, ErrorsAreWithinTheirBounds) {
  for (int64_t n : kSizes) {
    for (double size : {1.0, 1e-30, 1e30}) {
      const Array x = RandomArray(n, 4, size);
      for (Codec codec : kCodecs) {
        const Coded coded = Encode(codec, As<float>(x));
        const std::vector<float> back = Decode<float>(codec, coded, n);
        EXPECT_EQ(As<double>(Array(back.begin(), back.end())), Decode<double>(codec, coded, n));
        for (int64_t i = 0; i < n; ++i) {
          double most = 0;  // of the block
          for (int64_t j = i / 64 * 64; j < std::min(n, i / 64 * 64 + 64); ++j) {
            most = std::max(most, std::abs(x[j]));
          }
          double bound = 0;
          if (codec == Codec::kBf16) bound = std::abs(x[i]) / 256;
          if (codec == Codec::kInt8) bound = most / 127 * (1 + 0x1p-7) / 2 * (1 + 1e-6);
          if (codec == Codec::kE3m0) {
            bound = std::max(std::abs(x[i]) / 3, most * (1 + 0x1p-7) / 128) * (1 + 1e-6);
          }
          ASSERT_LE(std::abs(back[i] - x[i]), bound) << CodecName(codec);
        }
        // The largest of a block has a code of its own, or nearly.
        EXPECT_EQ(int64_t(coded.codes.size()), (n * CodeBits(codec) + 7) / 8);
      }
    }
  }
}

// Of a value between two codes only these two come, and their mean is the value.
TEST(ExchangeCodec, StochasticRoundingIsRightOnAverage) {
  struct Case {
    Codec codec;
    float value, low, high;
  };
  const Case cases[] = {
      {Codec::kE3m0, 0.6f, 0.5f, 1},      {Codec::kE3m0, -0.3f, -0.5f, -0.25f},
      {Codec::kE3m0, 0.003f, 0, 0x1p-6f}, {Codec::kInt8, 10.3f, 10, 11},
      {Codec::kInt8, -0.1f, -1, 0},       {Codec::kBf16, 1 + 0x1.4p-8f, 1, 1 + 0x1p-7f}};
  constexpr int64_t kCount = 63 * 1000;
  for (const Case& c : cases) {
    const float largest = c.codec == Codec::kInt8 ? 127 : 1;  // sets the scale
    std::vector<float> x(64 * 1000, c.value);
    for (size_t i = 0; i < x.size(); i += 64) x[i] = largest;
    const auto mean = [&](const CodecRounding& rounding) {
      double sum = 0;
      const std::vector<float> back = RoundTrip(c.codec, x, rounding);
      for (size_t i = 0; i < back.size(); ++i) {
        if (i % 64 == 0) continue;
        EXPECT_TRUE(back[i] == c.low || back[i] == c.high) << back[i];
        sum += back[i];
      }
      return sum / kCount;
    };
    const double step = double(c.high) - c.low, p = (double(c.value) - c.low) / step;
    const double deviation = step * std::sqrt(p * (1 - p) / kCount);
    EXPECT_NEAR(mean(kStochastic), c.value, 5 * deviation);
    EXPECT_GT(std::abs(mean({}) - c.value), 5 * deviation);  // control: nearest is biased
    EXPECT_NE(mean(kStochastic), mean({true, 6, 9}));
    EXPECT_NE(mean(kStochastic), mean({true, 5, 10}));
  }
}

TEST(ExchangeCodec, WhatIsNotFiniteIsSeen) {
  for (float bad : {INFINITY, -INFINITY, float(NAN), -float(NAN)}) {
    for (Codec codec : kCodecs) {
      for (const CodecRounding& rounding : {CodecRounding{}, kStochastic}) {
        std::vector<float> x = As<float>(RandomArray(200, 1));
        x[70] = bad;
        const std::vector<float> back = RoundTrip(codec, x, rounding);
        EXPECT_FALSE(std::isfinite(back[70])) << CodecName(codec);
        for (int64_t i = 0; i < 200; ++i) {
          const bool spoilt = HasScales(codec) ? i / 64 == 1 : i == 70;
          EXPECT_EQ(std::isfinite(back[i]), !spoilt);
        }
      }
    }
  }
  // A double that float32 does not reach; the largest float32 that there is.
  EXPECT_FALSE(std::isfinite(RoundTrip<double>(Codec::kInt8, {1, 1e300})[0]));
  EXPECT_EQ(RoundTrip<double>(Codec::kFp64, {1, 1e300})[1], 1e300);
  constexpr float kMost = std::numeric_limits<float>::max();
  for (Codec codec : {Codec::kInt8, Codec::kE3m0}) {
    const float back = RoundTrip<float>(codec, {kMost, -kMost})[1];
    EXPECT_NEAR(back / kMost, -1, 0.01);
  }
}

TEST(ExchangeCodec, ZerosAndTheSmallestNumbersAreHarmless) {
  for (Codec codec : kCodecs) {
    EXPECT_EQ(RoundTrip(codec, std::vector<float>(100)), std::vector<float>(100));
    const std::vector<float> tiny = {0x1p-149f, -0x1p-149f, 0x1p-140f, 0};
    for (float value : RoundTrip(codec, tiny, kStochastic)) {
      EXPECT_TRUE(std::isfinite(value) && std::abs(value) <= 0x1p-132f);
    }
  }
}

// Whoever holds which part of a parameter draws the same for an element, on any number of threads.
TEST(ExchangeCodec, DrawsBelongToTheElement) {
  constexpr int64_t kRows = 300, kCols = 130, kStride = 200, kFirst = 33;
  std::vector<float> whole = As<float>(RandomArray(kRows * kStride, 8));
  const std::vector<float> all = RoundTrip(Codec::kBf16, whole, kStochastic);
  std::vector<float> part, expected;
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const int64_t at = i / kCols * kStride + kFirst + i % kCols;
    part.push_back(whole[at]);
    expected.push_back(all[at]);
  }
  CodecPlace place = {0, 0, kFirst, kCols, kStride};
  const auto coded = [&](const CodecPlace& from, int threads) {
    return Encode(Codec::kBf16, part, kStochastic, kCodecBlock, from, threads);
  };
  EXPECT_EQ(Decode<float>(Codec::kBf16, coded(place, 1), kRows * kCols), expected);
  EXPECT_EQ(coded(place, 1), coded(place, 3));
  // Controls: another parameter, another place.
  EXPECT_NE(coded({1, 0, kFirst, kCols, kStride}, 1), coded(place, 1));
  EXPECT_NE(coded({0, 0, kFirst + 1, kCols, kStride}, 1), coded(place, 1));

  // A cut at a multiple of the block.
  for (Codec codec : kCodecs) {
    for (int64_t cut : {64, 128, 16384}) {
      const std::vector<float> rest(part.begin() + cut, part.end());
      place.begin = cut;
      const std::vector<float> tail = Decode<float>(
          codec, Encode(codec, rest, kStochastic, 16, place), int64_t(rest.size()), 16);
      place.begin = 0;
      const std::vector<float> both = Decode<float>(
          codec, Encode(codec, part, kStochastic, 16, place), int64_t(part.size()), 16);
      EXPECT_EQ(tail, std::vector<float>(both.begin() + cut, both.end()));
    }
  }
}

TEST(ExchangeCodec, AnyRunIsDecodedAndCopied) {
  ThreadPool pool(1);
  const std::vector<float> x = As<float>(RandomArray(300, 2));
  for (Codec codec : kCodecs) {
    for (int64_t block : {1, 2, 16, 64}) {
      const Coded coded = Encode(codec, x, {}, block);
      const std::vector<float> all = Decode<float>(codec, coded, 300, block);
      for (int64_t first : {0, 1, 2, 63, 64, 65}) {
        for (int64_t n : {0, 1, 2, 5, 130}) {
          for (int64_t to : {0, 1, 4}) {
            std::vector<uint8_t> moved(CodeBytes(codec, 140) + 1, 0x55);
            CopyCodes(codec, n, coded.codes.data(), first, moved.data(), to);
            std::vector<float> run(n);
            DecodeBlocks(codec, block, first % block, n, moved.data(), to,
                         coded.scales.data() + first / block, run.data());
            EXPECT_EQ(run, std::vector<float>(&all[first], &all[first] + n));
            // What lies beside it stays.
            if (codec == Codec::kE3m0 && to % 2 == 1) {
              EXPECT_EQ(moved[to / 2] & 15, 5);
            }
            EXPECT_EQ(moved[CodeBytes(codec, to + n)], 0x55);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace toroid
