#include "parallel/ipc_link.h"

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/host_exchange.h"
#include "parallel/launcher_environment.h"

namespace toroid {
namespace {

constexpr int64_t kSlots = 2;         // while one is emptied the next is filled
constexpr int64_t kCountBytes = 128;  // a count has a line of its own
constexpr int64_t kCountsBytes = 64 << 10;
constexpr int64_t kMostRanks = kCountsBytes / (2 * kCountBytes);  // of a host

using WaitValue = decltype(&cuStreamWaitValue32);
using WriteValue = decltype(&cuStreamWriteValue32);

template <typename Function>
Function FromDriver(const char* name) {  // at run time: nothing links against it
  void* symbol = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &symbol, 12000, cudaEnableDefault, &found);
  return error == cudaSuccess ? reinterpret_cast<Function>(symbol) : nullptr;
}

// The same in all ranks of one process, and in no other.
uint64_t ProcessToken() {
  static const uint64_t token = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  return token;
}

class IpcLink {
 public:
  IpcLink(std::unique_ptr<Communicator> host, int device, const IpcLimits& limits)
      : host_(std::move(host)), device_(device), limits_(limits), peers_(size_t(host_->size())) {}
  ~IpcLink();

  absl::Status Prepare();
  bool Reaches(int rank) const { return peers_[size_t(rank)].linked; }
  void Exchange(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                int64_t recv_bytes, int from);
  int64_t bytes() const { return memory_ == nullptr ? 0 : SlotsOf(ranks_) + kCountsBytes; }

 private:
  // A rank of this host. Its memory is laid out as ours: for each rank of the host kSlots slots,
  // then for each the count of pieces that arrived from it, then that of pieces it has taken out.
  struct Peer {
    int64_t place = -1;  // among the ranks of the host; -1: on another one
    bool linked = false;
    bool mapped = false;
    char* memory = nullptr;
    uint32_t sent = 0, received = 0;  // pieces
  };

  // What ranks tell each other of their memory.
  struct Card {
    uint64_t process;
    int32_t device;
    int32_t has_memory;
    char* memory;
    cudaIpcMemHandle_t handle;
  };

  void Allocate(Card& card);
  void Map(const Card& card, Peer& peer);
  int64_t SlotsOf(int64_t ranks) const { return ranks * kSlots * limits_.slot_bytes; }
  char* SlotIn(char* memory, int64_t of, uint32_t piece) const {
    return memory + (of * kSlots + piece % kSlots) * limits_.slot_bytes;
  }
  CUdeviceptr Arrived(char* memory, int64_t from) const {
    return CUdeviceptr(memory + SlotsOf(ranks_) + from * kCountBytes);
  }
  CUdeviceptr Taken(char* memory, int64_t by) const {
    return CUdeviceptr(memory + SlotsOf(ranks_) + (ranks_ + by) * kCountBytes);
  }
  void Send(const char* x, int64_t bytes, Peer& peer);
  void Receive(char* x, int64_t bytes, Peer& peer);
  void Check(cudaError_t error) const {
    TOROID_CHECK_MSG(error == cudaSuccess,
                     absl::StrCat("IPC on GPU ", device_, ": ", cudaGetErrorString(error)));
  }
  void Check(CUresult result) const {
    TOROID_CHECK_MSG(result == CUDA_SUCCESS,
                     absl::StrCat("IPC on GPU ", device_, ": driver error ", int(result)));
  }

  const std::unique_ptr<Communicator> host_;
  const int device_;
  const IpcLimits limits_;
  const WaitValue wait_value_ = FromDriver<WaitValue>("cuStreamWaitValue32");
  const WriteValue write_value_ = FromDriver<WriteValue>("cuStreamWriteValue32");
  std::vector<Peer> peers_;         // by rank
  int64_t ranks_ = 0, place_ = -1;  // of this host; this rank's place among them
  char* memory_ = nullptr;
  cudaStream_t out_ = nullptr, in_ = nullptr;
  cudaEvent_t begun_ = nullptr, sent_ = nullptr, arrived_ = nullptr;
};

void IpcLink::Allocate(Card& card) {
  cudaError_t error = cudaSetDevice(device_);
  if (error == cudaSuccess) {
    error = cudaMalloc(reinterpret_cast<void**>(&memory_), size_t(SlotsOf(ranks_) + kCountsBytes));
  }
  if (error == cudaSuccess) error = cudaMemset(memory_ + SlotsOf(ranks_), 0, size_t(kCountsBytes));
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&out_, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&in_, cudaStreamNonBlocking);
  for (cudaEvent_t* event : {&begun_, &sent_, &arrived_}) {
    if (error == cudaSuccess) error = cudaEventCreateWithFlags(event, cudaEventDisableTiming);
  }
  if (error == cudaSuccess) error = cudaDeviceSynchronize();  // the counts are zero
  card.has_memory = error == cudaSuccess;
  // Refused in some containers: then only ranks of this process are reached.
  if (error == cudaSuccess) cudaIpcGetMemHandle(&card.handle, memory_);
  card.memory = memory_;
  cudaGetLastError();  // forgets it: the context is whole
}

void IpcLink::Map(const Card& card, Peer& peer) {
  if (!card.has_memory) return;
  if (card.process == ProcessToken()) {
    if (card.device == device_) return;
    int can = 0;
    cudaError_t error = cudaDeviceCanAccessPeer(&can, device_, card.device);
    if (error == cudaSuccess && can != 0) {
      error = cudaDeviceEnablePeerAccess(card.device, 0);
      const bool open = error == cudaSuccess || error == cudaErrorPeerAccessAlreadyEnabled;
      if (open) peer.memory = card.memory;
    }
  } else {
    void* memory = nullptr;
    const cudaError_t error =
        cudaIpcOpenMemHandle(&memory, card.handle, cudaIpcMemLazyEnablePeerAccess);
    if (error == cudaSuccess) {
      peer.memory = static_cast<char*>(memory);
      peer.mapped = true;
    }
  }
  cudaGetLastError();
}

absl::Status IpcLink::Prepare() {
  const WorldHosts hosts = HostsOf(*host_);
  for (int r = 0; r < host_->size(); ++r) {
    if (hosts.host_of[size_t(r)] != hosts.host_of[size_t(host_->rank())]) continue;
    if (r == host_->rank()) place_ = ranks_;
    peers_[size_t(r)].place = ranks_++;
  }
  Card own = {ProcessToken(), device_, 0, nullptr, {}};
  const bool able = wait_value_ != nullptr && write_value_ != nullptr && ranks_ <= kMostRanks;
  if (able && ranks_ > 1) Allocate(own);
  const std::vector<Card> cards = GatherHost(*host_, own);
  std::vector<uint8_t> open(cards.size(), 0);
  for (size_t r = 0; r < cards.size(); ++r) {
    if (int(r) == host_->rank() || peers_[r].place < 0 || memory_ == nullptr) continue;
    Map(cards[r], peers_[r]);
    open[r] = peers_[r].memory != nullptr;
  }
  // A pair is linked where both could map the other.
  const int64_t size = host_->size();
  std::vector<uint8_t> all(size_t(size * size));
  CpuStream queue(/*inline_work=*/true);
  host_->AllGather({&queue, nullptr}, Tensor(DType::kU8, {size}, open.data()),
                   Tensor(DType::kU8, {size * size}, all.data()));
  for (int64_t r = 0; r < size; ++r) {
    peers_[size_t(r)].linked = all[size_t(r * size + host_->rank())] && open[size_t(r)];
  }
  return host_->Health();
}

// Nobody frees memory that another one may still write to or has mapped. After an error the memory
// is left to the end of the process.
IpcLink::~IpcLink() {
  if (memory_ == nullptr) return;
  cudaSetDevice(device_);
  CpuStream queue(/*inline_work=*/true);
  host_->Barrier({&queue, nullptr});  // all ranks have given their last commands
  if (!host_->Health().ok()) return;
  cudaStreamSynchronize(out_);
  cudaStreamSynchronize(in_);
  for (const Peer& peer : peers_) {
    if (peer.mapped) cudaIpcCloseMemHandle(peer.memory);
  }
  host_->Barrier({&queue, nullptr});  // nobody has it mapped
  if (!host_->Health().ok()) return;
  for (cudaEvent_t event : {begun_, sent_, arrived_}) cudaEventDestroy(event);
  cudaStreamDestroy(out_);
  cudaStreamDestroy(in_);
  cudaFree(memory_);
}

void IpcLink::Send(const char* x, int64_t bytes, Peer& peer) {
  for (int64_t begin = 0; begin < bytes; begin += limits_.slot_bytes) {
    const int64_t n = std::min(limits_.slot_bytes, bytes - begin);
    // Waits for: the piece that was in this slot before is taken out. Counts wrap.
    if (peer.sent >= kSlots) {
      Check(wait_value_(out_, Taken(memory_, peer.place), peer.sent + 1 - uint32_t{kSlots},
                        CU_STREAM_WAIT_VALUE_GEQ));
    }
    Check(cudaMemcpyAsync(SlotIn(peer.memory, place_, peer.sent), x + begin, size_t(n),
                          cudaMemcpyDefault, out_));
    ++peer.sent;
    Check(
        write_value_(out_, Arrived(peer.memory, place_), peer.sent, CU_STREAM_WRITE_VALUE_DEFAULT));
  }
}

void IpcLink::Receive(char* x, int64_t bytes, Peer& peer) {
  for (int64_t begin = 0; begin < bytes; begin += limits_.slot_bytes) {
    const int64_t n = std::min(limits_.slot_bytes, bytes - begin);
    char* slot = SlotIn(memory_, peer.place, peer.received);
    ++peer.received;
    // Waits for: the piece has arrived.
    Check(wait_value_(in_, Arrived(memory_, peer.place), peer.received, CU_STREAM_WAIT_VALUE_GEQ));
    // By the copy engine here too: a copy by kernels would wait for a free multiprocessor.
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    void* const to = x + begin;
    const void* const from = slot;
    const size_t count = size_t(n);
    size_t first = 0;
    Check(cudaMemcpyBatchAsync(&to, &from, &count, 1, &attributes, &first, 1, in_));
    Check(write_value_(in_, Taken(peer.memory, place_), peer.received,
                       CU_STREAM_WRITE_VALUE_DEFAULT));
  }
}

void IpcLink::Exchange(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                       int64_t recv_bytes, int from) {
  const cudaStream_t stream = static_cast<cudaStream_t>(s.native);
  Check(cudaSetDevice(device_));
  Check(cudaEventRecord(begun_, stream));
  if (send_bytes > 0) {
    Check(cudaStreamWaitEvent(out_, begun_, 0));  // waits for: what is sent is written
    Send(static_cast<const char*>(send), send_bytes, peers_[size_t(to)]);
    Check(cudaEventRecord(sent_, out_));
    Check(cudaStreamWaitEvent(stream, sent_, 0));
  }
  if (recv_bytes > 0) {
    Check(cudaStreamWaitEvent(in_, begun_, 0));  // waits for: the place is no longer read
    Receive(static_cast<char*>(recv), recv_bytes, peers_[size_t(from)]);
    Check(cudaEventRecord(arrived_, in_));
    Check(cudaStreamWaitEvent(stream, arrived_, 0));
  }
}

}  // namespace

absl::StatusOr<DeviceLink> NewIpcLink(std::unique_ptr<Communicator> host, int device,
                                      const IpcLimits& limits) {
  TOROID_CHECK(limits.slot_bytes > 0 && limits.slot_bytes % 256 == 0);
  auto ipc = std::make_shared<IpcLink>(std::move(host), device, limits);
  const absl::Status status = ipc->Prepare();
  if (!status.ok()) return status;
  DeviceLink link;
  link.reaches = [ipc](int rank) { return ipc->Reaches(rank); };
  link.exchange = [ipc](Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                        int64_t recv_bytes, int from) {
    ipc->Exchange(s, send, send_bytes, to, recv, recv_bytes, from);
  };
  link.bytes = ipc->bytes();
  return link;
}

}  // namespace toroid
