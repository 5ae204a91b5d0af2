// toroid pod ... and toroid models: what a controller has to run on, and what
// is loaded there.
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/client.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

std::string PodTable(const std::vector<PodStatus>& pods) {
  std::vector<std::vector<std::string>> rows = {
      {"pod", "host", "slots", "state", "job", "model", "epoch"}};
  const auto or_dash = [](const std::string& text) { return text.empty() ? "-" : text; };
  for (const PodStatus& pod : pods) {
    rows.push_back({pod.name, pod.host, absl::StrCat(pod.slots), pod.state, or_dash(pod.job),
                    or_dash(pod.model), absl::StrCat(pod.epoch)});
  }
  return Table(rows, ColourStdout());
}

void PrintPod(const Arguments& arguments, const PodStatus& pod) {
  WriteStdout(JsonOption(arguments) ? absl::StrCat(PodJson(pod), "\n") : PodTable({pod}));
}

absl::Status RunPodList(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const auto pods, client->ListPods());
  WriteStdout(JsonOption(arguments) ? absl::StrCat(PodListJson(pods), "\n") : PodTable(pods));
  return absl::OkStatus();
}

absl::Status RunPodGet(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const PodStatus pod, client->GetPod(arguments.Text("POD")));
  PrintPod(arguments, pod);
  return absl::OkStatus();
}

absl::Status RunPodDrain(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const PodStatus pod,
                          client->DrainPod(arguments.Text("POD"), !arguments.Flag("--undo")));
  PrintPod(arguments, pod);
  return absl::OkStatus();
}

absl::Status RunModels(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const auto client, ConnectClient(arguments));
  TOROID_ASSIGN_OR_RETURN(const auto models, client->ListModels());
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(ModelListJson(models), "\n"));
    return absl::OkStatus();
  }
  std::vector<std::vector<std::string>> rows = {{"model", "pod", "mesh", "context", "vocab"}};
  for (const ModelStatus& model : models) {
    rows.push_back({model.name, model.pod, ToString(model.mesh), absl::StrCat(model.context),
                    absl::StrCat(model.vocab)});
  }
  WriteStdout(Table(rows, ColourStdout()));
  return absl::OkStatus();
}

const OptionTable kDrainOptions = {"drain",
                                   {{"--undo", ValueKind::kFlag, "", "", "let it work again"}}};
const Positional kPod = {"POD", true, "a pod's name"};

}  // namespace

const Verb kPodListVerb = {
    .name = "pod list",
    .summary = "pods of the controller (also: pods)",
    .positionals = {},
    .tables = {&kClientOptions, &kOutputOptions},
    .examples = "toroid pod list\ntoroid pods -o json",
    .run = RunPodList,
};
const Verb kPodGetVerb = {
    .name = "pod get",
    .summary = "one pod",
    .positionals = {kPod},
    .tables = {&kClientOptions, &kOutputOptions},
    .examples = "toroid pod get a",
    .run = RunPodGet,
};
const Verb kPodDrainVerb = {
    .name = "pod drain",
    .summary = "give a pod no new work, and end its kept world when it is idle",
    .positionals = {kPod},
    .tables = {&kDrainOptions, &kClientOptions, &kOutputOptions},
    .examples = "toroid pod drain a\ntoroid pod drain a --undo",
    .run = RunPodDrain,
    .details =
        "A job that runs there goes on to its end. Only the pod's part of a training job on "
        "several\n"
        "pods with policy CONTINUE leaves at once, unless no other trains, and the others go on.",
};
const Verb kModelsVerb = {
    .name = "models",
    .summary = "models that are loaded on pods",
    .positionals = {},
    .tables = {&kClientOptions, &kOutputOptions},
    .examples = "toroid models",
    .run = RunModels,
};

}  // namespace toroid
