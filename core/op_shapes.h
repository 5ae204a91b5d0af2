// What the ops of core/backend.h demand of their operands, CHECKed alike by every backend: shapes,
// types, contiguity. `type` is the backend's dtype(). Addresses and values are not looked at.
#pragma once

#include <initializer_list>

#include "core/model/attention_spec.h"
#include "core/tensor.h"
#include "kernels/dropout.h"

namespace toroid {

// What the checks take for an activation that is of type `activation`: it stands for `type`.
inline Tensor StandIn(DType type, DType activation, Tensor x) {
  if (x.dtype == activation) x.dtype = type;
  return x;
}
void CheckOneType(std::initializer_list<Tensor> tensors);

void CheckCopy(const Tensor& x, const Tensor& out);
void CheckFill(const Tensor& x);
void CheckEmbed(DType type, const Tensor& ids, const Tensor& table_vD, const Tensor& out_tD);
void CheckEmbedBackward(DType type, const Tensor& ids, const Tensor& dout_tD,
                        const Tensor& dtable_vD);
void CheckRmsNorm(DType type, const Tensor& x_tD, const Tensor& gain_D, const Tensor& out_tD);
void CheckRmsNormBackward(DType type, const Tensor& x_tD, const Tensor& gain_D,
                          const Tensor& dout_tD, const Tensor& dx_tD, const Tensor& dgain_D);
void CheckLayerNorm(DType type, const Tensor& x_tD, const Tensor& gain_D, const Tensor& bias_D,
                    const Tensor& out_tD);
void CheckLayerNormBackward(DType type, const Tensor& x_tD, const Tensor& gain_D,
                            const Tensor& dout_tD, const Tensor& dx_tD, const Tensor& dgain_D,
                            const Tensor& dbias_D);
void CheckMatMul(DType type, const Tensor& x, const Tensor& w, const Tensor& bias,
                 const Tensor& out);
void CheckMatMulBackward(DType type, const Tensor& x, const Tensor& w, const Tensor& dout,
                         const Tensor& dx, const Tensor& dw, const Tensor& dbias);
void CheckRope(DType type, const Tensor& x_thK, const Tensor& positions, const Tensor& inv_freq);
void CheckKvWrite(DType type, const Tensor& x_tgK, const Tensor& slots, const Tensor& cache);
void CheckAttendTile(DType type, const Tensor& q_thK, const Tensor& q_positions, const KvView& kv,
                     const Tensor& kv_index, const AttentionSpec& spec, const Tile& tile,
                     const Tensor& o_thK, const Tensor& lse_th);
void CheckAttentionDelta(DType type, const Tensor& o_thK, const Tensor& do_thK,
                         const Tensor& delta_th);
void CheckAttendTileBackward(DType type, const Tensor& q_thK, const Tensor& q_positions,
                             const KvView& kv, const Tensor& kv_index, const AttentionSpec& spec,
                             const Tile& tile, const Tensor& do_thK, const Tensor& lse_th,
                             const Tensor& delta_th, const Tensor& dq_thK, const Tensor& dk_ngK,
                             const Tensor& dv_ngK);
void CheckAttentionMerge(DType type, const Tensor& o_nthK, const Tensor& lse_nth,
                         const Tensor& o_thK);
void CheckSwiGlu(DType type, const Tensor& gate_tf, const Tensor& up_tf, const Tensor& out_tf);
void CheckSwiGluBackward(DType type, const Tensor& gate_tf, const Tensor& up_tf,
                         const Tensor& dout_tf, const Tensor& dgate_tf, const Tensor& dup_tf);
void CheckGelu(DType type, const Tensor& x_tf, const Tensor& out_tf);
void CheckGeluBackward(DType type, const Tensor& x_tf, const Tensor& dout_tf, const Tensor& dx_tf);
void CheckAdd(DType type, const Tensor& x, const Tensor& y);
void CheckAddBackward(DType type, const Tensor& dx, const Tensor& dy_1n);
void CheckScale(DType type, const Tensor& x);
void CheckDropout(DType type, const DropoutSpec& spec, const Tensor& step_1, const Tensor& rows_t,
                  int64_t col_begin, const Tensor& x_tn, const Tensor& out_tn);
void CheckVocabStatistics(DType type, const Tensor& logits, const Tensor& labels,
                          const Tensor& stat_t3);
void CheckVocabMerge(const Tensor& parts_nt3, const Tensor& log_p_t, const Tensor& log_z_t);
void CheckVocabBackward(DType type, const Tensor& logits, const Tensor& labels,
                        const Tensor& log_z_t, const Tensor& d_log_p_t, const Tensor& d_log_z_t,
                        const Tensor& dlogits);
void CheckLossBackward(const Tensor& labels, const Tensor& weights_t, const Tensor& log_z_t,
                       const Tensor& d_log_p_t, const Tensor& d_log_z_t);
void CheckSample(DType type, const Tensor& logits_bV, const Tensor& rows_b7, const Tensor& out_b3);
void CheckSquaredSum(DType type, const Tensor& x_n, const Tensor& sum_1);
// step: so many doubles.
void CheckUpdate(DType type, const Tensor& step, int64_t step_size, const Tensor& gradient_n,
                 const Tensor& w_n, const Tensor& m_n, const Tensor& v_n);

}  // namespace toroid
