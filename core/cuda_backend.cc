// The CUDA backend: CHECK the shapes, then launch the kernel on the stream of one device.
//
// Streams are non-blocking ones; Fork and Join record an event of the one stream and let the other
// wait for it. Each compute stream has its own workspace, so that two of them do not disturb each
// other. Small uploads pass through pinned memory and do not stop the host.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/inference_backend.h"
#include "core/op_shapes.h"
#include "core/tile_arguments.h"
#include "kernels/attention.h"
#include "kernels/attention_merge.h"
#include "kernels/cross_entropy.h"
#include "kernels/dequantize.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/kv_write.h"
#include "kernels/matmul.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace toroid {

namespace {

constexpr int64_t kAttentionWorkspaceBytes = int64_t{64} << 20;

// Pinned host memory through which small arrays travel to the device: a ring of slots, each free
// again once the copy out of it is done.
class UploadRing {
 public:
  static constexpr int64_t kSlotBytes = 16 << 10;

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
  static constexpr unsigned kSlots = 64;
  void* memory_ = nullptr;
  cudaEvent_t copied_[kSlots] = {};
  unsigned next_ = 0;
};

// A tensor's bytes as one copy takes them: a contiguous tensor is one row.
struct Rectangle {
  explicit Rectangle(const Tensor& x)
      : width(x.contiguous() ? x.bytes() : x.row_bytes()),
        rows(x.contiguous() ? 1 : x.rows()),
        pitch(x.contiguous() ? width : RowBytes(x.dtype, x.stride)) {}
  int64_t width, rows, pitch;  // bytes, rows, bytes between rows
};

class CudaBackend final : public InferenceBackend {
 public:
  CudaBackend(int device, DType product) : device_(device), products_(product) {}
  ~CudaBackend() override {
    cudaSetDevice(device_);
    for (const Lane& lane : lanes_) {
      cudaStreamSynchronize(lane.stream);  // what is still running uses what is freed here
      cudaStreamDestroy(lane.stream);
      cudaEventDestroy(lane.reached);
      if (lane.workspace != nullptr) cudaFree(lane.workspace);
    }
  }

  absl::Status Prepare() {
    cudaDeviceProp properties;
    cudaError_t error = cudaGetDeviceProperties(&properties, device_);
    if (error == cudaSuccess) name_ = properties.name;
    if (error == cudaSuccess && properties.major < 8) {
      return absl::FailedPreconditionError(absl::StrCat(Where(), ": compute capability ",
                                                        properties.major, ".", properties.minor,
                                                        " is below 8.0: use --device cpu"));
    }
    if (error == cudaSuccess) error = ring_.Allocate();
    if (error != cudaSuccess) {
      return absl::FailedPreconditionError(
          absl::StrCat(Where(), ": ", cudaGetErrorString(error), ": use --device cpu"));
    }
    if (products_.error() != nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat(Where(), ": cuBLASLt: ", products_.error(), ": use --device cpu"));
    }
    return absl::OkStatus();
  }

  DType dtype() const override { return DType::kF32; }

  absl::StatusOr<void*> Allocate(int64_t bytes) override {
    Use();
    void* data = nullptr;
    const cudaError_t error = cudaMalloc(&data, size_t(std::max<int64_t>(bytes, 1)));
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // forgets it: the context is whole
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return absl::OutOfRangeError(
          absl::StrCat("out of memory: ", Where(), " refused ", bytes, " bytes, ", free, " of ",
                       total, " are free; use a shorter context or a smaller stored type"));
    }
    Check("allocate", error);
    return data;
  }
  void Free(void* data, int64_t) override {
    Use();
    Check("free", cudaFree(data));
  }
  void Discard(void*, int64_t) override {}  // no pages to give back

  Stream NewStream(bool communication) override {
    Use();
    Lane lane;
    Check("new stream", cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
    Check("new stream", cudaEventCreateWithFlags(&lane.reached, cudaEventDisableTiming));
    if (!communication) {
      Check("new stream",
            cudaMalloc(&lane.workspace, size_t(kMatMulWorkspaceBytes + kAttentionWorkspaceBytes)));
    }
    lanes_.push_back(lane);
    Stream s;
    s.native = lane.stream;
    return s;
  }
  void Fork(Stream from, Stream to) override { Join(to, from); }
  void Join(Stream s, Stream other) override {
    Use();
    const Lane& awaited = LaneOf(other);
    Check("join", cudaEventRecord(awaited.reached, awaited.stream));
    Check("join", cudaStreamWaitEvent(LaneOf(s).stream, awaited.reached, 0));
  }
  void Synchronize(Stream s) override {
    Use();
    Check("synchronize", cudaStreamSynchronize(LaneOf(s).stream));
  }

  void Copy(Stream s, Tensor x, Tensor out) override {
    CheckCopy(x, out);
    const Call call(*this, "copy");
    CopyRows(LaneOf(s).stream, x.dtype, x.data, x.stride, out.dtype, out.data, out.stride, x.rows(),
             x.cols());
  }

  void Fill(Stream s, Tensor x, double value) override {
    CheckFill(x);
    const Call call(*this, "fill");
    FillRows(LaneOf(s).stream, x.dtype, x.data, x.stride, x.rows(), x.cols(), value);
  }

  void Upload(Stream s, const void* host, Tensor out) override {
    if (out.empty()) return;
    const Call call(*this, "upload");
    const CudaStream stream = LaneOf(s).stream;
    const Rectangle r(out);
    if (r.width * r.rows <= UploadRing::kSlotBytes) {
      Check("upload", ring_.Upload(stream, host, out.data, r.pitch, r.width, r.rows));
      return;
    }
    Check("upload",
          cudaMemcpy2DAsync(out.data, size_t(r.pitch), host, size_t(r.width), size_t(r.width),
                            size_t(r.rows), cudaMemcpyHostToDevice, stream));
    Check("upload", cudaStreamSynchronize(stream));  // the host array is the caller's again
  }

  void Download(Stream s, Tensor x, void* host) override {
    if (x.empty()) return;
    const Call call(*this, "download");
    const CudaStream stream = LaneOf(s).stream;
    const Rectangle r(x);
    Check("download",
          cudaMemcpy2DAsync(host, size_t(r.width), x.data, size_t(r.pitch), size_t(r.width),
                            size_t(r.rows), cudaMemcpyDeviceToHost, stream));
    Check("download", cudaStreamSynchronize(stream));  // for the copy, and what produces x
  }

  void Embed(Stream s, Tensor ids, Tensor table_vD, int64_t vocab_begin, Tensor out_tD) override {
    CheckEmbed(dtype(), ids, table_vD, out_tD);
    TOROID_CHECK_MSG(IsStoredWeight(table_vD.dtype), Info(table_vD.dtype).name);
    const Call call(*this, "embed");
    toroid::Embed(Maths(s).stream, ids.as<const int32_t>(), out_tD.rows(), table_vD.dtype,
                  table_vD.data, table_vD.stride, table_vD.rows(), table_vD.cols(), vocab_begin,
                  out_tD.as<float>(), out_tD.stride);
  }

  void RmsNorm(Stream s, Tensor x_tD, Tensor gain_D, double epsilon, Tensor out_tD) override {
    CheckRmsNorm(dtype(), x_tD, gain_D, out_tD);
    if (x_tD.empty()) return;
    const Call call(*this, "rms_norm");
    const int64_t dim = x_tD.dims[x_tD.dim_count - 1];
    toroid::RmsNorm(Maths(s).stream, x_tD.as<const float>(), x_tD.stride, x_tD.rows(),
                    x_tD.cols() / dim, dim, gain_D.dtype, gain_D.data, epsilon, out_tD.as<float>(),
                    out_tD.stride);
  }

  void MatMul(Stream s, Tensor x, Tensor w, Tensor bias, Tensor out) override {
    CheckMatMul(dtype(), x, w, bias, out);
    const Call call(*this, "matmul");
    MatMulArgs<float> args;
    args.x = x.as<const float>(), args.x_stride = x.stride;
    args.m = x.rows(), args.n = w.rows(), args.k = w.cols();
    args.w_type = w.dtype, args.w = w.data, args.w_stride = w.stride;
    if (!bias.empty()) args.bias = bias.data, args.bias_type = bias.dtype;
    args.out = out.as<float>(), args.out_stride = out.stride;
    const Lane& lane = Maths(s);
    products_.Run(lane.stream, args, lane.workspace);
    if (products_.error() != nullptr) {
      TOROID_CHECK_MSG(false, absl::StrCat("matmul [", args.m, ", ", args.k, "] x [", args.n, ", ",
                                           args.k, "]^T of ", Info(w.dtype).name, " on ", Where(),
                                           ": cuBLASLt: ", products_.error()));
    }
  }

  void Rope(Stream s, Tensor x_thK, Tensor positions, Tensor inv_freq, double scale) override {
    CheckRope(dtype(), x_thK, positions, inv_freq);
    const Call call(*this, "rope");
    toroid::Rope(Maths(s).stream, x_thK.as<float>(), x_thK.stride, x_thK.rows(), x_thK.dims[1],
                 x_thK.dims[2], positions.as<const int32_t>(), inv_freq.as<const double>(), scale);
  }

  void KvWrite(Stream s, Tensor x_tgK, Tensor slots, Tensor cache) override {
    CheckKvWrite(dtype(), x_tgK, slots, cache);
    const Call call(*this, "kv_write");
    toroid::KvWrite(Maths(s).stream, x_tgK.dtype, x_tgK.data, x_tgK.stride, x_tgK.rows(),
                    x_tgK.cols(), slots.as<const int64_t>(), cache.dtype, cache.data, cache.stride);
  }

  void AttendTile(Stream s, Tensor q_thK, Tensor q_positions, const KvView& kv, Tensor kv_index,
                  const AttentionSpec& spec, const Tile& tile, Tensor o_thK,
                  Tensor lse_th) override {
    CheckAttendTile(dtype(), q_thK, q_positions, kv, kv_index, spec, tile, o_thK, lse_th);
    TOROID_CHECK_MSG(kv.k.dtype == DType::kF32 || kv.k.dtype == DType::kBF16,
                     Info(kv.k.dtype).name);
    const Call call(*this, "attend_tile");
    auto args = TileArguments<float>(q_thK, q_positions, kv, kv_index, spec, tile, lse_th);
    args.length = kv.length.as<const int32_t>();
    args.o = o_thK.as<float>(), args.o_stride = o_thK.stride;
    const Lane& lane = Maths(s);
    toroid::AttendTile(lane.stream, args,
                       static_cast<char*>(lane.workspace) + kMatMulWorkspaceBytes,
                       kAttentionWorkspaceBytes);
  }

  void AttentionMerge(Stream s, Tensor o_nthK, Tensor lse_nth, Tensor o_thK) override {
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

  void SwiGlu(Stream s, Tensor gate_tf, Tensor up_tf, Tensor out_tf) override {
    CheckSwiGlu(dtype(), gate_tf, up_tf, out_tf);
    const Call call(*this, "swiglu");
    toroid::SwiGlu(Maths(s).stream, gate_tf.as<const float>(), gate_tf.stride,
                   up_tf.as<const float>(), up_tf.stride, out_tf.as<float>(), out_tf.stride,
                   out_tf.rows(), out_tf.cols());
  }

  void Add(Stream s, Tensor x, Tensor y) override {
    CheckAdd(dtype(), x, y);
    const Call call(*this, "add");
    AddRows(Maths(s).stream, x.as<float>(), x.stride, y.as<const float>(),
            y.rows() == x.rows() ? y.stride : 0, x.rows(), x.cols());
  }

  void VocabStatistics(Stream s, Tensor logits, int64_t vocab_begin, Tensor labels,
                       Tensor stat_t3) override {
    CheckVocabStatistics(dtype(), logits, labels, stat_t3);
    const Call call(*this, "vocab_statistics");
    toroid::VocabStatistics(Maths(s).stream, logits.as<const float>(), logits.stride, logits.rows(),
                            logits.cols(), vocab_begin, labels.as<const int32_t>(),
                            stat_t3.as<double>());
  }

  void VocabMerge(Stream s, Tensor parts_nt3, Tensor log_p_t, Tensor log_z_t) override {
    CheckVocabMerge(parts_nt3, log_p_t, log_z_t);
    const Call call(*this, "vocab_merge");
    toroid::VocabMerge(Maths(s).stream, parts_nt3.as<const double>(), parts_nt3.dims[0],
                       parts_nt3.dims[1], log_p_t.as<double>(), log_z_t.as<double>());
  }

 private:
  struct Lane {
    cudaStream_t stream = nullptr;
    cudaEvent_t reached = nullptr;
    void* workspace = nullptr;  // of compute streams
  };

  // An op: its device is current from the beginning, and its launches are asked for their error at
  // the end.
  class Call {
   public:
    Call(CudaBackend& backend, const char* op) : backend_(backend), op_(op) { backend.Use(); }
    ~Call() { backend_.Check(op_, cudaGetLastError()); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    CudaBackend& backend_;
    const char* op_;
  };

  std::string Where() const {
    return absl::StrCat("GPU ", device_, name_.empty() ? "" : absl::StrCat(" (", name_, ")"));
  }
  void Use() { Check("set device", cudaSetDevice(device_)); }
  // The context is lost with the first error: it ends this process.
  void Check(const char* op, cudaError_t error) {
    TOROID_CHECK_MSG(error == cudaSuccess,
                     absl::StrCat(op, " on ", Where(), ": ", cudaGetErrorString(error)));
  }

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
  std::string name_;
  CudaMatMul products_;
  UploadRing ring_;
  std::deque<Lane> lanes_;  // references stay
};

}  // namespace

int CudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // forgets it: no driver is no error here
    return 0;
  }
  return count;
}

absl::StatusOr<std::unique_ptr<Backend>> NewCudaBackend(const CudaOptions& options) {
  TOROID_CHECK(options.product == DType::kF32 || options.product == DType::kBF16);
  const int devices = CudaDevices();
  if (options.device < 0 || options.device >= devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU ", options.device, ": this process sees ", devices,
                     " (CUDA_VISIBLE_DEVICES, or no driver): use --device cpu"));
  }
  const cudaError_t error = cudaSetDevice(options.device);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(absl::StrCat(
        "GPU ", options.device, ": ", cudaGetErrorString(error), ": use --device cpu"));
  }
  auto backend = std::make_unique<CudaBackend>(options.device, options.product);
  const absl::Status status = backend->Prepare();
  if (!status.ok()) return status;
  return std::unique_ptr<Backend>(std::move(backend));
}

void CopyOnDevice(Stream s, const void* x, void* out, int64_t bytes) {
  const cudaError_t error = cudaMemcpyAsync(out, x, size_t(bytes), cudaMemcpyDeviceToDevice,
                                            static_cast<cudaStream_t>(s.native));
  TOROID_CHECK_MSG(error == cudaSuccess, cudaGetErrorString(error));
}

}  // namespace toroid
