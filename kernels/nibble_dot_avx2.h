// q4_0 and q4_1 rows times one row of x, with AVX2. Included by row_kernels_avx2.cc alone.
//
// The 16 bytes of a block, read as 4 words (and those shifted right by 16), hold nibble n of a lane
// at bit 4n: masked where it lies it is the integer q 16^n, so that no shift and no shuffle is
// needed once x is put in the order of the lanes and multiplied by 16^-n, which is exact. Per block
//   sum_i (d q_i + m) x_i = d sum_i q_i x_i + m sum_i x_i
// with sum x_i formed once for all rows.
#pragma once

#include <immintrin.h>

#include "kernels/row_kernels.h"

namespace toroid {
namespace {

// The prepared x (PreparedBytes): k in lane order, then for each block {c, sum x_i} with c = 0
// (q4_1) or -8 sum x_i (q4_0), which stand against {d, m}.
inline void PrepareNibbles(DType type, const float* x, int64_t k, float* out) {
  float* sums = out + k;
  for (int64_t b = 0; b < k; b += 32, x += 32, out += 32, sums += 2) {
    float scale = 1;
    for (int n = 0; n < 4; ++n, scale *= 1.0f / 16) {
      for (int lane = 0; lane < 8; ++lane) {
        const int byte = lane % 4 * 4 + lane / 4 * 2 + n / 2;
        out[n * 8 + lane] = x[byte + n % 2 * 16] * scale;
      }
    }
    float part[8];
    for (int i = 0; i < 8; ++i) part[i] = (x[i] + x[i + 8]) + (x[i + 16] + x[i + 24]);
    const float sum =
        ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
    sums[0] = type == DType::kQ4_1 ? 0 : -8 * sum;
    sums[1] = type == DType::kQ4_1 ? sum : 0;
  }
}

// R rows of w. Each is summed in the same order whatever R is.
template <DType kType, int R>
inline void DotNibbles(const float* x, const uint8_t* w, int64_t w_bytes, int64_t k, float* out) {
  constexpr int kBlock = kType == DType::kQ4_1 ? 20 : 18, kNibbles = kBlock - 16;
  const __m256i half = _mm256_setr_epi32(0, 0, 0, 0, 16, 16, 16, 16);
  const __m256i mask[4] = {_mm256_set1_epi32(0xf), _mm256_set1_epi32(0xf0),
                           _mm256_set1_epi32(0xf00), _mm256_set1_epi32(0xf000)};
  __m256 sum[R];
  __m128 offset[R];
  for (int r = 0; r < R; ++r) sum[r] = _mm256_setzero_ps(), offset[r] = _mm_setzero_ps();
  const float* sums = x + k;
  for (int64_t b = 0; b < k; b += 32, x += 32, sums += 2, w += kBlock) {
    const __m128 sum_x = _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(sums)));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const uint8_t* block = w + r * w_bytes;
      int scales = 0;
      __builtin_memcpy(&scales, block, kNibbles);
      const __m128 d_m = _mm_cvtph_ps(_mm_cvtsi32_si128(scales));
      const __m256i words = _mm256_srlv_epi32(
          _mm256_broadcastsi128_si256(
              _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + kNibbles))),
          half);
      __m256 dot =
          _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_and_si256(words, mask[0])), _mm256_loadu_ps(x));
#pragma GCC unroll 3
      for (int n = 1; n < 4; ++n) {
        dot = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_and_si256(words, mask[n])),
                              _mm256_loadu_ps(x + 8 * n), dot);
      }
      sum[r] = _mm256_fmadd_ps(_mm256_broadcastss_ps(d_m), dot, sum[r]);
      offset[r] = _mm_fmadd_ps(d_m, sum_x, offset[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    __m128 total = _mm_add_ps(_mm256_castps256_ps128(sum[r]), _mm256_extractf128_ps(sum[r], 1));
    total = _mm_add_ps(total, offset[r]);
    total = _mm_add_ps(total, _mm_movehl_ps(total, total));
    out[r] = total[0] + total[1];
  }
}

template <DType kType>
inline void NibbleRows(const float* x, const uint8_t* w, int64_t w_bytes, int64_t n, int64_t k,
                       float* out) {
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) DotNibbles<kType, 4>(x, w + i * w_bytes, w_bytes, k, out + i);
  for (; i < n; ++i) DotNibbles<kType, 1>(x, w + i * w_bytes, w_bytes, k, out + i);
}

}  // namespace
}  // namespace toroid
