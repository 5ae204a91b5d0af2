#include "tests/reference/model_backward.h"

#include <cmath>
#include <numeric>

#include "core/check.h"
#include "tests/reference/backward.h"

namespace toroid {
namespace {

using reference::Array;

void AddTo(Array& x, const Array& y) {
  TOROID_CHECK_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

class Backward {
 public:
  Backward(const ModelConfig& config, const ReferenceParams& params, const ReferenceInput& input)
      : c_(config), params_(params), input_(input), positions_(input.ids.size()) {
    for (const auto& [name, values] : params) d_[name].resize(values.size());
    std::iota(positions_.begin(), positions_.end(), int32_t(input.first_position));
    for (int64_t i = 0; i < c_.query_heads; ++i) {
      kv_index_.push_back(int32_t(i / (c_.query_heads / c_.kv_heads)));
    }
  }

  // From the gradient of the logits to all of d.
  ReferenceParams Run(const std::vector<Array>& layer_inputs, const Array& last,
                      const Array& dlogits) {
    const std::string head = c_.tied_embeddings ? "model.embed_tokens" : "lm_head";
    // logits = logit_scale norm(x) E^T
    const Array h = Norm("model.norm", last);
    Array dscaled = dlogits;
    for (double& d : dscaled) d *= c_.logit_scale;
    Array dx = NormBackward("model.norm", last, LinearBackward(head, h, dscaled));
    for (int64_t layer = c_.layers - 1; layer >= 0; --layer) {
      dx = Layer("model.layers." + std::to_string(layer) + ".", c_.window(layer),
                 layer_inputs[layer], dx);
    }
    if (c_.positions == PositionKind::kLearned) {
      Array& dpositions = d_["model.embed_positions.weight"];
      for (size_t i = 0; i < dx.size(); ++i) {
        dpositions[input_.first_position * c_.dim + i] += dx[i];
      }
    }
    Array& dtable = d_["model.embed_tokens.weight"];
    for (size_t i = 0; i < input_.ids.size(); ++i) {
      for (int64_t j = 0; j < c_.dim; ++j) {
        dtable[input_.ids[i] * c_.dim + j] += dx[i * c_.dim + j];
      }
    }
    return std::move(d_);
  }

 private:
  bool Has(const std::string& name) const { return params_.count(name) > 0; }

  Array Linear(const std::string& name, const Array& x) const {
    const Array& w = params_.at(name + ".weight");
    const int64_t rows = int64_t(input_.ids.size()), k = int64_t(x.size()) / rows;
    return reference::MatMul(x, w, Has(name + ".bias") ? params_.at(name + ".bias") : Array(), rows,
                             int64_t(w.size()) / k, k);
  }
  Array LinearBackward(const std::string& name, const Array& x, const Array& dout) {
    const Array& w = params_.at(name + ".weight");
    const int64_t rows = int64_t(input_.ids.size()), k = int64_t(x.size()) / rows;
    const auto g = reference::MatMulBackward(x, w, dout, rows, int64_t(w.size()) / k, k);
    AddTo(d_[name + ".weight"], g.dw_nk);
    if (Has(name + ".bias")) AddTo(d_[name + ".bias"], g.dbias_n);
    return g.dx_mk;
  }

  // Rows of as many elements as the gain has. The norms of heads are RmsNorms in every model.
  bool IsLayerNorm(const std::string& name) const { return Has(name + ".bias"); }
  Array Norm(const std::string& name, const Array& x) const {
    if (IsLayerNorm(name)) {
      return reference::LayerNorm(x, params_.at(name + ".weight"), params_.at(name + ".bias"),
                                  c_.norm_epsilon);
    }
    return reference::RmsNorm(x, params_.at(name + ".weight"), c_.norm_epsilon);
  }
  Array NormBackward(const std::string& name, const Array& x, const Array& dout) {
    const Array& gain = params_.at(name + ".weight");
    const auto g = IsLayerNorm(name) ? reference::LayerNormBackward(x, gain, c_.norm_epsilon, dout)
                                     : reference::RmsNormBackward(x, gain, c_.norm_epsilon, dout);
    AddTo(d_[name + ".weight"], g.dgain_D);
    if (IsLayerNorm(name)) AddTo(d_[name + ".bias"], g.dbias_D);
    return g.dx_tD;
  }

  // da of MLP(a) from the gradient of its output.
  Array MlpBackward(const std::string& name, const Array& a, const Array& dout) {
    const Array up = Linear(name + "up_proj", a);
    if (c_.activation == Activation::kGelu) {
      const Array dhidden = LinearBackward(name + "down_proj", reference::Gelu(up), dout);
      return LinearBackward(name + "up_proj", a, reference::GeluBackward(up, dhidden));
    }
    const Array gate = Linear(name + "gate_proj", a);
    const Array dhidden = LinearBackward(name + "down_proj", reference::SwiGlu(gate, up), dout);
    const auto g = reference::SwiGluBackward(gate, up, dhidden);
    Array da = LinearBackward(name + "gate_proj", a, g.dgate);
    AddTo(da, LinearBackward(name + "up_proj", a, g.dup));
    return da;
  }

  // The gradient of the layer's input from that of its output.
  Array Layer(const std::string& name, int64_t window, const Array& x, const Array& dout) {
    const std::string attention = name + "self_attn.", mlp = name + "mlp.";
    const bool normed = Has(attention + "q_norm.weight");
    const bool rope = c_.positions == PositionKind::kRope;
    const auto rotated = [&](const Array& rows, int64_t heads) {
      if (!rope) return rows;
      return reference::Rope(rows, positions_, heads, input_.inv_freq, input_.rope_scale);
    };
    const auto unrotated = [&](const Array& rows, int64_t heads) {
      if (!rope) return rows;
      return reference::RopeBackward(rows, positions_, heads, input_.inv_freq, input_.rope_scale);
    };
    const Array a = Norm(name + "input_layernorm", x);
    const Array q = Linear(attention + "q_proj", a), k = Linear(attention + "k_proj", a);
    reference::AttentionInput in;
    in.heads = c_.query_heads, in.kv_heads = c_.kv_heads, in.head_dim = c_.head_dim;
    in.kv_index = kv_index_, in.q_positions = in.k_positions = positions_;
    in.q_thK = rotated(normed ? Norm(attention + "q_norm", q) : q, c_.query_heads);
    in.k_ngK = rotated(normed ? Norm(attention + "k_norm", k) : k, c_.kv_heads);
    in.v_ngK = Linear(attention + "v_proj", a);
    in.window = window, in.scale = 1 / std::sqrt(double(c_.head_dim));
    const Array o = reference::Attention(in).o_thK;

    // Serial: x2 = x + Wo o, out = x2 + MLP(norm2(x2)). Parallel: out = x + Wo o + MLP(a).
    Array dx = dout, da1(a.size());
    if (c_.parallel_block) {
      da1 = MlpBackward(mlp, a, dout);
    } else {
      Array x2 = Linear(attention + "o_proj", o);
      AddTo(x2, x);
      const std::string norm2 = name + "post_attention_layernorm";
      AddTo(dx, NormBackward(norm2, x2, MlpBackward(mlp, Norm(norm2, x2), dout)));
    }
    const Array dattended = dx;
    const auto da =
        reference::AttentionBackward(in, LinearBackward(attention + "o_proj", o, dattended));
    Array dq = unrotated(da.dq_thK, c_.query_heads), dk = unrotated(da.dk_ngK, c_.kv_heads);
    if (normed) {
      dq = NormBackward(attention + "q_norm", q, dq);
      dk = NormBackward(attention + "k_norm", k, dk);
    }
    AddTo(da1, LinearBackward(attention + "q_proj", a, dq));
    AddTo(da1, LinearBackward(attention + "k_proj", a, dk));
    AddTo(da1, LinearBackward(attention + "v_proj", a, da.dv_ngK));
    AddTo(dx, NormBackward(name + "input_layernorm", x, da1));
    return dx;
  }

  const ModelConfig& c_;
  const ReferenceParams& params_;
  const ReferenceInput& input_;
  std::vector<int32_t> positions_, kv_index_;
  ReferenceParams d_;
};

// The loss, and its gradient by the logits unless null.
double LossOfLogits(const Array& logits, const ReferenceLoss& loss, Array* dlogits) {
  std::vector<int32_t> labels = loss.labels;
  for (int32_t& label : labels) label = std::max(label, 0);
  Array log_p, log_z, d_log_p(labels.size()), d_log_z(labels.size());
  reference::LogProbabilities(logits, labels, &log_p, &log_z);
  double sum = 0;
  for (size_t i = 0; i < labels.size(); ++i) {
    const double weight = loss.labels[i] < 0 ? 0.0 : loss.weights[i];
    sum += weight * (-log_p[i] + loss.zeta * log_z[i] * log_z[i]);
    d_log_p[i] = -weight, d_log_z[i] = 2 * loss.zeta * weight * log_z[i];
  }
  if (dlogits != nullptr) {
    *dlogits = reference::LogProbabilitiesBackward(logits, labels, d_log_p, d_log_z);
  }
  return sum;
}

}  // namespace

double ReferenceLossOf(const ModelConfig& config, const ReferenceParams& params,
                       const ReferenceInput& input, const ReferenceLoss& loss) {
  return LossOfLogits(ReferenceForward(config, params, input).logits, loss, nullptr);
}

ReferenceGradients ReferenceBackward(const ModelConfig& config, const ReferenceParams& params,
                                     const ReferenceInput& input, const ReferenceLoss& loss) {
  ReferenceInput with_taps = input;
  with_taps.taps = true;
  const ReferenceOutput out = ReferenceForward(config, params, with_taps);
  std::vector<Array> layer_inputs;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (layer > 0) {
      layer_inputs.push_back(out.taps[layer - 1].residual);
      continue;
    }
    ReferenceInput none = input;
    none.layers = 0, none.logits = false;
    layer_inputs.push_back(ReferenceForward(config, params, none).residual);
  }
  ReferenceGradients gradients;
  Array dlogits;
  gradients.loss = LossOfLogits(out.logits, loss, &dlogits);
  gradients.d = Backward(config, params, input).Run(layer_inputs, out.residual, dlogits);
  return gradients;
}

}  // namespace toroid
