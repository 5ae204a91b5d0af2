// Vectors of L lanes of float or double, for kernels that are written once and compiled once per
// instruction set (foo_cpu.cc, foo_avx2.cc, foo_avx512.cc include the same foo_kernel.h).
//
// Everything here has internal linkage, so that the linker never shares code compiled for wider
// instructions with a file that must run without them. For the same reason kernel files include no
// library templates and no inline functions of other headers.
#pragma once

#include <cstdint>

namespace toroid {
namespace {

template <typename T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};

// V: L lanes of T. I: as many integers of the same width. U: V at any address.
template <typename T, int L>
struct Lanes {
  using Int = typename IntOf<T>::type;
  typedef T V __attribute__((vector_size(sizeof(T) * L), may_alias));
  typedef Int I __attribute__((vector_size(sizeof(T) * L), may_alias));
  typedef T U __attribute__((vector_size(sizeof(T) * L), aligned(sizeof(T)), may_alias));

  static V Load(const T* x) { return *reinterpret_cast<const U*>(x); }
  // Load into a register that all uses share: left alone, g++ 12 reads memory again at every use,
  // and the loads, not the products, bound the loop.
  static V LoadOnce(const T* x) {
    V v = Load(x);
    asm("" : "+x"(v));
    return v;
  }
  static void Store(T* x, V v) { *reinterpret_cast<U*>(x) = v; }
  // x - 0 is x even for -0, so the compiler is left with a plain broadcast.
  static V Set(T x) { return x - V{}; }
  static I SetInt(Int x) { return x - I{}; }
  static V Max(V a, V b) { return a > b ? a : b; }
  static V Min(V a, V b) { return a < b ? a : b; }
  static T Sum(V v) {
    T sum = 0;
    for (int i = 0; i < L; ++i) sum += v[i];
    return sum;
  }
  static T MaxLane(V v) {
    T max = v[0];
    for (int i = 1; i < L; ++i) max = v[i] > max ? v[i] : max;
    return max;
  }
};

// e^x with a relative error below 1.5e-7. x is cut at 88; below -87.3 (and for -inf) the result is
// 0. x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 P(r), P of degree 4 fitted to the
// least relative error (3e-9 before rounding).
template <int L>
inline typename Lanes<float, L>::V Exp(typename Lanes<float, L>::V x, float) {
  using N = Lanes<float, L>;
  const auto small = x < N::Set(-87.3f);
  x = x > N::Set(88.0f) ? N::Set(88.0f) : x;  // a NaN stays one
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  const typename N::V shifted = x * N::Set(1.44269502f) + N::Set(round);
  const typename N::V n = shifted - N::Set(round);
  // ln 2 in two parts; the first has 14 bits, so that n times it is exact.
  typename N::V r = x - n * N::Set(0.69317626953125f);
  r = r - n * N::Set(-2.90889712e-5f);
  typename N::V p = N::Set(0.00138144661f);
  p = p * r + N::Set(0.00836878084f);
  p = p * r + N::Set(0.0416683927f);
  p = p * r + N::Set(0.16666519642f);
  p = p * r + N::Set(0.49999994040f);
  p = (p * r) * r + (r + N::Set(1.0f));
  // Unsigned: where x is cut off the sum may wrap, and that lane is not used.
  typedef uint32_t Bits __attribute__((vector_size(sizeof(float) * L), may_alias));
  const Bits exponent = reinterpret_cast<Bits>(shifted) << 23;
  const auto result = reinterpret_cast<typename N::V>(reinterpret_cast<Bits>(p) + exponent);
  return small ? N::Set(0.0f) : result;
}

template <int L>
inline typename Lanes<double, L>::V Exp(typename Lanes<double, L>::V x, double) {
  for (int i = 0; i < L; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

}  // namespace
}  // namespace toroid
