// Every verb of the binary, and the way from the command line to one of them.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "launcher/command_line.h"

namespace toroid {

// One per file of the same name.
extern const Verb kAgentVerb, kBenchVerb, kConfigSchemaVerb, kConfigShowVerb, kControllerVerb,
    kConvertVerb, kDoctorVerb, kGenerateVerb, kInspectVerb, kJobCancelVerb, kJobDeleteVerb,
    kJobGetVerb, kJobListVerb, kJobLogsVerb, kJobSubmitVerb, kJobWatchVerb, kLaunchVerb,
    kModelsVerb, kPkiInitVerb, kPkiIssueVerb, kPodDrainVerb, kPodGetVerb, kPodListVerb, kPlanVerb,
    kScoreVerb, kTokenizeVerb, kTrainVerb, kUpVerb, kVerifyVerb, kVersionVerb, kWorkerVerb;

// In the order of `toroid --help`.
const std::vector<const Verb*>& Verbs();

// The verb that `words` begin with (one word or two, aliases understood), and what follows it.
// Errors (exit 2): no verb, an unknown one with the nearest, one that is not in this version.
struct VerbCall {
  const Verb* verb = nullptr;
  std::vector<std::string> words;
};
absl::StatusOr<VerbCall> FindVerb(const std::vector<std::string>& words);
// What toroid WORD --help says where WORD begins verbs of two words: those. Empty: it begins none.
std::string GroupHelp(const std::string& word);

// Runs a command line (without the program's name) and returns the exit code. Prints the one error
// line of a failure.
int RunToroid(const std::vector<std::string>& words);

}  // namespace toroid
