// Direct mode: this process is one rank of a world (alone, under mpirun or under srun), and one
// load and one request run through the same loop that serves a controller.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "launcher/command_line.h"
#include "launcher/progress.h"
#include "parallel/program.h"

namespace toroid {

struct DirectRun {
  LoadRequest load;    // its mesh is made from `mesh` and the world's size
  std::string mesh;    // "ring=2,tensor=2"; empty: all ranks on the ring
  double timeout = 0;  // seconds, 0 = none
  double stall_timeout = 0;
  double grace = 5;  // seconds from being asked to stop to the end
  // Rank 0, once the model is loaded: what to run on it. An error ends the world and the run.
  std::function<absl::StatusOr<Program>(const LoadedModel&)> request;
  // Instead of load, mesh and request: rank 0's one program, which needs no loaded model.
  std::function<absl::StatusOr<Program>(int64_t world_size)> program;
  // `meet` (on every rank), on_progress, on_token and the on_.. of the request are the verb's; the
  // rest is filled in.
  ProgramChannel channel;
};

// Model, mesh and limits as the command line says; default_layout as for LoadOptions.
absl::StatusOr<DirectRun> DirectOptions(const Arguments& arguments,
                                        absl::string_view default_layout);

// A rank of mpirun or srun dies with its launcher, even if that is killed. Alone: nothing.
void EndWithLauncher();

// Runs on every rank of the world. On rank 0 the error is that of the world, the load or the
// request; other ranks return OK where rank 0 speaks for them. Cancelled and DeadlineExceeded if
// the user or --timeout ended it.
absl::Status RunDirect(DirectRun run);

}  // namespace toroid
