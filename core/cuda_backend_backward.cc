// The backward ops and the optimizers of a CUDA backend.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/cuda_backend.h"
#include "core/op_shapes.h"
#include "core/tile_arguments.h"
#include "kernels/adafactor.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/layer_norm.h"
#include "kernels/reduce.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace toroid {

void CudaBackend::EmbedBackward(Stream s, Tensor ids, int64_t vocab_begin, Tensor dout_tD,
                                Tensor dtable_vD) {
  CheckEmbedBackward(dtype(), ids, dout_tD, dtable_vD);
  const Call call(*this, "embed_backward");
  const Lane& lane = Maths(s);
  // So many tokens at a time as the workspace can sort.
  const int64_t most = kMatMulWorkspaceBytes / 64;
  TOROID_CHECK_GE(kMatMulWorkspaceBytes, EmbedBackwardWorkspace(most));
  for (int64_t i = 0; i < dout_tD.rows(); i += most) {
    const int64_t t = std::min(most, dout_tD.rows() - i);
    toroid::EmbedBackward(lane.stream, ids.as<const int32_t>() + i, t,
                          dout_tD.as<const float>() + i * dout_tD.stride, dout_tD.stride,
                          dtable_vD.rows(), dtable_vD.cols(), vocab_begin, dtable_vD.as<float>(),
                          dtable_vD.stride, lane.workspace, kMatMulWorkspaceBytes);
  }
}

void CudaBackend::RmsNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon,
                                  Tensor dout_tD, Tensor dx_tD, Tensor dgain_D) {
  NormBackward(s, x_tD, gain_D, epsilon, dout_tD, /*add_dx=*/false, dx_tD, dgain_D);
}

void CudaBackend::RmsNormBackwardAdd(Stream s, Tensor x_tD, Tensor gain_D, double epsilon,
                                     Tensor dout_tD, Tensor dx_tD, Tensor dgain_D) {
  NormBackward(s, x_tD, gain_D, epsilon, dout_tD, /*add_dx=*/true, dx_tD, dgain_D);
}

void CudaBackend::NormBackward(Stream s, const Tensor& x_tD, const Tensor& gain_D, double epsilon,
                               const Tensor& dout_tD, bool add_dx, const Tensor& dx_tD,
                               const Tensor& dgain_D) {
  CheckRmsNormBackward(dtype(), In(x_tD), gain_D, dout_tD, dx_tD, dgain_D);
  if (x_tD.empty()) return;
  const Call call(*this, "rms_norm_backward");
  const int64_t dim = x_tD.dims[x_tD.dim_count - 1];
  const Lane& lane = Maths(s);
  toroid::RmsNormBackward(lane.stream, x_tD.dtype, x_tD.data, x_tD.stride, x_tD.rows(),
                          x_tD.cols() / dim, dim, gain_D.dtype, gain_D.data, epsilon,
                          dout_tD.as<const float>(), dout_tD.stride, add_dx, dx_tD.as<float>(),
                          dx_tD.stride, dgain_D.as<float>(), lane.free_workspace(),
                          kFreeWorkspaceBytes);
}

void CudaBackend::LayerNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon,
                                    Tensor dout_tD, Tensor dx_tD, Tensor dgain_D, Tensor dbias_D) {
  CheckLayerNormBackward(dtype(), x_tD, gain_D, dout_tD, dx_tD, dgain_D, dbias_D);
  const Call call(*this, "layer_norm_backward");
  const Lane& lane = Maths(s);
  toroid::LayerNormBackward(lane.stream, x_tD.as<const float>(), x_tD.stride, x_tD.rows(),
                            x_tD.cols(), gain_D.dtype, gain_D.data, epsilon,
                            dout_tD.as<const float>(), dout_tD.stride, dx_tD.as<float>(),
                            dx_tD.stride, dgain_D.as<float>(), dbias_D.as<float>(),
                            lane.free_workspace(), kFreeWorkspaceBytes);
}

void CudaBackend::MatMulBackward(Stream s, Tensor x, Tensor w, Tensor dout, bool add_dx, Tensor dx,
                                 Tensor dw, Tensor dbias) {
  CheckMatMulBackward(dtype(), In(x), w, In(dout), In(dx), dw, dbias);
  const Call call(*this, "matmul_backward");
  CudaMatMulBackwardArgs args;
  args.x_type = x.dtype, args.x = x.data, args.x_stride = x.stride;
  args.m = x.rows(), args.n = w.rows(), args.k = w.cols();
  args.w_type = w.dtype, args.w = w.data, args.w_stride = w.stride;
  args.dout_type = dout.dtype, args.dout = dout.data, args.dout_stride = dout.stride;
  args.dx_type = dx.dtype, args.dx = dx.data, args.dx_stride = dx.stride, args.add_dx = add_dx;
  args.dw = dw.as<float>(), args.dw_stride = dw.stride, args.dbias = dbias.as<float>();
  const Lane& lane = Maths(s);
  products_.RunBackward(lane.stream, args, lane.workspace);
  CheckProduct("matmul_backward", args.m, args.n, args.k, w.dtype);
}

void CudaBackend::RopeBackward(Stream s, Tensor dx_thK, Tensor positions, Tensor inv_freq,
                               double scale) {
  CheckRope(dtype(), In(dx_thK), positions, inv_freq);
  const Call call(*this, "rope_backward");
  toroid::RopeBackward(Maths(s).stream, dx_thK.dtype, dx_thK.data, dx_thK.stride, dx_thK.rows(),
                       dx_thK.dims[1], dx_thK.dims[2], positions.as<const int32_t>(),
                       inv_freq.as<const double>(), scale);
}

void CudaBackend::AttentionDelta(Stream s, Tensor o_thK, Tensor do_thK, Tensor delta_th) {
  CheckAttentionDelta(dtype(), o_thK, In(do_thK), delta_th);
  const Call call(*this, "attention_delta");
  toroid::AttentionDelta(Maths(s).stream, o_thK.as<const float>(), o_thK.stride, do_thK.dtype,
                         do_thK.data, do_thK.stride, o_thK.rows(), o_thK.dims[1], o_thK.dims[2],
                         delta_th.as<float>(), delta_th.stride);
}

void CudaBackend::AttendTileBackward(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                                     Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                                     Tensor do_thK, Tensor lse_th, Tensor delta_th, Tensor dq_thK,
                                     Tensor dk_ngK, Tensor dv_ngK) {
  CheckAttendTileBackward(dtype(), In(q_thK), q_positions, kv, kv_index, spec, tile, In(do_thK),
                          lse_th, delta_th, dq_thK, dk_ngK, dv_ngK);
  CheckOneType({q_thK, do_thK});
  TOROID_CHECK_MSG(kv.k.dtype == DType::kF32 || kv.k.dtype == DType::kBF16, Info(kv.k.dtype).name);
  const Call call(*this, "attend_tile_backward");
  AttentionBackwardArgs<float> args;
  args.forward = TileArguments<float>(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
  args.kv_heads = kv.k.dims[1];
  args.d_o = do_thK.as<const float>(), args.do_stride = do_thK.stride;
  args.delta = delta_th.as<const float>(), args.delta_stride = delta_th.stride;
  args.dq = dq_thK.as<float>(), args.dq_stride = dq_thK.stride;
  args.dk = dk_ngK.as<float>(), args.dk_stride = dk_ngK.stride;
  args.dv = dv_ngK.as<float>(), args.dv_stride = dv_ngK.stride;
  const Lane& lane = Maths(s);
  const bool narrow = q_thK.dtype == DType::kBF16;
  if (tensor_cores_ && AttendTileBackwardBf16(lane.stream, args, narrow ? q_thK.data : nullptr,
                                              narrow ? do_thK.data : nullptr, sum_order_,
                                              lane.attention_workspace())) {
    return;
  }
  if (narrow) return AttendBackwardWidened(lane, q_thK, do_thK, args);
  toroid::AttendTileBackward(lane.stream, args);
}

// A few queries at a time, widened into the workspace of products.
void CudaBackend::AttendBackwardWidened(const Lane& lane, const Tensor& q_thK, const Tensor& do_thK,
                                        const AttentionBackwardArgs<float>& tile) {
  const int64_t cols = q_thK.cols(), most = kMatMulWorkspaceBytes / (2 * cols * 4);
  TOROID_CHECK_GT(most, 0);
  float* const q = static_cast<float*>(lane.workspace);
  float* const d_o = q + most * cols;
  for (int64_t done = 0; done < tile.forward.q_count; done += most) {
    const int64_t begin = tile.forward.q_begin + done;
    AttentionBackwardArgs<float> args = tile;
    AttentionArgs<float>& a = args.forward;
    a.q_count = std::min(most, tile.forward.q_count - done);
    const auto widen = [&](const Tensor& x, float* out) {
      CopyRows(lane.stream, x.dtype, x.Rows(begin, a.q_count).data, x.stride, DType::kF32, out,
               cols, a.q_count, cols);
    };
    widen(q_thK, q), widen(do_thK, d_o);
    a.q = q, a.q_stride = cols, a.q_begin = 0, args.d_o = d_o, args.do_stride = cols;
    a.q_positions += begin, a.lse += begin * a.lse_stride;
    args.delta += begin * args.delta_stride, args.dq += begin * args.dq_stride;
    toroid::AttendTileBackward(lane.stream, args);
  }
}

void CudaBackend::SwiGluBackward(Stream s, Tensor gate_tf, Tensor up_tf, Tensor dout_tf,
                                 Tensor dgate_tf, Tensor dup_tf) {
  CheckOneType({gate_tf, up_tf, dout_tf, dgate_tf, dup_tf});
  CheckSwiGluBackward(dtype(), In(gate_tf), In(up_tf), In(dout_tf), In(dgate_tf), In(dup_tf));
  const Call call(*this, "swiglu_backward");
  toroid::SwiGluBackward(Maths(s).stream, dout_tf.dtype, gate_tf.data, gate_tf.stride, up_tf.data,
                         up_tf.stride, dout_tf.data, dout_tf.stride, dgate_tf.data, dgate_tf.stride,
                         dup_tf.data, dup_tf.stride, dout_tf.rows(), dout_tf.cols());
}

void CudaBackend::GeluBackward(Stream s, Tensor x_tf, Tensor dout_tf, Tensor dx_tf) {
  CheckOneType({x_tf, dout_tf, dx_tf});
  CheckGeluBackward(dtype(), In(x_tf), In(dout_tf), In(dx_tf));
  const Call call(*this, "gelu_backward");
  toroid::GeluBackward(Maths(s).stream, x_tf.dtype, x_tf.data, x_tf.stride, dout_tf.data,
                       dout_tf.stride, dx_tf.data, dx_tf.stride, x_tf.rows(), x_tf.cols());
}

void CudaBackend::AddBackward(Stream s, Tensor dx, Tensor dy_1n) {
  CheckAddBackward(dtype(), In(dx), dy_1n);
  const Call call(*this, "add_backward");
  const Lane& lane = Maths(s);
  SumRows(lane.stream, dx.dtype, dx.data, dx.stride, dx.rows(), dx.cols(), dy_1n.as<float>(),
          lane.free_workspace(), kFreeWorkspaceBytes);
}

void CudaBackend::VocabBackward(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                                Tensor log_z_t, Tensor d_log_p_t, Tensor d_log_z_t,
                                Tensor dlogits) {
  CheckVocabBackward(dtype(), logits, labels, log_z_t, d_log_p_t, d_log_z_t, In(dlogits));
  TOROID_CHECK(dlogits.dtype == logits.dtype || dlogits.data != logits.data);
  const Call call(*this, "vocab_backward");
  toroid::VocabBackward(Maths(s).stream, logits.as<const float>(), logits.stride, logits.rows(),
                        logits.cols(), vocab_begin, labels.as<const int32_t>(),
                        log_z_t.as<const double>(), d_log_p_t.as<const double>(),
                        d_log_z_t.as<const double>(), dlogits.dtype, dlogits.data, dlogits.stride);
}

void CudaBackend::LossBackward(Stream s, Tensor labels, Tensor weights_t, double zeta,
                               Tensor log_z_t, Tensor d_log_p_t, Tensor d_log_z_t) {
  CheckLossBackward(labels, weights_t, log_z_t, d_log_p_t, d_log_z_t);
  const Call call(*this, "loss_backward");
  toroid::LossBackward(Maths(s).stream, labels.as<const int32_t>(), weights_t.as<const double>(),
                       zeta, log_z_t.as<const double>(), log_z_t.size(), d_log_p_t.as<double>(),
                       d_log_z_t.as<double>());
}

void CudaBackend::SquaredSum(Stream s, Tensor x_n, Tensor sum_1) {
  CheckSquaredSum(dtype(), x_n, sum_1);
  const Call call(*this, "squared_sum");
  const Lane& lane = Maths(s);
  AddSquaredSum(lane.stream, x_n.as<const float>(), x_n.size(), sum_1.as<double>(),
                lane.free_workspace());
}

void CudaBackend::AdamW(Stream s, const AdamWSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
                        Tensor m_n, Tensor v_n) {
  CheckUpdate(dtype(), step, kAdamWFields, gradient_n, w_n, m_n, v_n);
  const Call call(*this, "adamw");
  toroid::AdamW(Maths(s).stream, spec, step.as<const AdamWStep>(), w_n.size(),
                gradient_n.as<const float>(), w_n.as<float>(), m_n.as<float>(), v_n.as<float>());
}

void CudaBackend::Adafactor(Stream s, const AdafactorSpec& spec, Tensor step, Tensor gradient_n,
                            Tensor w_n, Tensor m_n, Tensor v_n) {
  CheckUpdate(dtype(), step, kAdafactorFields, gradient_n, w_n, m_n, v_n);
  const Call call(*this, "adafactor");
  toroid::Adafactor(Maths(s).stream, spec, step.as<const AdafactorStep>(), w_n.size(),
                    gradient_n.as<const float>(), w_n.as<float>(), m_n.as<float>(),
                    v_n.as<float>());
}

}  // namespace toroid
