// The stall watch's channel over MPI: a communicator of its own, used by the watch's thread while
// the rank's other threads compute, communicate or hang (MPI_THREAD_MULTIPLE).
#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_session.h"
#include "parallel/stall_watch.h"

namespace toroid {
namespace {

static_assert(std::is_trivially_copyable_v<StallBeat>);
constexpr int kTag = 1;
constexpr int kExitCode = 1;

class MpiStallLink {
 public:
  MpiStallLink(std::shared_ptr<MpiSession> session, int size)
      : session_(std::move(session)), outgoing_(size) {
    TOROID_CHECK_EQ(MPI_Comm_dup(session_->world(), &comm_), MPI_SUCCESS);
  }
  ~MpiStallLink() {
    // A beat to a rank that no longer listens may never leave: its buffer must then live on.
    bool all_sent = true;
    for (std::unique_ptr<Outgoing>& message : outgoing_) {
      if (message == nullptr || Sent(*message)) continue;
      (void)message.release();
      all_sent = false;
    }
    if (all_sent && !session_->broken()) MPI_Comm_free(&comm_);
  }

  void Send(int to, const StallBeat& beat) {
    std::unique_ptr<Outgoing>& message = outgoing_[to];
    if (message == nullptr) message = std::make_unique<Outgoing>();
    if (!Sent(*message)) return;
    message->beat = beat;
    MPI_Isend(&message->beat, sizeof(StallBeat), MPI_BYTE, to, kTag, comm_, &message->request);
  }

  bool Receive(int* from, StallBeat* beat) {
    int there = 0;
    MPI_Message message;
    MPI_Status status;
    if (MPI_Improbe(MPI_ANY_SOURCE, kTag, comm_, &there, &message, &status) != MPI_SUCCESS) {
      return false;
    }
    if (!there) return false;
    *from = status.MPI_SOURCE;
    return MPI_Mrecv(beat, sizeof(StallBeat), MPI_BYTE, &message, &status) == MPI_SUCCESS;
  }

  [[noreturn]] void EndWorld(const std::vector<std::string>& lines) {
    std::string text;
    for (const std::string& line : lines) text += line + "\n";
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
    session_->MarkBroken();
    MPI_Abort(comm_, kExitCode);
    _exit(kExitCode);
  }

 private:
  struct Outgoing {
    StallBeat beat;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  static bool Sent(Outgoing& message) {
    int sent = 1;
    MPI_Test(&message.request, &sent, MPI_STATUS_IGNORE);
    return sent != 0;
  }

  const std::shared_ptr<MpiSession> session_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  std::vector<std::unique_ptr<Outgoing>> outgoing_;  // by rank
};

}  // namespace

StallChannel NewStallChannel(Communicator& world) {
  StallChannel channel;
  channel.rank = world.rank();
  channel.hosts = HostsOf(world).names;
  if (world.size() == 1) {
    channel.send = [](int, const StallBeat&) {};
    channel.receive = [](int*, StallBeat*) { return false; };
    channel.end_world = [](const std::vector<std::string>& lines) {
      for (const std::string& line : lines) std::fprintf(stderr, "%s\n", line.c_str());
      std::fflush(stderr);
      _exit(kExitCode);
    };
    return channel;
  }
  std::shared_ptr<MpiSession> session = MpiSession::Current();
  TOROID_CHECK_MSG(session != nullptr, "a stall channel needs a world of MPI");
  auto link = std::make_shared<MpiStallLink>(std::move(session), world.size());
  channel.send = [link](int to, const StallBeat& beat) { link->Send(to, beat); };
  channel.receive = [link](int* from, StallBeat* beat) { return link->Receive(from, beat); };
  channel.end_world = [link](const std::vector<std::string>& lines) { link->EndWorld(lines); };
  return channel;
}

}  // namespace toroid
