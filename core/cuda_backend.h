// CudaBackend: the backend of one CUDA device, shared by its own files alone (core/backend.h makes
// one).
//
// Each op: CHECK the shapes, then launch the kernel on the stream of the device. Streams are
// non-blocking ones; Fork and Join record an event of the one stream and let the other wait for it.
// Each compute stream has its own workspace, so that two of them do not disturb each other. Small
// uploads pass through pinned memory and do not stop the host. Work that is kept is a graph, in
// which ops of few rows are put together (cuda_backend_fusion.h).
#pragma once

#include <cuda_runtime.h>

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "core/backend.h"
#include "core/cuda_backend_fusion.h"
#include "core/cuda_memory.h"
#include "core/op_shapes.h"
#include "kernels/attention_bf16.h"
#include "kernels/matmul.h"

namespace toroid {

// Pinned host memory through which small arrays travel to the device: a ring of slots, each free
// again once the copy out of it is done.
class UploadRing {
 public:
  static constexpr int64_t kSlotBytes = 256 << 10;  // positions of 64k tokens

  cudaError_t Allocate() {
    cudaError_t error = cudaHostAlloc(&memory_, kSlots * kSlotBytes, cudaHostAllocDefault);
    for (cudaEvent_t& copied : copied_) {
      if (error == cudaSuccess) error = cudaEventCreateWithFlags(&copied, cudaEventDisableTiming);
    }
    return error;
  }
  ~UploadRing() {
    for (cudaEvent_t copied : copied_) {
      if (copied != nullptr) cudaEventDestroy(copied);
    }
    if (memory_ != nullptr) cudaFreeHost(memory_);
  }

  // rows of row_bytes without gaps, all in one slot.
  cudaError_t Upload(CudaStream s, const void* host, void* out, int64_t out_pitch,
                     int64_t row_bytes, int64_t rows) {
    const int slot = next_++ % kSlots;
    // Waits for the copy that left this slot kSlots uploads ago.
    const cudaError_t free = cudaEventSynchronize(copied_[slot]);
    if (free != cudaSuccess) return free;
    char* staged = static_cast<char*>(memory_) + slot * kSlotBytes;
    std::memcpy(staged, host, size_t(row_bytes * rows));
    const cudaError_t copy =
        cudaMemcpy2DAsync(out, size_t(out_pitch), staged, size_t(row_bytes), size_t(row_bytes),
                          size_t(rows), cudaMemcpyHostToDevice, s);
    return copy == cudaSuccess ? cudaEventRecord(copied_[slot], s) : copy;
  }

 private:
  static constexpr unsigned kSlots = 16;
  void* memory_ = nullptr;
  cudaEvent_t copied_[kSlots] = {};
  unsigned next_ = 0;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_(options.device),
        bf16_(options.product == DType::kBF16),
        sum_order_(options.measures ? SumOrder::kAny : SumOrder::kFixed),
        products_(options.product, options.measures) {}
  ~CudaBackend() override;

  absl::Status Prepare();

  DType dtype() const override { return DType::kF32; }
  DType activation() const override { return bf16_ ? DType::kBF16 : DType::kF32; }
  int64_t token_block() const override { return kCudaTokenBlock; }
  absl::StatusOr<void*> Allocate(int64_t bytes) override;
  void Free(void* data, int64_t) override;
  void Discard(void*, int64_t) override {}  // no pages to give back
  Stream NewStream(bool communication) override;
  void Fork(Stream from, Stream to) override { Join(to, from); }
  void Join(Stream s, Stream other) override;
  void Repeat(Stream s, const WorkKey& key, const std::function<void()>& work) override;
  bool repeats() const override { return true; }
  void Synchronize(Stream s) override;
  void Copy(Stream s, Tensor x, Tensor out) override;
  void Fill(Stream s, Tensor x, double value) override;
  void Upload(Stream s, const void* host, Tensor out) override;
  void Download(Stream s, Tensor x, void* host) override;

  void Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) override;
  void RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) override;
  void LayerNorm(Stream s, Tensor x_tD, Tensor gain_D, Tensor bias_D, double epsilon,
                 Tensor out_tD) override;
  void MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) override;
  void MatMulAdd(Stream s, Tensor x, Tensor w, Tensor addend, Tensor room, Tensor out) override;
  void Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) override;
  void KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) override;
  void AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv, Tensor kv_index,
                  const AttentionSpec& spec, const Tile& tile, Tensor o_thK,
                  Tensor lse_th) override;
  void AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) override;
  void SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) override;
  void Gelu(Stream s, Tensor x_tf, Tensor out_tf) override;
  void Add(Stream s, Tensor x, Tensor y) override;
  void Scale(Stream s, Tensor x, double factor) override;
  void Dropout(Stream s, const DropoutSpec& spec, Tensor step_1, Tensor rows_t, int64_t col_begin,
               Tensor x_tn, Tensor out_tn) override;
  void VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                       Tensor stat_t3) override;
  void VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) override;
  void Sample(Stream s, Tensor logits_bV, SampleWork most, Tensor rows_b7, Tensor out_b3) override;

  void EmbedBackward(Stream s, Tensor ids, int64_t vocab_begin, Tensor dout_tD,
                     Tensor dtable_vD) override;
  void RmsNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                       Tensor dx_tD, Tensor dgain_D) override;
  void RmsNormBackwardAdd(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                          Tensor dx_tD, Tensor dgain_D) override;
  void LayerNormBackward(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor dout_tD,
                         Tensor dx_tD, Tensor dgain_D, Tensor dbias_D) override;
  void MatMulBackward(Stream s, Tensor x, Tensor w, Tensor dout, bool add_dx, Tensor dx, Tensor dw,
                      Tensor dbias) override;
  void RopeBackward(Stream s, Tensor dx_thK, Tensor positions, Tensor inv_freq,
                    double scale) override;
  void AttentionDelta(Stream s, Tensor o_thK, Tensor do_thK, Tensor delta_th) override;
  void AttendTileBackward(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv,
                          Tensor kv_index, const AttentionSpec& spec, const Tile& tile,
                          Tensor do_thK, Tensor lse_th, Tensor delta_th, Tensor dq_thK,
                          Tensor dk_ngK, Tensor dv_ngK) override;
  void SwiGluBackward(Stream s, Tensor gate_tf, Tensor up_tf, Tensor dout_tf, Tensor dgate_tf,
                      Tensor dup_tf) override;
  void GeluBackward(Stream s, Tensor x_tf, Tensor dout_tf, Tensor dx_tf) override;
  void AddBackward(Stream s, Tensor dx, Tensor dy_1n) override;
  void VocabBackward(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels, Tensor log_z_t,
                     Tensor d_log_p_t, Tensor d_log_z_t, Tensor dlogits) override;
  void LossBackward(Stream s, Tensor labels, Tensor weights_t, double zeta, Tensor log_z_t,
                    Tensor d_log_p_t, Tensor d_log_z_t) override;
  void SquaredSum(Stream s, Tensor x_n, Tensor sum_1) override;
  void AdamW(Stream s, const AdamWSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
             Tensor m_n, Tensor v_n) override;
  void Adafactor(Stream s, const AdafactorSpec& spec, Tensor step, Tensor gradient_n, Tensor w_n,
                 Tensor m_n, Tensor v_n) override;

 private:
  static constexpr int64_t kFreeWorkspaceBytes = kCudaFreeWorkspaceBytes;
  // Of the kernels for tensor cores, then of those for few queries; zero between ops.
  static constexpr int64_t kHopperCounters = kCudaHopperCounters;
  static constexpr int64_t kCounterBytes = 4 * (kHopperCounters + kNarrowCounters);

  struct Lane {
    cudaStream_t stream = nullptr;
    cudaEvent_t reached = nullptr;
    void* workspace = nullptr;  // of compute streams: the products' part first

    // What ops other than products may use.
    void* free_workspace() const { return static_cast<char*>(workspace) + kMatMulWorkspaceBytes; }
    // The same for attention, with the counters that it leaves zero.
    AttentionWorkspace attention_workspace() const {
      char* end = static_cast<char*>(free_workspace()) + kFreeWorkspaceBytes;
      return {free_workspace(), kFreeWorkspaceBytes, reinterpret_cast<int32_t*>(end)};
    }
    int32_t* narrow_counters() const { return attention_workspace().counters + kHopperCounters; }
  };

  // An op: its device is current from the beginning, what waits to be put together with others is
  // launched before it, and its launches are asked for their error at the end.
  class Call {
   public:
    Call(CudaBackend& backend, const char* op) : backend_(backend), op_(op) {
      backend.Use();
      backend.few_rows_.Flush();
    }
    ~Call() { backend_.Check(op_, cudaGetLastError()); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    CudaBackend& backend_;
    const char* op_;
  };

  void ForgetWork();
  std::string Where() const {
    return absl::StrCat("GPU ", device_, name_.empty() ? "" : absl::StrCat(" (", name_, ")"));
  }
  void Use() { Check("set device", cudaSetDevice(device_)); }
  // The context is lost with the first error: it ends this process.
  void Check(const char* op, cudaError_t error) {
    TOROID_CHECK_MSG(error == cudaSuccess,
                     absl::StrCat(op, " on ", Where(), ": ", cudaGetErrorString(error)));
  }

  Tensor In(const Tensor& x) const { return StandIn(dtype(), activation(), x); }
  // Tiles of q (and do) in bf16 that tensor cores do not take, by kernels for float32.
  void AttendWidened(const Lane& lane, const Tensor& q_thK, const AttentionArgs<float>& tile);
  void AttendBackwardWidened(const Lane& lane, const Tensor& q_thK, const Tensor& do_thK,
                             const AttentionBackwardArgs<float>& tile);

  void NormBackward(Stream s, const Tensor& x_tD, const Tensor& gain_D, double epsilon,
                    const Tensor& dout_tD, bool add_dx, const Tensor& dx_tD, const Tensor& dgain_D);
  // addend: empty, or added.
  void Multiply(Stream s, const Tensor& x, const Tensor& w, const Tensor& bias,
                const Tensor& addend, const Tensor& out);

  // After a product of x [m, k] and w [n, k].
  void CheckProduct(const char* op, int64_t m, int64_t n, int64_t k, DType w) const;

  const Lane& LaneOf(Stream s) const {
    for (const Lane& lane : lanes_) {
      if (lane.stream == s.native) return lane;
    }
    TOROID_CHECK_MSG(false, "a stream of another backend");
  }
  // The lane of a compute stream.
  const Lane& Maths(Stream s) const {
    const Lane& lane = LaneOf(s);
    TOROID_CHECK_MSG(lane.workspace != nullptr, "maths on a communication stream");
    return lane;
  }

  const int device_;
  const bool bf16_;            // products are of bf16
  bool tensor_cores_ = false;  // and so is attention, by kernels for compute capability 9.0
  const SumOrder sum_order_;   // of their backward
  bool overlap_ = false;       // kernels may begin before those before them have ended
  std::string name_;
  CudaMatMul products_;
  FewRowWork few_rows_;
  UploadRing ring_;
  std::deque<Lane> lanes_;  // references stay
  std::map<std::pair<cudaStream_t, WorkKey>, cudaGraphExec_t> kept_work_;
};

}  // namespace toroid
