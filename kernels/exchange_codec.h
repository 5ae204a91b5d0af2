// How numbers look on the wire between pods. A pod adds its own contribution as the others decode
// it, so an encoding is a function of the values alone, with the same bits on every instruction
// set and machine: one code path, plain multiplications, divisions and comparisons.
//
//   fp64, fp32  rounded to nearest
//   bf16        upper half of a float32
//   int8        code in [-127, 127] times the block's scale; 66 bytes for 64 elements
//   e3m0        sign and 3 bits m: 0, or 2^(m - 7) times the block's scale; 34 bytes for 64
//               (the four bits of Streaming DiLoCo, Douillard et al. 2025)
//
// int8 and e3m0 have one bf16 scale to a block of consecutive elements, rounded up so that the
// largest value of the block has a code: max |x| / 127 and max |x|. An error is at most half a
// step of int8; of e3m0 a third of |x|, or scale / 128 near zero. A block with a value that is not
// finite in float32 decodes to NaN throughout, so the receiver sees it. Widths of codes that are
// not whole bytes fill a byte from its low bits on; all else is little-endian.
//
// Stochastic rounding goes up with a probability equal to the fraction, so that its mean is the
// value. Drawn by (seed, step, parameter, element of the whole parameter), never by who holds it.
#pragma once

#include <cstdint>

#include "kernels/thread_pool.h"

namespace toroid {

enum class Codec : int32_t { kFp64, kFp32, kBf16, kInt8, kE3m0 };  // the numbers are on the wire
inline constexpr Codec kCodecs[] = {Codec::kFp64, Codec::kFp32, Codec::kBf16, Codec::kInt8,
                                    Codec::kE3m0};
inline constexpr int64_t kCodecBlock = 64;  // elements: the largest block, and the usual one

constexpr const char* CodecName(Codec codec) {
  constexpr const char* kNames[] = {"fp64", "fp32", "bf16", "int8", "e3m0"};
  return kNames[int(codec)];
}
constexpr bool HasScales(Codec codec) { return codec >= Codec::kInt8; }
constexpr int64_t CodeBits(Codec codec) {
  constexpr int64_t kBits[] = {64, 32, 16, 8, 4};
  return kBits[int(codec)];
}
// Of `count` consecutive codes without their scales.
constexpr int64_t CodeBytes(Codec codec, int64_t count) {
  return (count * CodeBits(codec) + 7) / 8;
}

// fp64 and fp32 are always rounded to nearest.
struct CodecRounding {
  bool stochastic = false;  // else to nearest, ties away from zero (bf16: to even)
  uint64_t seed = 0;        // of the run, different for every pod so that errors average out
  int64_t step = 0;         // in [0, 2^40)
};

// Which elements of a parameter values[0 .. n) are: those from `begin` on of a rectangle whose
// element (r, c) is element origin + r stride + c of the whole.
struct CodecPlace {
  int64_t parameter = 0;  // its number in the model, in [0, 2^24)
  int64_t begin = 0;
  int64_t origin = 0, cols = 1, stride = 1;
};

// values [n] -> codes [CodeBytes(codec, n)] and, of a codec that has them, scales
// [ceil(n / block)]. 1 <= block <= kCodecBlock, a divisor of it.
template <typename T>
void EncodeBlocks(ThreadPool& pool, Codec codec, const CodecRounding& rounding,
                  const CodecPlace& place, int64_t block, int64_t n, const T* values,
                  uint8_t* codes, uint16_t* scales);

// Element i has code number first + i of `codes` and scales[(phase + i) / block]. On the calling
// thread: whoever merges decodes a little at a time, while it is in the cache.
template <typename T>
void DecodeBlocks(Codec codec, int64_t block, int64_t phase, int64_t n, const uint8_t* codes,
                  int64_t first, const uint16_t* scales, T* values);

// Codes number [from_first, + n) of `from` become codes [to_first, + n) of `to`, whose other codes
// stay.
void CopyCodes(Codec codec, int64_t n, const uint8_t* from, int64_t from_first, uint8_t* to,
               int64_t to_first);

}  // namespace toroid
