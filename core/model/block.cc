#include "core/model/block.h"

#include <algorithm>
#include <limits>

namespace toroid {
namespace {

// The rows that only pad `tensor`'s equal counts are zero, so that sums and later norms stay zero.
Partial ZeroPadding(const Pass& pass, Tensor y_tD) {
  const int64_t t = pass.residual.tokens();
  if (y_tD.rows() > t) pass.ops.Fill(pass.s, y_tD.Rows(t, y_tD.rows() - t), 0.0);
  return Partial(y_tD);
}

}  // namespace

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
  }
  return "";
}

Partial Attention::Forward(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD) const {
  const int64_t t = pass.residual.tokens(), h = query_heads, g = kv_heads, K = head_dim;
  Backend& ops = pass.ops;
  const DType type = ops.dtype();
  Arena::Mark mark(pass.scratch);

  Tensor q_thK = pass.Long("Q", type, {t, h, K});
  const int64_t room = std::max(t, pass.kv_capacity);  // it will travel: the longest share fits
  Tensor kv_2tgK = pass.Long("KV", type, {2 * room, g, K}).Rows(0, 2 * t);
  Tensor k_tgK = kv_2tgK.Rows(0, t), v_tgK = kv_2tgK.Rows(t, t);
  q.Forward(ops, pass.s, a_tD, q_thK.Reshape({t, h * K}));
  k.Forward(ops, pass.s, a_tD, k_tgK.Reshape({t, g * K}));
  v.Forward(ops, pass.s, a_tD, v_tgK.Reshape({t, g * K}));
  if (!q_norm_K.empty()) {
    const Tensor q_rows = q_thK.Reshape({t * h, K}), k_rows = k_tgK.Reshape({t * g, K});
    ops.RmsNorm(pass.s, q_rows, q_norm_K, norm_epsilon, q_rows);
    ops.RmsNorm(pass.s, k_rows, k_norm_K, norm_epsilon, k_rows);
  }
  ops.Rope(pass.s, q_thK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  ops.Rope(pass.s, k_tgK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  pass.Announce(layer, Tap::kQuery, q_thK);
  pass.Announce(layer, Tap::kKey, k_tgK);
  pass.Announce(layer, Tap::kValue, v_tgK);
  if (pass.kv_dtype != type) {  // bf16 on a CPU is storage: K and V are narrowed once, here
    Tensor stored = pass.Long("KV stored", pass.kv_dtype, {2 * room, g, K}).Rows(0, 2 * t);
    ops.Copy(pass.s, kv_2tgK, stored);
    kv_2tgK = stored;
  }

  Tensor o_thK = pass.Long("O", type, {t, h, K});
  Tensor lse_th = pass.Long("LSE", type, {t, h});
  ops.Fill(pass.s, o_thK, 0.0);
  ops.Fill(pass.s, lse_th, -std::numeric_limits<double>::infinity());
  pass.attend(layer, spec, q_thK, kv_2tgK, o_thK, lse_th);
  pass.Announce(layer, Tap::kAttentionOut, o_thK);
  o.ForwardPartial(ops, pass.s, o_thK.Reshape({t, h * K}), y_tD.Rows(0, t));  // contracts over h
  return ZeroPadding(pass, y_tD);
}

Partial Mlp::Forward(const Pass& pass, Tensor a_tD, Tensor y_tD) const {
  const int64_t t = pass.residual.tokens(), f = gate.weight.rows();
  const DType type = pass.ops.dtype();
  for (int64_t begin = 0; begin < t; begin += pass.token_block) {
    const int64_t b = std::min(pass.token_block, t - begin);
    Arena::Mark mark(pass.scratch);
    Tensor gate_bf = pass.scratch.New("gate", type, {b, f});
    Tensor up_bf = pass.scratch.New("up", type, {b, f});
    gate.Forward(pass.ops, pass.s, a_tD.Rows(begin, b), gate_bf);
    up.Forward(pass.ops, pass.s, a_tD.Rows(begin, b), up_bf);
    pass.ops.SwiGlu(pass.s, gate_bf, up_bf, gate_bf);
    down.ForwardPartial(pass.ops, pass.s, gate_bf, y_tD.Rows(begin, b));  // contracts over f
  }
  return ZeroPadding(pass, y_tD);
}

void Block::Forward(const Pass& pass, int64_t layer, Tensor x_uD) const {
  const ResidualLayout& residual = pass.residual;
  Backend& ops = pass.ops;
  const int64_t D = x_uD.cols();
  Arena::Mark mark(pass.scratch);
  Tensor a_tD = pass.Long("a", ops.dtype(), {residual.padded(), D});
  Tensor y_tD = pass.Long("y", ops.dtype(), {residual.padded(), D});
  const Tensor tokens_tD = a_tD.Rows(0, residual.tokens());

  // x += sum over h of Wo Attention(norm1(x))
  ops.RmsNorm(pass.s, x_uD, attention_norm_D, norm_epsilon, residual.Share(a_tD));
  residual.Gather(pass.tensor, pass.s, a_tD);
  pass.Announce(layer, Tap::kAttentionIn, tokens_tD);
  Partial owed = attention.Forward(pass, layer, tokens_tD, y_tD);
  Tensor y_uD = residual.Reduce(pass.tensor, pass.s, owed, residual.Share(y_tD));
  attention.o.AddBias(ops, pass.s, y_uD.Rows(0, residual.valid()));
  ops.Add(pass.s, x_uD, y_uD);

  // x += sum over f of W2 (silu(W1 a) * W3 a), a = norm2(x)
  ops.RmsNorm(pass.s, x_uD, mlp_norm_D, norm_epsilon, residual.Share(a_tD));
  residual.Gather(pass.tensor, pass.s, a_tD);
  pass.Announce(layer, Tap::kMlpIn, tokens_tD);
  owed = mlp.Forward(pass, tokens_tD, y_tD);
  y_uD = residual.Reduce(pass.tensor, pass.s, owed, residual.Share(y_tD));
  mlp.down.AddBias(ops, pass.s, y_uD.Rows(0, residual.valid()));
  pass.Announce(layer, Tap::kMlpOut, y_uD);
  ops.Add(pass.s, x_uD, y_uD);
  pass.Announce(layer, Tap::kResidual, x_uD);
}

}  // namespace toroid
