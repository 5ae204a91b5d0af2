// The oracle of the ops: naive dense maths in double, no blocking, nothing shared with the kernels.
// Arrays are contiguous, row-major, in the dims that the names end in.
#pragma once

#include <cstdint>
#include <vector>

namespace toroid::reference {

using Array = std::vector<double>;

// [m, n] = x [m, k] w [n, k]^T + bias [n] (may be empty).
Array MatMul(const Array& x_mk, const Array& w_nk, const Array& bias_n, int64_t m, int64_t n,
             int64_t k);
Array RmsNorm(const Array& x_tD, const Array& gain_D, double epsilon);
Array Rope(const Array& x_thK, const std::vector<int32_t>& positions, int64_t heads,
           const Array& inv_freq, double scale);
Array SwiGlu(const Array& gate, const Array& up);

struct AttentionInput {
  int64_t heads = 1, kv_heads = 1, head_dim = 1;
  std::vector<int32_t> kv_index;  // [heads]
  std::vector<int32_t> q_positions, k_positions;
  Array q_thK, k_ngK, v_ngK;
  bool causal = true;
  int64_t window = 0;
  double scale = 1;
};
struct AttentionOutput {
  Array o_thK;
  Array lse_th;  // -inf and o = 0 for a row that sees nothing
};
// Materialises all scores.
AttentionOutput Attention(const AttentionInput& in);
// By the log-sum-exps, in order.
AttentionOutput Merge(const std::vector<AttentionOutput>& parts, int64_t head_dim);

// log p of the labels and log Z, over the whole vocabulary [t, n].
void LogProbabilities(const Array& logits_tn, const std::vector<int32_t>& labels, Array* log_p,
                      Array* log_z);

}  // namespace toroid::reference
