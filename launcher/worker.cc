// toroid worker: one rank of a world that an agent started. Not for people.
#include <chrono>
#include <cstdlib>
#include <optional>
#include <utility>

#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "parallel/evidence.h"
#include "parallel/mpi_communicator.h"
#include "parallel/progress_board.h"
#include "parallel/stall_watch.h"
#include "rpc/worker_process.h"

namespace toroid {
namespace {

absl::Status RunWorker(const Arguments& arguments) {
  EndWithLauncher();
  absl::StatusOr<WorkerOptions> file = ReadLaunchFile(arguments.Text("--launch"));
  if (!file.ok() && !absl::IsNotFound(file.status())) return file.status();
  int argc = 0;
  char** argv = nullptr;
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world, NewWorld(&argc, &argv));
  TOROID_ASSIGN_OR_RETURN(const WorkerOptions options, ShareLaunchFile(*world, std::move(file)));
  const int rank = world->rank();
  RecordRank(options, rank);

  ProgressBoard board;
  CatchFailures(&board, rank);
  std::optional<StallWatch> watch;
  const double stall_timeout = arguments.Real("--stall-timeout");
  if (stall_timeout > 0) {
    watch.emplace(&board, NewStallChannel(*world),
                  std::chrono::milliseconds(static_cast<int64_t>(stall_timeout * 1000)));
  }
  if (rank != 0) return RunPrograms(std::move(world), RankChannel(options), &board);
  auto connection = ConnectWorker(options);
  if (!connection.ok()) {
    // The other ranks wait for a program that will not come: MPI_Finalize would
    // wait for them, so the launcher ends them instead.
    std::_Exit(ReportError(connection.status()));
  }
  const absl::Status status = RunPrograms(std::move(world), (*connection)->channel(), &board);
  (*connection)->Finish(status);
  return status;
}

const OptionTable kWorkerOptions = {
    "worker",
    {
        {"--launch", ValueKind::kText, "FILE", "", "written by the agent"},
        {"--stall-timeout", ValueKind::kSeconds, "T", "60s", "without progress; 0: never", true},
    }};

}  // namespace

const Verb kWorkerVerb = {
    .name = "worker",
    .summary = "one rank of a world; started by agents only",
    .positionals = {},
    .tables = {&kWorkerOptions},
    .examples = "mpirun -n 2 toroid worker --launch FILE",
    .run = RunWorker,
    .hidden = true,
};

}  // namespace toroid
