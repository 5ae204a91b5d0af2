// PreparedProgram: a program of the controller on its way to the ranks, and what it needs before
// they can run it.
//
// Paths, directories and files need this host alone; ids of a text need the tokenizer of the model
// too. Programs of a pool are prepared while earlier ones run: of a model that was loaded before
// wholly, of another one but for the ids, which are made once it is loaded.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/program.h"
#include "rpc/control.h"

namespace toroid {

struct PreparedProgram {
  WorldProgram order;   // prompts that were files are texts
  absl::Status status;  // of the first preparation that failed: why it cannot run
  std::string output_dir;
  std::optional<LoadRequest> load;  // of a pool's program that does not load for itself
  std::optional<JobSpec> training;  // its job, of one that trains
  bool has_ids = false;
  Program program;  // of kLoad, kGenerate, kScore and kVerify, once it has its ids
};

// Everything but ids. Each path must lie under one of `roots`.
void PrepareFiles(PreparedProgram& prepared, const std::vector<Root>& roots);
// REQUIRES: PrepareFiles; `model` is what the program runs on. Nothing if it failed or has ids.
void PrepareIds(PreparedProgram& prepared, const LoadedModel& model);

}  // namespace toroid
