#include "parallel/mpi_communicator.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_exchange.h"
#include "parallel/mpi_session.h"
#include "parallel/ordered_communicator.h"

namespace toroid {
namespace {

// Two slots per peer, for pieces of a reduction that have arrived. Never initialised: pages that no
// message reaches cost nothing.
struct Slots {
  Slots(int64_t peers, int64_t bytes_each)
      : slot_bytes(bytes_each),
        data(static_cast<char*>(::operator new(2 * peers * bytes_each, std::align_val_t(64)))) {}
  Slots(const Slots&) = delete;
  ~Slots() { ::operator delete(data, std::align_val_t(64)); }

  const int64_t slot_bytes;
  char* const data;
};

class MpiCommunicator final : public OrderedCommunicator {
 public:
  // Takes `comm` over.
  MpiCommunicator(std::shared_ptr<MpiSession> session, MPI_Comm comm, int rank, int size,
                  const MpiLimits& limits)
      : OrderedCommunicator(rank, size),
        session_(std::move(session)),
        comm_(comm),
        limits_(limits),
        exchanges_{MpiExchange(comm, limits.message_bytes),
                   MpiExchange(comm, limits.message_bytes)} {}
  ~MpiCommunicator() override {
    if (!session_->broken()) MPI_Comm_free(&comm_);
  }

  std::unique_ptr<Communicator> Split(const RankFunction& color, const RankFunction& key) override;
  int64_t communicator_bytes() const override {
    return slots_ == nullptr ? 0 : ReductionScratchBytes(size(), slots_->slot_bytes);
  }

 protected:
  void DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) override;
  void DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each, DType type) override;
  void DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) override;
  void DoBroadcast(Stream s, void* x, int64_t bytes, int root) override;
  void DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                  int64_t recv_bytes, int from) override;
  void DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) override;
  void DoBarrier(Stream s) override;

 private:
  // A sum of x over ranks by blocks: this rank's block is summed into `out`.
  struct Reduction {
    const char* x;
    char* out;
    DType type;
    ReduceOp op;
    std::function<ReductionBlock(int rank)> block;  // of x; rank 0's is the largest
    std::shared_ptr<Slots> slots;
    int64_t round = 0;  // pieces summed so far
    bool started = false;

    int64_t piece() const { return slots->slot_bytes / RowBytes(type, 1); }
    int64_t rounds() const { return (block(0).count + piece() - 1) / piece(); }
    // Elements of piece `k` of rank's block, and where they begin in x.
    ReductionBlock Piece(int rank, int64_t k) const {
      const ReductionBlock whole = block(rank);
      const int64_t begin = std::min(whole.count, k * piece());
      return {whole.begin + begin, std::min(whole.count - begin, piece())};
    }
  };

  // A verb that is one exchange, which `start` starts.
  void EnqueueExchange(Stream s, std::function<void(MpiExchange&)> start);
  // True when done, with or without an error (which is kept).
  bool Poll(MpiExchange& exchange);
  std::shared_ptr<Slots> SlotsFor(int64_t message_bytes);
  char* SlotOf(const Slots& slots, int which, int peer) const {
    const int64_t place = (peer - rank() + size()) % size() - 1;
    return slots.data + (which * (size() - 1) + place) * slots.slot_bytes;
  }
  // Calls each(to, from) for the other ranks, nearest first: in each turn every rank sends to one
  // and receives from one.
  template <typename Each>
  void ForPeers(Each each) const {
    for (int d = 1; d < size(); ++d) each((rank() + d) % size(), (rank() - d + size()) % size());
  }
  void StartRound(const Reduction& sum, int64_t k);
  void SumRound(const Reduction& sum, int64_t k);
  bool PollReduction(Reduction& sum);

  const std::shared_ptr<MpiSession> session_;
  MPI_Comm comm_;
  const MpiLimits limits_;
  MpiExchange exchanges_[2];  // by the running step only
  std::shared_ptr<Slots> slots_;
};

std::unique_ptr<Communicator> MpiCommunicator::Split(const RankFunction& color,
                                                     const RankFunction& key) {
  MPI_Comm child = MPI_COMM_NULL;
  const absl::Status split =
      MpiError(MPI_Comm_split(comm_, color(rank()), key(rank()), &child), "MPI_Comm_split");
  if (!split.ok()) {
    session_->MarkBroken();
    Fail(split);
    return std::make_unique<SelfCommunicator>();
  }
  int place = 0, members = 1;
  MPI_Comm_rank(child, &place);
  MPI_Comm_size(child, &members);
  if (members == 1) {
    MPI_Comm_free(&child);
    return std::make_unique<SelfCommunicator>();
  }
  return std::make_unique<MpiCommunicator>(session_, child, place, members, limits_);
}

bool MpiCommunicator::Poll(MpiExchange& exchange) {
  absl::Status error;
  if (!exchange.Poll(error)) return false;
  if (!error.ok()) {
    session_->MarkBroken();
    Fail(absl::Status(error.code(),
                      absl::StrCat("rank ", rank(), " of ", size(), ": ", error.message())));
  }
  return true;
}

void MpiCommunicator::EnqueueExchange(Stream s, std::function<void(MpiExchange&)> start) {
  Enqueue(s, [this, start = std::move(start), started = false]() mutable {
    if (!started) start(exchanges_[0]);
    started = true;
    return Poll(exchanges_[0]);
  });
}

void MpiCommunicator::DoSendRecv(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                                 int64_t recv_bytes, int from) {
  EnqueueExchange(s, [=](MpiExchange& exchange) {
    exchange.Receive(recv, recv_bytes, from);
    exchange.Send(send, send_bytes, to);
  });
}

void MpiCommunicator::DoAllGather(Stream s, const void* x, void* out, int64_t bytes_each) {
  EnqueueExchange(s, [=, this](MpiExchange& exchange) {
    char* blocks = static_cast<char*>(out);
    ForPeers([&](int to, int from) {
      exchange.Receive(blocks + from * bytes_each, bytes_each, from);
      exchange.Send(x, bytes_each, to);
    });
    char* mine = blocks + rank() * bytes_each;
    if (mine != x) std::memcpy(mine, x, bytes_each);
  });
}

void MpiCommunicator::DoAllToAll(Stream s, const void* x, void* out, int64_t bytes_each) {
  EnqueueExchange(s, [=, this](MpiExchange& exchange) {
    char* to_blocks = static_cast<char*>(out);
    const char* from_blocks = static_cast<const char*>(x);
    ForPeers([&](int to, int from) {
      exchange.Receive(to_blocks + from * bytes_each, bytes_each, from);
      exchange.Send(from_blocks + to * bytes_each, bytes_each, to);
    });
    std::memcpy(to_blocks + rank() * bytes_each, from_blocks + rank() * bytes_each, bytes_each);
  });
}

void MpiCommunicator::DoBroadcast(Stream s, void* x, int64_t bytes, int root) {
  EnqueueExchange(s, [=](MpiExchange& exchange) { exchange.Broadcast(x, bytes, root); });
}

void MpiCommunicator::DoBarrier(Stream s) {
  EnqueueExchange(s, [](MpiExchange& exchange) { exchange.Barrier(); });
}

std::shared_ptr<Slots> MpiCommunicator::SlotsFor(int64_t message_bytes) {
  const int64_t bytes = ReductionSlotBytes(size(), message_bytes, limits_.slot_bytes);
  // Steps that are still queued hold the smaller slots until they are done.
  if (slots_ == nullptr || slots_->slot_bytes < bytes) {
    slots_ = std::make_shared<Slots>(size() - 1, bytes);
  }
  return slots_;
}

void MpiCommunicator::StartRound(const Reduction& sum, int64_t k) {
  MpiExchange& exchange = exchanges_[k % 2];
  const int64_t mine = RowBytes(sum.type, sum.Piece(rank(), k).count);
  ForPeers([&](int to, int from) {
    const ReductionBlock theirs = sum.Piece(to, k);
    exchange.Receive(SlotOf(*sum.slots, k % 2, from), mine, from);
    exchange.Send(sum.x + RowBytes(sum.type, theirs.begin), RowBytes(sum.type, theirs.count), to);
  });
}

void MpiCommunicator::SumRound(const Reduction& sum, int64_t k) {
  const ReductionBlock mine = sum.Piece(rank(), k);
  std::vector<const void*> in(size());
  for (int r = 0; r < size(); ++r) {
    in[r] = r == rank() ? sum.x + RowBytes(sum.type, mine.begin) : SlotOf(*sum.slots, k % 2, r);
  }
  char* out = sum.out + RowBytes(sum.type, k * sum.piece());
  if (mine.count > 0) ReduceInRankOrder(in, out, mine.count, sum.type, sum.op);
}

// While round k is summed, round k + 1 is on its way.
bool MpiCommunicator::PollReduction(Reduction& sum) {
  const int64_t rounds = sum.rounds();
  if (!sum.started) {
    StartRound(sum, 0);
    if (rounds > 1) StartRound(sum, 1);
    sum.started = true;
  }
  while (sum.round < rounds) {
    if (!Poll(exchanges_[sum.round % 2])) return false;
    if (failed()) return true;
    SumRound(sum, sum.round);
    if (sum.round + 2 < rounds) StartRound(sum, sum.round + 2);
    ++sum.round;
  }
  return true;
}

void MpiCommunicator::DoReduceScatter(Stream s, const void* x, void* out, int64_t count_each,
                                      DType type) {
  Reduction sum = {static_cast<const char*>(x),
                   static_cast<char*>(out),
                   type,
                   ReduceOp::kSum,
                   [=](int r) {
                     return ReductionBlock{r * count_each, count_each};
                   },
                   SlotsFor(RowBytes(type, count_each))};
  Enqueue(s, [this, sum = std::move(sum)]() mutable { return PollReduction(sum); });
}

void MpiCommunicator::DoAllReduce(Stream s, void* x, int64_t count, DType type, ReduceOp op) {
  const int64_t bytes = RowBytes(type, count);
  char* data = static_cast<char*>(x);
  std::shared_ptr<Slots> slots = SlotsFor(AllReduceMessageBytes(size(), count, type));
  if (bytes <= std::min(kSmallReduction, slots->slot_bytes)) {
    // Everyone sends all it has to everyone, and sums.
    Enqueue(s, [=, this, started = false]() mutable {
      if (!started) {
        ForPeers([&](int to, int from) {
          exchanges_[0].Receive(SlotOf(*slots, 0, from), bytes, from);
          exchanges_[0].Send(data, bytes, to);
        });
        started = true;
      }
      if (!Poll(exchanges_[0])) return false;
      std::vector<const void*> in(size());
      for (int r = 0; r < size(); ++r) in[r] = r == rank() ? data : SlotOf(*slots, 0, r);
      if (!failed()) ReduceInRankOrder(in, data, count, type, op);
      return true;
    });
    return;
  }
  // Everyone sums its block in place, then sends it to everyone. The blocks of others are only
  // overwritten after they have been sent off: sends end before the second exchange starts.
  const auto block = [=, this](int r) { return BlockOf(r, size(), count); };
  Reduction sum = {data, data + RowBytes(type, block(rank()).begin), type, op, block, slots};
  Enqueue(s, [=, this, sum = std::move(sum), gathering = false]() mutable {
    if (!gathering) {
      if (!PollReduction(sum)) return false;
      if (failed()) return true;
      gathering = true;
      ForPeers([&](int to, int from) {
        const ReductionBlock theirs = block(from), mine = block(rank());
        exchanges_[0].Receive(data + RowBytes(type, theirs.begin), RowBytes(type, theirs.count),
                              from);
        exchanges_[0].Send(data + RowBytes(type, mine.begin), RowBytes(type, mine.count), to);
      });
    }
    return Poll(exchanges_[0]);
  });
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewMpiWorld(int* argc, char*** argv,
                                                          const MpiLimits& limits) {
  TOROID_CHECK(limits.message_bytes > 0 && limits.message_bytes <= (int64_t{1} << 30));
  TOROID_ASSIGN_OR_RETURN(std::shared_ptr<MpiSession> session, MpiSession::Start(argc, argv));
  MPI_Comm comm = MPI_COMM_NULL;
  TOROID_RETURN_IF_ERROR(MpiError(MPI_Comm_dup(session->world(), &comm), "MPI_Comm_dup"));
  int rank = 0, size = 1;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  return std::unique_ptr<Communicator>(
      std::make_unique<MpiCommunicator>(std::move(session), comm, rank, size, limits));
}

absl::StatusOr<std::unique_ptr<Communicator>> NewWorld(int* argc, char*** argv) {
  if (ThisLauncherEnvironment().launcher == Launcher::kNone) {
    return std::unique_ptr<Communicator>(std::make_unique<SelfCommunicator>());
  }
  return NewMpiWorld(argc, argv);
}

std::string MpiLibraryVersion() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;  // one of the few calls that MPI allows before it is started
  return MPI_Get_library_version(text, &length) == MPI_SUCCESS ? std::string(text, size_t(length))
                                                               : std::string();
}

}  // namespace toroid
