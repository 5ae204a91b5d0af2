// The forward ops of a CUDA backend.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/cuda_backend.h"
#include "core/op_shapes.h"
#include "core/tile_arguments.h"
#include "kernels/attention.h"
#include "kernels/attention_merge.h"
#include "kernels/cross_entropy.h"
#include "kernels/dequantize.h"
#include "kernels/dropout.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gelu.h"
#include "kernels/kv_write.h"
#include "kernels/layer_norm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sample.h"
#include "kernels/swiglu.h"

namespace toroid {

void CudaBackend::Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) {
  CheckEmbed(dtype(), ids, table_vD, out_tD);
  TOROID_CHECK_MSG(IsStoredWeight(table_vD.dtype), Info(table_vD.dtype).name);
  const Call call(*this, "embed");
  toroid::Embed(Maths(s).stream, ids.as<const int32_t>(), out_tD.rows(), table_vD.dtype,
                table_vD.data, table_vD.stride, table_vD.rows(), table_vD.cols(), vocab_begin,
                out_tD.as<float>(), out_tD.stride);
}

void CudaBackend::RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) {
  CheckRmsNorm(dtype(), In(x_tD), gain_D, In(out_tD));
  if (x_tD.empty() || few_rows_.Norm(x_tD, gain_D, epsilon, out_tD)) return;
  const Call call(*this, "rms_norm");
  const int64_t dim = x_tD.dims[x_tD.dim_count - 1];
  toroid::RmsNorm(Maths(s).stream, x_tD.dtype, x_tD.data, x_tD.stride, x_tD.rows(),
                  x_tD.cols() / dim, dim, gain_D.dtype, gain_D.data, epsilon, out_tD.dtype,
                  out_tD.data, out_tD.stride);
}

void CudaBackend::MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) {
  CheckMatMul(dtype(), In(x), w, bias, In(out));
  if (few_rows_.Product(x, w, bias, out)) return;
  Multiply(s, x, w, bias, Tensor(), out);
}

// Of many rows the sum begins with the addend.
void CudaBackend::MatMulAdd(Stream s, Tensor x, Tensor w, Tensor addend, Tensor room, Tensor out) {
  if (x.rows() <= kMatVecRows) return Backend::MatMulAdd(s, x, w, addend, room, out);
  CheckMatMul(dtype(), In(x), w, Tensor(), out);
  CheckMatMul(dtype(), In(x), w, Tensor(), addend);
  Multiply(s, x, w, Tensor(), addend, out);
}

void CudaBackend::Multiply(Stream s, const Tensor& x, const Tensor& w, const Tensor& bias,
                           const Tensor& addend, const Tensor& out) {
  const Call call(*this, "matmul");
  CudaMatMulArgs args;
  args.x_type = x.dtype, args.x = x.data, args.x_stride = x.stride;
  args.m = x.rows(), args.n = w.rows(), args.k = w.cols();
  args.w_type = w.dtype, args.w = w.data, args.w_stride = w.stride;
  if (!bias.empty()) args.bias = bias.data, args.bias_type = bias.dtype;
  if (!addend.empty()) args.addend = addend.as<const float>(), args.addend_stride = addend.stride;
  args.out_type = out.dtype, args.out = out.data, args.out_stride = out.stride;
  const Lane& lane = Maths(s);
  products_.Run(lane.stream, args, lane.workspace);
  CheckProduct("matmul", args.m, args.n, args.k, w.dtype);
}

void CudaBackend::Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) {
  CheckRope(dtype(), In(x_thK), positions, inv_freq);
  if (few_rows_.Rope(x_thK, positions, inv_freq, scale)) return;
  const Call call(*this, "rope");
  toroid::Rope(Maths(s).stream, x_thK.dtype, x_thK.data, x_thK.stride, x_thK.rows(), x_thK.dims[1],
               x_thK.dims[2], positions.as<const int32_t>(), inv_freq.as<const double>(), scale);
}

void CudaBackend::KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) {
  CheckKvWrite(dtype(), x_tgK, slots, cache);
  if (few_rows_.KvWrite(x_tgK, slots, cache)) return;
  const Call call(*this, "kv_write");
  toroid::KvWrite(Maths(s).stream, x_tgK.dtype, x_tgK.data, x_tgK.stride, x_tgK.rows(),
                  x_tgK.cols(), slots.as<const int64_t>(), cache.dtype, cache.data, cache.stride);
}

void CudaBackend::AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                             Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                             Tensor o_thK, Tensor lse_th) {
  CheckAttendTile(dtype(), In(q_thK), q_positions, kv, kv_index, spec, tile, o_thK, lse_th);
  TOROID_CHECK_MSG(kv.k.dtype == DType::kF32 || kv.k.dtype == DType::kBF16, Info(kv.k.dtype).name);
  const Call call(*this, "attend_tile");
  auto args = TileArguments<float>(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
  args.length = kv.length.as<const int32_t>();
  args.o = o_thK.as<float>(), args.o_stride = o_thK.stride;
  const Lane& lane = Maths(s);
  const void* queries = q_thK.dtype == DType::kBF16 ? q_thK.data : nullptr;
  if (tensor_cores_ &&
      AttendTileBf16(lane.stream, args, queries, kv.k.dims[1], lane.attention_workspace())) {
    return;
  }
  if (queries != nullptr) return AttendWidened(lane, q_thK, args);
  toroid::AttendTile(lane.stream, args, lane.free_workspace(), kFreeWorkspaceBytes,
                     lane.narrow_counters(), few_rows_.active() && overlap_);
}

// A few queries at a time, widened into the workspace of products.
void CudaBackend::AttendWidened(const Lane& lane, const Tensor& q_thK,
                                const AttentionArgs<float>& tile) {
  const int64_t cols = q_thK.cols(), most = kMatMulWorkspaceBytes / (cols * 4);
  TOROID_CHECK_GT(most, 0);
  for (int64_t done = 0; done < tile.q_count; done += most) {
    const int64_t begin = tile.q_begin + done;
    AttentionArgs<float> args = tile;
    args.q_count = std::min(most, tile.q_count - done);
    CopyRows(lane.stream, q_thK.dtype, q_thK.Rows(begin, args.q_count).data, q_thK.stride,
             DType::kF32, lane.workspace, cols, args.q_count, cols);
    args.q = static_cast<const float*>(lane.workspace), args.q_stride = cols, args.q_begin = 0;
    args.q_positions += begin;
    args.o += begin * args.o_stride, args.lse += begin * args.lse_stride;
    toroid::AttendTile(lane.stream, args, lane.free_workspace(), kFreeWorkspaceBytes,
                       lane.narrow_counters(), /*overlap=*/false);
  }
}

void CudaBackend::AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) {
  CheckAttentionMerge(dtype(), o_nthK, lse_nth, o_thK);
  const Call call(*this, "attention_merge");
  MergeArgs<float> args;
  args.o_parts = o_nthK.as<const float>(), args.lse_parts = lse_nth.as<const float>();
  args.parts = o_nthK.dims[0], args.heads = o_nthK.dims[2], args.dim = o_nthK.dims[3];
  args.rows = o_nthK.dims[1] * args.heads;
  args.o_part_stride = o_nthK.stride, args.lse_part_stride = lse_nth.stride;
  args.o = o_thK.as<float>(), args.o_stride = o_thK.stride;
  toroid::AttentionMerge(Maths(s).stream, args);
}

void CudaBackend::SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) {
  CheckOneType({gate_tf, up_tf, out_tf});
  CheckSwiGlu(dtype(), In(gate_tf), In(up_tf), In(out_tf));
  if (few_rows_.SwiGlu(gate_tf, up_tf, out_tf)) return;
  const Call call(*this, "swiglu");
  toroid::SwiGlu(Maths(s).stream, out_tf.dtype, gate_tf.data, gate_tf.stride, up_tf.data,
                 up_tf.stride, out_tf.data, out_tf.stride, out_tf.rows(), out_tf.cols());
}

void CudaBackend::Add(Stream s, Tensor x, Tensor y) {
  CheckAdd(dtype(), x, y);
  if (few_rows_.Add(x, y)) return;
  const Call call(*this, "add");
  AddRows(Maths(s).stream, x.as<float>(), x.stride, y.as<const float>(),
          y.rows() == x.rows() ? y.stride : 0, x.rows(), x.cols());
}

void CudaBackend::VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                                  Tensor stat_t3) {
  CheckVocabStatistics(dtype(), logits, labels, stat_t3);
  const Call call(*this, "vocab_statistics");
  toroid::VocabStatistics(Maths(s).stream, logits.as<const float>(), logits.stride, logits.rows(),
                          logits.cols(), vocab_begin, labels.as<const int32_t>(),
                          stat_t3.as<double>());
}

void CudaBackend::VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) {
  CheckVocabMerge(parts_nt3, log_p_t, log_z_t);
  const Call call(*this, "vocab_merge");
  toroid::VocabMerge(Maths(s).stream, parts_nt3.as<const double>(), parts_nt3.dims[0],
                     parts_nt3.dims[1], log_p_t.as<double>(), log_z_t.as<double>());
}

void CudaBackend::Sample(Stream s, Tensor logits_bV, SampleWork most, Tensor rows_b7,
                         Tensor out_b3) {
  CheckSample(dtype(), logits_bV, rows_b7, out_b3);
  TOROID_CHECK_LE(SampleWorkspaceBytes(logits_bV.cols()), kFreeWorkspaceBytes);
  const Call call(*this, "sample");
  toroid::Sample(Maths(s).stream, logits_bV.as<const float>(), logits_bV.stride, logits_bV.rows(),
                 logits_bV.cols(), most, rows_b7.as<const SampleRow>(), out_b3.as<SampledRow>(),
                 Maths(s).free_workspace(), kFreeWorkspaceBytes);
}

void CudaBackend::LayerNorm(Stream s, Tensor x_tD, Tensor gain_D, Tensor bias_D, double epsilon,
                            Tensor out_tD) {
  CheckLayerNorm(dtype(), x_tD, gain_D, bias_D, In(out_tD));
  const Call call(*this, "layer_norm");
  toroid::LayerNorm(Maths(s).stream, x_tD.as<const float>(), x_tD.stride, x_tD.rows(), x_tD.cols(),
                    gain_D.dtype, gain_D.data, bias_D.empty() ? nullptr : bias_D.data, epsilon,
                    out_tD.dtype, out_tD.data, out_tD.stride);
}

void CudaBackend::Gelu(Stream s, Tensor x_tf, Tensor out_tf) {
  CheckOneType({x_tf, out_tf});
  CheckGelu(dtype(), In(x_tf), In(out_tf));
  const Call call(*this, "gelu");
  toroid::Gelu(Maths(s).stream, x_tf.dtype, x_tf.data, x_tf.stride, out_tf.data, out_tf.stride,
               x_tf.rows(), x_tf.cols());
}

void CudaBackend::Scale(Stream s, Tensor x, double factor) {
  CheckScale(dtype(), In(x));
  const Call call(*this, "scale");
  ScaleRows(Maths(s).stream, x.dtype, x.data, x.stride, x.rows(), x.cols(), factor);
}

void CudaBackend::Dropout(Stream s, const DropoutSpec& spec, Tensor step_1, Tensor rows_t,
                          int64_t col_begin, Tensor x_tn, Tensor out_tn) {
  CheckOneType({x_tn, out_tn});
  CheckDropout(dtype(), spec, step_1, rows_t, col_begin, In(x_tn), In(out_tn));
  const Call call(*this, "dropout");
  toroid::Dropout(Maths(s).stream, spec, step_1.as<const int64_t>(), rows_t.as<const int64_t>(),
                  col_begin, x_tn.dtype, x_tn.data, x_tn.stride, out_tn.data, out_tn.stride,
                  x_tn.rows(), x_tn.cols());
}

}  // namespace toroid
