#include "launcher/verbs.h"

#include <csignal>
#include <cstdlib>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/suggest.h"
#include "launcher/terminal.h"

namespace toroid {
namespace {

constexpr char kSeeHelp[] = "see toroid --help";

// Other words for a verb.
const std::map<std::string, std::vector<std::string>>& Aliases() {
  static const auto& aliases = *new std::map<std::string, std::vector<std::string>>{
      {"submit", {"job", "submit"}},
      {"jobs", {"job", "list"}},
      {"pods", {"pod", "list"}},
      {"--version", {"version"}},
  };
  return aliases;
}

// Planned, and promised to be refused in one clear line until they are built.
bool IsPlanned(const std::string& verb) {
  for (const char* planned : {"serve", "manifest", "completion", "job suspend", "job resume"}) {
    if (verb == planned) return true;
  }
  return false;
}

// A line per verb whose name begins so.
std::string Summaries(const std::string& prefix) {
  std::string text;
  for (const Verb* verb : Verbs()) {
    const std::string name = verb->name;
    if (verb->hidden || !absl::StartsWith(name, prefix)) continue;
    absl::StrAppend(&text, "  ", name, std::string(name.size() < 16 ? 16 - name.size() : 1, ' '),
                    verb->summary, "\n");
  }
  return text;
}

std::string Overview() {
  std::string text = absl::StrCat(
      "toroid: long-context transformers on a ring of machines\n\nusage: toroid VERB [options]; "
      "toroid VERB --help says more and has examples\n\n",
      Summaries(""));
  absl::StrAppend(&text,
                  "\nexit codes: 0 ok, 1 failure, 2 usage, 3 bad input or configuration, 4 service "
                  "not reachable,\n  5 the job failed, 75 checkpointed after SIGUSR1: start it "
                  "again, 124 deadline, 130 interrupted\n");
  return text;
}

bool IsHelp(const std::string& word) { return word == "--help" || word == "-h"; }

absl::Status Run(std::vector<std::string> words) {
  if (words.empty()) return UsageError(absl::StrCat("no verb: nothing to do: ", kSeeHelp));
  if (words[0] == "help" && words.size() > 1) {  // help pod get: pod get --help
    words.erase(words.begin());
    words.push_back("--help");
  }
  if (IsHelp(words[0]) || words[0] == "help") {
    WriteStdout(Overview());
    return absl::OkStatus();
  }
  if (words.size() == 2 && IsHelp(words[1])) {
    if (const std::string help = GroupHelp(words[0]); !help.empty()) {
      WriteStdout(help);
      return absl::OkStatus();
    }
  }
  TOROID_ASSIGN_OR_RETURN(const VerbCall call, FindVerb(words));
  if (AsksForHelp(*call.verb, call.words)) {
    WriteStdout(HelpText(*call.verb));
    return absl::OkStatus();
  }
  TOROID_ASSIGN_OR_RETURN(const Arguments arguments, ParseArguments(*call.verb, call.words));
  return call.verb->run(arguments);
}

}  // namespace

const std::vector<const Verb*>& Verbs() {
  static const auto& verbs = *new std::vector<const Verb*>{
      &kGenerateVerb,   &kScoreVerb,        &kTrainVerb,      &kVerifyVerb,   &kBenchVerb,
      &kLaunchVerb,     &kUpVerb,           &kControllerVerb, &kAgentVerb,    &kJobSubmitVerb,
      &kJobListVerb,    &kJobGetVerb,       &kJobWatchVerb,   &kJobLogsVerb,  &kJobCancelVerb,
      &kJobDeleteVerb,  &kPodListVerb,      &kPodGetVerb,     &kPodDrainVerb, &kModelsVerb,
      &kConfigShowVerb, &kConfigSchemaVerb, &kTokenizeVerb,   &kConvertVerb,  &kInspectVerb,
      &kPlanVerb,       &kDoctorVerb,       &kPkiInitVerb,    &kPkiIssueVerb, &kVersionVerb,
      &kWorkerVerb,
  };
  return verbs;
}

std::string GroupHelp(const std::string& word) {
  const std::string verbs = Summaries(word + " ");
  if (verbs.empty()) return "";
  return absl::StrCat("usage: toroid ", word, " VERB [options]; toroid ", word,
                      " VERB --help says more and has examples\n\n", verbs);
}

absl::StatusOr<VerbCall> FindVerb(const std::vector<std::string>& words) {
  VerbCall call{nullptr, words};
  if (const auto alias = Aliases().find(words[0]); alias != Aliases().end()) {
    call.words.erase(call.words.begin());
    call.words.insert(call.words.begin(), alias->second.begin(), alias->second.end());
  }
  const std::string first = call.words[0];
  const std::string both = call.words.size() > 1 ? absl::StrCat(first, " ", call.words[1]) : first;
  std::vector<std::string> names, second_words;
  for (const Verb* verb : Verbs()) {
    const std::string name = verb->name;
    if (name == first || name == both) {
      call.verb = verb;
      call.words.erase(call.words.begin(), call.words.begin() + (name == first ? 1 : 2));
      return call;
    }
    if (!verb->hidden) names.push_back(name.substr(0, name.find(' ')));
    if (absl::StartsWith(name, first + " ")) second_words.push_back(name.substr(first.size() + 1));
  }
  for (const std::string& verb : {first, both}) {
    if (IsPlanned(verb)) {
      return UsageError(absl::StrCat("not in this version: ", verb, ": ", kSeeHelp));
    }
  }
  if (!second_words.empty()) {
    std::string list;
    for (const std::string& word : second_words)
      absl::StrAppend(&list, list.empty() ? "" : "|", word);
    if (both == first) {
      return UsageError(
          absl::StrCat("verb not complete: ", first, ": write toroid ", first, " ", list));
    }
    return UsageError(absl::StrCat(
        "unknown verb: ", both,
        DidYouMean(call.words[1], second_words, absl::StrCat("write toroid ", first, " ", list))));
  }
  for (const auto& [alias, words_of] : Aliases()) names.push_back(alias);
  return UsageError(absl::StrCat("unknown verb: ", first, DidYouMean(first, names, kSeeHelp)));
}

int RunToroid(const std::vector<std::string>& words) {
  std::signal(SIGPIPE, SIG_IGN);  // a closed stdout is noticed by the next write, not by dying
  // Where there is no /sys, as in some containers, MPI's hwloc says so on stderr of every process;
  // which cores a rank has is decided here, not there.
  setenv("HWLOC_HIDE_ERRORS", "2", /*overwrite=*/0);
  return ReportError(Run(words));
}

}  // namespace toroid
