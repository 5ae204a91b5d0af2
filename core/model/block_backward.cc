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
  Tensor do_thK = pass.Long("dO", pass.activation, {t, h, K});
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
  if (rope) {
    ops.RopeBackward(pass.s, dq_thK, pass.positions_t, pass.inv_freq, pass.rope_scale);
    ops.RopeBackward(pass.s, dk_tgK, pass.positions_t, pass.inv_freq, pass.rope_scale);
  }
  // q = RmsNorm(Wq a), k = RmsNorm(Wk a), by head; its input is made again in the place of dO
  const auto norm = [&](const Linear& product, int64_t heads, Tensor gain_K, Tensor dx,
                        Tensor dgain_K) {
    Tensor input = Tensor(do_thK.dtype, {t, heads * K}, do_thK.data);
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
  Tensor dproduct_thK = dq_thK;
  if (do_thK.dtype != type) {  // rounded once for both products, in the place of dO
    dproduct_thK = do_thK;
    ops.Copy(pass.s, dq_thK, dproduct_thK);
  }
  q.Backward(ops, pass.s, a_tD, dproduct_thK.Reshape({t, h * K}), /*add_dx=*/false, da, d.q);
  k.Backward(ops, pass.s, a_tD, dk_tgK.Reshape({t, g * K}), /*add_dx=*/true, da, d.k);
  v.Backward(ops, pass.s, a_tD, dv_tgK.Reshape({t, g * K}), /*add_dx=*/true, da, d.v);
  return pass.Owed(da_tD);
}

Partial Mlp::Backward(const Pass& pass, Tensor a_tD, const Kept& kept, Tensor dy_tD, Tensor da_tD,
                      const Mlp& d, bool add_da) const {
  const int64_t t = pass.residual.tokens(), f = up.weight.rows();
  Backend& ops = pass.ops;
  const bool gated = activation == Activation::kSwiGlu;
  for (int64_t begin = 0; begin < t; begin += pass.token_block) {
    const int64_t b = std::min(pass.token_block, t - begin);
    const Tensor a_bD = a_tD.Rows(begin, b), da_bD = da_tD.Rows(begin, b);
    Arena::Mark mark(pass.scratch);
    const DType type = pass.activation;
    Tensor hidden_bf = pass.scratch.New("hidden", type, {b, f});
    Tensor dhidden_bf = pass.scratch.New("dhidden", type, {b, f});
    Tensor gate_bf, up_bf;
    if (kept.up_tf.given()) {
      if (gated) gate_bf = kept.gate_tf.Rows(begin, b);
      up_bf = kept.up_tf.Rows(begin, b);
    } else {
      if (gated) gate_bf = pass.scratch.New("gate", type, {b, f});
      up_bf = pass.scratch.New("up", type, {b, f});
      if (gated) gate.Forward(ops, pass.s, a_bD, gate_bf);
      up.Forward(ops, pass.s, a_bD, up_bf);
    }
    if (gated) {
      ops.SwiGlu(pass.s, gate_bf, up_bf, hidden_bf);
    } else {
      ops.Gelu(pass.s, up_bf, hidden_bf);
    }
    // y = hidden W2^T
    down.BackwardPartial(ops, pass.s, hidden_bf, dy_tD.Rows(begin, b), dhidden_bf, d.down);
    // Nobody reads hidden any more, so dup takes its place.
    const Tensor dgate_bf = dhidden_bf, dup_bf = hidden_bf;
    if (gated) {  // hidden = silu(gate) * up
      ops.SwiGluBackward(pass.s, gate_bf, up_bf, dhidden_bf, dgate_bf, dup_bf);
      // gate = a W1^T: da contracts over f
      gate.Backward(ops, pass.s, a_bD, dgate_bf, add_da, da_bD, d.gate);
    } else {  // hidden = gelu(up)
      ops.GeluBackward(pass.s, up_bf, dhidden_bf, dup_bf);
    }
    // up = a W3^T: da contracts over f
    up.Backward(ops, pass.s, a_bD, dup_bf, add_da || gated, da_bD, d.up);
  }
  return pass.Owed(da_tD);
}

void Block::ReduceNormed(const Pass& pass, int64_t layer, Tap tap, Tensor x_uD, const Norm& norm,
                         Partial owed, Tensor da_uD, Tensor dx_uD, const Norm& d) const {
  // a_tD = AllGather(a_uD)
  da_uD = pass.residual.Reduce(pass.tensor, pass.s, owed, da_uD);
  pass.Announce(layer, tap, da_uD);
  // a_uD = norm(x_uD)
  norm.BackwardAdd(pass.ops, pass.s, x_uD, da_uD, dx_uD, d);
}

void Block::BackwardMlp(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                        Tensor dy_tD, Tensor da_tD, const Block& d) const {
  const ResidualLayout& residual = pass.residual;
  const int64_t t = residual.tokens();
  Arena::Mark mark(pass.scratch);
  Tensor a_tD = full.mlp_in_tD;
  if (!a_tD.given()) {
    a_tD = pass.Long("a", pass.activation, {residual.padded(), dx_uD.cols()});
    GatherNormed(pass, full.x2_uD, mlp_norm, a_tD);
    pass.Announce(layer, Tap::kMlpIn, a_tD.Rows(0, t));
  }
  // x += drop(y): dy is dx, dropped.  y_uD = ReduceScatter(y_tD) + bias
  const Tensor dy_uD = residual.Share(dy_tD);
  pass.ops.Copy(pass.s, dx_uD, dy_uD);
  pass.Drop(layer, DropoutSite::kMlp, dy_uD);
  mlp.down.AddBiasBackward(pass.ops, pass.s, dy_uD.Rows(0, residual.valid()), d.mlp.down);
  residual.Gather(pass.tensor, pass.s, dy_tD);
  // y_tD = mlp(a_tD)
  const Partial owed =
      mlp.Backward(pass, a_tD.Rows(0, t), full.mlp, dy_tD.Rows(0, t), da_tD, d.mlp);
  // a_tD = GatherNormed(x_uD)
  ReduceNormed(pass, layer, Tap::kDMlpIn, full.x2_uD, mlp_norm, owed, residual.Share(da_tD), dx_uD,
               d.mlp_norm);
}

void Block::BackwardAttention(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                              Tensor dy_tD, Tensor da_tD, const Block& d) const {
  const ResidualLayout& residual = pass.residual;
  const int64_t t = residual.tokens();
  // x += drop(y): dy is dx, dropped.  y_uD = ReduceScatter(y_tD) + bias
  const Tensor dy_uD = residual.Share(dy_tD);
  pass.ops.Copy(pass.s, dx_uD, dy_uD);
  pass.Drop(layer, DropoutSite::kAttention, dy_uD);
  attention.o.AddBiasBackward(pass.ops, pass.s, dy_uD.Rows(0, residual.valid()), d.attention.o);
  residual.Gather(pass.tensor, pass.s, dy_tD);
  // y_tD = attention(a_tD)
  const Partial owed = attention.Backward(pass, layer, full.attention_in_tD.Rows(0, t),
                                          full.attention, dy_tD.Rows(0, t), da_tD, d.attention);
  // a_tD = GatherNormed(x_uD)
  ReduceNormed(pass, layer, Tap::kDAttentionIn, full.x_uD, attention_norm, owed,
               residual.Share(da_tD), dx_uD, d.attention_norm);
}

void Block::BackwardParallel(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                             Tensor dy_tD, Tensor da_tD, const Block& d) const {
  const ResidualLayout& residual = pass.residual;
  const int64_t t = residual.tokens();
  const Tensor a_tD = full.attention_in_tD.Rows(0, t);
  // x += drop(y): dy is dx, dropped.  y_uD = ReduceScatter(y_tD) + both biases
  const Tensor dy_uD = residual.Share(dy_tD);
  pass.ops.Copy(pass.s, dx_uD, dy_uD);
  pass.Drop(layer, DropoutSite::kMlp, dy_uD);
  mlp.down.AddBiasBackward(pass.ops, pass.s, dy_uD.Rows(0, residual.valid()), d.mlp.down);
  attention.o.AddBiasBackward(pass.ops, pass.s, dy_uD.Rows(0, residual.valid()), d.attention.o);
  residual.Gather(pass.tensor, pass.s, dy_tD);
  // y_tD = attention(a_tD) + mlp(a_tD): both add to the part of da that is owed
  Partial owed =
      attention.Backward(pass, layer, a_tD, full.attention, dy_tD.Rows(0, t), da_tD, d.attention);
  owed = mlp.Backward(pass, a_tD, full.mlp, dy_tD.Rows(0, t), da_tD, d.mlp, /*add_da=*/true);
  // a_tD = GatherNormed(x_uD)
  ReduceNormed(pass, layer, Tap::kDAttentionIn, full.x_uD, attention_norm, owed,
               residual.Share(da_tD), dx_uD, d.attention_norm);
}

void Block::RestoreAttention(const Pass& pass, int64_t layer, const Saved& saved,
                             Saved& full) const {
  const DType type = pass.ops.dtype();
  const int64_t t = pass.residual.tokens(), h = attention.query_heads, K = attention.head_dim;
  if (!full.attention_in_tD.given()) {
    full.attention_in_tD =
        pass.Long("a", pass.activation, {pass.residual.padded(), saved.x_uD.cols()});
    GatherNormed(pass, saved.x_uD, attention_norm, full.attention_in_tD);
    const Tensor a_tD = full.attention_in_tD.Rows(0, t);
    pass.Announce(layer, Tap::kAttentionIn, a_tD);
    full.attention.q_thK = pass.Long("Q", pass.activation, {t, h, K});
    if (full.attention.o_thK.given()) {
      full.attention.kv_2tgK = attention.Project(pass, layer, a_tD, full.attention.q_thK);
    } else {
      full.attention.kv_2tgK = attention.NewKv(pass, "KV", pass.kv_dtype);
      full.attention.o_thK = pass.Long("O", type, {t, h, K});
      full.attention.lse_th = pass.Long("LSE", type, {t, h});
      Arena::Mark mark(pass.scratch);
      attention.Attend(pass, layer, a_tD, full.attention);
    }
  } else if (saved.attention.kv_2tgK.given()) {  // what is saved does not travel
    full.attention.kv_2tgK = attention.NewKv(pass, "KV", pass.kv_dtype);
    pass.ops.Copy(pass.s, saved.attention.kv_2tgK, full.attention.kv_2tgK);
  }
}

void Block::Backward(const Pass& pass, int64_t layer, const Saved& saved, Tensor dx_uD,
                     const Block& d) const {
  TOROID_CHECK(!pass.residual.whole());
  const DType type = pass.ops.dtype();
  const int64_t t = pass.residual.tokens(), padded = pass.residual.padded(), D = dx_uD.cols();
  Arena::Mark mark(pass.scratch);
  Tensor dy_tD = pass.Long("dy", pass.activation, {padded, D});
  Tensor da_tD = pass.Long("da", type, {padded, D});
  Saved full = saved;  // what was not saved is filled in below, in scratch
  pass.Announce(layer, Tap::kDResidual, dx_uD);

  if (parallel) {
    RestoreAttention(pass, layer, saved, full);
    BackwardParallel(pass, layer, full, dx_uD, dy_tD, da_tD, d);
    return;
  }
  if (!saved.x2_uD.given()) {  // the first half again, keeping all of it
    full.attention_in_tD = pass.Long("a", pass.activation, {padded, D});
    full.x2_uD = pass.Long("x2", type, {pass.residual.share(), D});
    full.attention.q_thK =
        pass.Long("Q", pass.activation, {t, attention.query_heads, attention.head_dim});
    full.attention.kv_2tgK = attention.NewKv(pass, "KV", pass.kv_dtype);
    full.attention.o_thK = pass.Long("O", type, {t, attention.query_heads, attention.head_dim});
    full.attention.lse_th = pass.Long("LSE", type, {t, attention.query_heads});
    // y goes where da will be
    ForwardAttention(pass, layer, saved.x_uD, full.attention_in_tD, da_tD, full.attention,
                     full.x2_uD);
  }
  BackwardMlp(pass, layer, full, dx_uD, dy_tD, da_tD, d);
  RestoreAttention(pass, layer, saved, full);
  BackwardAttention(pass, layer, full, dx_uD, dy_tD, da_tD, d);
}

}  // namespace toroid
