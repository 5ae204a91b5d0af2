#include <immintrin.h>

#include "kernels/row_kernels_loops.h"

namespace toroid {
namespace {

inline float Half1(const uint8_t* x) {
  uint16_t bits;
  __builtin_memcpy(&bits, x, 2);
  return _cvtsh_ss(bits);
}
inline __m128i Bytes16(const uint8_t* x) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
}
inline __m256i Bytes32(const uint8_t* x) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
}
inline __m512 Unsigned16(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }

template <>
struct BlockLoader<16> {
  using V = Lanes<float, 16>::V;
  template <DType kType>
  static inline void Load(const uint8_t* x, V* w) {
    if constexpr (kType == DType::kF32) {
      for (int i = 0; i < 2; ++i) {
        w[i] = _mm512_loadu_ps(reinterpret_cast<const float*>(x) + 16 * i);
      }
    } else if constexpr (kType == DType::kF64) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 16; ++j) {
          w[i][j] = float(reinterpret_cast<const double*>(x)[16 * i + j]);
        }
      }
    } else if constexpr (kType == DType::kF16) {
      for (int i = 0; i < 2; ++i) w[i] = _mm512_cvtph_ps(Bytes32(x + 32 * i));
    } else if constexpr (kType == DType::kBF16) {
      for (int i = 0; i < 2; ++i) {
        w[i] =
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(Bytes32(x + 32 * i)), 16));
      }
    } else if constexpr (kType == DType::kQ8_0) {
      const __m512 d = _mm512_set1_ps(Half1(x));
      for (int i = 0; i < 2; ++i) {
        w[i] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Bytes16(x + 2 + 16 * i))));
      }
    } else {
      const float scale = Half1(x);
      const __m512 d = _mm512_set1_ps(scale);
      const __m512 m = _mm512_set1_ps(kType == DType::kQ4_1 ? Half1(x + 2) : scale * -8.0f);
      const __m128i bytes = Bytes16(x + (kType == DType::kQ4_1 ? 4 : 2));
      const __m128i mask = _mm_set1_epi8(15);
      w[0] = _mm512_fmadd_ps(d, Unsigned16(_mm_and_si128(bytes, mask)), m);
      w[1] = _mm512_fmadd_ps(d, Unsigned16(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask)), m);
    }
  }
};

}  // namespace

const RowKernels& RowKernelsAvx512() {
  static constexpr RowKernels kKernels = MakeRowKernels<16>();
  return kKernels;
}

}  // namespace toroid
