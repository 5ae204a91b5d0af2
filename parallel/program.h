// Program: one numbered thing that all ranks of a world do together, in one order.
//
// Rank 0 takes programs from a source (the command line in direct mode, the controller's stream
// under an agent), broadcasts each, and all ranks run them one after the other. Direct mode pushes
// one program through the same loop.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/communicator.h"
#include "parallel/request.h"
#include "parallel/training_run.h"

namespace toroid {

class BroadcastChannel;
class ProgressBoard;
class Tokenizer;

enum class ProgramKind : uint8_t {
  kLoad,
  kGenerate,
  kScore,
  kVerify,
  kTrain,
  kVerifyTraining,
  kExit
};

struct Program {
  uint64_t number = 0;
  ProgramKind kind = ProgramKind::kExit;
  LoadRequest load;  // the member that `kind` names is meant, the others are ignored
  GenerateRequest generate;
  ScoreRequest score;
  VerifyRequest verify;
  // kTrain, and kVerifyTraining, which verifies its first step: of a model that it loads for
  // itself, placed by `load`; the one that was loaded before is no more. Mesh, layout, compute and
  // threads are those of `load`.
  TrainingPlan train;
};

// Bytes that travel from rank 0 to the others. Parse refuses anything else.
std::string SerialiseProgram(const Program& program);
absl::StatusOr<Program> ParseProgram(absl::string_view bytes);

// What rank 0 knows of a loaded model, for prompts and answers.
struct LoadedModel {
  std::string name;
  int64_t context = 0;  // longest prompt + output
  int64_t reach = 0;    // the longest context that the model may be loaded with
  int64_t vocab = 0;
  double load_s = 0;                           // 0 if it was loaded before
  std::shared_ptr<const Tokenizer> tokenizer;  // null if it has none: then ids alone
  MeshShape mesh;
  std::vector<std::string> hosts;  // by world rank
};

// What a rank asks for its way to the other pods of a job that trains on several.
struct PodMeeting {
  Communicator& world;
  const TrainingPlan& plan;  // valid
  const ModelConfig& model;
  // While others are waited for: called about once a second on every rank; on rank 0, whether to
  // stop waiting, and who is waited for.
  std::function<void()> tick;
  std::function<bool()> stop;
  std::function<void(const std::string&)> note;
};

// Rank 0's ends of the loop, but for `meet`. Callbacks run on the loop's thread and must not block
// for long.
struct ProgramChannel {
  // Leads to the other pods, once all are there; on every rank. Collective; an error is the same on
  // all ranks. Empty: there is no way to other pods.
  std::function<absl::StatusOr<std::unique_ptr<PodLink>>(const PodMeeting&)> meet;
  // Blocks until there is a program. After kExit it is not called again.
  std::function<Program()> next;
  // Asked between layers and tokens; true ends the program with FinishReason::kCancelled.
  std::function<bool(uint64_t number)> cancelled = [](uint64_t) { return false; };
  std::function<void(uint64_t number, const Progress&)> on_progress = [](uint64_t,
                                                                         const Progress&) {};
  std::function<void(uint64_t number, const TokenEvent&)> on_token = [](uint64_t,
                                                                        const TokenEvent&) {};
  // What is heard of a program that trains, and what it is asked; if it is asked nothing,
  // `cancelled` has a say too.
  std::function<TrainingEvents(uint64_t number)> training = [](uint64_t) {
    return TrainingEvents();
  };
  // Exactly one of these per program. A Status is an error of the request; the world lives on.
  std::function<void(uint64_t number, const absl::StatusOr<LoadedModel>&)> on_loaded =
      [](uint64_t, const absl::StatusOr<LoadedModel>&) {};
  std::function<void(uint64_t number, const absl::StatusOr<GenerateResult>&)> on_generated =
      [](uint64_t, const absl::StatusOr<GenerateResult>&) {};
  std::function<void(uint64_t number, const absl::StatusOr<ScoreResult>&)> on_scored =
      [](uint64_t, const absl::StatusOr<ScoreResult>&) {};
  // Of kVerify and kVerifyTraining.
  std::function<void(uint64_t number, const absl::StatusOr<VerifyResult>&)> on_verified =
      [](uint64_t, const absl::StatusOr<VerifyResult>&) {};
  std::function<void(uint64_t number, const absl::StatusOr<TrainingResult>&)> on_trained =
      [](uint64_t, const absl::StatusOr<TrainingResult>&) {};
};

// Rank 0's programs, on every rank. Both are collective over `world`, which outlives it, as does
// `channel`.
class ProgramStream {
 public:
  ProgramStream(Communicator& world, const ProgramChannel& channel);
  ~ProgramStream();
  // Ranks other than 0 sleep until rank 0 has one (broadcast_channel.h). Errors: as RunPrograms.
  absl::StatusOr<Program> Next();

 private:
  Communicator& world_;
  const ProgramChannel& channel_;
  const std::unique_ptr<BroadcastChannel> broadcasts_;
};

// Runs programs until kExit. Collective over `world`; but for `meet`, `channel` is used on rank 0
// only. An error that leaves the world unusable (a peer or link died) is returned on every rank
// that can still return. A model stays loaded until another kLoad with a different request; the
// same request again costs nothing. `board` is bumped at every op and may be null.
absl::Status RunPrograms(std::unique_ptr<Communicator> world, const ProgramChannel& channel,
                         ProgressBoard* board);

}  // namespace toroid
