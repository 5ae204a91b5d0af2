// The counting backend: the same checks as a real one, no maths and no memory. Model code on it
// asks for exactly the bytes that it would ask of a device, which is how `plan` foresees a run.
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/op_shapes.h"

namespace toroid {

namespace {

class CountingBackend final : public Backend {
 public:
  explicit CountingBackend(DType type) : type_(type) {}

  DType dtype() const override { return type_; }

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
  void Download(Stream, Tensor x, void* host) override { std::memset(host, 0, x.bytes()); }

  void Embed(Stream, Tensor ids, Tensor table_vD, int64_t, Tensor out_tD) override {
    CheckEmbed(type_, ids, table_vD, out_tD);
  }
  void RmsNorm(Stream, Tensor x_tD, Tensor gain_D, double, Tensor out_tD) override {
    CheckRmsNorm(type_, x_tD, gain_D, out_tD);
  }
  void MatMul(Stream, Tensor x, Tensor w, Tensor bias, Tensor out) override {
    CheckMatMul(type_, x, w, bias, out);
  }
  void Rope(Stream, Tensor x_thK, Tensor positions, Tensor inv_freq, double) override {
    CheckRope(type_, x_thK, positions, inv_freq);
  }
  void KvWrite(Stream, Tensor x_tgK, Tensor slots, Tensor cache) override {
    CheckKvWrite(type_, x_tgK, slots, cache);
  }
  void AttendTile(Stream, Tensor q_thK, Tensor q_positions, const KvView& kv, Tensor kv_index,
                  const AttentionSpec& spec, const Tile& tile, Tensor o_thK,
                  Tensor lse_th) override {
    CheckAttendTile(type_, q_thK, q_positions, kv, kv_index, spec, tile, o_thK, lse_th);
  }
  void AttentionMerge(Stream, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) override {
    CheckAttentionMerge(type_, o_nthK, lse_nth, o_thK);
  }
  void SwiGlu(Stream, Tensor gate_tf, Tensor up_tf, Tensor out_tf) override {
    CheckSwiGlu(type_, gate_tf, up_tf, out_tf);
  }
  void Add(Stream, Tensor x, Tensor y) override { CheckAdd(type_, x, y); }
  void VocabStatistics(Stream, Tensor logits, int64_t, Tensor labels, Tensor stat_t3) override {
    CheckVocabStatistics(type_, logits, labels, stat_t3);
  }
  void VocabMerge(Stream, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) override {
    CheckVocabMerge(parts_nt3, log_p_t, log_z_t);
  }

 private:
  const DType type_;
  uint64_t next_ = 64;
};

}  // namespace

std::unique_ptr<Backend> NewCountingBackend(DType type) {
  TOROID_CHECK(type == DType::kF32 || type == DType::kF64);
  return std::make_unique<CountingBackend>(type);
}

}  // namespace toroid
