// Backend: one device's memory, order of work, and the full list of maths we can do.
//
// One virtual call per coarse op; model code above it is plain .cc. Ops are enqueued on a stream in
// order and never allocate. What changes from step to step (ids, positions, lengths, page tables)
// reaches an op as a device array, so that a decode step can become one CUDA graph. Shapes are in
// the legend of core/tensor.h; `t` rows may be zero. Activations are f32, or f64 on a backend made
// for proofs (dtype() says which); weights are any stored type, widened exactly inside the product.
//
// Implementations: cpu_backend (f32, f64), counting_backend (memory accounting only: `plan`).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/model/attention_spec.h"
#include "core/stream.h"
#include "core/tensor.h"

namespace toroid {

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DType dtype() const = 0;  // of activations and carries: kF32 or kF64

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
  // The host waits for s.
  virtual void Synchronize(Stream s) = 0;
  // out = x, converting between f32, f64, bf16 and between row strides; equal rows and cols.
  virtual void Copy(Stream s, Tensor x, Tensor out) = 0;
  virtual void Fill(Stream s, Tensor x, double value) = 0;
  // Host memory to a device array and back, ordered on s; the host array is read at the call.
  virtual void Upload(Stream s, const void* host, Tensor out) = 0;
  virtual void Download(Stream s, Tensor x, void* host) = 0;  // complete when the call returns

  // --- maths ------------------------------------------------------------------------------------
  // out[i] = table[ids[i] - vocab_begin], zeros where this rank's rows do not hold the id.
  // ids: i32 [t]; table: [v, D] any stored type; out: [t, D].
  virtual void Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) = 0;
  // out = x / sqrt(mean(x^2) + epsilon) * gain, by row. Zhang & Sennrich 2019. gain: f32 or f64
  // [D]. Rows of heads are normed as x [t * h, K]. out may be x.
  virtual void RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) = 0;
  // out [m, n] = x [m, k] w [n, k]^T, plus bias [n] unless empty. w: any stored type.
  virtual void MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) = 0;
  // RoPE (Su et al. 2021), half-split: pair (i, i + K/2) turns by position * inv_freq[i], cos and
  // sin times scale. x: [t, heads, K] in place; positions: i32 [t]; inv_freq: f64 [K/2].
  virtual void Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) = 0;
  // cache row slots[i] = x row i, converted to the cache's type. slots: i64 [t]; negative: left
  // out.
  virtual void KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) = 0;
  // Online softmax (Milakov & Gimelshein 2018; Dao 2022) over one tile, continuing the carry:
  // on entry and exit o is normalised and lse = ln sum exp(score); a fresh carry is o = 0,
  // lse = -inf; rows that see no key stay as they were. kv_index: i32 [h], the KV head of each
  // query head. q, o: [t, h, K]; lse: [t, h], both in dtype().
  virtual void AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                          Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                          Tensor o_thK, Tensor lse_th) = 0;
  // o = sum_i e^(lse_i - lse) o_i with lse = logsumexp_i lse_i, in order of i, for parts [n, t, h,
  // K] and [n, t, h]. All rows -inf: o = 0.
  virtual void AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) = 0;
  // out = silu(gate) * up, silu(x) = x / (1 + e^-x). out may be gate.
  virtual void SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) = 0;
  // x += y. y may be one row [1, n], added to every row (a bias).
  virtual void Add(Stream s, Tensor x, Tensor y) = 0;
  // Folds logits [t, n] of vocabulary ids [vocab_begin, +n) into the running (max, sum of
  // exp(logit - max), label's logit) of each row, stat: f64 [t, 3], fresh: (-inf, 0, -inf). labels:
  // i32 [t].
  virtual void VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                               Tensor stat_t3) = 0;
  // Merges such statistics of n vocabulary shards: parts f64 [n, t, 3] -> log_p f64 [t] =
  // label's logit - log Z and log_z f64 [t].
  virtual void VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) = 0;
};

// threads: workers of this rank's pool, the caller included, >= 1. type: kF32 or kF64.
// `ticks`, unless null, is raised as long ops go on (the stall watch reads it) and outlives the
// backend.
std::unique_ptr<Backend> NewCpuBackend(DType type, int threads,
                                       std::atomic<int64_t>* ticks = nullptr);

// Does no maths and allocates nothing: addresses are made up, so that the same model code on it
// says how many bytes it would use. Streams have no queue.
std::unique_ptr<Backend> NewCountingBackend(DType type);

}  // namespace toroid
