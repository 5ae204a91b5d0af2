// The counting backend: the same checks as a real one, no maths and no memory. Model code on it
// asks for exactly the bytes that it would ask of a device, which is how `plan` foresees a run.
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/cuda_memory.h"
#include "core/op_shapes.h"

namespace toroid {

namespace {

class CountingBackend final : public Backend {
 public:
  explicit CountingBackend(DType type) : type_(type), activation_(type) {}
  explicit CountingBackend(const Backend& device)
      : type_(device.dtype()),
        activation_(device.activation()),
        token_block_(device.token_block()),
        repeats_(device.repeats()) {}
  // For a GPU.
  CountingBackend(DType activation, int64_t token_block)
      : type_(DType::kF32), activation_(activation), token_block_(token_block), repeats_(true) {}

  DType dtype() const override { return type_; }
  DType activation() const override { return activation_; }
  int64_t token_block() const override { return token_block_; }
  bool repeats() const override { return repeats_; }

  // Addresses that nobody may touch: they only tell tensors apart.
  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    constexpr uint64_t kEnd = uint64_t{1} << 62;
    if (bytes < 0 || uint64_t(bytes) > kEnd - next_) {
      return absl::OutOfRangeError(absl::StrCat("out of addresses for ", bytes, " bytes"));
    }
    void* data = reinterpret_cast<void*>(next_);
    next_ += (uint64_t(bytes) + 127) / 64 * 64;
    return data;
  }
  void Free(void*, int64_t) override {}
  void Discard(void*, int64_t) override {}
  Stream NewStream(bool) override { return Stream{}; }
  void Fork(Stream, Stream) override {}
  void Join(Stream, Stream) override {}
  void Synchronize(Stream) override {}

  void Copy(Stream, Tensor x, Tensor out) override { CheckCopy(x, out); }
  void Fill(Stream, Tensor x, double) override { CheckFill(x); }
  void Upload(Stream, const void*, Tensor) override {}
  void Download(Stream, Tensor x, void* host) override {
    if (!x.empty()) std::memset(host, 0, x.bytes());  // host may be null where there is nothing
  }

  void Embed(Stream, Tensor ids, Tensor table_vD, int64_t, Tensor out_tD) override {
    CheckEmbed(type_, ids, table_vD, out_tD);
  }
  void EmbedBackward(Stream, Tensor ids, int64_t, Tensor dout_tD, Tensor dtable_vD) override {
    CheckEmbedBackward(type_, ids, dout_tD, dtable_vD);
  }
  void RmsNorm(Stream, Tensor x_tD, Tensor gain_D, double, Tensor out_tD) override {
    CheckRmsNorm(type_, In(x_tD), gain_D, In(out_tD));
  }
  void RmsNormBackward(Stream, Tensor x_tD, Tensor gain_D, double, Tensor dout_tD, Tensor dx_tD,
                       Tensor dgain_D) override {
    CheckRmsNormBackward(type_, In(x_tD), gain_D, dout_tD, dx_tD, dgain_D);
  }
  void LayerNorm(Stream, Tensor x_tD, Tensor gain_D, Tensor bias_D, double,
                 Tensor out_tD) override {
    CheckLayerNorm(type_, x_tD, gain_D, bias_D, In(out_tD));
  }
  void LayerNormBackward(Stream, Tensor x_tD, Tensor gain_D, double, Tensor dout_tD, Tensor dx_tD,
                         Tensor dgain_D, Tensor dbias_D) override {
    CheckLayerNormBackward(type_, x_tD, gain_D, dout_tD, dx_tD, dgain_D, dbias_D);
  }
  void MatMul(Stream, Tensor x, Tensor w, Tensor bias, Tensor out) override {
    CheckMatMul(type_, In(x), w, bias, In(out));
  }
  void MatMulBackward(Stream, Tensor x, Tensor w, Tensor dout, bool, Tensor dx, Tensor dw,
                      Tensor dbias) override {
    CheckMatMulBackward(type_, In(x), w, In(dout), In(dx), dw, dbias);
  }
  void Rope(Stream, Tensor x_thK, Tensor positions, Tensor inv_freq, double) override {
    CheckRope(type_, In(x_thK), positions, inv_freq);
  }
  void RopeBackward(Stream, Tensor dx_thK, Tensor positions, Tensor inv_freq, double) override {
    CheckRope(type_, In(dx_thK), positions, inv_freq);
  }
  void KvWrite(Stream, Tensor x_tgK, Tensor slots, Tensor cache) override {
    CheckKvWrite(type_, x_tgK, slots, cache);
  }
  void AttendTile(Stream, Tensor q_thK, Tensor q_positions, const KvView& kv, Tensor kv_index,
                  const AttentionSpec& spec, const Tile& tile, Tensor o_thK,
                  Tensor lse_th) override {
    CheckAttendTile(type_, In(q_thK), q_positions, kv, kv_index, spec, tile, o_thK, lse_th);
  }
  void AttentionDelta(Stream, Tensor o_thK, Tensor do_thK, Tensor delta_th) override {
    CheckAttentionDelta(type_, o_thK, In(do_thK), delta_th);
  }
  void AttendTileBackward(Stream, Tensor q_thK, Tensor q_positions, const KvView& kv,
                          Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                          Tensor do_thK, Tensor lse_th, Tensor delta_th, Tensor dq_thK,
                          Tensor dk_ngK, Tensor dv_ngK) override {
    CheckAttendTileBackward(type_, In(q_thK), q_positions, kv, kv_index, spec, tile, In(do_thK),
                            lse_th, delta_th, dq_thK, dk_ngK, dv_ngK);
  }
  void AttentionMerge(Stream, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) override {
    CheckAttentionMerge(type_, o_nthK, lse_nth, o_thK);
  }
  void SwiGlu(Stream, Tensor gate_tf, Tensor up_tf, Tensor out_tf) override {
    CheckOneType({gate_tf, up_tf, out_tf});
    CheckSwiGlu(type_, In(gate_tf), In(up_tf), In(out_tf));
  }
  void SwiGluBackward(Stream, Tensor gate_tf, Tensor up_tf, Tensor dout_tf, Tensor dgate_tf,
                      Tensor dup_tf) override {
    CheckOneType({gate_tf, up_tf, dout_tf, dgate_tf, dup_tf});
    CheckSwiGluBackward(type_, In(gate_tf), In(up_tf), In(dout_tf), In(dgate_tf), In(dup_tf));
  }
  void Gelu(Stream, Tensor x_tf, Tensor out_tf) override {
    CheckOneType({x_tf, out_tf});
    CheckGelu(type_, In(x_tf), In(out_tf));
  }
  void GeluBackward(Stream, Tensor x_tf, Tensor dout_tf, Tensor dx_tf) override {
    CheckOneType({x_tf, dout_tf, dx_tf});
    CheckGeluBackward(type_, In(x_tf), In(dout_tf), In(dx_tf));
  }
  void Add(Stream, Tensor x, Tensor y) override { CheckAdd(type_, x, y); }
  void AddBackward(Stream, Tensor dx, Tensor dy_1n) override {
    CheckAddBackward(type_, In(dx), dy_1n);
  }
  void Scale(Stream, Tensor x, double) override { CheckScale(type_, In(x)); }
  void Dropout(Stream, const DropoutSpec& spec, Tensor step_1, Tensor rows_t, int64_t col_begin,
               Tensor x_tn, Tensor out_tn) override {
    CheckOneType({x_tn, out_tn});
    CheckDropout(type_, spec, step_1, rows_t, col_begin, In(x_tn), In(out_tn));
  }
  void VocabStatistics(Stream, Tensor logits, int64_t, Tensor labels, Tensor stat_t3) override {
    CheckVocabStatistics(type_, logits, labels, stat_t3);
  }
  void VocabMerge(Stream, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) override {
    CheckVocabMerge(parts_nt3, log_p_t, log_z_t);
  }
  void VocabBackward(Stream, Tensor logits, int64_t, Tensor labels, Tensor log_z_t,
                     Tensor d_log_p_t, Tensor d_log_z_t, Tensor dlogits) override {
    CheckVocabBackward(type_, logits, labels, log_z_t, d_log_p_t, d_log_z_t, In(dlogits));
  }
  void LossBackward(Stream, Tensor labels, Tensor weights_t, double, Tensor log_z_t,
                    Tensor d_log_p_t, Tensor d_log_z_t) override {
    CheckLossBackward(labels, weights_t, log_z_t, d_log_p_t, d_log_z_t);
  }

  void Sample(Stream, Tensor logits_bV, SampleWork, Tensor rows_b7, Tensor out_b3) override {
    CheckSample(type_, logits_bV, rows_b7, out_b3);
  }

  void SquaredSum(Stream, Tensor x_n, Tensor sum_1) override { CheckSquaredSum(type_, x_n, sum_1); }
  void AdamW(Stream, const AdamWSpec&, Tensor step, Tensor gradient_n, Tensor w_n, Tensor m_n,
             Tensor v_n) override {
    CheckUpdate(type_, step, kAdamWFields, gradient_n, w_n, m_n, v_n);
  }
  void Adafactor(Stream, const AdafactorSpec&, Tensor step, Tensor gradient_n, Tensor w_n,
                 Tensor m_n, Tensor v_n) override {
    CheckUpdate(type_, step, kAdafactorFields, gradient_n, w_n, m_n, v_n);
  }

 private:
  Tensor In(const Tensor& x) const { return StandIn(type_, activation_, x); }

  const DType type_, activation_;
  const int64_t token_block_ = Backend::token_block();
  const bool repeats_ = false;
  uint64_t next_ = 64;
};

}  // namespace

std::unique_ptr<Backend> NewCountingCudaBackend(DType product) {
  TOROID_CHECK(product == DType::kF32 || product == DType::kBF16);
  return std::make_unique<CountingBackend>(product, kCudaTokenBlock);
}

std::unique_ptr<Backend> NewCountingBackend(DType type) {
  TOROID_CHECK(type == DType::kF32 || type == DType::kF64);
  return std::make_unique<CountingBackend>(type);
}

std::unique_ptr<Backend> NewCountingBackend(const Backend& device) {
  return std::make_unique<CountingBackend>(device);
}

}  // namespace toroid
