// The CPU backend: CHECK the shapes, then call the kernel on this rank's pool. Compute streams are
// inline, so an op is done when its call returns; the pool has one caller, the rank's thread.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/cpu_streams.h"
#include "core/op_shapes.h"
#include "core/tile_arguments.h"
#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/attention_merge.h"
#include "kernels/cross_entropy.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/kv_write.h"
#include "kernels/layer_norm.h"
#include "kernels/matmul.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace toroid {

namespace {

constexpr int64_t kPage = 4096;

template <typename T>
constexpr DType kTypeOf = sizeof(T) == 8 ? DType::kF64 : DType::kF32;

template <typename T>
class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, std::atomic<int64_t>* ticks) : pool_(threads, ticks) {}

  DType dtype() const override { return kTypeOf<T>; }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    const int64_t size = std::max<int64_t>(bytes, 1);
    void* data = size > INT64_MAX - kPage ? MAP_FAILED
                                          : mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      return absl::OutOfRangeError(absl::StrCat("out of memory: the system refused ", bytes,
                                                " bytes; use more ranks, a shorter context or a "
                                                "smaller stored type"));
    }
    return data;
  }
  void Free(void* data, int64_t bytes) override { munmap(data, std::max<int64_t>(bytes, 1)); }

  void Discard(void* data, int64_t bytes) override {
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kPage * kPage;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }

  Stream NewStream(bool communication) override { return streams_.New(communication); }
  void Fork(Stream from, Stream to) override { streams_.Join(to, from); }
  void Join(Stream s, Stream other) override { streams_.Join(s, other); }
  void Synchronize(Stream s) override { s.cpu->Wait(); }

  void Copy(Stream s, Tensor x, Tensor out) override {
    CheckCopy(x, out);
    Run(s, [x, out](ThreadPool& pool) {
      CopyRows(pool, x.dtype, x.data, x.stride, out.dtype, out.data, out.stride, x.rows(),
               x.cols());
    });
  }

  void Fill(Stream s, Tensor x, double value) override {
    CheckFill(x);
    Run(s, [x, value](ThreadPool& pool) {
      FillRows(pool, x.dtype, x.data, x.stride, x.rows(), x.cols(), value);
    });
  }

  void Upload(Stream s, const void* host, Tensor out) override {
    s.cpu->Wait();  // for what was to be done with `out` before; the host array is read now
    CopyRows(serial_, out.dtype, host, out.cols(), out.dtype, out.data, out.stride, out.rows(),
             out.cols());
  }

  void Download(Stream s, Tensor x, void* host) override {
    s.cpu->Wait();  // for what produces x
    CopyRows(serial_, x.dtype, x.data, x.stride, x.dtype, host, x.cols(), x.rows(), x.cols());
  }

  void Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) override {
    CheckEmbed(dtype(), ids, table_vD, out_tD);
    toroid::Embed(Pool(s), ids.as<const int32_t>(), out_tD.rows(), table_vD.dtype, table_vD.data,
                  table_vD.stride, table_vD.rows(), table_vD.cols(), vocab_begin, out_tD.as<T>(),
                  out_tD.stride);
  }

  void EmbedBackward(Stream s, Tensor ids, int64_t vocab_begin, Tensor dout_tD,
                     Tensor dtable_vD) override {
    CheckEmbedBackward(dtype(), ids, dout_tD, dtable_vD);
    toroid::EmbedBackward(Pool(s), ids.as<const int32_t>(), dout_tD.rows(), dout_tD.as<const T>(),
                          dout_tD.stride, dtable_vD.rows(), dtable_vD.cols(), vocab_begin,
                          dtable_vD.as<T>(), dtable_vD.stride);
  }

  void RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) override {
    CheckRmsNorm(dtype(), x_tD, gain_D, out_tD);
    const int64_t dim = x_tD.dims[x_tD.dim_count - 1];
    if (x_tD.empty()) return;
    toroid::RmsNorm(Pool(s), x_tD.as<const T>(), x_tD.stride, x_tD.rows(), x_tD.cols() / dim, dim,
                    gain_D.dtype, gain_D.data, epsilon, out_tD.as<T>(), out_tD.stride);
  }

  void RmsNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                       Tensor dx_tD, Tensor dgain_D) override {
    CheckRmsNormBackward(dtype(), x_tD, gain_D, dout_tD, dx_tD, dgain_D);
    const int64_t dim = x_tD.dims[x_tD.dim_count - 1];
    if (x_tD.empty()) return;
    toroid::RmsNormBackward(Pool(s), x_tD.as<const T>(), x_tD.stride, x_tD.rows(),
                            x_tD.cols() / dim, dim, gain_D.dtype, gain_D.data, epsilon,
                            dout_tD.as<const T>(), dout_tD.stride, dx_tD.as<T>(), dx_tD.stride,
                            dgain_D.as<T>());
  }

  void LayerNorm(Stream s, Tensor x_tD, Tensor gain_D, Tensor bias_D, double epsilon,
                 Tensor out_tD) override {
    CheckLayerNorm(dtype(), x_tD, gain_D, bias_D, out_tD);
    toroid::LayerNorm(Pool(s), x_tD.as<const T>(), x_tD.stride, x_tD.rows(), x_tD.cols(),
                      gain_D.dtype, gain_D.data, bias_D.empty() ? nullptr : bias_D.data, epsilon,
                      out_tD.as<T>(), out_tD.stride);
  }

  void LayerNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                         Tensor dx_tD, Tensor dgain_D, Tensor dbias_D) override {
    CheckLayerNormBackward(dtype(), x_tD, gain_D, dout_tD, dx_tD, dgain_D, dbias_D);
    toroid::LayerNormBackward(Pool(s), x_tD.as<const T>(), x_tD.stride, x_tD.rows(), x_tD.cols(),
                              gain_D.dtype, gain_D.data, epsilon, dout_tD.as<const T>(),
                              dout_tD.stride, dx_tD.as<T>(), dx_tD.stride, dgain_D.as<T>(),
                              dbias_D.as<T>());
  }

  void MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) override {
    CheckMatMul(dtype(), x, w, bias, out);
    MatMulArgs<T> args;
    args.x = x.as<const T>(), args.x_stride = x.stride;
    args.m = x.rows(), args.n = w.rows(), args.k = w.cols();
    args.w_type = w.dtype, args.w = w.data, args.w_stride = w.stride;
    if (!bias.empty()) args.bias = bias.data, args.bias_type = bias.dtype;
    args.out = out.as<T>(), args.out_stride = out.stride;
    toroid::MatMul(Pool(s), args);
  }

  void MatMulBackward(Stream s, Tensor x, Tensor w, Tensor dout, bool add_dx, Tensor dx, Tensor dw,
                      Tensor dbias) override {
    CheckMatMulBackward(dtype(), x, w, dout, dx, dw, dbias);
    MatMulBackwardArgs<T> args;
    args.x = x.as<const T>(), args.x_stride = x.stride;
    args.m = x.rows(), args.n = w.rows(), args.k = w.cols();
    args.w_type = w.dtype, args.w = w.data, args.w_stride = w.stride;
    args.dout = dout.as<const T>(), args.dout_stride = dout.stride, args.add_dx = add_dx;
    args.dx = dx.as<T>(), args.dx_stride = dx.stride;
    args.dw = dw.as<T>(), args.dw_stride = dw.stride, args.dbias = dbias.as<T>();
    toroid::MatMulBackward(Pool(s), args);
  }

  void Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) override {
    CheckRope(dtype(), x_thK, positions, inv_freq);
    toroid::Rope(Pool(s), x_thK.as<T>(), x_thK.stride, x_thK.rows(), x_thK.dims[1], x_thK.dims[2],
                 positions.as<const int32_t>(), inv_freq.as<const double>(), scale);
  }

  void RopeBackward(Stream s, Tensor dx_thK, Tensor positions, Tensor inv_freq,
                    double scale) override {
    CheckRope(dtype(), dx_thK, positions, inv_freq);
    toroid::RopeBackward(Pool(s), dx_thK.as<T>(), dx_thK.stride, dx_thK.rows(), dx_thK.dims[1],
                         dx_thK.dims[2], positions.as<const int32_t>(), inv_freq.as<const double>(),
                         scale);
  }

  void KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) override {
    CheckKvWrite(dtype(), x_tgK, slots, cache);
    toroid::KvWrite(Pool(s), x_tgK.dtype, x_tgK.data, x_tgK.stride, x_tgK.rows(), x_tgK.cols(),
                    slots.as<const int64_t>(), cache.dtype, cache.data, cache.stride);
  }

  void AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv, Tensor kv_index,
                  const AttentionSpec& spec, const Tile& tile, Tensor o_thK,
                  Tensor lse_th) override {
    CheckAttendTile(dtype(), q_thK, q_positions, kv, kv_index, spec, tile, o_thK, lse_th);
    AttentionArgs<T> args = TileArgs(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
    args.o = o_thK.as<T>(), args.o_stride = o_thK.stride;
    toroid::AttendTile(Pool(s), args);
  }

  void AttentionDelta(Stream s, Tensor o_thK, Tensor do_thK, Tensor delta_th) override {
    CheckAttentionDelta(dtype(), o_thK, do_thK, delta_th);
    toroid::AttentionDelta(Pool(s), o_thK.as<const T>(), o_thK.stride, do_thK.as<const T>(),
                           do_thK.stride, o_thK.rows(), o_thK.dims[1], o_thK.dims[2],
                           delta_th.as<T>(), delta_th.stride);
  }

  void AttendTileBackward(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                          Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                          Tensor do_thK, Tensor lse_th, Tensor delta_th, Tensor dq_thK,
                          Tensor dk_ngK, Tensor dv_ngK) override {
    CheckAttendTileBackward(dtype(), q_thK, q_positions, kv, kv_index, spec, tile, do_thK, lse_th,
                            delta_th, dq_thK, dk_ngK, dv_ngK);
    AttentionBackwardArgs<T> args;
    args.forward = TileArgs(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
    args.kv_heads = kv.k.dims[1];
    args.d_o = do_thK.as<const T>(), args.do_stride = do_thK.stride;
    args.delta = delta_th.as<const T>(), args.delta_stride = delta_th.stride;
    args.dq = dq_thK.as<T>(), args.dq_stride = dq_thK.stride;
    args.dk = dk_ngK.as<T>(), args.dk_stride = dk_ngK.stride;
    args.dv = dv_ngK.as<T>(), args.dv_stride = dv_ngK.stride;
    toroid::AttendTileBackward(Pool(s), args);
  }

  void AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) override {
    CheckAttentionMerge(dtype(), o_nthK, lse_nth, o_thK);
    MergeArgs<T> args;
    args.o_parts = o_nthK.as<const T>(), args.lse_parts = lse_nth.as<const T>();
    args.parts = o_nthK.dims[0], args.heads = o_nthK.dims[2], args.dim = o_nthK.dims[3];
    args.rows = o_nthK.dims[1] * args.heads;
    args.o_part_stride = o_nthK.stride, args.lse_part_stride = lse_nth.stride;
    args.o = o_thK.as<T>(), args.o_stride = o_thK.stride;
    toroid::AttentionMerge(Pool(s), args);
  }

  void SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) override {
    CheckSwiGlu(dtype(), gate_tf, up_tf, out_tf);
    toroid::SwiGlu(Pool(s), gate_tf.as<const T>(), gate_tf.stride, up_tf.as<const T>(),
                   up_tf.stride, out_tf.as<T>(), out_tf.stride, out_tf.rows(), out_tf.cols());
  }

  void SwiGluBackward(Stream s, Tensor gate_tf, Tensor up_tf, Tensor dout_tf, Tensor dgate_tf,
                      Tensor dup_tf) override {
    CheckSwiGluBackward(dtype(), gate_tf, up_tf, dout_tf, dgate_tf, dup_tf);
    toroid::SwiGluBackward(Pool(s), gate_tf.as<const T>(), gate_tf.stride, up_tf.as<const T>(),
                           up_tf.stride, dout_tf.as<const T>(), dout_tf.stride, dgate_tf.as<T>(),
                           dgate_tf.stride, dup_tf.as<T>(), dup_tf.stride, dout_tf.rows(),
                           dout_tf.cols());
  }

  void Gelu(Stream s, Tensor x_tf, Tensor out_tf) override {
    CheckGelu(dtype(), x_tf, out_tf);
    toroid::Gelu(Pool(s), x_tf.as<const T>(), x_tf.stride, out_tf.as<T>(), out_tf.stride,
                 x_tf.rows(), x_tf.cols());
  }

  void GeluBackward(Stream s, Tensor x_tf, Tensor dout_tf, Tensor dx_tf) override {
    CheckGeluBackward(dtype(), x_tf, dout_tf, dx_tf);
    toroid::GeluBackward(Pool(s), x_tf.as<const T>(), x_tf.stride, dout_tf.as<const T>(),
                         dout_tf.stride, dx_tf.as<T>(), dx_tf.stride, x_tf.rows(), x_tf.cols());
  }

  void Add(Stream s, Tensor x, Tensor y) override {
    CheckAdd(dtype(), x, y);
    AddRows(Pool(s), x.as<T>(), x.stride, y.as<const T>(), y.rows() == x.rows() ? y.stride : 0,
            x.rows(), x.cols());
  }

  void AddBackward(Stream s, Tensor dx, Tensor dy_1n) override {
    CheckAddBackward(dtype(), dx, dy_1n);
    SumRows(Pool(s), dx.as<const T>(), dx.stride, dx.rows(), dx.cols(), dy_1n.as<T>());
  }

  void Scale(Stream s, Tensor x, double factor) override {
    CheckScale(dtype(), x);
    ScaleRows(Pool(s), x.as<T>(), x.stride, x.rows(), x.cols(), factor);
  }

  void Dropout(Stream s, const DropoutSpec& spec, Tensor step_1, Tensor rows_t, int64_t col_begin,
               Tensor x_tn, Tensor out_tn) override {
    CheckDropout(dtype(), spec, step_1, rows_t, col_begin, x_tn, out_tn);
    toroid::Dropout(Pool(s), spec, *step_1.as<const int64_t>(), rows_t.as<const int64_t>(),
                    col_begin, x_tn.as<const T>(), x_tn.stride, out_tn.as<T>(), out_tn.stride,
                    x_tn.rows(), x_tn.cols());
  }

  void VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                       Tensor stat_t3) override {
    CheckVocabStatistics(dtype(), logits, labels, stat_t3);
    toroid::VocabStatistics(Pool(s), logits.as<const T>(), logits.stride, logits.rows(),
                            logits.cols(), vocab_begin, labels.as<const int32_t>(),
                            stat_t3.as<double>());
  }

  void VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) override {
    CheckVocabMerge(parts_nt3, log_p_t, log_z_t);
    toroid::VocabMerge(Pool(s), parts_nt3.as<const double>(), parts_nt3.dims[0], parts_nt3.dims[1],
                       log_p_t.as<double>(), log_z_t.as<double>());
  }

  void VocabBackward(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels, Tensor log_z_t,
                     Tensor d_log_p_t, Tensor d_log_z_t, Tensor dlogits) override {
    CheckVocabBackward(dtype(), logits, labels, log_z_t, d_log_p_t, d_log_z_t, dlogits);
    toroid::VocabBackward(Pool(s), logits.as<const T>(), logits.stride, logits.rows(),
                          logits.cols(), vocab_begin, labels.as<const int32_t>(),
                          log_z_t.as<const double>(), d_log_p_t.as<const double>(),
                          d_log_z_t.as<const double>(), dlogits.as<T>(), dlogits.stride);
  }

  void LossBackward(Stream s, Tensor labels, Tensor weights_t, double zeta, Tensor log_z_t,
                    Tensor d_log_p_t, Tensor d_log_z_t) override {
    CheckLossBackward(labels, weights_t, log_z_t, d_log_p_t, d_log_z_t);
    toroid::LossBackward(Pool(s), labels.as<const int32_t>(), weights_t.as<const double>(), zeta,
                         log_z_t.as<const double>(), log_z_t.size(), d_log_p_t.as<double>(),
                         d_log_z_t.as<double>());
  }

  void Sample(Stream s, Tensor logits_bV, SampleWork, Tensor rows_b7, Tensor out_b3) override {
    CheckSample(dtype(), logits_bV, rows_b7, out_b3);
    Pool(s);
    toroid::Sample(logits_bV.as<const T>(), logits_bV.stride, logits_bV.rows(), logits_bV.cols(),
                   rows_b7.as<const SampleRow>(), sample_room_, out_b3.as<SampledRow>());
  }

  void SquaredSum(Stream s, Tensor x_n, Tensor sum_1) override {
    CheckSquaredSum(dtype(), x_n, sum_1);
    AddSquaredSum(Pool(s), x_n.as<const T>(), x_n.size(), sum_1.as<double>());
  }

  void AdamW(Stream s, const AdamWSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
             Tensor m_n, Tensor v_n) override {
    CheckUpdate(dtype(), step, kAdamWFields, gradient_n, w_n, m_n, v_n);
    toroid::AdamW(Pool(s), spec, step.as<const AdamWStep>(), w_n.size(), gradient_n.as<const T>(),
                  w_n.as<T>(), m_n.as<T>(), v_n.as<T>());
  }

  void Adafactor(Stream s, const AdafactorSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
                 Tensor m_n, Tensor v_n) override {
    CheckUpdate(dtype(), step, kAdafactorFields, gradient_n, w_n, m_n, v_n);
    toroid::Adafactor(Pool(s), spec, step.as<const AdafactorStep>(), w_n.size(),
                      gradient_n.as<const T>(), w_n.as<T>(), m_n.as<T>(), v_n.as<T>());
  }

 private:
  // The pool, for an op on a compute stream.
  ThreadPool& Pool(Stream s) {
    TOROID_CHECK(s.cpu != nullptr);
    TOROID_CHECK_MSG(s.cpu->is_inline(), "maths on a communication stream");
    return pool_;
  }

  // What the forward and the backward of a tile share. The host reads the length.
  static AttentionArgs<T> TileArgs(const Tensor& q_thK, const Tensor& q_positions, const KvView& kv,
                                   const Tensor& kv_index, const AttentionSpec& spec,
                                   const Tile& tile, const Tensor& lse_th) {
    auto args = TileArguments<T>(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
    if (kv.length.data != nullptr) {
      const int64_t length = *kv.length.as<const int32_t>();
      args.k_count = std::clamp<int64_t>(length - tile.k_begin, 0, tile.k_count);
    }
    return args;
  }

  // Copies may be enqueued on communication streams too. There they run in whichever thread drives
  // the stream, and leave the pool to the rank's thread.
  template <typename Work>
  void Run(Stream s, Work work) {
    TOROID_CHECK(s.cpu != nullptr);
    if (s.cpu->is_inline()) {
      work(pool_);
      return;
    }
    s.cpu->Enqueue([this, work] {
      work(serial_);
      return true;
    });
  }

  SampleRoom sample_room_;
  ThreadPool pool_;
  ThreadPool serial_{1};  // has no threads: may be used by several callers
  CpuStreams streams_;    // last: its thread may still use what stands above
};

}  // namespace

std::unique_ptr<Backend> NewCpuBackend(DType type, int threads, std::atomic<int64_t>* ticks) {
  TOROID_CHECK(type == DType::kF32 || type == DType::kF64);
  TOROID_CHECK_GE(threads, 1);
  if (type == DType::kF64) return std::make_unique<CpuBackend<double>>(threads, ticks);
  return std::make_unique<CpuBackend<float>>(threads, ticks);
}

}  // namespace toroid
