// The worker's side of the control plane. An agent starts
//   mpirun .. toroid worker --launch FILE [--stall-timeout 60s]
// and every rank does:
//   options = ShareLaunchFile(world, ReadLaunchFile(FILE)); RecordRank(options, rank);
//   rank 0: connection = ConnectWorker(options); RunPrograms(world, connection->channel(), board);
//           connection->Finish(status);
//   others: RunPrograms(world, RankChannel(options), board);
// FILE (mode 0600) carries what must not stand in an argv: the credential of this epoch.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/communicator.h"
#include "parallel/program.h"
#include "rpc/control.h"
#include "rpc/job.h"
#include "rpc/link_throttle.h"

namespace toroid {

struct WorkerOptions {
  std::string controller;  // host:port
  std::string job;
  uint64_t epoch = 0;
  uint64_t view = 0;
  std::string pod;
  std::string credential;  // of this epoch
  std::string scratch_dir;
  std::vector<Root> roots;
  std::string tls_dir;       // rpc/tls.h; empty: plaintext
  ThrottleOptions throttle;  // of what is sent to other pods
};

// A worker's line on stderr that begins so is for the agent's own log, and no client sees it.
inline constexpr char kForAgent[] = "toroid-agent: ";

// NotFound, PermissionDenied (readable by others), InvalidArgument.
absl::StatusOr<WorkerOptions> ReadLaunchFile(const std::string& path);
absl::Status WriteLaunchFile(const std::string& path, const WorkerOptions& options);
// The same on every rank: a rank whose host does not see the agent's file (NotFound) gets what rank
// 0 has read. Collective; an error of rank 0 is all ranks'.
absl::StatusOr<WorkerOptions> ShareLaunchFile(Communicator& world,
                                              absl::StatusOr<WorkerOptions> own);

// Notes (rank, pid, host) in scratch_dir so that the agent can name a dead rank. On a host that
// does not see the agent's scratch_dir nothing is noted.
void RecordRank(const WorkerOptions& options, int rank);

// Rank 0's stream to the controller. Thread-safe.
class WorkerConnection {
 public:
  virtual ~WorkerConnection() = default;
  // For RunPrograms on rank 0, which must end before the connection does. Prompts are turned into
  // ids here, with the loaded model's tokenizer; a prompt that cannot be is answered without the
  // ranks. When the controller is lost every program is cancelled and next() returns kExit; but one
  // that trains goes on while the stream is dialled again (worker_link.h), and then saves.
  virtual ProgramChannel channel() = 0;
  // Tells how RunPrograms ended and closes the stream; waits at most 2 s for it to be delivered.
  virtual void Finish(const absl::Status& status) = 0;
};

// How programs of a pool are prepared while earlier ones run.
struct Preparation {
  // So many at once; 0: each at its turn. They wait for files more than they compute: as many as
  // a pool may have been sent.
  int threads = 16;
  // Called as a preparation begins, on its thread; tests wait in it.
  std::function<void(const WorldProgram&)> begins;
};

// Dials and attaches. Unavailable: the controller cannot be reached; as ReadTls and
// WhyNoConnection (rpc/tls.h); PermissionDenied: credential
// or epoch are not those of the present launch.
absl::StatusOr<std::unique_ptr<WorkerConnection>> ConnectWorker(
    const WorkerOptions& options, const Preparation& preparation = {});

// The loop's ends on ranks other than 0.
ProgramChannel RankChannel(const WorkerOptions& options);

}  // namespace toroid
