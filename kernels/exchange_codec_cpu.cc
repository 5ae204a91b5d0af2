#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kernels/dtype.h"
#include "kernels/exchange_codec.h"
#include "kernels/exchange_loops.h"
#include "kernels/philox.h"

namespace toroid {
namespace {

constexpr int64_t kGrain = 256 * kCodecBlock;
constexpr uint64_t kStream = 0x706f642077697265;  // apart from what else is drawn from a seed
constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
constexpr uint16_t kNanScale = 0x7fc0;
constexpr float kSmallestScale = 0x1p-133f;   // of bf16, subnormal
constexpr float kLargestScale = 0x1.fep127f;  // of bf16
constexpr float kLargestInt8 = 0x1.02p121f;   // of bf16 so that 127 times it is finite
constexpr float kNearest = 0x1.fffffep-2f;    // a fraction above it rounds up: 1/2 and more

uint32_t Bits(float x) { return std::bit_cast<uint32_t>(x); }

// The words drawn for consecutive elements of a place.
class Draws {
 public:
  Draws(const CodecRounding& rounding, const CodecPlace& place, int64_t i)
      : rounding_(rounding), place_(place) {
    const int64_t at = place.begin + i;
    row_ = at / place.cols;
    col_ = at % place.cols;
  }

  void Take(int64_t n, uint32_t* words) {
    const uint64_t use = uint64_t(rounding_.step) << 24 | uint64_t(place_.parameter);
    for (int64_t i = 0; i < n;) {
      uint64_t element = uint64_t(place_.origin + row_ * place_.stride + col_);
      const auto drawn = Philox(rounding_.seed ^ kStream, element / 4, use);
      for (uint64_t word = element % 4; word < 4 && i < n && col_ < place_.cols; ++word, ++col_) {
        words[i++] = drawn[word];
      }
      if (col_ == place_.cols) ++row_, col_ = 0;
    }
  }

 private:
  const CodecRounding& rounding_;
  const CodecPlace& place_;
  int64_t row_, col_;
};

// The bf16 at or above x > 0, within [smallest, most].
float RoundedUp(float x, float most) {
  const float up = std::bit_cast<float>((Bits(x) + 0xffff) & 0xffff0000u);
  return std::min(std::max(up, kSmallestScale), most);
}

// The scale of a block, 0 if all of it is; NaN if it cannot be scaled.
float Scale(Codec codec, int64_t n, const float* x) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, Bits(x[i]) & kMagnitude);
  if (largest >= kInfinity) return FromBf16(kNanScale);
  if (largest == 0) return 0;
  const float most = std::bit_cast<float>(largest);
  return codec == Codec::kInt8 ? RoundedUp(most / 127.0f, kLargestInt8)
                               : RoundedUp(most, kLargestScale);
}

// above[i]: the fraction above which element i is rounded up.
void EncodeInt8(int64_t n, float scale, const float* x, const float* above, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) {
    const float steps = std::min(std::bit_cast<float>(Bits(x[i]) & kMagnitude) / scale, 127.0f);
    const int32_t low = int32_t(steps);
    const int32_t code = low + (steps - float(low) > above[i] ? 1 : 0);
    codes[i] = uint8_t(x[i] < 0 ? -code : code);
  }
}

// Between two powers of two the bits of the float's fraction say how far it is; between 0 and the
// smallest, scale / 64, it is a fraction of that.
uint32_t E3m0Code(float x, float scale, float above) {
  const float part = std::bit_cast<float>(Bits(x) & kMagnitude) / scale;
  uint32_t low = 0;
  float fraction = part * 64.0f;
  if (part >= 0x1p-6f) {
    low = std::min(Bits(part) >> 23, 127u) - 120;
    fraction = float(Bits(part) & 0x7fffff) * 0x1p-23f;
  }
  const uint32_t code = std::min(low + (fraction > above ? 1u : 0u), 7u);
  return (Bits(x) >> 31) << 3 | code;
}

float FromE3m0(uint32_t code, float scale) {
  constexpr float kParts[] = {0, 0x1p-6f, 0x1p-5f, 0x1p-4f, 0x1p-3f, 0x1p-2f, 0x1p-1f, 1};
  const float magnitude = kParts[code & 7] * scale;
  return code & 8 ? -magnitude : magnitude;
}

// One block, narrowed to float32.
void EncodeBlock(Codec codec, int64_t n, const float* x, const float* above, int64_t first,
                 uint8_t* codes, uint16_t* scale) {
  const float s = Scale(codec, n, x);
  *scale = uint16_t(Bits(s) >> 16);
  const bool none = !(s > 0);  // zeros, or NaN: every code is 0, of zeros with their signs
  if (codec == Codec::kInt8) {
    if (none) {
      std::fill_n(codes + first, n, uint8_t{0});
    } else {
      EncodeInt8(n, s, x, above, codes + first);
    }
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t code = s == 0 ? Bits(x[i]) >> 31 << 3 : none ? 0 : E3m0Code(x[i], s, above[i]);
    uint8_t& byte = codes[(first + i) / 2];
    byte = (first + i) % 2 == 0 ? uint8_t(code) : uint8_t(byte | code << 4);
  }
}

template <typename T>
void EncodeScaled(Codec codec, const CodecRounding& rounding, const CodecPlace& place,
                  int64_t block, int64_t begin, int64_t end, const T* values, uint8_t* codes,
                  uint16_t* scales) {
  Draws draws(rounding, place, begin);
  uint32_t words[kCodecBlock];
  float x[kCodecBlock], above[kCodecBlock];
  std::fill_n(above, kCodecBlock, kNearest);
  for (int64_t i = begin; i < end; i += block) {
    const int64_t n = std::min(block, end - i);
    for (int64_t j = 0; j < n; ++j) x[j] = float(values[i + j]);
    if (rounding.stochastic) {
      draws.Take(n, words);
      for (int64_t j = 0; j < n; ++j) above[j] = float(words[j] >> 8) * 0x1p-24f;
    }
    EncodeBlock(codec, n, x, above, i, codes, scales + i / block);
  }
}

template <typename T>
void EncodeBf16(const CodecRounding& rounding, const CodecPlace& place, int64_t begin, int64_t end,
                const T* values, uint8_t* codes) {
  if constexpr (std::is_same_v<T, float>) {
    if (!rounding.stochastic) {
      return CurrentExchangeLoops().to_bf16(values + begin, end - begin, codes + begin * 2);
    }
  }
  Draws draws(rounding, place, begin);
  uint32_t words[kCodecBlock] = {};
  uint16_t rounded[kCodecBlock];
  for (int64_t i = begin; i < end; i += kCodecBlock) {
    const int64_t n = std::min(kCodecBlock, end - i);
    if (rounding.stochastic) draws.Take(n, words);
    for (int64_t j = 0; j < n; ++j) {
      const float x = float(values[i + j]);
      const bool nearest = !rounding.stochastic || (Bits(x) & kMagnitude) >= kInfinity;
      rounded[j] = nearest ? ToBf16(x) : uint16_t((Bits(x) + (words[j] >> 16)) >> 16);
    }
    std::memcpy(codes + i * 2, rounded, size_t(n) * 2);
  }
}

template <typename Stored, typename T>
void EncodePlain(int64_t begin, int64_t end, const T* values, uint8_t* codes) {
  for (int64_t i = begin; i < end; ++i) {
    const Stored x = Stored(values[i]);
    std::memcpy(codes + i * int64_t{sizeof x}, &x, sizeof x);
  }
}

template <typename Stored>
Stored CodeAt(const uint8_t* codes, int64_t i) {
  Stored x;
  std::memcpy(&x, codes + i * int64_t{sizeof x}, sizeof x);
  return x;
}

uint32_t NibbleAt(const uint8_t* codes, int64_t i) { return codes[i / 2] >> (i % 2 * 4) & 15u; }

}  // namespace

template <typename T>
void EncodeBlocks(ThreadPool& pool, Codec codec, const CodecRounding& rounding,
                  const CodecPlace& place, int64_t block, int64_t n, const T* values,
                  uint8_t* codes, uint16_t* scales) {
  pool.ParallelFor(n, kGrain, [&](int64_t begin, int64_t end, int) {
    switch (codec) {
      case Codec::kFp64:
        return EncodePlain<double>(begin, end, values, codes);
      case Codec::kFp32:
        return EncodePlain<float>(begin, end, values, codes);
      case Codec::kBf16:
        return EncodeBf16(rounding, place, begin, end, values, codes);
      case Codec::kInt8:
      case Codec::kE3m0:
        return EncodeScaled(codec, rounding, place, block, begin, end, values, codes, scales);
    }
  });
}

template <typename T>
void DecodeBlocks(Codec codec, int64_t block, int64_t phase, int64_t n, const uint8_t* codes,
                  int64_t first, const uint16_t* scales, T* values) {
  switch (codec) {
    case Codec::kFp64:
      for (int64_t i = 0; i < n; ++i) values[i] = T(CodeAt<double>(codes, first + i));
      return;
    case Codec::kFp32:
      for (int64_t i = 0; i < n; ++i) values[i] = T(CodeAt<float>(codes, first + i));
      return;
    case Codec::kBf16:
      if constexpr (std::is_same_v<T, float>) {
        return CurrentExchangeLoops().from_bf16(codes + first * 2, n, values);
      }
      for (int64_t i = 0; i < n; ++i) {
        values[i] = T(FromBf16(CodeAt<uint16_t>(codes, first + i)));
      }
      return;
    case Codec::kInt8:
    case Codec::kE3m0:
      break;
  }
  for (int64_t i = 0; i < n;) {  // block by block: the first may have begun before
    const int64_t number = (phase + i) / block;
    const int64_t stop = std::min(n, (number + 1) * block - phase);
    const float scale = FromBf16(scales[number]);
    if (codec == Codec::kInt8) {
      for (; i < stop; ++i) values[i] = T(float(int8_t(codes[first + i])) * scale);
    } else {
      for (; i < stop; ++i) values[i] = T(FromE3m0(NibbleAt(codes, first + i), scale));
    }
  }
}

void CopyCodes(Codec codec, int64_t n, const uint8_t* from, int64_t from_first, uint8_t* to,
               int64_t to_first) {
  if (n <= 0) return;
  if (codec != Codec::kE3m0) {
    std::memcpy(to + CodeBytes(codec, to_first), from + CodeBytes(codec, from_first),
                size_t(CodeBytes(codec, n)));
    return;
  }
  int64_t i = 0;
  const auto copy = [&] {
    const int64_t at = to_first + i, shift = at % 2 * 4;
    const uint32_t code = NibbleAt(from, from_first + i);
    to[at / 2] = uint8_t((to[at / 2] & ~(15u << shift)) | code << shift);
    ++i;
  };
  if (from_first % 2 == to_first % 2) {  // whole bytes
    if (to_first % 2 != 0) copy();
    std::memcpy(to + (to_first + i) / 2, from + (from_first + i) / 2, size_t((n - i) / 2));
    i += (n - i) / 2 * 2;
  }
  while (i < n) copy();
}

#define TOROID_INSTANTIATE(T)                                                                      \
  template void EncodeBlocks(ThreadPool&, Codec, const CodecRounding&, const CodecPlace&, int64_t, \
                             int64_t, const T*, uint8_t*, uint16_t*);                              \
  template void DecodeBlocks(Codec, int64_t, int64_t, int64_t, const uint8_t*, int64_t,            \
                             const uint16_t*, T*);
TOROID_INSTANTIATE(float)
TOROID_INSTANTIATE(double)
#undef TOROID_INSTANTIATE

}  // namespace toroid
