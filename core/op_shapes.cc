#include "core/op_shapes.h"

#include "kernels/attention.h"
#include "kernels/dequantize.h"
#include "kernels/sample.h"

namespace toroid {

namespace {

void CheckType(const Tensor& x, DType type) {
  TOROID_CHECK_MSG(x.dtype == type,
                   std::string(Info(x.dtype).name) + " instead of " + Info(type).name);
}

// A whole vector: [n], or one row of n.
void CheckVector(const Tensor& x, DType type, int64_t n) {
  CheckType(x, type);
  TOROID_CHECK_EQ(x.size(), n);
  TOROID_CHECK(x.contiguous());
}

void CheckVectorOfReals(const Tensor& x, int64_t n) {
  CheckVector(x, x.dtype == DType::kF64 ? DType::kF64 : DType::kF32, n);
}

void CheckSameShape(const Tensor& a, const Tensor& b) {
  TOROID_CHECK_EQ(a.rows(), b.rows());
  TOROID_CHECK_EQ(a.cols(), b.cols());
}

// Partial sums of a gain and a bias in f64 fit the scratch that a pool shares.
constexpr int64_t kMaxNormDim = 131072;

bool Converts(DType type) {
  return type == DType::kF32 || type == DType::kF64 || type == DType::kBF16;
}

// The gradient of a parameter: not wanted if it is empty.
bool Wanted(const Tensor& gradient) { return gradient.data != nullptr && !gradient.empty(); }

void CheckCacheType(DType type) { TOROID_CHECK_MSG(Converts(type), Info(type).name); }

}  // namespace

void CheckOneType(std::initializer_list<Tensor> tensors) {
  for (const Tensor& x : tensors) CheckType(x, tensors.begin()->dtype);
}

void CheckCopy(const Tensor& x, const Tensor& out) {
  CheckSameShape(x, out);
  if (x.dtype != out.dtype) TOROID_CHECK(Converts(x.dtype) && Converts(out.dtype));
  if (IsQuantised(x.dtype)) TOROID_CHECK(x.contiguous() && out.contiguous());
}

void CheckFill(const Tensor& x) {
  TOROID_CHECK(Converts(x.dtype) || x.dtype == DType::kI32 || x.dtype == DType::kI64);
}

void CheckEmbed(DType type, const Tensor& ids, const Tensor& table_vD, const Tensor& out_tD) {
  CheckVector(ids, DType::kI32, out_tD.rows());
  CheckType(out_tD, type);
  TOROID_CHECK_EQ(table_vD.cols(), out_tD.cols());
  TOROID_CHECK(table_vD.dtype != DType::kI32 && table_vD.dtype != DType::kI64 &&
               table_vD.dtype != DType::kU8);
}

void CheckEmbedBackward(DType type, const Tensor& ids, const Tensor& dout_tD,
                        const Tensor& dtable_vD) {
  CheckVector(ids, DType::kI32, dout_tD.rows());
  CheckType(dout_tD, type);
  CheckType(dtable_vD, type);
  TOROID_CHECK_EQ(dtable_vD.cols(), dout_tD.cols());
}

void CheckRmsNorm(DType type, const Tensor& x_tD, const Tensor& gain_D, const Tensor& out_tD) {
  CheckType(x_tD, type);
  CheckType(out_tD, type);
  CheckSameShape(x_tD, out_tD);
  TOROID_CHECK(x_tD.dim_count >= 1);
  CheckVectorOfReals(gain_D, x_tD.dims[x_tD.dim_count - 1]);
}

void CheckRmsNormBackward(DType type, const Tensor& x_tD, const Tensor& gain_D,
                          const Tensor& dout_tD, const Tensor& dx_tD, const Tensor& dgain_D) {
  CheckRmsNorm(type, x_tD, gain_D, dout_tD);
  CheckType(dx_tD, type);
  CheckSameShape(dx_tD, x_tD);
  TOROID_CHECK_LE(gain_D.size(), kMaxNormDim);
  if (Wanted(dgain_D)) CheckVector(dgain_D, type, gain_D.size());
}

void CheckLayerNorm(DType type, const Tensor& x_tD, const Tensor& gain_D, const Tensor& bias_D,
                    const Tensor& out_tD) {
  CheckRmsNorm(type, x_tD, gain_D, out_tD);
  TOROID_CHECK_EQ(x_tD.cols(), gain_D.size());
  if (!bias_D.empty()) CheckVector(bias_D, gain_D.dtype, gain_D.size());
}

void CheckLayerNormBackward(DType type, const Tensor& x_tD, const Tensor& gain_D,
                            const Tensor& dout_tD, const Tensor& dx_tD, const Tensor& dgain_D,
                            const Tensor& dbias_D) {
  CheckRmsNormBackward(type, x_tD, gain_D, dout_tD, dx_tD, dgain_D);
  TOROID_CHECK_EQ(x_tD.cols(), gain_D.size());
  if (Wanted(dbias_D)) CheckVector(dbias_D, type, gain_D.size());
}

void CheckMatMul(DType type, const Tensor& x, const Tensor& w, const Tensor& bias,
                 const Tensor& out) {
  CheckType(x, type);
  CheckType(out, type);
  TOROID_CHECK_MSG(IsStoredWeight(w.dtype), Info(w.dtype).name);
  TOROID_CHECK_EQ(x.cols(), w.cols());
  TOROID_CHECK_EQ(w.rows(), out.cols());
  TOROID_CHECK_EQ(x.rows(), out.rows());
  if (IsQuantised(w.dtype)) {
    TOROID_CHECK(w.contiguous());
    TOROID_CHECK_EQ(w.cols() % Info(w.dtype).block, 0);
  }
  if (bias.data != nullptr && !bias.empty()) CheckVectorOfReals(bias, out.cols());
}

void CheckMatMulBackward(DType type, const Tensor& x, const Tensor& w, const Tensor& dout,
                         const Tensor& dx, const Tensor& dw, const Tensor& dbias) {
  CheckMatMul(type, x, w, dbias, dout);
  if (Wanted(dx)) {
    CheckType(dx, type);
    CheckSameShape(dx, x);
  }
  if (Wanted(dw)) {
    CheckType(dw, type);
    CheckSameShape(dw, w);
  }
  if (Wanted(dbias)) CheckVector(dbias, type, dout.cols());
}

void CheckRope(DType type, const Tensor& x_thK, const Tensor& positions, const Tensor& inv_freq) {
  CheckType(x_thK, type);
  TOROID_CHECK_EQ(x_thK.dim_count, 3);
  CheckVector(positions, DType::kI32, x_thK.rows());
  CheckVector(inv_freq, DType::kF64, x_thK.dims[2] / 2);
  TOROID_CHECK_EQ(x_thK.dims[2] % 2, 0);
}

void CheckKvWrite(DType type, const Tensor& x_tgK, const Tensor& slots, const Tensor& cache) {
  if (x_tgK.dtype != cache.dtype) CheckType(x_tgK, type);  // or narrowed already
  CheckCacheType(cache.dtype);
  CheckVector(slots, DType::kI64, x_tgK.rows());
  TOROID_CHECK_EQ(x_tgK.cols(), cache.cols());
}

void CheckAttendTile(DType type, const Tensor& q_thK, const Tensor& q_positions, const KvView& kv,
                     const Tensor& kv_index, const AttentionSpec& spec, const Tile& tile,
                     const Tensor& o_thK, const Tensor& lse_th) {
  CheckType(q_thK, type);
  CheckType(o_thK, type);
  CheckType(lse_th, type);
  TOROID_CHECK_EQ(q_thK.dim_count, 3);
  TOROID_CHECK_EQ(kv.k.dim_count, 3);
  CheckSameShape(q_thK, o_thK);
  const int64_t heads = q_thK.dims[1], head_dim = q_thK.dims[2];
  TOROID_CHECK_EQ(lse_th.rows(), q_thK.rows());
  TOROID_CHECK_EQ(lse_th.cols(), heads);
  TOROID_CHECK(head_dim > 0 && head_dim <= kMaxHeadDim);
  CheckVector(q_positions, DType::kI32, q_thK.rows());
  CheckVector(kv_index, DType::kI32, heads);
  CheckCacheType(kv.k.dtype);
  CheckType(kv.v, kv.k.dtype);
  CheckSameShape(kv.k, kv.v);
  TOROID_CHECK_EQ(kv.k.dims[2], head_dim);
  TOROID_CHECK_EQ(kv.v.dims[2], head_dim);
  CheckType(kv.positions, DType::kI32);
  TOROID_CHECK(kv.positions.contiguous());
  TOROID_CHECK(tile.q_begin >= 0 && tile.q_count >= 0 && tile.k_begin >= 0 && tile.k_count >= 0);
  TOROID_CHECK_LE(tile.q_begin + tile.q_count, q_thK.rows());
  TOROID_CHECK_LE(tile.k_begin + tile.k_count, kv.positions.size());
  if (kv.page_table.data != nullptr) {
    CheckType(kv.page_table, DType::kI32);
    TOROID_CHECK_GT(kv.page_tokens, 0);
    TOROID_CHECK_LE(tile.k_begin + tile.k_count, kv.page_table.size() * kv.page_tokens);
  } else {
    TOROID_CHECK_LE(tile.k_begin + tile.k_count, kv.k.rows());
  }
  if (kv.length.data != nullptr) CheckVector(kv.length, DType::kI32, 1);
  TOROID_CHECK_EQ(spec.soft_cap, 0.0);
  TOROID_CHECK_EQ(spec.sinks, 0);
  TOROID_CHECK_GE(spec.window, 0);
}

void CheckAttentionDelta(DType type, const Tensor& o_thK, const Tensor& do_thK,
                         const Tensor& delta_th) {
  for (const Tensor* x : {&o_thK, &do_thK, &delta_th}) CheckType(*x, type);
  TOROID_CHECK_EQ(o_thK.dim_count, 3);
  CheckSameShape(o_thK, do_thK);
  TOROID_CHECK_EQ(delta_th.rows(), o_thK.rows());
  TOROID_CHECK_EQ(delta_th.cols(), o_thK.dims[1]);
}

void CheckAttendTileBackward(DType type, const Tensor& q_thK, const Tensor& q_positions,
                             const KvView& kv, const Tensor& kv_index, const AttentionSpec& spec,
                             const Tile& tile, const Tensor& do_thK, const Tensor& lse_th,
                             const Tensor& delta_th, const Tensor& dq_thK, const Tensor& dk_ngK,
                             const Tensor& dv_ngK) {
  CheckAttendTile(type, q_thK, q_positions, kv, kv_index, spec, tile, do_thK, lse_th);
  TOROID_CHECK_MSG(kv.page_table.data == nullptr && kv.length.data == nullptr, "pages in training");
  for (const Tensor* x : {&delta_th, &dq_thK, &dk_ngK, &dv_ngK}) CheckType(*x, type);
  CheckSameShape(delta_th, lse_th);
  CheckSameShape(dq_thK, q_thK);
  CheckSameShape(dk_ngK, kv.k);
  CheckSameShape(dv_ngK, kv.v);
}

void CheckAttentionMerge(DType type, const Tensor& o_nthK, const Tensor& lse_nth,
                         const Tensor& o_thK) {
  CheckType(o_nthK, type);
  CheckType(lse_nth, type);
  CheckType(o_thK, type);
  TOROID_CHECK_EQ(o_nthK.dim_count, 4);
  TOROID_CHECK_EQ(o_thK.dim_count, 3);
  TOROID_CHECK(o_nthK.contiguous() && lse_nth.contiguous());
  TOROID_CHECK_EQ(lse_nth.rows(), o_nthK.rows());
  TOROID_CHECK_EQ(lse_nth.cols() * o_nthK.dims[3], o_nthK.cols());
  for (int i = 0; i < 3; ++i) TOROID_CHECK_EQ(o_thK.dims[i], o_nthK.dims[i + 1]);
}

void CheckSwiGlu(DType type, const Tensor& gate_tf, const Tensor& up_tf, const Tensor& out_tf) {
  for (const Tensor* x : {&gate_tf, &up_tf, &out_tf}) CheckType(*x, type);
  CheckSameShape(gate_tf, up_tf);
  CheckSameShape(gate_tf, out_tf);
}

void CheckSwiGluBackward(DType type, const Tensor& gate_tf, const Tensor& up_tf,
                         const Tensor& dout_tf, const Tensor& dgate_tf, const Tensor& dup_tf) {
  CheckSwiGlu(type, gate_tf, up_tf, dout_tf);
  CheckSwiGlu(type, gate_tf, dgate_tf, dup_tf);
}

void CheckGelu(DType type, const Tensor& x_tf, const Tensor& out_tf) {
  CheckType(x_tf, type);
  CheckType(out_tf, type);
  CheckSameShape(x_tf, out_tf);
}

void CheckGeluBackward(DType type, const Tensor& x_tf, const Tensor& dout_tf, const Tensor& dx_tf) {
  CheckGelu(type, x_tf, dout_tf);
  CheckGelu(type, x_tf, dx_tf);
}

void CheckAdd(DType type, const Tensor& x, const Tensor& y) {
  CheckType(x, type);
  CheckType(y, type);
  TOROID_CHECK_EQ(x.cols(), y.cols());
  TOROID_CHECK(y.rows() == x.rows() || y.rows() == 1);
}

void CheckAddBackward(DType type, const Tensor& dx, const Tensor& dy_1n) {
  CheckType(dx, type);
  CheckVector(dy_1n, type, dx.cols());
}

void CheckScale(DType type, const Tensor& x) { CheckType(x, type); }

void CheckDropout(DType type, const DropoutSpec& spec, const Tensor& step_1, const Tensor& rows_t,
                  int64_t col_begin, const Tensor& x_tn, const Tensor& out_tn) {
  TOROID_CHECK(spec.rate >= 0 && spec.rate < 1);
  TOROID_CHECK(spec.layer >= 0 && spec.layer < 1 << 16 && spec.site >= 0 && spec.site < 1 << 8);
  CheckVector(step_1, DType::kI64, 1);
  CheckVector(rows_t, DType::kI64, x_tn.rows());
  CheckType(x_tn, type);
  CheckType(out_tn, type);
  CheckSameShape(x_tn, out_tn);
  TOROID_CHECK_GE(col_begin, 0);
  TOROID_CHECK_LE(col_begin + x_tn.cols(), spec.width);
}

void CheckVocabStatistics(DType type, const Tensor& logits, const Tensor& labels,
                          const Tensor& stat_t3) {
  CheckType(logits, type);
  CheckVector(labels, DType::kI32, logits.rows());
  CheckVector(stat_t3, DType::kF64, 3 * logits.rows());
}

void CheckVocabMerge(const Tensor& parts_nt3, const Tensor& log_p_t, const Tensor& log_z_t) {
  CheckType(parts_nt3, DType::kF64);
  TOROID_CHECK_EQ(parts_nt3.dim_count, 3);
  TOROID_CHECK_EQ(parts_nt3.dims[2], 3);
  TOROID_CHECK(parts_nt3.contiguous());
  CheckVector(log_p_t, DType::kF64, parts_nt3.dims[1]);
  CheckVector(log_z_t, DType::kF64, parts_nt3.dims[1]);
}

void CheckVocabBackward(DType type, const Tensor& logits, const Tensor& labels,
                        const Tensor& log_z_t, const Tensor& d_log_p_t, const Tensor& d_log_z_t,
                        const Tensor& dlogits) {
  CheckType(logits, type);
  CheckType(dlogits, type);
  CheckSameShape(logits, dlogits);
  CheckVector(labels, DType::kI32, logits.rows());
  for (const Tensor* x : {&log_z_t, &d_log_p_t, &d_log_z_t}) {
    CheckVector(*x, DType::kF64, logits.rows());
  }
}

void CheckLossBackward(const Tensor& labels, const Tensor& weights_t, const Tensor& log_z_t,
                       const Tensor& d_log_p_t, const Tensor& d_log_z_t) {
  CheckVector(labels, DType::kI32, log_z_t.size());
  for (const Tensor* x : {&weights_t, &log_z_t, &d_log_p_t, &d_log_z_t}) {
    CheckVector(*x, DType::kF64, log_z_t.size());
  }
}

void CheckSample(DType type, const Tensor& logits_bV, const Tensor& rows_b7, const Tensor& out_b3) {
  CheckType(logits_bV, type);
  TOROID_CHECK_GE(logits_bV.cols(), 1);
  CheckVector(rows_b7, DType::kI64, kSampleRowWords * logits_bV.rows());
  CheckVector(out_b3, DType::kI64, kSampledRowWords * logits_bV.rows());
}

void CheckSquaredSum(DType type, const Tensor& x_n, const Tensor& sum_1) {
  CheckVector(x_n, type, x_n.size());
  CheckVector(sum_1, DType::kF64, 1);
}

void CheckUpdate(DType type, const Tensor& step, int64_t step_size, const Tensor& gradient_n,
                 const Tensor& w_n, const Tensor& m_n, const Tensor& v_n) {
  CheckVector(step, DType::kF64, step_size);
  for (const Tensor* x : {&gradient_n, &w_n, &m_n, &v_n}) CheckVector(*x, type, w_n.size());
}

}  // namespace toroid
