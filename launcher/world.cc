#include "launcher/world.h"

#include <signal.h>
#include <sys/prctl.h>

#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/interrupt.h"
#include "launcher/options.h"
#include "parallel/evidence.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_communicator.h"
#include "parallel/progress_board.h"
#include "parallel/stall_watch.h"

namespace toroid {
namespace {

// Rank 0's end of the loop in direct mode: load, then the request, then exit. An error on the way
// is kept in `failed` and ends the world.
struct Direction {
  DirectRun run;
  int64_t world_size = 1;
  uint64_t given = 0;
  absl::Status failed = absl::OkStatus();
  std::optional<LoadedModel> model;

  Program Next() {
    Program program;
    program.number = ++given;
    program.kind = ProgramKind::kExit;
    if (run.program) {
      if (given == 1) Take(run.program(world_size), program);
    } else if (given == 1) {
      const auto mesh = ParseMesh(run.mesh, world_size, "ring");
      failed = mesh.ok() ? absl::OkStatus() : mesh.status();
      if (failed.ok()) {
        program.kind = ProgramKind::kLoad;
        program.load = run.load;
        program.load.mesh = *mesh;
      }
    } else if (given == 2 && failed.ok() && Interrupt::Cancelled()) {
      failed = Interrupt::Reason();
    } else if (given == 2 && failed.ok()) {
      Take(run.request(*model), program);
    }
    return program;
  }

  void Take(absl::StatusOr<Program> made, Program& program) {
    failed = made.status();
    if (failed.ok()) program = *std::move(made);
    program.number = given;
  }

  ProgramChannel Channel() {
    ProgramChannel channel = run.channel;
    channel.next = [this] { return Next(); };
    channel.cancelled = [](uint64_t) { return Interrupt::Cancelled(); };
    channel.on_loaded = [this](uint64_t, const absl::StatusOr<LoadedModel>& loaded) {
      failed = loaded.status();
      if (loaded.ok()) model = *loaded;
    };
    return channel;
  }
};

// What rank 0 will say, it says at once and ends the world; a rank that is still there after this
// has to speak for itself.
constexpr std::chrono::milliseconds kRankZeroSpeaks{1500};

}  // namespace

absl::StatusOr<DirectRun> DirectOptions(const Arguments& arguments,
                                        absl::string_view default_layout) {
  DirectRun run;
  TOROID_ASSIGN_OR_RETURN(run.load, LoadOptions(arguments, default_layout));
  TOROID_ASSIGN_OR_RETURN(run.mesh, MeshText(arguments));
  run.timeout = arguments.Real("--timeout");
  run.stall_timeout = arguments.Real("--stall-timeout");
  return run;
}

void EndWithLauncher() {
  if (ThisLauncherEnvironment().launcher == Launcher::kNone) return;
  // mpirun's own end takes its ranks along, even if it was killed.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
}

absl::Status RunDirect(DirectRun run) {
  EndWithLauncher();
  Interrupt::Install(run.timeout, run.grace);
  int argc = 0;
  char** argv = nullptr;
  const double stall_timeout = run.stall_timeout;
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world, NewWorld(&argc, &argv));
  const int rank = world->rank();

  ProgressBoard board;
  CatchFailures(&board, rank);
  std::optional<StallWatch> watch;
  if (stall_timeout > 0) {
    watch.emplace(&board, NewStallChannel(*world),
                  std::chrono::milliseconds(static_cast<int64_t>(stall_timeout * 1000)));
  }
  if (rank != 0) {
    ProgramChannel channel;
    channel.meet = run.channel.meet;
    const absl::Status status = RunPrograms(std::move(world), channel, &board);
    if (!status.ok()) std::this_thread::sleep_for(kRankZeroSpeaks);
    return SpeakAnyway(status);
  }
  Direction direction;
  direction.run = std::move(run);
  direction.world_size = world->size();
  const absl::Status status = RunPrograms(std::move(world), direction.Channel(), &board);
  TOROID_RETURN_IF_ERROR(status);
  return direction.failed;
}

}  // namespace toroid
