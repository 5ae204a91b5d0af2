#include "tests/reference/backward.h"

#include <algorithm>
#include <cmath>

namespace toroid::reference {

MatMulGradient MatMulBackward(const Array& x_mk, const Array& w_nk, const Array& dout_mn, int64_t m,
                              int64_t n, int64_t k) {
  MatMulGradient g = {Array(m * k), Array(n * k), Array(n)};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double d = dout_mn[i * n + j];
      g.dbias_n[j] += d;
      for (int64_t l = 0; l < k; ++l) {
        g.dx_mk[i * k + l] += d * w_nk[j * k + l];
        g.dw_nk[j * k + l] += d * x_mk[i * k + l];
      }
    }
  }
  return g;
}

NormGradient RmsNormBackward(const Array& x_tD, const Array& gain_D, double epsilon,
                             const Array& dout_tD) {
  const size_t dim = gain_D.size();
  NormGradient g = {Array(x_tD.size()), Array(dim), {}};
  for (size_t row = 0; row < x_tD.size(); row += dim) {
    const double *x = &x_tD[row], *d = &dout_tD[row];
    double squares = 0;
    for (size_t i = 0; i < dim; ++i) squares += x[i] * x[i];
    const double norm = std::sqrt(squares / double(dim) + epsilon);
    // out_j = gain_j x_j / norm  and  dnorm / dx_i = x_i / (dim norm)
    double dnorm = 0;
    for (size_t j = 0; j < dim; ++j) dnorm -= d[j] * gain_D[j] * x[j] / (norm * norm);
    for (size_t i = 0; i < dim; ++i) {
      g.dx_tD[row + i] = d[i] * gain_D[i] / norm + dnorm * x[i] / (double(dim) * norm);
      g.dgain_D[i] += d[i] * x[i] / norm;
    }
  }
  return g;
}

Array LayerNorm(const Array& x_tD, const Array& gain_D, const Array& bias_D, double epsilon) {
  const size_t dim = gain_D.size();
  Array out(x_tD.size());
  for (size_t row = 0; row < x_tD.size(); row += dim) {
    double mean = 0, variance = 0;
    for (size_t i = 0; i < dim; ++i) mean += x_tD[row + i] / double(dim);
    for (size_t i = 0; i < dim; ++i) variance += std::pow(x_tD[row + i] - mean, 2) / double(dim);
    for (size_t i = 0; i < dim; ++i) {
      out[row + i] = (x_tD[row + i] - mean) / std::sqrt(variance + epsilon) * gain_D[i];
      if (!bias_D.empty()) out[row + i] += bias_D[i];
    }
  }
  return out;
}

NormGradient LayerNormBackward(const Array& x_tD, const Array& gain_D, double epsilon,
                               const Array& dout_tD) {
  const size_t dim = gain_D.size();
  NormGradient g = {Array(x_tD.size()), Array(dim), Array(dim)};
  for (size_t row = 0; row < x_tD.size(); row += dim) {
    const double *x = &x_tD[row], *d = &dout_tD[row];
    double mean = 0, variance = 0;
    for (size_t i = 0; i < dim; ++i) mean += x[i] / double(dim);
    for (size_t i = 0; i < dim; ++i) variance += (x[i] - mean) * (x[i] - mean) / double(dim);
    const double norm = std::sqrt(variance + epsilon);
    // With c_j = x_j - mean: out_j = gain_j c_j / norm + bias_j, dnorm / dc_i = c_i / (dim norm),
    // dc_j / dx_i = (i is j) - 1 / dim.
    double dnorm = 0, dmean = 0;
    for (size_t j = 0; j < dim; ++j) dnorm -= d[j] * gain_D[j] * (x[j] - mean) / (norm * norm);
    Array dc(dim);
    for (size_t i = 0; i < dim; ++i) {
      dc[i] = d[i] * gain_D[i] / norm + dnorm * (x[i] - mean) / (double(dim) * norm);
      dmean -= dc[i];
      g.dgain_D[i] += d[i] * (x[i] - mean) / norm;
      g.dbias_D[i] += d[i];
    }
    for (size_t i = 0; i < dim; ++i) g.dx_tD[row + i] = dc[i] + dmean / double(dim);
  }
  return g;
}

Array RopeBackward(const Array& dout_thK, const std::vector<int32_t>& positions, int64_t heads,
                   const Array& inv_freq, double scale) {
  const int64_t half = int64_t(inv_freq.size());
  Array dx(dout_thK.size());
  for (int64_t row = 0; row < int64_t(positions.size()) * heads; ++row) {
    const double *low = &dout_thK[row * 2 * half], *high = low + half;
    for (int64_t i = 0; i < half; ++i) {  // the transpose of the rotation
      const double angle = positions[row / heads] * inv_freq[i];
      dx[row * 2 * half + i] = scale * (low[i] * std::cos(angle) + high[i] * std::sin(angle));
      dx[row * 2 * half + half + i] =
          scale * (high[i] * std::cos(angle) - low[i] * std::sin(angle));
    }
  }
  return dx;
}

SwiGluGradient SwiGluBackward(const Array& gate, const Array& up, const Array& dout) {
  SwiGluGradient g = {Array(gate.size()), Array(gate.size())};
  for (size_t i = 0; i < gate.size(); ++i) {
    const double e = std::exp(-gate[i]), s = 1 / (1 + e);
    g.dup[i] = dout[i] * gate[i] * s;
    g.dgate[i] = dout[i] * up[i] * (s + gate[i] * e * s * s);  // ds / dgate = e s^2
  }
  return g;
}

Array Gelu(const Array& x) {
  Array out(x.size());
  const double root = std::sqrt(2 / std::acos(-1.0));
  for (size_t i = 0; i < x.size(); ++i) {
    out[i] = 0.5 * x[i] * (1 + std::tanh(root * (x[i] + 0.044715 * x[i] * x[i] * x[i])));
  }
  return out;
}

Array GeluBackward(const Array& x, const Array& dout) {
  Array dx(x.size());
  const double root = std::sqrt(2 / std::acos(-1.0));
  for (size_t i = 0; i < x.size(); ++i) {
    const double t = std::tanh(root * (x[i] + 0.044715 * x[i] * x[i] * x[i]));
    const double du = root * (1 + 3 * 0.044715 * x[i] * x[i]);
    dx[i] = dout[i] * (0.5 * (1 + t) + 0.5 * x[i] * (1 - t * t) * du);
  }
  return dx;
}

AttentionGradient AttentionBackward(const AttentionInput& in, const Array& do_thK) {
  const int64_t n = int64_t(in.k_positions.size()), dim = in.head_dim;
  const AttentionOutput out = Attention(in);
  AttentionGradient g = {Array(in.q_thK.size()), Array(in.k_ngK.size()), Array(in.v_ngK.size())};
  for (int64_t row = 0; row < int64_t(out.lse_th.size()); ++row) {
    const int64_t position = in.q_positions[row / in.heads];
    const double *q = &in.q_thK[row * dim], *d_o = &do_thK[row * dim];
    double delta = 0;
    for (int64_t d = 0; d < dim; ++d) delta += d_o[d] * out.o_thK[row * dim + d];
    for (int64_t j = 0; j < n; ++j) {
      if (in.causal && in.k_positions[j] > position) continue;
      if (in.window > 0 && in.k_positions[j] <= position - in.window) continue;
      const int64_t at = (j * in.kv_heads + in.kv_index[row % in.heads]) * dim;
      double score = 0, dp = 0;
      for (int64_t d = 0; d < dim; ++d) {
        score += in.scale * q[d] * in.k_ngK[at + d];
        dp += d_o[d] * in.v_ngK[at + d];
      }
      // o = sum_j p_j v_j, p = softmax(score)  ->  dscore_j = p_j (dp_j - sum_i p_i dp_i)
      const double p = std::exp(score - out.lse_th[row]), dscore = p * (dp - delta);
      for (int64_t d = 0; d < dim; ++d) {
        g.dv_ngK[at + d] += p * d_o[d];
        g.dq_thK[row * dim + d] += in.scale * dscore * in.k_ngK[at + d];
        g.dk_ngK[at + d] += in.scale * dscore * q[d];
      }
    }
  }
  return g;
}

Array LogProbabilitiesBackward(const Array& logits_tn, const std::vector<int32_t>& labels,
                               const Array& d_log_p, const Array& d_log_z) {
  const size_t n = logits_tn.size() / labels.size();
  Array log_p, log_z, dlogits(logits_tn.size());
  LogProbabilities(logits_tn, labels, &log_p, &log_z);
  for (size_t i = 0; i < labels.size(); ++i) {
    for (size_t j = 0; j < n; ++j) {
      const double p = std::exp(logits_tn[i * n + j] - log_z[i]);
      dlogits[i * n + j] = d_log_z[i] * p + d_log_p[i] * ((int64_t(j) == labels[i]) - p);
    }
  }
  return dlogits;
}

}  // namespace toroid::reference
