// What the ops of core/backend.h demand of their operands, CHECKed alike by every backend: shapes,
// types, contiguity. `type` is the backend's dtype(). Addresses and values are not looked at.
#pragma once

#include "core/model/attention_spec.h"
#include "core/tensor.h"

namespace toroid {

void CheckCopy(const Tensor& x, const Tensor& out);
void CheckFill(const Tensor& x);
void CheckEmbed(DType type, const Tensor& ids, const Tensor& table_vD, const Tensor& out_tD);
void CheckRmsNorm(DType type, const Tensor& x_tD, const Tensor& gain_D, const Tensor& out_tD);
void CheckMatMul(DType type, const Tensor& x, const Tensor& w, const Tensor& bias,
                 const Tensor& out);
void CheckRope(DType type, const Tensor& x_thK, const Tensor& positions, const Tensor& inv_freq);
void CheckKvWrite(DType type, const Tensor& x_tgK, const Tensor& slots, const Tensor& cache);
void CheckAttendTile(DType type, const Tensor& q_thK, const Tensor& q_positions, const KvView& kv,
                     const Tensor& kv_index, const AttentionSpec& spec, const Tile& tile,
                     const Tensor& o_thK, const Tensor& lse_th);
void CheckAttentionMerge(DType type, const Tensor& o_nthK, const Tensor& lse_nth,
                         const Tensor& o_thK);
void CheckSwiGlu(DType type, const Tensor& gate_tf, const Tensor& up_tf, const Tensor& out_tf);
void CheckAdd(DType type, const Tensor& x, const Tensor& y);
void CheckVocabStatistics(DType type, const Tensor& logits, const Tensor& labels,
                          const Tensor& stat_t3);
void CheckVocabMerge(const Tensor& parts_nt3, const Tensor& log_p_t, const Tensor& log_z_t);

}  // namespace toroid
