// Block: one layer of one rank, written as maths (core/tensor.h has the letters).
//
//   x += sum_tensor  Wo Attention(norm1(x))          Llama, GPT: serial, two sums per layer
//   x += sum_tensor  W2 (silu(W1 a) * W3 a),  a = norm2(x)
//
//   x += sum_tensor  Wo Attention(a) + W2 (silu(W1 a) * W3 a),  a = norm1(x)      PaLM: parallel,
//                                                                 one norm, one gather, one sum
// GPT: W2 gelu(W3 a) for the feed-forward, LayerNorm for the norms, biases, no RoPE.
//
// Columns of Wq, Wk, Wv, W1, W3 and rows of Wo, W2 are split over `tensor`: Wo contracts over h and
// W2 over f, so both owe a reduction. The feed-forward runs in blocks of tokens (Blockwise Parallel
// Transformer, Liu & Abbeel 2023): its hidden [block, f] never exists for the whole text, unless it
// is saved. The number of collectives does not depend on the number of blocks.
//
// Backward (block_backward.cc) is written by hand, each line under the forward line that it
// differentiates. Gradients lie in the same structs, bound to tensors of their own (bind.h):
// d.attention.q.weight is dWq. They are added to; an empty one is not wanted. Over `tensor` they
// may still owe sums (owed_sums.h).
#pragma once

#include "core/model/linear.h"
#include "core/model/norm.h"
#include "core/model/pass.h"

namespace toroid {

// Which tensors of a layer are saved for Backward; the others are computed again, by Forward's own
// functions. Elements, padded = tensor u; x, O and LSE in the backend's type, K and V in
// pass.kv_dtype, the others in pass.activation:
//
//                                                    kBlock  kAttentionOutput  kNone
//   x, before the layer            u D               x       x                 x
//   x2, between the halves (1)     u D                       x                 x
//   O and LSE                      t h K + t h               x                 x
//   Q, K, V (normed, rotated)      t h K + 2 t g K                             x
//   a of each half (2)             2 padded D                                  x
//   gate and up (3)                2 t f                                       x
//
// (1) Parallel block: none. (2) Parallel block: one, padded D. (3) GELU: up alone, t f.
// Computed again: kBlock the attention with its ring (serial: and its sum), both a, gate and up;
// kAttentionOutput both a, Q, K, V, gate and up; kNone nothing (with head norms: their inputs).
enum class Remat { kNone, kAttentionOutput, kBlock };

struct Attention {
  Linear q, k, v, o;
  Tensor q_norm_K, k_norm_K;  // gains of Qwen3's per-head norm, else empty
  int64_t query_heads = 0, kv_heads = 0, head_dim = 0;  // h, g, K of this rank
  double norm_epsilon = 0;
  bool rope = true;  // of q and k
  AttentionSpec spec;

  // What Backward reads. Forward computes into those that are there and keeps the rest in scratch.
  struct Kept {
    Tensor q_thK, kv_2tgK, o_thK, lse_th;
  };

  // This rank's part of Wo Attention(a), in y [padded, D] with rows from t on zero.
  Partial Forward(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD,
                  const Kept& kept = {}) const;
  // out = x + Wo Attention(a) where this rank holds all of both; y is lost. out may be x.
  void ForwardAdd(const Pass& pass, int64_t layer, Tensor a_tD, Tensor y_tD, const Kept& kept,
                  Tensor x_tD, Tensor out_tD) const;
  // dy [t, D], whole on every rank -> this rank's part of da, in da [padded, D] with rows from t on
  // zero. All of `kept` is there; its kv has room to travel (NewKv) and is overwritten.
  Partial Backward(const Pass& pass, int64_t layer, Tensor a_tD, const Kept& kept, Tensor dy_tD,
                   Tensor da_tD, const Attention& d) const;

  // The steps of Forward. Project: q = norm(Wq a) and k alike, both rotated; k and v of
  // pass.kv_dtype in a new kv [2 t, g, K] in scratch, with room to travel. Attend: all but the
  // product by Wo; what is not in `kept` is taken from scratch, and a kv so taken has travelled.
  Tensor Project(const Pass& pass, int64_t layer, Tensor a_tD, Tensor q_thK) const;
  Kept Attend(const Pass& pass, int64_t layer, Tensor a_tD, Kept kept) const;
  // K and V, or their gradients, in scratch that has room for the longest share.
  Tensor NewKv(const Pass& pass, const char* name, DType type) const;
};

struct Mlp {
  Linear gate, up, down;  // W1 (kSwiGlu only), W3, W2
  Activation activation = Activation::kSwiGlu;

  // As Attention::Kept.
  struct Kept {
    Tensor gate_tf, up_tf;
  };

  // This rank's part of W2 (silu(W1 a) * W3 a), in y as above, or added to the part that y is
  // already (add_y).
  Partial Forward(const Pass& pass, Tensor a_tD, Tensor y_tD, const Kept& kept = {},
                  bool add_y = false) const;
  // As Attention::ForwardAdd.
  void ForwardAdd(const Pass& pass, Tensor a_tD, Tensor y_tD, const Kept& kept, Tensor x_tD,
                  Tensor out_tD) const;
  // dy [t, D] -> this rank's part of da, as above. What is not kept is computed again.
  Partial Backward(const Pass& pass, Tensor a_tD, const Kept& kept, Tensor dy_tD, Tensor da_tD,
                   const Mlp& d, bool add_da = false) const;

 private:
  // Calls down(first token, hidden [b, f]) for blocks of b tokens, hidden = silu(W1 a) * W3 a.
  void ForEachHidden(const Pass& pass, Tensor a_tD, const Kept& kept,
                     const std::function<void(int64_t begin, Tensor hidden_bf)>& down) const;
};

struct Block {
  Norm attention_norm, mlp_norm;  // a parallel block has the first alone
  Attention attention;
  Mlp mlp;
  bool parallel = false;

  // The table above; what is not saved has no dims.
  struct Saved {
    Tensor x_uD, x2_uD;
    Attention::Kept attention;
    Tensor attention_in_tD, mlp_in_tD;  // a of each half, [padded, D]
    Mlp::Kept mlp;
  };
  // Takes a layer's places from the arena `saved`, contents undefined.
  Saved NewSaved(const Pass& pass, Remat remat, Arena& saved) const;

  // x [u, D] in place. saved: filled for Backward, null in inference.
  void Forward(const Pass& pass, int64_t layer, Tensor x_uD, const Saved* saved = nullptr) const;
  // dx [u, D] in place, from the gradient of the layer's output to that of its input.
  // REQUIRES: a residual that is always split; pass.attend_backward.
  void Backward(const Pass& pass, int64_t layer, const Saved& saved, Tensor dx_uD,
                const Block& d) const;

 private:
  // The two lines above, into out, which may be x. a, y: [padded, D]; on return a is the half's
  // input.
  void ForwardAttention(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                        const Attention::Kept& kept, Tensor out_uD) const;
  void ForwardMlp(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                  const Mlp::Kept& kept, Tensor out_uD) const;
  // True if a branch's sum ends with the product by `last`: nothing is reduced, dropped or shown.
  static bool EndsInProduct(const Pass& pass, const Linear& last);
  void ForwardParallel(const Pass& pass, int64_t layer, Tensor x_uD, Tensor a_tD, Tensor y_tD,
                       const Saved& kept) const;
  void BackwardAttention(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                         Tensor dy_tD, Tensor da_tD, const Block& d) const;
  void BackwardMlp(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD, Tensor dy_tD,
                   Tensor da_tD, const Block& d) const;
  void BackwardParallel(const Pass& pass, int64_t layer, const Saved& full, Tensor dx_uD,
                        Tensor dy_tD, Tensor da_tD, const Block& d) const;
  // What BackwardAttention reads and `full` lacks, computed again in scratch.
  void RestoreAttention(const Pass& pass, int64_t layer, const Saved& saved, Saved& full) const;
  // a [padded, D] = AllGather(norm(x)).
  void GatherNormed(const Pass& pass, Tensor x_uD, const Norm& norm, Tensor a_tD) const;
  // Its backward: dx += norm's gradient of ReduceScatter(da), d.
  void ReduceNormed(const Pass& pass, int64_t layer, Tap tap, Tensor x_uD, const Norm& norm,
                    Partial da_tD, Tensor da_uD, Tensor dx_uD, const Norm& d) const;
};

}  // namespace toroid
