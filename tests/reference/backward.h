// The oracle of the backward ops: gradients of tests/reference/ops.h in double, naive and dense,
// sharing nothing with the kernels. That they are the gradients: the kernels' gradients in double
// equal these and the central differences of tests/kernels/finite_difference_test.cc.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/reference/ops.h"

namespace toroid::reference {

// The gradient of sum(dout * out) by each operand.
struct MatMulGradient {
  Array dx_mk, dw_nk, dbias_n;
};
MatMulGradient MatMulBackward(const Array& x_mk, const Array& w_nk, const Array& dout_mn, int64_t m,
                              int64_t n, int64_t k);

struct NormGradient {
  Array dx_tD, dgain_D, dbias_D;
};
NormGradient RmsNormBackward(const Array& x_tD, const Array& gain_D, double epsilon,
                             const Array& dout_tD);

// (x - mean) / sqrt(variance + epsilon) * gain + bias (may be empty).
Array LayerNorm(const Array& x_tD, const Array& gain_D, const Array& bias_D, double epsilon);
NormGradient LayerNormBackward(const Array& x_tD, const Array& gain_D, double epsilon,
                               const Array& dout_tD);

Array RopeBackward(const Array& dout_thK, const std::vector<int32_t>& positions, int64_t heads,
                   const Array& inv_freq, double scale);

struct SwiGluGradient {
  Array dgate, dup;
};
SwiGluGradient SwiGluBackward(const Array& gate, const Array& up, const Array& dout);

// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
Array Gelu(const Array& x);
Array GeluBackward(const Array& x, const Array& dout);

struct AttentionGradient {
  Array dq_thK, dk_ngK, dv_ngK;
};
AttentionGradient AttentionBackward(const AttentionInput& in, const Array& do_thK);

// Of sum(d_log_p log_p + d_log_z log_z).
Array LogProbabilitiesBackward(const Array& logits_tn, const std::vector<int32_t>& labels,
                               const Array& d_log_p, const Array& d_log_z);

}  // namespace toroid::reference
