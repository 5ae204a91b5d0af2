// Backend: one device's memory, order of work, and the full list of maths we can do.
//
// One virtual call per coarse op; model code above it is plain .cc. Ops are enqueued on a stream in
// order and never allocate. What changes from step to step (ids, positions, lengths, page tables)
// reaches an op as a device array, so that a decode step can become one CUDA graph. Shapes are in
// the legend of core/tensor.h; `t` rows may be zero. Activations are f32, or f64 on a backend made
// for proofs (dtype() says which); weights are any stored type, widened exactly inside the product.
//
// Implementations: cpu_backend (f32, f64), cuda_backend (f32; no_cuda_backend in builds without
// CUDA), counting_backend (memory accounting only: `plan`).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "core/model/attention_spec.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "kernels/dropout.h"
#include "kernels/optimizer_step.h"
#include "kernels/sample.h"

namespace toroid {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DType dtype() const = 0;  // of activations and carries: kF32 or kF64
  // In which what goes into a product or comes out of one may be kept besides: bf16 where matrices
  // are multiplied in bf16, so that nothing is rounded on the way. Ops take it for: x, out, dout
  // and dx of MatMul; x and out of RmsNorm, x of its backward; out of LayerNorm; x of Rope, Scale
  // and AddBackward; q and do of attention; dlogits, then not in logits' place; and for all
  // operands of SwiGlu, Gelu, Dropout and their backwards at once. What was bf16 on the way is
  // rounded once more in each op.
  virtual DType activation() const { return dtype(); }
  // Rows of a feed-forward block that products take with profit, where nobody says another number:
  // scratch is as long.
  virtual int64_t token_block() const { return 512; }

  // --- memory and order -------------------------------------------------------------------------
  // 64-byte aligned. OutOfRange names the bytes asked for. Called at construction only.
  virtual absl::StatusOr<void*> Allocate(int64_t bytes) = 0;
  virtual void Free(void* data, int64_t bytes) = 0;
  // Hints that the bytes will be written anew before they are read: a CPU gives the pages back.
  virtual void Discard(void* data, int64_t bytes) = 0;
  virtual Stream NewStream(bool communication) = 0;
  // `to` waits for what `from` has been given so far.
  virtual void Fork(Stream from, Stream to) = 0;
  // `s` waits for what `other` has been given so far.
  virtual void Join(Stream s, Stream other) = 0;
  // Enqueues on s what `work` enqueues there. A device may keep it under `key` and enqueue it by
  // one call from then on, without calling `work`, until any of its memory is freed: what differs
  // from time to time must lie in device arrays. REQUIRES: of one key the same ops, sizes and
  // addresses; no upload, download or other stream in `work`.
  using WorkKey = std::array<int64_t, 4>;
  virtual void Repeat(Stream s, const WorkKey& key, const std::function<void()>& work) {
    (void)s, (void)key;
    work();
  }
  // Whether Repeat keeps work: sizes are then worth rounding up.
  virtual bool repeats() const { return false; }
  // The host waits for s.
  virtual void Synchronize(Stream s) = 0;
  // out = x, converting between f32, f64, bf16 and between row strides; equal rows and cols.
  virtual void Copy(Stream s, Tensor x, Tensor out) = 0;
  virtual void Fill(Stream s, Tensor x, double value) = 0;
  // Host memory to a device array and back, ordered on s; the host array is read at the call.
  virtual void Upload(Stream s, const void* host, Tensor out) = 0;
  virtual void Download(Stream s, Tensor x, void* host) = 0;  // complete when the call returns

  // --- maths: each op with its backward behind it -----------------------------------------------
  //
  // dfoo is the gradient of foo, of its shape and of dtype(). Gradients of activations are written;
  // those that are sums over tokens or tiles (dtable, dgain, dbias, dw, dq, dk, dv) are added to.
  // An empty gradient of a parameter is not wanted. KvWrite and AttentionMerge have no backward:
  // they serve decoding.

  // out[i] = table[ids[i] - vocab_begin], zeros where this rank's rows do not hold the id.
  // ids: i32 [t]; table: [v, D] any stored type; out: [t, D].
  virtual void Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) = 0;
  // dtable[ids[i] - vocab_begin] += dout[i]. Learned positions are embeddings of positions.
  virtual void EmbedBackward(Stream s, Tensor ids, int64_t vocab_begin, Tensor dout_tD,
                             Tensor dtable_vD) = 0;
  // out = x / sqrt(mean(x^2) + epsilon) * gain, by row. Zhang & Sennrich 2019. gain: f32 or f64
  // [D]. Rows of heads are normed as x [t * h, K]. out may be x.
  virtual void RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) = 0;
  // With r = 1 / sqrt(mean(x^2) + epsilon): dx = r gain dout - x r^3 mean(gain dout x), dgain +=
  // sum of dout x r over rows. dx may be dout.
  virtual void RmsNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                               Tensor dx_tD, Tensor dgain_D) = 0;
  // The same with dx added to. dout is lost. A device may do it in one pass; else it is these two.
  virtual void RmsNormBackwardAdd(Stream s, Tensor x_tD, Tensor gain_D, double epsilon,
                                  Tensor dout_tD, Tensor dx_tD, Tensor dgain_D) {
    RmsNormBackward(s, x_tD, gain_D, epsilon, dout_tD, dout_tD, dgain_D);
    Add(s, dx_tD, dout_tD);
  }
  // out = (x - mean(x)) / sqrt(variance(x) + epsilon) * gain + bias, by row. Ba et al. 2016. bias
  // may be empty, else of gain's type. out may be x.
  virtual void LayerNorm(Stream s, Tensor x_tD, Tensor gain_D, Tensor bias_D, double epsilon,
                         Tensor out_tD) = 0;
  // As kernels/layer_norm.h. dx may be dout.
  virtual void LayerNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon,
                                 Tensor dout_tD, Tensor dx_tD, Tensor dgain_D, Tensor dbias_D) = 0;
  // out [m, n] = x [m, k] w [n, k]^T, plus bias [n] unless empty. w: any stored type.
  virtual void MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) = 0;
  // out = addend + x w^T, of f32 or f64. addend may be out. room: of out's shape, lost. A device
  // may do it in one pass; else it is these three.
  virtual void MatMulAdd(Stream s, Tensor x, Tensor w, Tensor addend, Tensor room, Tensor out) {
    if (addend.data != out.data) Copy(s, addend, out);
    MatMul(s, x, w, Tensor(), room);
    Add(s, out, room);
  }
  // dx = dout w, or dx += with add_dx; dw += dout^T x; dbias += sum of dout over rows. Each of dx,
  // dw and dbias may be empty: not wanted.
  virtual void MatMulBackward(Stream s, Tensor x, Tensor w, Tensor dout, bool add_dx, Tensor dx,
                              Tensor dw, Tensor dbias) = 0;
  // RoPE (Su et al. 2021), half-split: pair (i, i + K/2) turns by position * inv_freq[i], cos and
  // sin times scale. x: [t, heads, K] in place; positions: i32 [t]; inv_freq: f64 [K/2].
  virtual void Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) = 0;
  // The gradient turns back: dx in place.
  virtual void RopeBackward(Stream s, Tensor dx_thK, Tensor positions, Tensor inv_freq,
                            double scale) = 0;
  // cache row slots[i] = x row i, converted to the cache's type. x: of dtype() or of the cache's
  // type. slots: i64 [t]; negative: left out.
  virtual void KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) = 0;
  // Online softmax (Milakov & Gimelshein 2018; Dao 2022) over one tile, continuing the carry:
  // on entry and exit o is normalised and lse = ln sum exp(score); a fresh carry is o = 0,
  // lse = -inf; rows that see no key stay as they were. kv_index: i32 [h], the KV head of each
  // query head. q, o: [t, h, K]; lse: [t, h], both in dtype().
  virtual void AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                          Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                          Tensor o_thK, Tensor lse_th) = 0;
  // delta [t, h] = do . o over K, of the whole o.
  virtual void AttentionDelta(Stream s, Tensor o_thK, Tensor do_thK, Tensor delta_th) = 0;
  // Adds one tile's share to dq [t, h, K], dk and dv [n, g, K] (dtype()), given lse and delta of
  // the whole softmax (Dao et al. 2022, appendix B.2). kv: packed, no length. Over all tiles of the
  // forward, in any cut, the sums are the gradients. Rows with lse = -inf give nothing.
  virtual void AttendTileBackward(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                                  Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                                  Tensor do_thK, Tensor lse_th, Tensor delta_th, Tensor dq_thK,
                                  Tensor dk_ngK, Tensor dv_ngK) = 0;
  // o = sum_i e^(lse_i - lse) o_i with lse = logsumexp_i lse_i, in order of i, for parts [n, t, h,
  // K] and [n, t, h]. All rows -inf: o = 0.
  virtual void AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) = 0;
  // out = silu(gate) * up, silu(x) = x / (1 + e^-x). out may be gate.
  virtual void SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) = 0;
  // With s = 1 / (1 + e^-gate): dup = dout gate s, dgate = dout up s (1 + gate (1 - s)). dgate may
  // be gate, dup may be up, either may be dout.
  virtual void SwiGluBackward(Stream s, Tensor gate_tf, Tensor up_tf, Tensor dout_tf,
                              Tensor dgate_tf, Tensor dup_tf) = 0;
  // out = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): the form of GELU (Hendrycks & Gimpel
  // 2016) that GPT-2 and GPT-3 use. out may be x.
  virtual void Gelu(Stream s, Tensor x_tf, Tensor out_tf) = 0;
  // As kernels/gelu.h. dx may be x or dout.
  virtual void GeluBackward(Stream s, Tensor x_tf, Tensor dout_tf, Tensor dx_tf) = 0;
  // x += y. y may be one row [1, n], added to every row (a bias).
  virtual void Add(Stream s, Tensor x, Tensor y) = 0;
  // dy [1, n] += sum of dx over rows, for y of one row. (Of y with rows of its own the gradient is
  // dx itself.)
  virtual void AddBackward(Stream s, Tensor dx, Tensor dy_1n) = 0;
  // x *= factor; its own backward.
  virtual void Scale(Stream s, Tensor x, double factor) = 0;
  // out = x / (1 - rate) where an element is kept, 0 where it is dropped: a function of spec, step
  // and the element's place in the whole tensor alone (kernels/dropout.h). Its own backward. step:
  // i64 [1]; rows: i64 [t], each row's number in the whole tensor [.., spec.width], of which x are
  // the columns from col_begin on. out may be x.
  virtual void Dropout(Stream s, const DropoutSpec& spec, Tensor step_1, Tensor rows_t,
                       int64_t col_begin, Tensor x_tn, Tensor out_tn) = 0;
  // Folds logits [t, n] of vocabulary ids [vocab_begin, +n) into the running (max, sum of
  // exp(logit - max), label's logit) of each row, stat: f64 [t, 3], fresh: (-inf, 0, -inf). labels:
  // i32 [t].
  virtual void VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                               Tensor stat_t3) = 0;
  // Merges such statistics of n vocabulary shards: parts f64 [n, t, 3] -> log_p f64 [t] =
  // label's logit - log Z and log_z f64 [t].
  virtual void VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) = 0;
  // Of both, one tile of ids [vocab_begin, +n) at a time, p_j = e^(logit_j - log Z):
  // dlogits_j = d_log_p ((j is the label) - p_j) + d_log_z p_j. log_z, d_log_p, d_log_z: f64 [t].
  // dlogits may be logits.
  virtual void VocabBackward(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                             Tensor log_z_t, Tensor d_log_p_t, Tensor d_log_z_t,
                             Tensor dlogits) = 0;

  // The gradient of loss = sum weight (-log p + zeta log Z^2) by both: d_log_p = -weight, d_log_z =
  // 2 zeta weight log Z, zeros where the label is negative. All but labels f64 [t].
  virtual void LossBackward(Stream s, Tensor labels, Tensor weights_t, double zeta, Tensor log_z_t,
                            Tensor d_log_p_t, Tensor d_log_z_t) = 0;
  // The next token of each row of logits [b, V] (kernels/sample.h): rows i64 [b, 7], the fields of
  // SampleRow; out i64 [b, 3], those of SampledRow. most: the most that any row asks for.
  virtual void Sample(Stream s, Tensor logits_bV, SampleWork most, Tensor rows_b7,
                      Tensor out_b3) = 0;

  // --- optimizer, over flat ranges [n] ----------------------------------------------------------
  //
  // sum f64 [1] += sum of x^2, in double.
  virtual void SquaredSum(Stream s, Tensor x_n, Tensor sum_1) = 0;
  // Updates w, m and v in place; all of dtype(). step: f64 [5], the fields of AdamWStep in order.
  virtual void AdamW(Stream s, const AdamWSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
                     Tensor m_n, Tensor v_n) = 0;
  // The same with the four fields of AdafactorStep; the range belongs to one parameter.
  virtual void Adafactor(Stream s, const AdafactorSpec& spec, Tensor step, Tensor gradient_n,
                         Tensor w_n, Tensor m_n, Tensor v_n) = 0;
};

// threads: workers of this rank's pool, the caller included, >= 1. type: kF32 or kF64.
// `ticks`, unless null, is raised as long ops go on (the stall watch reads it) and outlives the
// backend.
std::unique_ptr<Backend> NewCpuBackend(DType type, int threads,
                                       std::atomic<int64_t>* ticks = nullptr);

struct CudaOptions {
  int device = 0;               // of those that this process sees
  DType product = DType::kF32;  // what matrices are multiplied in (kernels/matmul.h): kF32, kBF16
  // Products are measured at first sight, for work of few shapes, and the backward of attention on
  // tensor cores adds its sums as they come: faster, but the last bits vary from run to run.
  bool measures = false;
};

// GPUs that this process sees; 0 where there is no driver, and in a build without CUDA.
int CudaDevices();
// What names such a device among all devices of all hosts; zeros on an error.
std::array<char, 16> CudaDeviceUuid(int device);

// A device of compute capability 8.0 or later, its streams, and workspaces of 192 MiB to a compute
// stream. dtype() is kF32. FailedPrecondition: no such device, or a build without CUDA;
// OutOfRange: no memory. A CUDA error later on has lost the device's context and ends the process,
// naming the op and the device. One thread at a time.
absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(const CudaOptions& options);

// Does no maths and allocates nothing: addresses are made up, so that the same model code on it
// says how many bytes it would use. Streams have no queue. It counts for a CPU of `type`, or for
// `device`, whose types and sizes it takes.
std::unique_ptr<Backend> NewCountingBackend(DType type);
std::unique_ptr<Backend> NewCountingBackend(const Backend& device);

}  // namespace toroid
