#include "tests/reference/ops.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace toroid::reference {

Array MatMul(const Array& x_mk, const Array& w_nk, const Array& bias_n, int64_t m, int64_t n,
             int64_t k) {
  Array out(m * n);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias_n.empty() ? 0.0 : bias_n[j];
      for (int64_t l = 0; l < k; ++l) sum += x_mk[i * k + l] * w_nk[j * k + l];
      out[i * n + j] = sum;
    }
  }
  return out;
}

Array RmsNorm(const Array& x_tD, const Array& gain_D, double epsilon) {
  const size_t dim = gain_D.size();
  Array out(x_tD.size());
  for (size_t row = 0; row < x_tD.size(); row += dim) {
    double squares = 0;
    for (size_t i = 0; i < dim; ++i) squares += x_tD[row + i] * x_tD[row + i];
    const double norm = std::sqrt(squares / double(dim) + epsilon);
    for (size_t i = 0; i < dim; ++i) out[row + i] = x_tD[row + i] / norm * gain_D[i];
  }
  return out;
}

Array Rope(const Array& x_thK, const std::vector<int32_t>& positions, int64_t heads,
           const Array& inv_freq, double scale) {
  const int64_t half = int64_t(inv_freq.size());
  Array out(x_thK.size());
  for (int64_t row = 0; row < int64_t(positions.size()) * heads; ++row) {
    const double* x = &x_thK[row * 2 * half];
    for (int64_t i = 0; i < half; ++i) {
      const double angle = positions[row / heads] * inv_freq[i];
      const double c = std::cos(angle) * scale, s = std::sin(angle) * scale;
      out[row * 2 * half + i] = x[i] * c - x[i + half] * s;
      out[row * 2 * half + i + half] = x[i + half] * c + x[i] * s;
    }
  }
  return out;
}

Array SwiGlu(const Array& gate, const Array& up) {
  Array out(gate.size());
  for (size_t i = 0; i < gate.size(); ++i) out[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return out;
}

AttentionOutput Attention(const AttentionInput& in) {
  const int64_t t = int64_t(in.q_positions.size()), n = int64_t(in.k_positions.size());
  const int64_t dim = in.head_dim;
  AttentionOutput out;
  out.o_thK.assign(t * in.heads * dim, 0.0);
  out.lse_th.assign(t * in.heads, -std::numeric_limits<double>::infinity());
  for (int64_t row = 0; row < t * in.heads; ++row) {
    const int64_t position = in.q_positions[row / in.heads];
    const int64_t kv_head = in.kv_index[row % in.heads];
    const auto kv_row = [&](int64_t j) { return (j * in.kv_heads + kv_head) * dim; };
    Array scores;
    std::vector<int64_t> visible;
    for (int64_t j = 0; j < n; ++j) {
      if (in.causal && in.k_positions[j] > position) continue;
      if (in.window > 0 && in.k_positions[j] <= position - in.window) continue;
      double dot = 0;
      for (int64_t d = 0; d < dim; ++d) dot += in.q_thK[row * dim + d] * in.k_ngK[kv_row(j) + d];
      scores.push_back(dot * in.scale);
      visible.push_back(j);
    }
    if (visible.empty()) continue;
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double s : scores) sum += std::exp(s - max);
    out.lse_th[row] = max + std::log(sum);
    for (size_t i = 0; i < visible.size(); ++i) {
      const double p = std::exp(scores[i] - max) / sum;
      for (int64_t d = 0; d < dim; ++d) {
        out.o_thK[row * dim + d] += p * in.v_ngK[kv_row(visible[i]) + d];
      }
    }
  }
  return out;
}

AttentionOutput Merge(const std::vector<AttentionOutput>& parts, int64_t head_dim) {
  AttentionOutput out = parts.front();
  for (size_t row = 0; row < out.lse_th.size(); ++row) {
    double max = -std::numeric_limits<double>::infinity();
    for (const AttentionOutput& part : parts) max = std::max(max, part.lse_th[row]);
    if (std::isinf(max)) continue;
    double sum = 0;
    for (const AttentionOutput& part : parts) sum += std::exp(part.lse_th[row] - max);
    out.lse_th[row] = max + std::log(sum);
    for (int64_t d = 0; d < head_dim; ++d) {
      double value = 0;
      for (const AttentionOutput& part : parts) {
        value += std::exp(part.lse_th[row] - out.lse_th[row]) * part.o_thK[row * head_dim + d];
      }
      out.o_thK[row * head_dim + d] = value;
    }
  }
  return out;
}

void LogProbabilities(const Array& logits_tn, const std::vector<int32_t>& labels, Array* log_p,
                      Array* log_z) {
  const size_t n = logits_tn.size() / labels.size();
  log_p->clear();
  log_z->clear();
  for (size_t i = 0; i < labels.size(); ++i) {
    const double* row = &logits_tn[i * n];
    const double max = *std::max_element(row, row + n);
    double sum = 0;
    for (size_t j = 0; j < n; ++j) sum += std::exp(row[j] - max);
    log_z->push_back(max + std::log(sum));
    log_p->push_back(row[labels[i]] - log_z->back());
  }
}

}  // namespace toroid::reference
