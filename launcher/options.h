// Option tables that verbs share, and the structs they become.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "launcher/command_line.h"
#include "launcher/progress.h"
#include "parallel/request.h"
#include "rpc/job.h"

namespace toroid {

extern const OptionTable kMeshOptions;        // --mesh --layout --threads --compute --context ..
extern const OptionTable kSamplingOptions;    // --max-tokens --temperature ..
extern const OptionTable kPromptOptions;      // --prompt --prompt-file --prompt-ids --chat ..
extern const OptionTable kRunOptions;         // --timeout --stall-timeout
extern const OptionTable kOutputOptions;      // -o --progress -q
extern const OptionTable kLinesOptions;       // the same, for verbs whose answer is a stream
extern const OptionTable kDetailOptions;      // -v, of verbs that run a model
extern const OptionTable kControllerOptions;  // --controller --pod --on-pool --keep-alive
extern const Option kTlsDir;                  // --tls-dir
extern const Option kOnPool;                  // --on-pool
extern const OptionTable kModelOptions;       // --model, --seed

// The mesh as text: --mesh, or what -tp, -cp, -dp say; both is a usage error. Empty: nothing said.
absl::StatusOr<std::string> MeshText(const Arguments& arguments);

// What --compute and --device say; anything else is f32 and auto.
Compute ComputeNamed(absl::string_view name);
Device DeviceNamed(absl::string_view name);

// All but the mesh, which needs the world's size. default_layout: "striped:16" or "zigzag". --seed
// is read for the weights of random: models.
absl::StatusOr<LoadRequest> LoadOptions(const Arguments& arguments,
                                        absl::string_view default_layout);

// A usage error for --device cuda where `who` ("a controller", "bench") computes on CPUs alone.
absl::Status CheckDeviceOfOthers(const Arguments& arguments, absl::string_view who);

// Prompts, sampling and limits of generate: one of PromptOptions' sources, as often as it is given.
// The request has no ids yet. Usage errors name the flag and its range.
absl::StatusOr<GenerateTask> GenerateTaskOptions(const Arguments& arguments, bool keep_files);

// What a controller is asked to do, without the task: mesh, --pod, --keep-alive, --timeout and all
// of LoadOptions.
absl::StatusOr<InferenceRequest> InferenceOptions(const Arguments& arguments,
                                                  absl::string_view default_layout);

// The same in direct mode: rank 0 reads files and standard input, on other ranks there is no
// prompt.
absl::StatusOr<GenerateTask> GenerateTaskOfRankZero(const Arguments& arguments);

// Exactly one of --prompt, --prompt-file (--file), --prompt-ids, once; texts are read here, ids
// parsed.
// Under a controller --prompt-file stays a path (`keep_files`): the world reads it.
absl::StatusOr<PromptSpec> PromptOptions(const Arguments& arguments, bool keep_files);
// The same in direct mode: rank 0 reads files and standard input, on other ranks it is empty.
absl::StatusOr<PromptSpec> PromptOfRankZero(const Arguments& arguments);

// -o json: one object on stdout.
bool JsonOption(const Arguments& arguments);

// -v, unless -q is given too.
bool VerboseOption(const Arguments& arguments);

ProgressMode ProgressOption(const Arguments& arguments);

// Where --controller points, empty in direct mode. Under mpirun or srun TOROID_CONTROLLER is
// ignored and the flag is a usage error.
absl::StatusOr<std::string> ControllerOption(const Arguments& arguments);
// The same of a verb that has --controller alone.
absl::StatusOr<std::string> ControllerAloneOption(const Arguments& arguments);

}  // namespace toroid
