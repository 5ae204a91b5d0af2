#include "tests/reference/model.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace toroid {
namespace {

using Array = std::vector<double>;

// Four sums side by side: one would wait for each addition, and real models are large.
double Dot(const double* a, const double* b, int64_t size) {
  double sum[4] = {};
  int64_t i = 0;
  for (; i + 4 <= size; i += 4) {
    for (int64_t j = 0; j < 4; ++j) sum[j] += a[i + j] * b[i + j];
  }
  for (; i < size; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

class Forward {
 public:
  Forward(const ModelConfig& config, const ReferenceParams& params) : c_(config), params_(params) {}

  const Array* Find(const std::string& name) const {
    const auto found = params_.find(name);
    return found == params_.end() ? nullptr : &found->second;
  }

  const Array& Get(const std::string& name, int64_t size) const {
    const Array* found = Find(name);
    TOROID_CHECK_MSG(found != nullptr, name);
    TOROID_CHECK_EQ(int64_t(found->size()), size);
    return *found;
  }

  // y[t] = W x[t] + b, where the parameter `name`.bias exists.
  Array Linear(const std::string& name, const Array& x, int64_t inputs, int64_t outputs) const {
    const Array& weight = Get(name + ".weight", outputs * inputs);
    const int64_t rows = x.size() / inputs;
    Array y(rows * outputs);
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t o = 0; o < outputs; ++o) {
        y[t * outputs + o] = Dot(&weight[o * inputs], &x[t * inputs], inputs);
      }
    }
    if (Find(name + ".bias") != nullptr) {
      const Array& bias = Get(name + ".bias", outputs);
      for (int64_t i = 0; i < rows * outputs; ++i) y[i] += bias[i % outputs];
    }
    return y;
  }

  // y = gain x / sqrt(mean(x^2) + epsilon), over the last `size` elements.
  Array RmsNorm(const std::string& name, const Array& x, int64_t size) const {
    const Array& gain = Get(name + ".weight", size);
    Array y(x.size());
    for (size_t row = 0; row < x.size(); row += size) {
      double squares = 0;
      for (int64_t i = 0; i < size; ++i) squares += x[row + i] * x[row + i];
      const double scale = 1 / std::sqrt(squares / double(size) + c_.norm_epsilon);
      for (int64_t i = 0; i < size; ++i) y[row + i] = gain[i] * x[row + i] * scale;
    }
    return y;
  }

  // The model's norm over the last `size` elements: RmsNorm, or
  // y = gain (x - mean) / sqrt(variance + epsilon) + bias.
  Array Norm(const std::string& name, const Array& x, int64_t size) const {
    if (c_.norm == NormKind::kRms) return RmsNorm(name, x, size);
    const Array& gain = Get(name + ".weight", size);
    const Array& bias = Get(name + ".bias", size);
    Array y(x.size());
    for (size_t row = 0; row < x.size(); row += size) {
      double mean = 0, variance = 0;
      for (int64_t i = 0; i < size; ++i) mean += x[row + i] / double(size);
      for (int64_t i = 0; i < size; ++i) {
        variance += (x[row + i] - mean) * (x[row + i] - mean) / double(size);
      }
      const double scale = 1 / std::sqrt(variance + c_.norm_epsilon);
      for (int64_t i = 0; i < size; ++i)
        y[row + i] = gain[i] * (x[row + i] - mean) * scale + bias[i];
    }
    return y;
  }

  // x [T, heads, K]
  void Rope(Array& x, int64_t heads, const ReferenceInput& input) const {
    const int64_t K = c_.head_dim, half = K / 2, T = input.ids.size();
    TOROID_CHECK_EQ(int64_t(input.inv_freq.size()), half);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t head = 0; head < heads; ++head) {
        double* row = &x[(t * heads + head) * K];
        for (int64_t i = 0; i < half; ++i) {
          const double angle = double(input.first_position + t) * input.inv_freq[i];
          const double cosine = std::cos(angle) * input.rope_scale;
          const double sine = std::sin(angle) * input.rope_scale;
          const double a = row[i], b = row[i + half];
          row[i] = a * cosine - b * sine;
          row[i + half] = b * cosine + a * sine;
        }
      }
    }
  }

  // Query t sees keys max(0, t - window + 1) .. t; query head i reads KV head i / (H / G).
  Array Attend(const Array& q, const Array& k, const Array& v, int64_t window) const {
    const int64_t H = c_.query_heads, G = c_.kv_heads, K = c_.head_dim, T = q.size() / (H * K);
    const double scale = 1 / std::sqrt(double(K));
    Array out(q.size());
    for (int64_t head = 0; head < H; ++head) {
      const int64_t kv_head = head / (H / G);
      for (int64_t t = 0; t < T; ++t) {
        const int64_t first = window > 0 ? std::max<int64_t>(0, t - window + 1) : 0;
        Array weight;
        for (int64_t s = first; s <= t; ++s) {
          weight.push_back(scale * Dot(&q[(t * H + head) * K], &k[(s * G + kv_head) * K], K));
        }
        const double largest = *std::max_element(weight.begin(), weight.end());
        double sum = 0;
        for (double& w : weight) sum += w = std::exp(w - largest);
        for (int64_t s = first; s <= t; ++s) {
          for (int64_t i = 0; i < K; ++i) {
            out[(t * H + head) * K + i] += weight[s - first] / sum * v[(s * G + kv_head) * K + i];
          }
        }
      }
    }
    return out;
  }

  // W2 (silu(W1 a) * W3 a), or W2 gelu(W3 a).
  Array Mlp(const std::string& name, const Array& a) const {
    Array hidden = Linear(name + "up_proj", a, c_.dim, c_.ffn);
    if (c_.activation == Activation::kSwiGlu) {
      const Array gate = Linear(name + "gate_proj", a, c_.dim, c_.ffn);
      // silu(g) = g / (1 + e^-g)
      for (size_t i = 0; i < gate.size(); ++i) hidden[i] *= gate[i] / (1 + std::exp(-gate[i]));
    } else {
      const double root = std::sqrt(2 / 3.14159265358979323846);
      for (double& x : hidden) x *= 0.5 * (1 + std::tanh(root * (x + 0.044715 * x * x * x)));
    }
    return Linear(name + "down_proj", hidden, c_.ffn, c_.dim);
  }

  ReferenceTaps Layer(int64_t layer, const Array& x, const ReferenceInput& input) const {
    const int64_t D = c_.dim, H = c_.query_heads, G = c_.kv_heads, K = c_.head_dim;
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = name + "self_attn.", mlp = name + "mlp.";
    ReferenceTaps taps;
    taps.attention_in = Norm(name + "input_layernorm", x, D);
    taps.query = Linear(attention + "q_proj", taps.attention_in, D, H * K);
    taps.key = Linear(attention + "k_proj", taps.attention_in, D, G * K);
    taps.value = Linear(attention + "v_proj", taps.attention_in, D, G * K);
    if (Find(attention + "q_norm.weight") != nullptr) {
      taps.query = RmsNorm(attention + "q_norm", taps.query, K);
      taps.key = RmsNorm(attention + "k_norm", taps.key, K);
    }
    if (c_.positions == PositionKind::kRope) {
      Rope(taps.query, H, input);
      Rope(taps.key, G, input);
    }
    taps.attention_out = Attend(taps.query, taps.key, taps.value, c_.window(layer));
    const Array attended = Linear(attention + "o_proj", taps.attention_out, H * K, D);
    taps.residual = x;
    if (c_.parallel_block) {  // x + Attention(a) + MLP(a), one norm
      taps.mlp_in = taps.attention_in;
      taps.mlp_out = Mlp(mlp, taps.mlp_in);
      for (size_t i = 0; i < x.size(); ++i) taps.mlp_out[i] += attended[i];
    } else {
      for (size_t i = 0; i < x.size(); ++i) taps.residual[i] += attended[i];
      taps.mlp_in = Norm(name + "post_attention_layernorm", taps.residual, D);
      taps.mlp_out = Mlp(mlp, taps.mlp_in);
    }
    for (size_t i = 0; i < x.size(); ++i) taps.residual[i] += taps.mlp_out[i];
    return taps;
  }

  Array Embed(const std::vector<int32_t>& ids, int64_t first_position) const {
    const Array& table = Get("model.embed_tokens.weight", c_.vocab * c_.dim);
    Array x;
    for (int32_t id : ids) {
      TOROID_CHECK(id >= 0 && id < c_.vocab);
      x.insert(x.end(), table.begin() + id * c_.dim, table.begin() + (id + 1) * c_.dim);
    }
    if (c_.positions == PositionKind::kLearned) {
      const Array& learned = Get("model.embed_positions.weight", c_.context * c_.dim);
      TOROID_CHECK_LE(first_position + int64_t(ids.size()), c_.context);
      for (size_t i = 0; i < x.size(); ++i) x[i] += learned[first_position * c_.dim + i];
    }
    return x;
  }

  Array Logits(const Array& x) const {
    const bool tied = Find("lm_head.weight") == nullptr;
    TOROID_CHECK_EQ(tied, c_.tied_embeddings);
    Array logits = Linear(tied ? "model.embed_tokens" : "lm_head", Norm("model.norm", x, c_.dim),
                          c_.dim, c_.vocab);
    for (double& logit : logits) logit *= c_.logit_scale;
    return logits;
  }

 private:
  const ModelConfig& c_;
  const ReferenceParams& params_;
};

}  // namespace

ReferenceOutput ReferenceForward(const ModelConfig& config, const ReferenceParams& params,
                                 const ReferenceInput& input) {
  const Forward forward(config, params);
  ReferenceOutput output;
  output.residual = forward.Embed(input.ids, input.first_position);
  const int64_t layers = input.layers < 0 ? config.layers : input.layers;
  TOROID_CHECK_LE(layers, config.layers);
  for (int64_t layer = 0; layer < layers; ++layer) {
    ReferenceTaps taps = forward.Layer(layer, output.residual, input);
    output.residual = taps.residual;
    if (input.taps) output.taps.push_back(std::move(taps));
  }
  if (input.logits) output.logits = forward.Logits(output.residual);
  return output;
}

std::vector<double> ReferenceLogits(const ModelConfig& config, const ReferenceParams& params,
                                    const double* residual) {
  return Forward(config, params).Logits(Array(residual, residual + config.dim));
}

double ReferenceLogP(const double* logits, int64_t vocab, int32_t id) {
  const double largest = *std::max_element(logits, logits + vocab);
  double sum = 0;
  for (int64_t i = 0; i < vocab; ++i) sum += std::exp(logits[i] - largest);
  return logits[id] - largest - std::log(sum);
}

}  // namespace toroid
