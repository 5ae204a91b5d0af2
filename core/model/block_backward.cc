// The backward of core/model/block.h. Each line stands under the forward line, quoted, that it
// differentiates; they run from the last line of Forward to the first.
#include <algorithm>

#include "core/model/block.h"

namespace toroid {

Partial Attention::Backward(const Pass& pass, int64_t layer, Tensor a_tD, const Kept& kept,
                            Tensor dy_tD, Tensor da_tD, const Attention& d) const {
  const int64_t t = pass.residual.tokens(), h = query_heads, g = kv_heads, K = head_dim;
  Backend& ops = pass.ops;
  const DType type = ops.dtype();
  Arena::Mark mark(pass.scratch);
  Tensor do_thK = pass.Long("dO", type, {t, h, K});
  Tensor dq_thK = pass.Long("dQ", type, {t, h, K});
  Tensor dkv_2tgK = NewKv(pass, "dKV", type);
  Tensor dk_tgK = dkv_2tgK.Rows(0, t), dv_tgK = dkv_2tgK.Rows(t, t);

  // y = o Wo^T
  o.BackwardPartial(ops, pass.s, kept.o_thK.Reshape({t, h * K}), dy_tD, do_thK.Reshape({t, h * K}),
                    d.o);
  pass.Announce(layer, Tap::kDAttentionOut, do_thK);
  // o, lse = attend(q, kv)
  ops.Fill(pass.s, dq_thK, 0.0);
  ops.Fill(pass.s, dkv_2tgK, 0.0);
  pass.attend_backward(layer, spec, kept.q_thK, kept.kv_2tgK, kept.o_thK, kept.lse_th, do_thK,
                       dq_thK, dkv_2tgK);
  pass.Announce(layer, Tap::kDQuery, dq_thK);
  pass.Announce(layer, Tap::kDKey, dk_tgK);
  pass.Announce(layer, Tap::kDValue, dv_tgK);
  // Rope(q), Rope(k)
  ops.RopeBackward(pass.s, dq_thK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  ops.RopeBackward(pass.s, dk_tgK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  // q = RmsNorm(Wq a), k = RmsNorm(Wk a), by head; its input is made again in the place of dO
  const auto norm = [&](const Linear& product, int64_t heads, Tensor gain_K, Tensor dx,
                        Tensor dgain_K) {
    Tensor input = Tensor(type, {t, heads * K}, do_thK.data);
    product.Forward(ops, pass.s, a_tD, input);
    const Tensor rows = dx.Reshape({t * heads, K});
    ops.RmsNormBackward(pass.s, input.Reshape({t * heads, K}), gain_K, norm_epsilon, rows, rows,
                        dgain_K);
  };
  if (!q_norm_K.empty()) {
    norm(q, h, q_norm_K, dq_thK, d.q_norm_K);
    norm(k, g, k_norm_K, dk_tgK, d.k_norm_K);  // g <= h: there is room
  }
  // q = a Wq^T, k = a Wk^T, v = a Wv^T: da contracts over h and g
  const Tensor da = da_tD.Rows(0, t);
  q.Backward(ops, pass.s, a_tD, dq_thK.Reshape({t, h * K}), /*add_dx=*/false, da, d.q);
  k.Backward(ops, pass.s, a_tD, dk_tgK.Reshape({t, g * K}), /*add_dx=*/true, da, d.k);
  v.Backward(ops, pass.s, a_tD, dv_tgK.Reshape({t, g * K}), /*add_dx=*/true, da, d.v);
  return pass.Owed(da_tD);
}

Partial Mlp::Backward(const Pass& pass, Tensor a_tD, const Kept& kept, Tensor dy_tD, Tensor da_tD,
                      const Mlp& d) const {
  const int64_t t = pass.residual.tokens(), f = gate.weight.rows();
  Backend& ops = pass.ops;
  for (int64_t begin = 0; begin < t; begin += pass.token_block) {
    const int64_t b = std::min(pass.token_block, t - begin);
    const Tensor a_bD = a_tD.Rows(begin, b), da_bD = da_tD.Rows(begin, b);
    Arena::Mark mark(pass.scratch);
    Tensor hidden_bf = pass.scratch.New("hidden", ops.dtype(), {b, f});
    Tensor dhidden_bf = pass.scratch.New("dhidden", ops.dtype(), {b, f});
    Tensor gate_bf, up_bf;
    if (kept.gate_tf.given()) {
      gate_bf = kept.gate_tf.Rows(begin, b), up_bf = kept.up_tf.Rows(begin, b);
    } else {
      gate_bf = pass.scratch.New("gate", ops.dtype(), {b, f});
      up_bf = pass.scratch.New("up", ops.dtype(), {b, f});
      gate.Forward(ops, pass.s, a_bD, gate_bf);
      up.Forward(ops, pass.s, a_bD, up_bf);
    }
    ops.SwiGlu(pass.s, gate_bf, up_bf, hidden_bf);
    // y = hidden W2^T
    down.BackwardPartial(ops, pass.s, hidden_bf, dy_tD.Rows(begin, b), dhidden_bf, d.down);
    // hidden = silu(gate) * up; nobody reads hidden any more, so dup takes its place
    const Tensor dgate_bf = dhidden_bf, dup_bf = hidden_bf;
    ops.SwiGluBackward(pass.s, gate_bf, up_bf, dhidden_bf, dgate_bf, dup_bf);
    // gate = a W1^T, up = a W3^T: da contracts over f
    gate.Backward(ops, pass.s, a_bD, dgate_bf, /*add_dx=*/false, da_bD, d.gate);
    up.Backward(ops, pass.s, a_bD, dup_bf, /*add_dx=*/true, da_bD, d.up);
  }
  return pass.Owed(da_tD);
}

void Block::ReduceNormed(const Pass& pass, int64_t layer, Tap tap, Tensor x_uD, Tensor gain_D,
                         Partial owed, Tensor da_uD, Tensor dx_uD, Tensor dgain_D) const {
  // a_tD = AllGather(a_uD)
  da_uD = pass.residual.Reduce(pass.tensor, pass.s, owed, da_uD);
  pass.Announce(layer, tap, da_uD);
  // a_uD = norm(x_uD)
  pass.ops.RmsNormBackward(pass.s, x_uD, gain_D, norm_epsilon, da_uD, da_uD, dgain_D);
  pass.ops.Add(pass.s, dx_uD, da_uD);
}

void Block::BackwardMlp(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                        Tensor dy_tD, Tensor da_tD, const Block& d) const {
  const ResidualLayout& residual = pass.residual;
  const int64_t t = residual.tokens();
  Arena::Mark mark(pass.scratch);
  Tensor a_tD = full.mlp_in_tD;
  if (!a_tD.given()) {
    a_tD = pass.Long("a", pass.ops.dtype(), {residual.padded(), dx_uD.cols()});
    GatherNormed(pass, full.x2_uD, mlp_norm_D, a_tD);
    pass.Announce(layer, Tap::kMlpIn, a_tD.Rows(0, t));
  }
  // x += y: dy is dx.  y_uD = ReduceScatter(y_tD) + bias
  mlp.down.AddBiasBackward(pass.ops, pass.s, dx_uD.Rows(0, residual.valid()), d.mlp.down);
  pass.ops.Copy(pass.s, dx_uD, residual.Share(dy_tD));
  residual.Gather(pass.tensor, pass.s, dy_tD);
  // y_tD = mlp(a_tD)
  const Partial owed =
      mlp.Backward(pass, a_tD.Rows(0, t), full.mlp, dy_tD.Rows(0, t), da_tD, d.mlp);
  // a_tD = GatherNormed(x_uD)
  ReduceNormed(pass, layer, Tap::kDMlpIn, full.x2_uD, mlp_norm_D, owed, residual.Share(da_tD),
               dx_uD, d.mlp_norm_D);
}

void Block::BackwardAttention(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                              Tensor dy_tD, Tensor da_tD, const Block& d) const {
  const ResidualLayout& residual = pass.residual;
  const int64_t t = residual.tokens();
  // x += y: dy is dx.  y_uD = ReduceScatter(y_tD) + bias
  attention.o.AddBiasBackward(pass.ops, pass.s, dx_uD.Rows(0, residual.valid()), d.attention.o);
  pass.ops.Copy(pass.s, dx_uD, residual.Share(dy_tD));
  residual.Gather(pass.tensor, pass.s, dy_tD);
  // y_tD = attention(a_tD)
  const Partial owed = attention.Backward(pass, layer, full.attention_in_tD.Rows(0, t),
                                          full.attention, dy_tD.Rows(0, t), da_tD, d.attention);
  // a_tD = GatherNormed(x_uD)
  ReduceNormed(pass, layer, Tap::kDAttentionIn, full.x_uD, attention_norm_D, owed,
               residual.Share(da_tD), dx_uD, d.attention_norm_D);
}

void Block::Backward(const Pass& pass, int64_t layer, const Saved& saved, Tensor dx_uD,
                     const Block& d) const {
  TOROID_CHECK(!pass.residual.whole());
  const DType type = pass.ops.dtype();
  const int64_t t = pass.residual.tokens(), padded = pass.residual.padded(), D = dx_uD.cols();
  Arena::Mark mark(pass.scratch);
  Tensor dy_tD = pass.Long("dy", type, {padded, D});
  Tensor da_tD = pass.Long("da", type, {padded, D});
  Saved full = saved;  // what was not saved is filled in below, in scratch
  const auto new_q = [&] {
    return pass.Long("Q", type, {t, attention.query_heads, attention.head_dim});
  };
  pass.Announce(layer, Tap::kDResidual, dx_uD);

  if (!saved.x2_uD.given()) {  // the first half again, keeping all of it
    full.attention_in_tD = pass.Long("a", type, {padded, D});
    full.x2_uD = pass.Long("x2", type, {pass.residual.share(), D});
    full.attention.q_thK = new_q();
    full.attention.kv_2tgK = attention.NewKv(pass, "KV", pass.kv_dtype);
    full.attention.o_thK = pass.Long("O", type, {t, attention.query_heads, attention.head_dim});
    full.attention.lse_th = pass.Long("LSE", type, {t, attention.query_heads});
    pass.ops.Copy(pass.s, saved.x_uD, full.x2_uD);
    ForwardAttention(pass, layer, full.x2_uD, full.attention_in_tD, dy_tD, full.attention);
  }
  BackwardMlp(pass, layer, full, dx_uD, dy_tD, da_tD, d);
  if (!full.attention_in_tD.given()) {
    full.attention_in_tD = pass.Long("a", type, {padded, D});
    GatherNormed(pass, saved.x_uD, attention_norm_D, full.attention_in_tD);
    pass.Announce(layer, Tap::kAttentionIn, full.attention_in_tD.Rows(0, t));
    full.attention.q_thK = new_q();
    full.attention.kv_2tgK =
        attention.Project(pass, layer, full.attention_in_tD.Rows(0, t), full.attention.q_thK);
  } else if (saved.attention.kv_2tgK.given()) {  // what is saved does not travel
    full.attention.kv_2tgK = attention.NewKv(pass, "KV", pass.kv_dtype);
    pass.ops.Copy(pass.s, saved.attention.kv_2tgK, full.attention.kv_2tgK);
  }
  BackwardAttention(pass, layer, full, dx_uD, dy_tD, da_tD, d);
}

}  // namespace toroid
