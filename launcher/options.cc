#include "launcher/options.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/terminal.h"
#include "launcher/text_argument.h"

namespace toroid {

const OptionTable kModelOptions = {
    "model",
    {
        {"--model", ValueKind::kText, "MODEL", "", "the same as the argument MODEL"},
        {"--seed", ValueKind::kSeed, "N", "0", "of sampling, and of the weights of random: models",
         true},
    }};

const OptionTable kMeshOptions = {
    "placement",
    {
        {"--mesh", ValueKind::kText, "M", "",
         "data=1,ring=2,tensor=2; * is the rest; default: all ranks on ring", true},
        {"--tensor-parallel-size", ValueKind::kCount, "N", "", "-tp N: tensor=N"},
        {"--context-parallel-size", ValueKind::kCount, "N", "", "-cp N: ring=N"},
        {"--data-parallel-size", ValueKind::kCount, "N", "", "-dp N: data=N"},
        {"--layout", ValueKind::kText, "L", "", "contiguous, zigzag, striped or striped:N", true},
        {"--threads", ValueKind::kCount, "N", "0",
         "per rank; 0: the host's cores split over its ranks", true},
        {"--compute", ValueKind::kChoice, "f32|f64|bf16", "f32", "arithmetic", true},
        {"--device", ValueKind::kChoice, "auto|cpu|cuda", "auto",
         "auto: GPUs, where each rank has one for itself", true},
        {"--allow-gpu-sharing", ValueKind::kFlag, "", "", "ranks may share a GPU: slow, for tests",
         true},
        {"--max-model-len,--context", ValueKind::kCount, "N", "0",
         "longest prompt + output in tokens; 0: the model's own", true},
        {"--page-tokens", ValueKind::kCount, "N", "16", "tokens of a cache page", true},
        {"--verify-weights", ValueKind::kFlag, "", "",
         "compare all bytes of the model among ranks, not samples", true},
    }};

const OptionTable kSamplingOptions = {
    "sampling",
    {
        {"--max-tokens", ValueKind::kCount, "N", "256", "tokens to make at most", true},
        {"-n,--n", ValueKind::kCount, "N", "1", "answers to each prompt; sampled ones differ"},
        {"--batch", ValueKind::kCount, "N", "0",
         "answers made together at most; 0: 64, fewer where memory does not last"},
        {"--temperature", ValueKind::kReal, "X", "0", "0: always the likeliest token", true},
        {"--top-p", ValueKind::kReal, "X", "1", "likeliest tokens that hold this probability",
         true},
        {"--top-k", ValueKind::kCount, "N", "0", "likeliest N tokens; 0: all", true},
        {"--min-p", ValueKind::kReal, "X", "0", "tokens at least X as likely as the likeliest",
         true},
        {"--repetition-penalty", ValueKind::kReal, "X", "1", "of tokens seen before", true},
        {"--presence-penalty", ValueKind::kReal, "X", "0", "of tokens made before", true},
        {"--frequency-penalty", ValueKind::kReal, "X", "0", "of tokens made before, by count",
         true},
        {"--stop", ValueKind::kText, "T", "", "text that ends the output (repeat for more)", false,
         true},
        {"--stop-id", ValueKind::kCount, "ID", "", "token that ends the output (repeat for more)",
         false, true},
        {"--ignore-eos", ValueKind::kFlag, "", "", "go on at the model's end-of-text token", true},
        {"--logprobs", ValueKind::kFlag, "", "", "log-probability of each token made, in the JSON"},
        {"--prompt-logprobs", ValueKind::kCount, "N", "0",
         "log-probability at N evenly spaced prompt positions"},
    }};

const OptionTable kPromptOptions = {
    "prompt (one of the first three; generate: repeat it for several prompts)",
    {
        {"--prompt", ValueKind::kText, "T", "", "text; @FILE reads a file, - standard input", false,
         true},
        {"--file,--prompt-file", ValueKind::kText, "F", "", "file that holds the text", false,
         true},
        {"--prompt-ids", ValueKind::kText, "L", "", "token ids 1,2,3; @FILE and - too", false,
         true},
        {"--chat", ValueKind::kFlag, "", "", "a user's message: apply the model's chat template"},
        {"--system", ValueKind::kText, "T", "", "system message, with --chat"},
        {"--no-bos", ValueKind::kFlag, "", "", "do not add the model's begin-of-text token"},
    }};

const OptionTable kRunOptions = {
    "limits",
    {
        {"--timeout", ValueKind::kSeconds, "T", "0", "end after this time (exit 124); 0: never",
         true},
        {"--stall-timeout", ValueKind::kSeconds, "T", "60s",
         "a world without progress for so long is ended, naming the rank; 0: never", true},
    }};

const Option kProgress = {"--progress", ValueKind::kChoice, "auto|bar|lines|none",
                          "auto",       "on stderr",        true};
const Option kQuiet = {"-q,--quiet", ValueKind::kFlag, "", "", "no progress, no summary", true};

const OptionTable kOutputOptions = {"output",
                                    {
                                        {"-o,--format", ValueKind::kChoice, "text|json", "text",
                                         "json: one object on stdout", true},
                                        kProgress,
                                        kQuiet,
                                    }};

const OptionTable kLinesOptions = {
    "output",
    {
        {"-o,--format", ValueKind::kChoice, "text|json|jsonl", "text",
         "json: one object on stdout, at the end; jsonl: one a line, as they come", true},
        kProgress,
        kQuiet,
    }};

const OptionTable kDetailOptions = {
    "detail",
    {
        {"-v,--verbose", ValueKind::kFlag, "", "",
         "on stderr: each rank's place and host, and what each phase took and sent", true},
    }};

const Option kTlsDir = {
    "--tls-dir",
    ValueKind::kText,
    "DIR",
    "",
    "ca.pem, cert.pem, key.pem (toroid pki): TLS, both sides verified; also TOROID_TLS_DIR",
    true};

const Option kOnPool = {"--on-pool",
                        ValueKind::kText,
                        "NAME",
                        "",
                        "there: in the world of this pool job, in turn with its other clients",
                        true};

const OptionTable kControllerOptions = {
    "on a cluster",
    {
        {"--controller", ValueKind::kText, "HOST:PORT", "",
         "run there instead of in this process (also TOROID_CONTROLLER)", true},
        kTlsDir,
        {"--pod", ValueKind::kText, "POD", "", "there: on this pod; default: any that is free",
         true},
        kOnPool,
        {"--keep-alive", ValueKind::kSeconds, "T", "5m",
         "there: how long the model stays loaded after this", true},
    }};

absl::StatusOr<std::string> MeshText(const Arguments& arguments) {
  static constexpr const char* kSizes[][2] = {{"--data-parallel-size", "data"},
                                              {"--context-parallel-size", "ring"},
                                              {"--tensor-parallel-size", "tensor"}};
  std::string mesh;
  for (const auto& [flag, axis] : kSizes) {
    if (!arguments.Has(flag)) continue;
    absl::StrAppend(&mesh, mesh.empty() ? "" : ",", axis, "=", arguments.Count(flag));
  }
  if (mesh.empty()) return arguments.Text("--mesh");
  if (arguments.OriginOf("--mesh") == Origin::kFlag) {
    return UsageError(absl::StrCat("mesh given twice: --mesh ", arguments.Text("--mesh"), " and ",
                                   mesh, ": give one of them"));
  }
  // Sizes that are said fix their axes; the ring takes what is left of the world.
  if (!arguments.Has("--context-parallel-size")) absl::StrAppend(&mesh, ",ring=*");
  return mesh;
}

Compute ComputeNamed(absl::string_view name) {
  return name == "f64" ? Compute::kF64 : name == "bf16" ? Compute::kBF16 : Compute::kF32;
}

Device DeviceNamed(absl::string_view name) {
  return name == "cpu" ? Device::kCpu : name == "cuda" ? Device::kCuda : Device::kAuto;
}

absl::StatusOr<LoadRequest> LoadOptions(const Arguments& arguments,
                                        absl::string_view default_layout) {
  LoadRequest load;
  load.model = arguments.Text("MODEL");
  const std::string layout = arguments.Text("--layout");
  TOROID_ASSIGN_OR_RETURN(load.layout,
                          ParseLayoutRule(layout.empty() ? std::string(default_layout) : layout));
  load.compute = ComputeNamed(arguments.Text("--compute"));
  load.device = DeviceNamed(arguments.Text("--device"));
  load.share_gpus = arguments.Flag("--allow-gpu-sharing");
  load.context = arguments.Count("--context");
  load.page_tokens = arguments.Count("--page-tokens");
  if (load.page_tokens < 1 || load.page_tokens > 65536) {
    return UsageError(
        absl::StrCat("bad value of --page-tokens: ", load.page_tokens, ": give 1 to 65536"));
  }
  if (layout.empty() && load.layout.kind == LayoutRule::Kind::kStriped) {
    load.layout.stripe = load.page_tokens;  // a page lies on one rank
  }
  const int64_t threads = arguments.Count("--threads");
  if (threads > 4096) {
    return UsageError(absl::StrCat("bad value of --threads: ", threads, ": give 0 to 4096"));
  }
  load.threads = static_cast<int>(threads);
  load.seed = arguments.Seed("--seed");
  load.verify_weights = arguments.Flag("--verify-weights");
  return load;
}

absl::StatusOr<InferenceRequest> InferenceOptions(const Arguments& arguments,
                                                  absl::string_view default_layout) {
  InferenceRequest request;
  TOROID_RETURN_IF_ERROR(CheckDeviceOfOthers(arguments, "--controller"));
  TOROID_ASSIGN_OR_RETURN(request.placement.load, LoadOptions(arguments, default_layout));
  TOROID_ASSIGN_OR_RETURN(const std::string mesh, MeshText(arguments));
  TOROID_ASSIGN_OR_RETURN(request.placement.mesh, ParseMeshWish(mesh));
  request.placement.pod = arguments.Text("--pod");
  request.placement.on_pool = arguments.Text("--on-pool");
  request.keep_alive = absl::Seconds(arguments.Real("--keep-alive"));
  const double timeout = arguments.Real("--timeout");
  if (timeout > 0) request.timeout = absl::Seconds(timeout);
  return request;
}

namespace {

constexpr const char* kPromptSources[] = {"--prompt", "--prompt-file", "--prompt-ids"};

size_t GivenPrompts(const Arguments& arguments) {
  size_t given = 0;
  for (const char* flag : kPromptSources) given += arguments.Texts(flag).size();
  return given;
}

// Sampling and limits, without prompts. Usage errors name the flag and its range.
absl::StatusOr<GenerateRequest> GenerateOptions(const Arguments& arguments) {
  struct Range {
    const char* flag;
    double low, high;
    const char* text;
  };
  static constexpr Range kRanges[] = {{"--temperature", 0, 100, "0 to 100"},
                                      {"--top-p", 1e-9, 1, "above 0, to 1"},
                                      {"--min-p", 0, 1 - 1e-9, "0 to below 1"},
                                      {"--repetition-penalty", 1e-6, 1e6, "above 0"},
                                      {"--presence-penalty", -100, 100, "-100 to 100"},
                                      {"--frequency-penalty", -100, 100, "-100 to 100"}};
  for (const Range& range : kRanges) {
    const double value = arguments.Real(range.flag);
    if (value < range.low || value > range.high) {
      return UsageError(
          absl::StrCat("bad value of ", range.flag, ": ", value, ": give ", range.text));
    }
  }
  GenerateRequest request;
  request.n = arguments.Count("--n");
  const absl::Status answers =
      CheckAnswers(static_cast<int64_t>(GivenPrompts(arguments)), request.n);
  if (!answers.ok()) return UsageError(absl::StrCat("bad value of --n: ", answers.message()));
  request.batch = arguments.Count("--batch");
  request.max_tokens = arguments.Count("--max-tokens");
  if (request.max_tokens < 1) {
    return UsageError("bad value of --max-tokens: 0: give at least 1");
  }
  request.sampling.temperature = arguments.Real("--temperature");
  request.sampling.top_p = arguments.Real("--top-p");
  request.sampling.top_k = arguments.Count("--top-k");
  request.sampling.min_p = arguments.Real("--min-p");
  request.sampling.repetition_penalty = arguments.Real("--repetition-penalty");
  request.sampling.presence_penalty = arguments.Real("--presence-penalty");
  request.sampling.frequency_penalty = arguments.Real("--frequency-penalty");
  request.sampling.seed = arguments.Seed("--seed");
  request.stop = arguments.Texts("--stop");
  for (const std::string& stop : request.stop) {
    if (stop.empty()) return UsageError("bad value of --stop: it is empty: give a text");
  }
  for (const std::string& text : arguments.Texts("--stop-id")) {
    TOROID_ASSIGN_OR_RETURN(const auto ids, IdsArgument(text));
    request.stop_ids.insert(request.stop_ids.end(), ids.begin(), ids.end());
  }
  request.ignore_eos = arguments.Flag("--ignore-eos");
  request.logprobs = arguments.Flag("--logprobs");
  request.prompt_logprobs = arguments.Count("--prompt-logprobs");
  return request;
}

// All prompts, of one source, in their order.
absl::StatusOr<std::vector<PromptSpec>> PromptsOptions(const Arguments& arguments,
                                                       bool keep_files) {
  std::string source;
  int sources = 0;
  for (const char* flag : kPromptSources) {
    if (!arguments.Has(flag)) continue;
    source = flag;
    ++sources;
  }
  if (sources != 1) {
    return UsageError(absl::StrCat(sources == 0 ? "no prompt" : "several prompts",
                                   ": --prompt, --prompt-file, --prompt-ids: give one of them"));
  }
  PromptSpec prompt;
  prompt.chat = arguments.Flag("--chat");
  prompt.system = arguments.Text("--system");
  prompt.add_special = !arguments.Flag("--no-bos");
  if (!prompt.chat && !prompt.system.empty()) {
    return UsageError("--system without --chat: a system message needs a chat: add --chat");
  }
  if (source == "--prompt-ids" && prompt.chat) {
    return UsageError("--chat with --prompt-ids: ids are used as they are: drop one of them");
  }
  const std::vector<std::string> texts = arguments.Texts(source);
  if (std::count(texts.begin(), texts.end(), "-") > 1) {
    return UsageError(
        absl::StrCat(source, " - given twice: standard input is read once: drop one"));
  }
  std::vector<PromptSpec> prompts(texts.size(), prompt);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (source == "--prompt-ids") {
      prompts[i].kind = PromptSpec::Kind::kIds;
      TOROID_ASSIGN_OR_RETURN(prompts[i].ids, IdsArgument(texts[i]));
    } else if (source == "--prompt") {
      TOROID_ASSIGN_OR_RETURN(prompts[i].text, TextArgument(texts[i]));
    } else if (keep_files) {
      prompts[i].kind = PromptSpec::Kind::kFile;
      prompts[i].file = texts[i];
    } else {
      TOROID_ASSIGN_OR_RETURN(prompts[i].text, ReadTextFile(texts[i]));
    }
  }
  return prompts;
}

}  // namespace

absl::StatusOr<PromptSpec> PromptOptions(const Arguments& arguments, bool keep_files) {
  const size_t given = GivenPrompts(arguments);
  if (given > 1) {
    return UsageError(absl::StrCat("several prompts: ", given, " are given: this verb takes one"));
  }
  TOROID_ASSIGN_OR_RETURN(std::vector<PromptSpec> prompts, PromptsOptions(arguments, keep_files));
  return std::move(prompts.front());
}

absl::StatusOr<GenerateTask> GenerateTaskOptions(const Arguments& arguments, bool keep_files) {
  GenerateTask task;
  TOROID_ASSIGN_OR_RETURN(task.request, GenerateOptions(arguments));
  TOROID_ASSIGN_OR_RETURN(task.more_prompts, PromptsOptions(arguments, keep_files));
  task.prompt = std::move(task.more_prompts.front());
  task.more_prompts.erase(task.more_prompts.begin());
  return task;
}

absl::StatusOr<GenerateTask> GenerateTaskOfRankZero(const Arguments& arguments) {
  if (SpeaksForWorld()) return GenerateTaskOptions(arguments, /*keep_files=*/false);
  GenerateTask task;
  TOROID_ASSIGN_OR_RETURN(task.request, GenerateOptions(arguments));
  return task;
}

absl::Status CheckDeviceOfOthers(const Arguments& arguments, absl::string_view who) {
  if (arguments.Text("--device") != "cuda") return absl::OkStatus();
  return UsageError(
      absl::StrCat("--device cuda with ", who, ": that is of CPUs in this version: drop the flag"));
}

absl::StatusOr<PromptSpec> PromptOfRankZero(const Arguments& arguments) {
  return SpeaksForWorld() ? PromptOptions(arguments, /*keep_files=*/false) : PromptSpec();
}

bool JsonOption(const Arguments& arguments) { return arguments.Text("--format") == "json"; }

bool VerboseOption(const Arguments& arguments) {
  return arguments.Flag("--verbose") && !arguments.Flag("--quiet");
}

ProgressMode ProgressOption(const Arguments& arguments) {
  return ChooseProgress(arguments.Text("--progress"), arguments.Flag("--quiet"),
                        StderrIsTerminal());
}

absl::StatusOr<std::string> ControllerOption(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const std::string controller, ControllerAloneOption(arguments));
  for (const char* flag : {"--pod", "--on-pool", "--keep-alive", "--tls-dir"}) {
    if (!UnderLauncher() && controller.empty() && arguments.OriginOf(flag) == Origin::kFlag) {
      return UsageError(absl::StrCat(flag,
                                     " without --controller: it is of pods, and nothing runs "
                                     "on one: add --controller or drop it"));
    }
  }
  return controller;
}

absl::StatusOr<std::string> ControllerAloneOption(const Arguments& arguments) {
  if (!UnderLauncher()) return arguments.Text("--controller");
  if (arguments.OriginOf("--controller") == Origin::kFlag) {
    return UsageError(
        "--controller under mpirun or srun: the ranks are here: drop the flag, or run the command "
        "without a launcher");
  }
  return std::string();
}

}  // namespace toroid
