// The device of a CUDA backend: memory, streams, copies.
#include "core/cuda_backend.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/op_shapes.h"
#include "kernels/elementwise.h"

namespace toroid {

namespace {

// A tensor's bytes as one copy takes them: a contiguous tensor is one row.
struct Rectangle {
  explicit Rectangle(const Tensor& x)
      : width(x.contiguous() ? x.bytes() : x.row_bytes()),
        rows(x.contiguous() ? 1 : x.rows()),
        pitch(x.contiguous() ? width : RowBytes(x.dtype, x.stride)) {}
  int64_t width, rows, pitch;  // bytes, rows, bytes between rows
};

}  // namespace

CudaBackend::~CudaBackend() {
  cudaSetDevice(device_);
  for (const auto& [key, graph] : kept_work_) cudaGraphExecDestroy(graph);
  for (const Lane& lane : lanes_) {
    cudaStreamSynchronize(lane.stream);  // what is still running uses what is freed here
    cudaStreamDestroy(lane.stream);
    cudaEventDestroy(lane.reached);
    if (lane.workspace != nullptr) cudaFree(lane.workspace);
  }
}

absl::Status CudaBackend::Prepare() {
  cudaDeviceProp properties;
  cudaError_t error = cudaGetDeviceProperties(&properties, device_);
  if (error == cudaSuccess) name_ = properties.name;
  if (error == cudaSuccess && properties.major < 8) {
    return absl::FailedPreconditionError(absl::StrCat(Where(), ": compute capability ",
                                                      properties.major, ".", properties.minor,
                                                      " is below 8.0: use --device cpu"));
  }
  tensor_cores_ = bf16_ && properties.major == 9 && properties.minor == 0;
  overlap_ = properties.major >= 9;
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

absl::StatusOr<void*> CudaBackend::Allocate(int64_t bytes) {
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

void CudaBackend::Free(void* data, int64_t) {
  Use();
  ForgetWork();  // some of it may be at these addresses
  Check("free", cudaFree(data));
}

Stream CudaBackend::NewStream(bool communication) {
  Use();
  Lane lane;
  Check("new stream", cudaStreamCreateWithFlags(&lane.stream, cudaStreamNonBlocking));
  Check("new stream", cudaEventCreateWithFlags(&lane.reached, cudaEventDisableTiming));
  if (!communication) {
    Check("new stream", cudaMalloc(&lane.workspace, size_t(CudaWorkspaceBytes())));
    Check("new stream", cudaMemsetAsync(lane.attention_workspace().counters, 0,
                                        size_t(kCounterBytes), lane.stream));
  }
  lanes_.push_back(lane);
  Stream s;
  s.native = lane.stream;
  return s;
}

void CudaBackend::Join(Stream s, Stream other) {
  Use();
  const Lane& awaited = LaneOf(other);
  Check("join", cudaEventRecord(awaited.reached, awaited.stream));
  Check("join", cudaStreamWaitEvent(LaneOf(s).stream, awaited.reached, 0));
}

// Work is captured into a graph, which is kept.
void CudaBackend::Repeat(Stream s, const WorkKey& key, const std::function<void()>& work) {
  Use();
  const cudaStream_t stream = Maths(s).stream;
  constexpr size_t kMostKept = 64;
  if (kept_work_.size() >= kMostKept && !kept_work_.contains({stream, key})) ForgetWork();
  const auto [entry, fresh] = kept_work_.try_emplace({stream, key}, nullptr);
  if (fresh) {
    Check("begin capture", cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    few_rows_.Begin(stream, overlap_);
    work();
    few_rows_.End();
    cudaGraph_t graph = nullptr;
    Check("end capture", cudaStreamEndCapture(stream, &graph));
    Check("keep work", cudaGraphInstantiate(&entry->second, graph, 0));
    Check("keep work", cudaGraphDestroy(graph));
  }
  Check("repeat", cudaGraphLaunch(entry->second, stream));
}

void CudaBackend::ForgetWork() {
  for (const auto& [key, graph] : kept_work_) Check("forget work", cudaGraphExecDestroy(graph));
  kept_work_.clear();
}

void CudaBackend::Synchronize(Stream s) {
  Use();
  Check("synchronize", cudaStreamSynchronize(LaneOf(s).stream));
}

void CudaBackend::Copy(Stream s, Tensor x, Tensor out) {
  CheckCopy(x, out);
  if (few_rows_.Copy(x, out)) return;
  const Call call(*this, "copy");
  CopyRows(LaneOf(s).stream, x.dtype, x.data, x.stride, out.dtype, out.data, out.stride, x.rows(),
           x.cols());
}

void CudaBackend::Fill(Stream s, Tensor x, double value) {
  CheckFill(x);
  if (few_rows_.Fill(x, value)) return;
  const Call call(*this, "fill");
  FillRows(LaneOf(s).stream, x.dtype, x.data, x.stride, x.rows(), x.cols(), value);
}

void CudaBackend::Upload(Stream s, const void* host, Tensor out) {
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

void CudaBackend::Download(Stream s, Tensor x, void* host) {
  if (x.empty()) return;
  const Call call(*this, "download");
  const CudaStream stream = LaneOf(s).stream;
  const Rectangle r(x);
  Check("download",
        cudaMemcpy2DAsync(host, size_t(r.width), x.data, size_t(r.pitch), size_t(r.width),
                          size_t(r.rows), cudaMemcpyDeviceToHost, stream));
  Check("download", cudaStreamSynchronize(stream));  // for the copy, and what produces x
}

void CudaBackend::CheckProduct(const char* op, int64_t m, int64_t n, int64_t k, DType w) const {
  if (products_.error() == nullptr) return;
  TOROID_CHECK_MSG(
      false, absl::StrCat(op, " of x [", m, ", ", k, "] and w [", n, ", ", k, "] of ", Info(w).name,
                          " on ", Where(), ": cuBLASLt: ", products_.error()));
}

int CudaDevices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // forgets it: no driver is no error here
    return 0;
  }
  return count;
}

std::array<char, 16> CudaDeviceUuid(int device) {
  std::array<char, 16> uuid = {};
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
    std::copy_n(properties.uuid.bytes, uuid.size(), uuid.begin());
  } else {
    cudaGetLastError();  // forgets it
  }
  return uuid;
}

double CudaPeakFlops(int device, DType product) {
  struct Sheet {
    int major, minor, multiprocessors;
    double bf16, f32;  // TFLOP/s of so many, without sparsity
  };
  constexpr Sheet kSheets[] = {
      {8, 0, 108, 312, 19.5},    // A100
      {9, 0, 132, 989.4, 66.9},  // H100 SXM, H200
      {10, 0, 148, 2250, 75},    // B200
  };
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) {
    cudaGetLastError();  // forgets it
    return 0;
  }
  for (const Sheet& sheet : kSheets) {
    if (sheet.major != properties.major || sheet.minor != properties.minor) continue;
    const double flops = 1e12 * (product == DType::kBF16 ? sheet.bf16 : sheet.f32);
    return flops * properties.multiProcessorCount / sheet.multiprocessors;
  }
  return 0;
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
  auto backend = std::make_unique<CudaBackend>(options);
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
