// VerifySelfTest: does verification find what it is there for? Well-known faults of distributed
// training are planted, one at a time, in what a Trainer is given (its communicator, schedule,
// batch and seed of random numbers), and VerifyTraining must be out of bound, while the run without
// a fault is not.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/request.h"

namespace toroid {

struct PlantedBug {
  std::string bug;
  bool found = false;
  TensorError worst;  // what VerifyTraining named
};

struct SelfTestResult {
  bool pass = false;  // the clean run passes and every bug was found
  VerifyResult clean;
  std::vector<PlantedBug> bugs;
};

// A tiny model in float64 on ring=3,tensor=2, the ranks threads of this process: a few seconds.
absl::StatusOr<SelfTestResult> VerifySelfTest(
    const std::function<void(const Progress&)>& on_progress = [](const Progress&) {});

}  // namespace toroid
