// The loops of row_kernels.h, written once for vectors of L floats. BlockLoader<L> widens 32
// consecutive stored weights into 32 / L vectors.
#pragma once

#include "kernels/activation_loops.h"
#include "kernels/row_kernels.h"

namespace toroid {
namespace {

// Half precision to float without branches: moved into place, the exponent is 112 too small, and a
// product repairs normal and subnormal numbers alike; infinities and NaN get a full exponent.
inline float HalfToFloat(uint16_t x) {
  const uint32_t magnitude = uint32_t(x & 0x7fff) << 13;
  const float value = __builtin_bit_cast(float, magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  const uint32_t sign = uint32_t(x & 0x8000) << 16;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) | special | sign);
}

inline float HalfAt(const uint8_t* x) { return HalfToFloat(uint16_t(x[0] | (x[1] << 8))); }

// 32 elements of one stored type, at x.
template <DType kType>
inline void WidenBlock(const uint8_t* x, float* out) {
  if constexpr (kType == DType::kF32) {
    for (int i = 0; i < 32; ++i) out[i] = reinterpret_cast<const float*>(x)[i];
  } else if constexpr (kType == DType::kF64) {
    for (int i = 0; i < 32; ++i) out[i] = float(reinterpret_cast<const double*>(x)[i]);
  } else if constexpr (kType == DType::kF16) {
    for (int i = 0; i < 32; ++i) out[i] = HalfToFloat(reinterpret_cast<const uint16_t*>(x)[i]);
  } else if constexpr (kType == DType::kBF16) {
    for (int i = 0; i < 32; ++i) {
      const uint32_t bits = uint32_t(reinterpret_cast<const uint16_t*>(x)[i]) << 16;
      out[i] = __builtin_bit_cast(float, bits);
    }
  } else if constexpr (kType == DType::kQ8_0) {
    const float d = HalfAt(x);
    for (int i = 0; i < 32; ++i) out[i] = d * float(reinterpret_cast<const int8_t*>(x)[i + 2]);
  } else {
    const float d = HalfAt(x);
    const float m = kType == DType::kQ4_1 ? HalfAt(x + 2) : d * -8.0f;
    const uint8_t* nibbles = x + (kType == DType::kQ4_1 ? 4 : 2);
    for (int i = 0; i < 16; ++i) out[i] = d * float(nibbles[i] & 15) + m;
    for (int i = 0; i < 16; ++i) out[i + 16] = d * float(nibbles[i] >> 4) + m;
  }
}

template <int L>
struct BlockLoader {
  using V = typename Lanes<float, L>::V;
  template <DType kType>
  static inline void Load(const uint8_t* x, V* w) {
    alignas(64) float block[32];
    WidenBlock<kType>(x, block);
    for (int i = 0; i < 32 / L; ++i) w[i] = Lanes<float, L>::Load(block + i * L);
  }
};

constexpr bool IsPlain(DType type) {
  return type == DType::kF32 || type == DType::kF64 || type == DType::kF16 || type == DType::kBF16;
}
// Bytes of 32 elements.
constexpr int64_t BlockBytes(DType type) {
  switch (type) {
    case DType::kF32:
      return 128;
    case DType::kF64:
      return 256;
    case DType::kQ8_0:
      return 34;
    case DType::kQ4_0:
      return 18;
    case DType::kQ4_1:
      return 20;
    default:
      return 64;
  }
}

// Plain types: the last, incomplete block, copied behind zeros.
template <DType kType>
inline void WidenTail(const uint8_t* x, int64_t count, float* out) {
  alignas(64) uint8_t bytes[256] = {};
  __builtin_memcpy(bytes, x, count * BlockBytes(kType) / 32);
  WidenBlock<kType>(bytes, out);
}

// Types whose decoding needs no L go through WidenBlock, which the compiler vectorises.
template <DType kType>
void DecodeLoop(const uint8_t* x, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32, x += BlockBytes(kType)) WidenBlock<kType>(x, out + i);
  if constexpr (IsPlain(kType)) {
    if (i < count) {
      alignas(64) float tail[32];
      WidenTail<kType>(x, count - i, tail);
      for (int64_t j = 0; i + j < count; ++j) out[i + j] = tail[j];
    }
  }
}

// M rows of x against one row of w.
template <DType kType, int L, int M>
inline void DotRow(const uint8_t* w, const float* x, int64_t x_stride, int64_t k, float* out,
                   int64_t out_stride) {
  using N = Lanes<float, L>;
  using V = typename N::V;
  constexpr int kVectors = 32 / L;
  // Independent sums per row of x, enough to hide the latency of the additions.
  constexpr int kWanted = M == 1 ? 4 : M <= 4 ? 2 : 1;
  constexpr int kSums = kWanted < kVectors ? kWanted : kVectors;
  V sum[M][kSums] = {};
  int64_t i = 0;
  for (; i + 32 <= k; i += 32, w += BlockBytes(kType)) {
    V block[kVectors];
    BlockLoader<L>::template Load<kType>(w, block);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int r = 0; r < M; ++r) {
        sum[r][v % kSums] += block[v] * N::Load(x + r * x_stride + i + v * L);
      }
    }
  }
  alignas(64) float tail[32] = {};
  if constexpr (IsPlain(kType)) {
    if (i < k) WidenTail<kType>(w, k - i, tail);
  }
  for (int r = 0; r < M; ++r) {
    V total = sum[r][0];
    for (int v = 1; v < kSums; ++v) total += sum[r][v];
    float dot = N::Sum(total);
    for (int64_t j = 0; i + j < k; ++j) dot += tail[j] * x[r * x_stride + i + j];
    out[r * out_stride] = dot;
  }
}

template <DType kType, int L>
void MatVecLoop(const float* x, int64_t x_stride, int64_t m, const uint8_t* w, int64_t w_bytes,
                int64_t n, int64_t k, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < n; ++i, w += w_bytes) {
    const float* rows = x;
    float* to = out + i;
    if (m & 8) {
      DotRow<kType, L, 8>(w, rows, x_stride, k, to, out_stride);
      rows += 8 * x_stride, to += 8 * out_stride;
    }
    if (m & 4) {
      DotRow<kType, L, 4>(w, rows, x_stride, k, to, out_stride);
      rows += 4 * x_stride, to += 4 * out_stride;
    }
    if (m & 2) {
      DotRow<kType, L, 2>(w, rows, x_stride, k, to, out_stride);
      rows += 2 * x_stride, to += 2 * out_stride;
    }
    if (m & 1) DotRow<kType, L, 1>(w, rows, x_stride, k, to, out_stride);
  }
}

void Decode(DType type, const void* row, int64_t begin, int64_t count, float* out) {
  const uint8_t* x = static_cast<const uint8_t*>(row);
  switch (type) {
    case DType::kF32:
      return DecodeLoop<DType::kF32>(x + begin * 4, count, out);
    case DType::kF64:
      return DecodeLoop<DType::kF64>(x + begin * 8, count, out);
    case DType::kF16:
      return DecodeLoop<DType::kF16>(x + begin * 2, count, out);
    case DType::kBF16:
      return DecodeLoop<DType::kBF16>(x + begin * 2, count, out);
    case DType::kQ8_0:
      return DecodeLoop<DType::kQ8_0>(x + begin / 32 * 34, count, out);
    case DType::kQ4_0:
      return DecodeLoop<DType::kQ4_0>(x + begin / 32 * 18, count, out);
    case DType::kQ4_1:
      return DecodeLoop<DType::kQ4_1>(x + begin / 32 * 20, count, out);
    default:
      __builtin_trap();
  }
}

template <int L>
void MatVec(DType type, const float* x, int64_t x_stride, int64_t m, const void* w, int64_t w_bytes,
            int64_t n, int64_t k, float* out, int64_t out_stride) {
  const uint8_t* b = static_cast<const uint8_t*>(w);
  switch (type) {
    case DType::kF32:
      return MatVecLoop<DType::kF32, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kF64:
      return MatVecLoop<DType::kF64, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kF16:
      return MatVecLoop<DType::kF16, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kBF16:
      return MatVecLoop<DType::kBF16, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kQ8_0:
      return MatVecLoop<DType::kQ8_0, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kQ4_0:
      return MatVecLoop<DType::kQ4_0, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    case DType::kQ4_1:
      return MatVecLoop<DType::kQ4_1, L>(x, x_stride, m, b, w_bytes, n, k, out, out_stride);
    default:
      __builtin_trap();
  }
}

template <int L>
float Max(const float* x, int64_t n) {
  using N = Lanes<float, L>;
  typename N::V max = N::Set(-__builtin_inff());
  ForVectors<L>(x, n, -__builtin_inff(),
                [&](int64_t, int64_t, typename N::V v) { max = N::Max(v, max); });
  return N::MaxLane(max);
}

template <int L>
double ExpSum(const float* x, float max, int64_t n) {
  using N = Lanes<float, L>;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += 1024) {
    typename N::V sum = {};
    const int64_t count = n - begin < 1024 ? n - begin : 1024;
    ForVectors<L>(x + begin, count, -__builtin_inff(),
                  [&](int64_t, int64_t, typename N::V v) { sum += Exp<L>(v - N::Set(max), 0.0f); });
    total += double(N::Sum(sum));
  }
  return total;
}

template <int L>
float SumSquares(const float* x, int64_t n) {
  using N = Lanes<float, L>;
  typename N::V sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L) {
    for (int v = 0; v < 4; ++v) {
      const typename N::V y = N::Load(x + i + v * L);
      sum[v] += y * y;
    }
  }
  ForVectors<L>(x + i, n - i, 0.0f, [&](int64_t, int64_t, typename N::V y) { sum[0] += y * y; });
  return N::Sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// sin and cos of |x| < 2^31, to within 3e-16 of the sine and cosine of the double x.
// x = n pi/2 + r with |r| <= pi/4; pi/2 in three parts, n times the first two being exact. Then the
// Taylor series, whose first terms left out are r^17 / 17! < 5e-17 and r^18 / 18!.
template <int D>
inline void SinCos(typename Lanes<double, D>::V x, typename Lanes<double, D>::V* sine,
                   typename Lanes<double, D>::V* cosine) {
  using N = Lanes<double, D>;
  using V = typename N::V;
  using I = typename N::I;
  const double round = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves n in the low bits
  const V shifted = x * N::Set(0.63661977236758134) + N::Set(round);
  const V n = shifted - N::Set(round);
  V r = x - n * N::Set(0x1.921fb00000000p+0);
  r = r - n * N::Set(0x1.5110b00000000p-22);
  r = r - n * N::Set(0x1.18469898cc517p-44);
  const V square = r * r;
  V s = N::Set(-1.0 / 1307674368000), c = N::Set(1.0 / 20922789888000);
  constexpr double kSine[] = {1.0 / 6227020800, -1.0 / 39916800, 1.0 / 362880,
                              -1.0 / 5040,      1.0 / 120,       -1.0 / 6};
  constexpr double kCosine[] = {-1.0 / 87178291200, 1.0 / 479001600, -1.0 / 3628800, 1.0 / 40320,
                                -1.0 / 720,         1.0 / 24,        -1.0 / 2};
#pragma GCC unroll 6
  for (double factor : kSine) s = s * square + N::Set(factor);
#pragma GCC unroll 7
  for (double factor : kCosine) c = c * square + N::Set(factor);
  s = s * square * r + r;
  c = c * square + N::Set(1.0);
  const I quarter = reinterpret_cast<I>(shifted);
  const I odd = (quarter & N::SetInt(1)) != N::SetInt(0);
  const I s_sign = (quarter & N::SetInt(2)) << 62;
  const I c_sign = ((quarter + N::SetInt(1)) & N::SetInt(2)) << 62;
  *sine = reinterpret_cast<V>(reinterpret_cast<I>(odd ? c : s) ^ s_sign);
  *cosine = reinterpret_cast<V>(reinterpret_cast<I>(odd ? s : c) ^ c_sign);
}

template <int L>
void Rotation(double position, const double* inv_freq, double scale, int64_t n, float* cosine,
              float* sine) {
  constexpr int D = L / 2;
  using N = Lanes<double, D>;
  for (int64_t i = 0; i < n; i += D) {
    const int64_t used = n - i < D ? n - i : D;
    typename N::V frequency = {}, s, c;
    if (used == D) {
      frequency = N::Load(inv_freq + i);
    } else {
      for (int64_t j = 0; j < used; ++j) frequency[j] = inv_freq[i + j];
    }
    SinCos<D>(N::Set(position) * frequency, &s, &c);
    s *= N::Set(scale), c *= N::Set(scale);
    for (int64_t j = 0; j < used; ++j) sine[i + j] = float(s[j]), cosine[i + j] = float(c[j]);
  }
}

template <int L>
constexpr RowKernels MakeRowKernels() {
  return {Decode,     MatVec<L>,       nullptr, nullptr,      SwiGlu<L>, SwiGluBackward<L>,
          Gelu<L>,    GeluBackward<L>, Max<L>,  ExpScaled<L>, ExpSum<L>, SumSquares<L>,
          Rotation<L>};
}

}  // namespace
}  // namespace toroid
