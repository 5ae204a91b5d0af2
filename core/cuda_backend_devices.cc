#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/cuda_devices.h"

namespace toroid {
namespace {

absl::Status Refused(absl::string_view what, cudaError_t error) {
  cudaGetLastError();  // forgets it
  return absl::FailedPreconditionError(absl::StrCat(what, ": ", cudaGetErrorString(error)));
}

CudaDevice Describe(int device, int devices) {
  CudaDevice own;
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, device) == cudaSuccess) {
    own.name = properties.name;
    std::copy_n(properties.uuid.bytes, own.uuid.size(), own.uuid.begin());
    own.major = properties.major, own.minor = properties.minor;
    own.multiprocessors = properties.multiProcessorCount;
    own.total_bytes = int64_t(properties.totalGlobalMem);
  }
  size_t free = 0, total = 0;
  if (cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&free, &total) == cudaSuccess) {
    own.free_bytes = int64_t(free), own.total_bytes = int64_t(total);
  }
  for (int other = 0; other < devices; ++other) {
    int can = 0;
    if (other == device || cudaDeviceCanAccessPeer(&can, device, other) != cudaSuccess) continue;
    if (can != 0) own.peers.push_back(other);
  }
  cudaGetLastError();  // forgets what went wrong: the numbers stay 0
  return own;
}

// The four functions of libnvidia-ml.so that are used here, by its stable names (NVML API
// reference, "Device Queries"). The driver brings the library, the toolkit only its header.
class ManagementLibrary {
 public:
  ManagementLibrary() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW)) {
    Find("nvmlInit_v2", init_), Find("nvmlShutdown", shutdown_);
    Find("nvmlDeviceGetHandleByUUID", by_uuid_), Find("nvmlDeviceGetMemoryInfo", memory_info_);
    ready_ = shutdown_ != nullptr && by_uuid_ != nullptr && memory_info_ != nullptr &&
             init_ != nullptr && init_() == 0;
  }
  ~ManagementLibrary() {
    if (ready_) shutdown_();
    if (library_ != nullptr) dlclose(library_);
  }
  ManagementLibrary(const ManagementLibrary&) = delete;
  ManagementLibrary& operator=(const ManagementLibrary&) = delete;

  bool ready() const { return ready_; }
  // False on an error.
  bool UsedBytes(const std::string& uuid, int64_t& used) const {
    void* device = nullptr;
    struct {
      unsigned long long total, free, used;
    } memory = {};
    if (by_uuid_(uuid.c_str(), &device) != 0 || memory_info_(device, &memory) != 0) return false;
    used = int64_t(memory.used);
    return true;
  }

 private:
  template <typename Function>
  void Find(const char* name, Function*& function) {
    if (library_ != nullptr) function = reinterpret_cast<Function*>(dlsym(library_, name));
  }
  void* library_;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*by_uuid_)(const char*, void**) = nullptr;
  int (*memory_info_)(void*, void*) = nullptr;
  bool ready_ = false;
};

// "GPU-12ab0001-...", as the driver's tools write it.
std::string UuidName(const std::array<char, 16>& uuid) {
  std::string name = "GPU";
  for (size_t i = 0; i < uuid.size(); ++i) {
    if (i == 0 || i == 4 || i == 6 || i == 8 || i == 10) name += '-';
    absl::StrAppend(&name, absl::Hex(static_cast<unsigned char>(uuid[i]), absl::kZeroPad2));
  }
  return name;
}

}  // namespace

absl::StatusOr<int64_t> CudaUsedBytes(int device) {
  const ManagementLibrary library;
  int64_t used = 0;
  if (library.ready() && library.UsedBytes(UuidName(CudaDeviceUuid(device)), used)) return used;
  return absl::FailedPreconditionError(absl::StrCat(
      "GPU ", device, ": the driver's libnvidia-ml.so.1 does not say what memory is in use"));
}

CudaInstallation DescribeCuda() {
  CudaInstallation cuda;
  cuda.built = true;
  cudaRuntimeGetVersion(&cuda.runtime);
  cudaDriverGetVersion(&cuda.driver);
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) {
    cuda.error = cudaGetErrorString(error);
    cudaGetLastError();  // forgets it
    return cuda;
  }
  for (int device = 0; device < devices; ++device) {
    cuda.devices.push_back(Describe(device, devices));
  }
  return cuda;
}

absl::StatusOr<std::string> CudaIpcHandle(int device) {
  constexpr size_t kBytes = 2 << 20;
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) error = cudaMalloc(&memory, kBytes);
  if (error != cudaSuccess) return Refused("memory", error);
  cudaIpcMemHandle_t handle;
  error = cudaIpcGetMemHandle(&handle, memory);
  if (error != cudaSuccess) return Refused("a handle", error);
  return std::string(reinterpret_cast<const char*>(&handle), sizeof handle);
}

absl::Status OpenCudaIpcHandle(int device, absl::string_view bytes) {
  cudaIpcMemHandle_t handle;
  if (bytes.size() != sizeof handle) {
    return absl::InvalidArgumentError(absl::StrCat("a handle of ", bytes.size(), " bytes"));
  }
  std::memcpy(&handle, bytes.data(), sizeof handle);
  void* memory = nullptr;
  cudaError_t error = cudaSetDevice(device);
  if (error == cudaSuccess) {
    error = cudaIpcOpenMemHandle(&memory, handle, cudaIpcMemLazyEnablePeerAccess);
  }
  if (error != cudaSuccess) return Refused("opening", error);
  cudaIpcCloseMemHandle(memory);
  return absl::OkStatus();
}

}  // namespace toroid
