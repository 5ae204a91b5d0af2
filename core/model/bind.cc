#include "core/model/bind.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

AttentionSpec SpecOf(const ModelConfig& config, int64_t layer) {
  AttentionSpec spec;
  spec.window = config.window(layer);
  spec.scale = 1.0 / std::sqrt(double(config.head_dim));
  return spec;
}

Tensor Vector(const FindParam& find, const std::string& name) {
  const Tensor row = find(name);
  return row.dim_count == 0 ? row : row.Reshape({row.size()});
}

Linear BindLinear(const FindParam& find, const std::string& name) {
  return {find(name + ".weight"), Vector(find, name + ".bias")};
}

Norm BindNorm(const ModelConfig& config, const FindParam& find, const std::string& name) {
  return {config.norm, Vector(find, name + ".weight"), Vector(find, name + ".bias"),
          config.norm_epsilon};
}

}  // namespace

Block BindBlock(const ModelConfig& config, const ParamLayout& layout, int64_t layer,
                const FindParam& find) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
  Block block;
  block.attention_norm = BindNorm(config, find, prefix + "input_layernorm");
  block.parallel = config.parallel_block;
  if (!block.parallel) block.mlp_norm = BindNorm(config, find, prefix + "post_attention_layernorm");
  block.attention.q = BindLinear(find, attention + "q_proj");
  block.attention.k = BindLinear(find, attention + "k_proj");
  block.attention.v = BindLinear(find, attention + "v_proj");
  block.attention.o = BindLinear(find, attention + "o_proj");
  block.attention.q_norm_K = Vector(find, attention + "q_norm.weight");
  block.attention.k_norm_K = Vector(find, attention + "k_norm.weight");
  block.attention.query_heads = layout.heads().query_count();
  block.attention.kv_heads = layout.heads().kv_count();
  block.attention.head_dim = config.head_dim;
  block.attention.norm_epsilon = config.norm_epsilon;
  block.attention.rope = config.positions == PositionKind::kRope;
  block.attention.spec = SpecOf(config, layer);
  block.mlp.activation = config.activation;
  if (config.activation == Activation::kSwiGlu) {
    block.mlp.gate = BindLinear(find, mlp + "gate_proj");
  }
  block.mlp.up = BindLinear(find, mlp + "up_proj");
  block.mlp.down = BindLinear(find, mlp + "down_proj");
  return block;
}

ModelEnds BindEnds(const ModelConfig& config, const ParamLayout& layout, const FindParam& find) {
  ModelEnds ends;
  ends.embedding_vD = find("model.embed_tokens.weight");
  ends.final_norm = BindNorm(config, find, "model.norm");
  ends.head_vD = config.tied_embeddings ? ends.embedding_vD : find("lm_head.weight");
  ends.logit_scale = config.logit_scale;
  ends.learned_positions = config.positions == PositionKind::kLearned;
  if (ends.learned_positions) ends.positions_cD = find("model.embed_positions.weight");
  ends.positions = layout.positions();
  ends.vocab = layout.vocab();
  ends.vocab_padded = layout.vocab_padded();
  return ends;
}

}  // namespace toroid
