#include "parallel/nccl_communicator.h"

#include <cuda_runtime.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/reduce.h"

namespace toroid {
namespace {

constexpr int64_t kMaxTileBytes = 64 << 10;  // of each rank, gathered to take maxima

// What the communicators of one rank share: its device, the end of its last verb, a scratch.
class NcclRank {
 public:
  NcclRank(int device, int world_size)
      : device_(device), gathered_bytes_(world_size * kMaxTileBytes) {}
  ~NcclRank() {
    cudaSetDevice(device_);
    if (last_ != nullptr) cudaEventDestroy(last_);
    if (gathered_ != nullptr) cudaFree(gathered_);
  }

  cudaError_t Prepare() {
    cudaError_t error = cudaSetDevice(device_);
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(&last_, cudaEventDisableTiming);
    if (error == cudaSuccess) error = cudaMalloc(&gathered_, size_t(gathered_bytes_));
    return error;
  }

  // s waits for the rank's last verb.
  void Begin(cudaStream_t s) {
    Check(cudaSetDevice(device_));
    Check(cudaStreamWaitEvent(s, last_, 0));
  }
  void End(cudaStream_t s) { Check(cudaEventRecord(last_, s)); }

  int device() const { return device_; }
  void* gathered() const { return gathered_; }
  int64_t bytes() const { return gathered_bytes_; }

  void Check(cudaError_t error) const {
    TOROID_CHECK_MSG(error == cudaSuccess,
                     absl::StrCat("NCCL on GPU ", device_, ": ", cudaGetErrorString(error)));
  }

 private:
  const int device_;
  const int64_t gathered_bytes_;
  cudaEvent_t last_ = nullptr;
  void* gathered_ = nullptr;
};

ncclDataType_t TypeOf(DType type) {
  switch (type) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF64:
      return ncclFloat64;
    case DType::kBF16:
      return ncclBfloat16;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    default:
      TOROID_CHECK_MSG(false, absl::StrCat("no reduction of ", Info(type).name));
  }
}

absl::Status NcclError(ncclResult_t result, const std::string& what, ncclComm_t comm) {
  if (result == ncclSuccess) return absl::OkStatus();
  const char* last = ncclGetLastError(comm);
  return absl::UnavailableError(absl::StrCat(what, ": NCCL: ", ncclGetErrorString(result),
                                             last == nullptr || *last == 0 ? "" : ": ",
                                             last == nullptr ? "" : last));
}

class NcclCommunicator final : public Communicator {
 public:
  // Takes `comm` over. world: the first of this rank's communicators.
  NcclCommunicator(std::shared_ptr<NcclRank> shared, ncclComm_t comm, int rank, int size,
                   bool world)
      : Communicator(rank, size), shared_(std::move(shared)), comm_(comm), world_(world) {}
  ~NcclCommunicator() override {
    cudaSetDevice(shared_->device());
    if (Health().ok()) {
      ncclCommDestroy(comm_);
    } else {
      ncclCommAbort(comm_);
    }
  }

  absl::Status Health() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_.ok()) return error_;
    ncclResult_t result = ncclSuccess;
    ncclCommGetAsyncError(comm_, &result);
    if (result != ncclSuccess && result != ncclInProgress) {
      error_ = NcclError(result, Where("a verb"), comm_);
      failed_.store(true);
    }
    return error_;
  }

  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override {
    int members = 0, place = 0;
    for (int r = 0; r < size(); ++r) {
      if (color(r) != color(rank())) continue;
      ++members;
      if (key(r) < key(rank()) || (key(r) == key(rank()) && r < rank())) ++place;
    }
    shared_->Check(cudaSetDevice(shared_->device()));
    ncclComm_t part = nullptr;
    Keep("Split", ncclCommSplit(comm_, members > 1 ? color(rank()) : NCCL_SPLIT_NOCOLOR, place,
                                &part, nullptr));
    if (part == nullptr) return std::make_unique<SelfCommunicator>();
    return std::make_unique<NcclCommunicator>(shared_, part, place, members, /*world=*/false);
  }

  // What NCCL itself holds is not known.
  int64_t communicator_bytes() const override { return world_ ? shared_->bytes() : 0; }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override {
    if (op == ReduceOp::kMax) return Maximum(s, static_cast<char*>(x), count, type);
    Verb("AllReduce", s, [&](cudaStream_t stream) {
      return ncclAllReduce(x, x, size_t(count), TypeOf(type), ncclSum, comm_, stream);
    });
  }
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                       DType type) override {
    Verb("ReduceScatter", s, [&](cudaStream_t stream) {
      return ncclReduceScatter(x, out, size_t(count_each), TypeOf(type), ncclSum, comm_, stream);
    });
  }
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override {
    Verb("AllGather", s, [&](cudaStream_t stream) {
      return ncclAllGather(x, out, size_t(bytes_each), ncclUint8, comm_, stream);
    });
  }
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override {
    Verb("Broadcast", s, [&](cudaStream_t stream) {
      return ncclBroadcast(x, x, size_t(bytes), ncclUint8, root, comm_, stream);
    });
  }
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override {
    Group("SendRecv", s, [&](cudaStream_t stream) {
      if (recv_bytes > 0) Queue(ncclRecv(recv, size_t(recv_bytes), ncclUint8, from, comm_, stream));
      if (send_bytes > 0) Queue(ncclSend(send, size_t(send_bytes), ncclUint8, to, comm_, stream));
    });
  }
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override {
    Group("AllToAll", s, [&](cudaStream_t stream) {
      for (int r = 0; r < size(); ++r) {
        Queue(ncclRecv(static_cast<char*>(out) + r * bytes_each, size_t(bytes_each), ncclUint8, r,
                       comm_, stream));
        Queue(ncclSend(static_cast<const char*>(x) + r * bytes_each, size_t(bytes_each), ncclUint8,
                       r, comm_, stream));
      }
    });
  }
  void DoBarrier(Stream s) override {
    void* number = shared_->gathered();  // whatever it holds: the sum is not looked at
    Verb("Barrier", s, [&](cudaStream_t stream) {
      return ncclAllReduce(number, number, 1, ncclInt32, ncclMax, comm_, stream);
    });
  }

 private:
  std::string Where(const char* verb) const {
    return absl::StrCat(verb, " of rank ", rank(), " of ", size(), " on GPU ", shared_->device());
  }
  void Keep(const char* verb, ncclResult_t result) {
    if (result == ncclSuccess) return;
    std::lock_guard<std::mutex> lock(mutex_);
    if (error_.ok()) error_ = NcclError(result, Where(verb), comm_);
    failed_.store(true);
  }
  // The first error of a group's parts.
  void Queue(ncclResult_t result) {
    if (queued_ == ncclSuccess) queued_ = result;
  }

  template <typename Call>
  void Verb(const char* verb, Stream s, Call call) {
    if (failed_.load()) return;
    const cudaStream_t stream = static_cast<cudaStream_t>(s.native);
    TOROID_CHECK(stream != nullptr);
    shared_->Begin(stream);
    Keep(verb, call(stream));
    shared_->End(stream);
  }
  template <typename Parts>
  void Group(const char* verb, Stream s, Parts parts) {
    Verb(verb, s, [&](cudaStream_t stream) {
      queued_ = ncclGroupStart();
      parts(stream);
      const ncclResult_t ended = ncclGroupEnd();
      return queued_ == ncclSuccess ? ended : queued_;
    });
  }

  // Tiles of all ranks are gathered, then compared in rank order.
  void Maximum(Stream s, char* x, int64_t count, DType type) {
    const int64_t element = RowBytes(type, 1), tile = kMaxTileBytes / element;
    for (int64_t begin = 0; begin < count; begin += tile) {
      const int64_t n = std::min(tile, count - begin);
      char* part = x + begin * element;
      Verb("AllReduce", s, [&](cudaStream_t stream) {
        const ncclResult_t result =
            ncclAllGather(part, shared_->gathered(), size_t(n * element), ncclUint8, comm_, stream);
        if (result == ncclSuccess) {
          MaxOfParts(stream, type, shared_->gathered(), size(), n, part);
          shared_->Check(cudaGetLastError());
        }
        return result;
      });
    }
  }

  const std::shared_ptr<NcclRank> shared_;
  const ncclComm_t comm_;
  const bool world_;
  ncclResult_t queued_ = ncclSuccess;
  mutable std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  mutable absl::Status error_;  // guarded by mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewNcclCommunicator(Communicator& host, int device) {
  // NVLink multicast can put the GPUs of a shared host out of service, and gains nothing on few.
  static std::once_flag once;
  std::call_once(once, [] { setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0); });
  ncclUniqueId id = {};
  absl::Status status;
  if (host.rank() == 0) {
    status = NcclError(ncclGetUniqueId(&id), absl::StrCat("GPU ", device), nullptr);
  }
  CpuStream queue(/*inline_work=*/true);
  host.Broadcast({&queue, nullptr}, Tensor(DType::kU8, {int64_t{sizeof(id)}}, &id), 0);
  if (!host.Health().ok()) return host.Health();
  if (!status.ok()) return status;
  auto shared = std::make_shared<NcclRank>(device, host.size());
  const cudaError_t error = shared->Prepare();
  if (error != cudaSuccess) {
    return absl::UnavailableError(absl::StrCat("GPU ", device, ": ", cudaGetErrorString(error)));
  }
  ncclComm_t comm = nullptr;
  status = NcclError(ncclCommInitRank(&comm, host.size(), id, host.rank()),
                     absl::StrCat("starting on GPU ", device), nullptr);
  if (!status.ok()) return status;
  return std::unique_ptr<Communicator>(std::make_unique<NcclCommunicator>(
      std::move(shared), comm, host.rank(), host.size(), /*world=*/true));
}

std::string NcclVersion() {
  int version = 0;
  if (ncclGetVersion(&version) != ncclSuccess) return "";
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace toroid
