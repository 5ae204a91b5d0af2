#include "core/model/block.h"

#include <algorithm>
#include <limits>

namespace toroid {

const char* TapName(Tap tap) {
  switch (tap) {
    case Tap::kAttentionIn:
      return "attention_in";
    case Tap::kQuery:
      return "query";
    case Tap::kKey:
      return "key";
    case Tap::kValue:
      return "value";
    case Tap::kAttentionOut:
      return "attention_out";
    case Tap::kMlpIn:
      return "mlp_in";
    case Tap::kMlpOut:
      return "mlp_out";
    case Tap::kResidual:
      return "residual";
    case Tap::kDResidual:
      return "d_residual";
    case Tap::kDMlpIn:
      return "d_mlp_in";
    case Tap::kDAttentionOut:
      return "d_attention_out";
    case Tap::kDQuery:
      return "d_query";
    case Tap::kDKey:
      return "d_key";
    case Tap::kDValue:
      return "d_value";
    case Tap::kDAttentionIn:
      return "d_attention_in";
  }
  return "";
}

Tensor Attention::NewKv(const Pass& pass, const char* name, DType type) const {
  const int64_t t = pass.residual.tokens();
  const int64_t room = std::max(t, pass.kv_capacity);  // it will travel: the longest share fits
  return pass.Long(name, type, {2 * room, kv_heads, head_dim}).Rows(0, 2 * t);
}

Tensor Attention::Project(const Pass& pass, int64_t layer, Tensor a_tD, Tensor q_thK) const {
  const int64_t t = pass.residual.tokens(), h = query_heads, g = kv_heads, K = head_dim;
  Backend& ops = pass.ops;
  Tensor kv_2tgK = NewKv(pass, "KV", pass.activation);
  Tensor k_tgK = kv_2tgK.Rows(0, t), v_tgK = kv_2tgK.Rows(t, t);
  q.Forward(ops, pass.s, a_tD, q_thK.Reshape({t, h * K}));
  k.Forward(ops, pass.s, a_tD, k_tgK.Reshape({t, g * K}));
  v.Forward(ops, pass.s, a_tD, v_tgK.Reshape({t, g * K}));
  if (!q_norm_K.empty()) {
    const Tensor q_rows = q_thK.Reshape({t * h, K}), k_rows = k_tgK.Reshape({t * g, K});
    ops.RmsNorm(pass.s, q_rows, q_norm_K, norm_epsilon, q_rows);
    ops.RmsNorm(pass.s, k_rows, k_norm_K, norm_epsilon, k_rows);
  }
  if (rope) {
    ops.Rope(pass.s, q_thK, pass.positions_t, pass.inv_freq, pass.rope_scale);
    ops.Rope(pass.s, k_tgK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  }
  pass.Announce(layer, Tap::kQuery, q_thK);
  pass.Announce(layer, Tap::kKey, k_tgK);
  pass.Announce(layer, Tap::kValue, v_tgK);
  if (pass.kv_dtype == kv_2tgK.dtype) return kv_2tgK;
  // bf16 on a CPU is storage: K and V are narrowed once, here
  Tensor stored = NewKv(pass, "KV stored", pass.kv_dtype);
  ops.Copy(pass.s, kv_2tgK, stored);
  return stored;
}

Attention::Kept Attention::Attend(const Pass& pass, int64_t layer, Tensor a_tD, Kept kept) const {
  const int64_t t = pass.residual.tokens(), h = query_heads, K = head_dim;
  Backend& ops = pass.ops;
  if (!kept.q_thK.given()) kept.q_thK = pass.Long("Q", pass.activation, {t, h, K});
  const Tensor kv_2tgK = Project(pass, layer, a_tD, kept.q_thK);
  if (kept.kv_2tgK.given()) ops.Copy(pass.s, kv_2tgK, kept.kv_2tgK);  // ours will travel
  if (!kept.o_thK.given()) kept.o_thK = pass.Long("O", ops.dtype(), {t, h, K});
  if (!kept.lse_th.given()) kept.lse_th = pass.Long("LSE", ops.dtype(), {t, h});
  ops.Fill(pass.s, kept.o_thK, 0.0);
  ops.Fill(pass.s, kept.lse_th, -std::numeric_limits<double>::infinity());
  pass.attend(layer, spec, kept.q_thK, kv_2tgK, kept.o_thK, kept.lse_th);
  pass.Announce(layer, Tap::kAttentionOut, kept.o_thK);
  return kept;
}

Partial Attention::Forward(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD,
                           const Kept& kept) const {
  const int64_t t = pass.residual.tokens();
  Arena::Mark mark(pass.scratch);
  const Tensor o_thK = Attend(pass, layer, a_tD, kept).o_thK;
  o.ForwardPartial(pass.ops, pass.s, o_thK.Reshape({t, query_heads * head_dim}),
                   y_tD.Rows(0, t));  // contracts over h
  return pass.Owed(y_tD);
}

void Attention::ForwardAdd(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD,
                           const Kept& kept, Tensor x_tD, Tensor out_tD) const {
  const int64_t t = pass.residual.tokens();
  Arena::Mark mark(pass.scratch);
  const Tensor o_thK = Attend(pass, layer, a_tD, kept).o_thK;
  pass.ops.MatMulAdd(pass.s, o_thK.Reshape({t, query_heads * head_dim}), o.weight, x_tD,
                     y_tD.Rows(0, t), out_tD);
}

void Mlp::ForEachHidden(const Pass& pass, Tensor a_tD, const Kept& kept,
                        const std::function<void(int64_t begin, Tensor hidden_bf)>& down) const {
  const int64_t t = pass.residual.tokens(), f = up.weight.rows();
  Backend& ops = pass.ops;
  const DType type = pass.activation;
  for (int64_t begin = 0; begin < t; begin += pass.token_block) {
    const int64_t b = std::min(pass.token_block, t - begin);
    const Tensor a_bD = a_tD.Rows(begin, b);
    Arena::Mark mark(pass.scratch);
    Tensor hidden_bf = pass.scratch.New("hidden", type, {b, f});
    if (activation == Activation::kGelu) {
      Tensor up_bf = kept.up_tf.given() ? kept.up_tf.Rows(begin, b) : hidden_bf;
      up.Forward(ops, pass.s, a_bD, up_bf);
      ops.Gelu(pass.s, up_bf, hidden_bf);
    } else {
      Tensor gate_bf = kept.gate_tf.given() ? kept.gate_tf.Rows(begin, b) : hidden_bf;
      Tensor up_bf =
          kept.up_tf.given() ? kept.up_tf.Rows(begin, b) : pass.scratch.New("up", type, {b, f});
      gate.Forward(ops, pass.s, a_bD, gate_bf);
      up.Forward(ops, pass.s, a_bD, up_bf);
      ops.SwiGlu(pass.s, gate_bf, up_bf, hidden_bf);
    }
    down(begin, hidden_bf);
  }
}

Partial Mlp::Forward(const Pass& pass, Tensor a_tD, Tensor y_tD, const Kept& kept,
                     bool add_y) const {
  ForEachHidden(pass, a_tD, kept, [&](int64_t begin, Tensor hidden_bf) {
    const int64_t b = hidden_bf.rows();
    const Tensor y_bD = y_tD.Rows(begin, b);
    const Tensor product_bD = add_y ? pass.scratch.New("mlp", y_tD.dtype, {b, y_tD.cols()}) : y_bD;
    down.ForwardPartial(pass.ops, pass.s, hidden_bf, product_bD);  // contracts over f
    if (add_y) pass.ops.Add(pass.s, y_bD, product_bD);
  });
  return pass.Owed(y_tD);
}

void Mlp::ForwardAdd(const Pass& pass, Tensor a_tD, Tensor y_tD, const Kept& kept, Tensor x_tD,
                     Tensor out_tD) const {
  ForEachHidden(pass, a_tD, kept, [&](int64_t begin, Tensor hidden_bf) {
    const int64_t b = hidden_bf.rows();
    pass.ops.MatMulAdd(pass.s, hidden_bf, down.weight, x_tD.Rows(begin, b), y_tD.Rows(begin, b),
                       out_tD.Rows(begin, b));
  });
}

Block::Saved Block::NewSaved(const Pass& pass, Remat remat, Arena& saved) const {
  const DType type = pass.ops.dtype(), activation = pass.activation;
  const int64_t t = pass.residual.tokens(), u = pass.residual.share();
  const int64_t D = attention_norm.gain_D.size(), f = mlp.up.weight.rows();
  const int64_t h = attention.query_heads, g = attention.kv_heads, K = attention.head_dim;
  const auto keep = [&](const char* name, DType of, std::initializer_list<int64_t> shape) {
    return saved.New(name, of, shape, Arena::Length::kTokens);
  };
  Saved s;
  s.x_uD = keep("x", type, {u, D});
  if (remat == Remat::kBlock) return s;
  if (!parallel) s.x2_uD = keep("x2", type, {u, D});
  s.attention.o_thK = keep("O", type, {t, h, K});
  s.attention.lse_th = keep("LSE", type, {t, h});
  if (remat == Remat::kAttentionOutput) return s;
  s.attention.q_thK = keep("Q", activation, {t, h, K});
  s.attention.kv_2tgK = keep("KV", pass.kv_dtype, {2 * t, g, K});
  s.attention_in_tD = keep("a", activation, {pass.residual.padded(), D});
  s.mlp_in_tD = parallel ? s.attention_in_tD : keep("a", activation, {pass.residual.padded(), D});
  if (mlp.activation == Activation::kSwiGlu) s.mlp.gate_tf = keep("gate", activation, {t, f});
  s.mlp.up_tf = keep("up", activation, {t, f});
  return s;
}

void Block::GatherNormed(const Pass& pass, Tensor x_uD, const Norm& norm, Tensor a_tD) const {
  norm.Forward(pass.ops, pass.s, x_uD, pass.residual.Share(a_tD));
  pass.residual.Gather(pass.tensor, pass.s, a_tD);
}

bool Block::EndsInProduct(const Pass& pass, const Linear& last) {
  return pass.tensor.size() == 1 && last.bias.empty() && pass.dropout.rate == 0 &&
         pass.observer == nullptr;
}

// out = x + sum over h of Wo Attention(norm1(x))
void Block::ForwardAttention(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                             const Attention::Kept& kept, Tensor out_uD) const {
  const ResidualLayout& residual = pass.residual;
  const Tensor tokens_tD = a_tD.Rows(0, residual.tokens());
  GatherNormed(pass, x_uD, attention_norm, a_tD);
  pass.Announce(layer, Tap::kAttentionIn, tokens_tD);
  if (EndsInProduct(pass, attention.o)) {
    return attention.ForwardAdd(pass, layer, tokens_tD, y_tD, kept, x_uD, out_uD);
  }
  const Partial owed = attention.Forward(pass, layer, tokens_tD, y_tD, kept);
  Tensor y_uD = residual.Reduce(pass.tensor, pass.s, owed, residual.Share(y_tD));
  attention.o.AddBias(pass.ops, pass.s, y_uD.Rows(0, residual.valid()));
  pass.Drop(layer, DropoutSite::kAttention, y_uD);
  if (out_uD.data != x_uD.data) pass.ops.Copy(pass.s, x_uD, out_uD);
  pass.ops.Add(pass.s, out_uD, y_uD);
}

// out = x + sum over f of W2 (silu(W1 a) * W3 a), a = norm2(x)
void Block::ForwardMlp(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                       const Mlp::Kept& kept, Tensor out_uD) const {
  const ResidualLayout& residual = pass.residual;
  const Tensor tokens_tD = a_tD.Rows(0, residual.tokens());
  GatherNormed(pass, x_uD, mlp_norm, a_tD);
  pass.Announce(layer, Tap::kMlpIn, tokens_tD);
  if (EndsInProduct(pass, mlp.down)) {
    return mlp.ForwardAdd(pass, tokens_tD, y_tD, kept, x_uD, out_uD);
  }
  const Partial owed = mlp.Forward(pass, tokens_tD, y_tD, kept);
  Tensor y_uD = residual.Reduce(pass.tensor, pass.s, owed, residual.Share(y_tD));
  mlp.down.AddBias(pass.ops, pass.s, y_uD.Rows(0, residual.valid()));
  pass.Drop(layer, DropoutSite::kMlp, y_uD);
  pass.Announce(layer, Tap::kMlpOut, y_uD);
  if (out_uD.data != x_uD.data) pass.ops.Copy(pass.s, x_uD, out_uD);
  pass.ops.Add(pass.s, out_uD, y_uD);
}

// x += sum over h and f of Wo Attention(a) + W2 (silu(W1 a) * W3 a), a = norm1(x)
void Block::ForwardParallel(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                            const Saved& kept) const {
  const ResidualLayout& residual = pass.residual;
  const Tensor tokens_tD = a_tD.Rows(0, residual.tokens());
  GatherNormed(pass, x_uD, attention_norm, a_tD);
  pass.Announce(layer, Tap::kAttentionIn, tokens_tD);
  Partial owed = attention.Forward(pass, layer, tokens_tD, y_tD, kept.attention);
  pass.Announce(layer, Tap::kMlpIn, tokens_tD);
  owed = mlp.Forward(pass, tokens_tD, y_tD, kept.mlp, /*add_y=*/true);  // both share one sum
  Tensor y_uD = residual.Reduce(pass.tensor, pass.s, owed, residual.Share(y_tD));
  attention.o.AddBias(pass.ops, pass.s, y_uD.Rows(0, residual.valid()));
  mlp.down.AddBias(pass.ops, pass.s, y_uD.Rows(0, residual.valid()));
  pass.Drop(layer, DropoutSite::kMlp, y_uD);
  pass.Announce(layer, Tap::kMlpOut, y_uD);
  pass.ops.Add(pass.s, x_uD, y_uD);
}

void Block::Forward(const Pass& pass, int64_t layer, Tensor x_uD, const Saved* saved) const {
  const Saved keep = saved == nullptr ? Saved{} : *saved;
  const DType type = pass.ops.dtype();
  const int64_t D = x_uD.cols(), padded = pass.residual.padded();
  Arena::Mark mark(pass.scratch);
  const bool keeps_a = keep.attention_in_tD.given();
  const Tensor a_tD = keeps_a ? keep.attention_in_tD : pass.Long("a", pass.activation, {padded, D});
  Tensor y_tD = pass.Long("y", type, {padded, D});

  if (keep.x_uD.given()) pass.ops.Copy(pass.s, x_uD, keep.x_uD);
  if (parallel) {
    ForwardParallel(pass, layer, x_uD, a_tD, y_tD, keep);
  } else {
    const Tensor x2_uD = keep.x2_uD.given() ? keep.x2_uD : x_uD;
    ForwardAttention(pass, layer, x_uD, a_tD, y_tD, keep.attention, x2_uD);
    ForwardMlp(pass, layer, x2_uD, keeps_a ? keep.mlp_in_tD : a_tD, y_tD, keep.mlp, x_uD);
  }
  pass.Announce(layer, Tap::kResidual, x_uD);
}

}  // namespace toroid
