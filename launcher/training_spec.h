// The training job that train runs and verify proves: a file, with what the command line says on
// top.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "rpc/job.h"

namespace toroid {

// --set, --mesh, --layout, --threads, --compute and --device, which the verb has. InvalidArgument
// if the job does not train.
absl::StatusOr<JobSpec> TrainingSpec(const Arguments& arguments, const std::string& path);

// The wish as ParseMesh reads it, whose errors propose a mesh that fits.
absl::StatusOr<MeshShape> MeshHere(const MeshWish& wish, int64_t world_size);

}  // namespace toroid
