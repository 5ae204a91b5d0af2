#include <immintrin.h>

#include "kernels/nibble_dot_avx2.h"
#include "kernels/row_kernels_loops.h"

namespace toroid {
namespace {

inline __m256 Unsigned8(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
inline __m256 Signed8(const uint8_t* x) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x))));
}
inline __m256 Half8(const uint8_t* x) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline float Half1(const uint8_t* x) {
  uint16_t bits;
  __builtin_memcpy(&bits, x, 2);
  return _cvtsh_ss(bits);
}

template <>
struct BlockLoader<8> {
  using V = Lanes<float, 8>::V;
  template <DType kType>
  static inline void Load(const uint8_t* x, V* w) {
    if constexpr (kType == DType::kF32) {
      for (int i = 0; i < 4; ++i) w[i] = _mm256_loadu_ps(reinterpret_cast<const float*>(x) + 8 * i);
    } else if constexpr (kType == DType::kF64) {
      for (int i = 0; i < 4; ++i) {
        const double* from = reinterpret_cast<const double*>(x) + 8 * i;
        w[i] = _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(from + 4)),
                               _mm256_cvtpd_ps(_mm256_loadu_pd(from)));
      }
    } else if constexpr (kType == DType::kF16) {
      for (int i = 0; i < 4; ++i) w[i] = Half8(x + 16 * i);
    } else if constexpr (kType == DType::kBF16) {
      for (int i = 0; i < 4; ++i) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i));
        w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
      }
    } else if constexpr (kType == DType::kQ8_0) {
      const __m256 d = _mm256_set1_ps(Half1(x));
      for (int i = 0; i < 4; ++i) w[i] = _mm256_mul_ps(d, Signed8(x + 2 + 8 * i));
    } else {
      const float scale = Half1(x);
      const __m256 d = _mm256_set1_ps(scale);
      const __m256 m = _mm256_set1_ps(kType == DType::kQ4_1 ? Half1(x + 2) : scale * -8.0f);
      const __m128i bytes =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + (kType == DType::kQ4_1 ? 4 : 2)));
      const __m128i mask = _mm_set1_epi8(15);
      const __m128i low = _mm_and_si128(bytes, mask);
      const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
      w[0] = _mm256_fmadd_ps(d, Unsigned8(low), m);
      w[1] = _mm256_fmadd_ps(d, Unsigned8(_mm_srli_si128(low, 8)), m);
      w[2] = _mm256_fmadd_ps(d, Unsigned8(high), m);
      w[3] = _mm256_fmadd_ps(d, Unsigned8(_mm_srli_si128(high, 8)), m);
    }
  }
};

void Prepare(DType type, const float* x, int64_t k, void* prepared) {
  PrepareNibbles(type, x, k, static_cast<float*>(prepared));
}

void MatVecPrepared(DType type, const void* prepared, const void* w, int64_t w_bytes, int64_t n,
                    int64_t k, float* out) {
  const float* x = static_cast<const float*>(prepared);
  const uint8_t* rows = static_cast<const uint8_t*>(w);
  if (type == DType::kQ4_1) {
    NibbleRows<DType::kQ4_1>(x, rows, w_bytes, n, k, out);
  } else {
    NibbleRows<DType::kQ4_0>(x, rows, w_bytes, n, k, out);
  }
}

constexpr RowKernels MakeKernels() {
  RowKernels kernels = MakeRowKernels<8>();
  kernels.prepare = Prepare;
  kernels.matvec_prepared = MatVecPrepared;
  return kernels;
}

}  // namespace

const RowKernels& RowKernelsAvx2() {
  static constexpr RowKernels kKernels = MakeKernels();
  return kKernels;
}

}  // namespace toroid
