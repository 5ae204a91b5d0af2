// toroid plan: bytes per rank of a job before there is any rank, and the smallest change that fits.
#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <utility>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/status_macros.h"
#include "core/train/flops.h"
#include "launcher/exit_code.h"
#include "launcher/job_spec.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/plan_exchange.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "parallel/memory_plan.h"
#include "parallel/training_plan.h"

namespace toroid {
namespace {

using nlohmann::ordered_json;

struct Answer {
  MemoryPlan plan;
  std::vector<std::string> advice;  // empty if it fits
  int64_t limit = 0;                // bytes of a rank, 0: none
  ordered_json seconds = ordered_json::object();
  std::optional<ExchangeAnswer> exchange;
  bool fits() const { return limit == 0 || plan.most() <= limit; }
};

int64_t LayersOf(const ModelConfig& config, const TrainOptions& options) {
  return options.layers > 0 ? options.layers : config.layers;
}

// Of one pod's part of a step.
TrainingFlops StepFlops(const ModelConfig& config, const PlannedTraining& job) {
  const int64_t packs = job.batch_tokens / job.sequence_length, pods = job.options.pods.count;
  const std::vector<std::vector<int64_t>> own(size_t((packs + pods - 1) / pods),
                                              {job.sequence_length});
  return FlopsOf(config, config.layers, job.options.remat, own);
}

// At `rate` operations a second on each rank, nothing waited for; core/train/flops.h counts them.
ordered_json SecondsOf(const ModelConfig& config, const PlannedTraining& job, double rate) {
  return {{"step", StepFlops(config, job).hardware / (rate * double(job.options.mesh.size()))}};
}

// Of rank 0, on so many pods.
absl::StatusOr<ExchangeBytes> ExchangeHostBytes(const std::shared_ptr<const ModelSource>& source,
                                                PlannedTraining job, int64_t pods) {
  job.options.pods.count = pods;
  TOROID_ASSIGN_OR_RETURN(const MemoryPlan plan, PlanMemory(source, job));
  return plan.groups[0].memory.exchange;
}

// Gradients become whole in the backward of the last micro-batch.
ExchangeAnswer ExchangeOf(const ModelConfig& config, const PlannedTraining& job,
                          const std::vector<MeshShape>& meshes, const LinkQuestion& question,
                          double rate) {
  PlannedExchange exchange;
  exchange.meshes = meshes;
  exchange.layers = LayersOf(config, job.options);
  exchange.adafactor = job.options.optimizer.kind == OptimizerSpec::Kind::kAdafactor;
  exchange.spec = job.options.pods.exchange;
  const TrainingFlops flops = StepFlops(config, job);
  StepSeconds seconds;
  seconds.step = question.step_s;
  if (seconds.step <= 0 && rate > 0) seconds.step = SecondsOf(config, job, rate)["step"];
  const double packs =
      std::ceil(double(job.batch_tokens / job.sequence_length) / double(job.options.pods.count));
  const double micro =
      double(job.options.mesh.data * std::max<int64_t>(1, job.options.packs_per_rank));
  const double forward = flops.model / 3;
  seconds.backward = seconds.step * (1 - forward / flops.hardware) * std::min(1.0, micro / packs);
  // The head's backward is two products of its forward's size, each 2 V D a token.
  const double head = 4 * double(config.vocab * config.dim) * packs * double(job.sequence_length);
  seconds.head = seconds.backward * head / (flops.hardware - forward);
  exchange.tokens = int64_t(std::min(micro, packs)) * job.sequence_length;
  return AnswerExchange(config, exchange, job.options.pods.count > 1, question, seconds);
}

// A forward is a third of a step without anything computed again.
ordered_json SecondsOf(const ModelConfig& config, const PlannedInference& job, double rate) {
  const int64_t context = job.load.context > 0 ? job.load.context : config.context;
  const int64_t prompt = std::max<int64_t>(1, context - job.max_tokens);
  const double flops = FlopsOf(config, config.layers, Remat::kNone, {{prompt}}).model / 3;
  return {{"prefill", flops / (rate * double(job.load.mesh.size()))}};
}

// What PlanMemory and Advise say of either kind of job.
template <typename Job>
absl::StatusOr<Answer> AnswerFor(const std::shared_ptr<const ModelSource>& source, const Job& job,
                                 int64_t limit, double rate) {
  Answer answer;
  answer.limit = limit;
  TOROID_ASSIGN_OR_RETURN(answer.plan, PlanMemory(source, job));
  if (rate > 0) answer.seconds = SecondsOf(source->config, job, rate);
  if (!answer.fits()) answer.advice = Advise(source, job, limit);
  return answer;
}

// Not `auto` but what it would choose here.
Device PlannedDevice(const LoadRequest& load) {
  if (load.device != Device::kAuto) return load.device;
  return load.compute != Compute::kF64 && CudaDevices() > 0 ? Device::kCuda : Device::kCpu;
}

absl::StatusOr<PlannedTraining> TrainingOf(const Arguments& arguments, const MeshShape& mesh,
                                           const ModelConfig& config) {
  TOROID_ASSIGN_OR_RETURN(const LoadRequest load, LoadOptions(arguments, "zigzag"));
  PlannedTraining job;
  job.options.mesh = mesh;
  job.options.layout = load.layout;
  job.options.compute = load.compute;
  job.options.device = PlannedDevice(load);
  job.options.packs_per_rank = arguments.Count("--packs-per-rank");
  if (arguments.Has("--token-block")) job.options.token_block = arguments.Count("--token-block");
  const std::string remat = arguments.Text("--remat");
  job.options.remat = remat == "none"    ? Remat::kNone
                      : remat == "block" ? Remat::kBlock
                                         : Remat::kAttentionOutput;
  for (const char* name : {"--packs-per-rank", "--token-block"}) {
    if (arguments.Has(name) && arguments.Count(name) < 1)
      return UsageError(absl::StrCat(name, " 0: use 1 or more"));
  }
  job.sequence_length =
      arguments.Has("--sequence-length") ? arguments.Count("--sequence-length") : config.context;
  const int64_t each = mesh.data * job.options.packs_per_rank * job.sequence_length;
  job.batch_tokens = arguments.Has("--batch-tokens") ? arguments.Count("--batch-tokens") : each;
  return job;
}

ordered_json Json(const Answer& answer, const std::string& model, const char* task) {
  const MeshShape& mesh = answer.plan.mesh;
  ordered_json ranks = ordered_json::array();
  for (int64_t rank = 0; rank < mesh.size(); ++rank) ranks.push_back(nullptr);
  for (const MemoryPlan::Group& group : answer.plan.groups) {
    const RankMemory& m = group.memory;
    for (const int rank : group.ranks) {
      ranks[size_t(rank)] = {{"rank", rank},
                             {"weights", m.weights},
                             {"optimizer", m.optimizer},
                             {"gradients", m.gradients},
                             {"activations", m.activations},
                             {"kv", m.kv},
                             {"ring_buffers", m.ring_buffers},
                             {"communicator", m.communicator},
                             {"checkpoint_copy", m.checkpoint_copy},
                             {"device", m.device},
                             {"total", m.total()},
                             {"limit", answer.limit > 0 ? ordered_json(answer.limit) : nullptr}};
    }
  }
  ordered_json json = {
      {"schema", kJsonSchema},
      {"model", model},
      {"task", task},
      {"mesh", {{"data", mesh.data}, {"ring", mesh.ring}, {"tensor", mesh.tensor}}},
      {"fits", answer.fits()},
      {"ranks", std::move(ranks)},
      {"seconds", answer.seconds},
      {"advice", answer.advice}};
  if (!answer.exchange) return json;
  const ExchangeCost& own = answer.exchange->own;
  json["seconds"]["exchange"] = own.turn_s;
  if (answer.exchange->seconds.step > 0) json["seconds"]["exchange_exposed"] = own.exposed_s;
  if (!answer.exchange->advice.empty()) json["advice"].push_back(answer.exchange->advice);
  json["exchange"] = ExchangeJson(*answer.exchange);
  return json;
}

// "0, 2, 4 .. 62 (32)"
std::string RanksText(const std::vector<int>& ranks) {
  std::string text;
  const size_t shown = ranks.size() > 4 ? 3 : ranks.size();
  for (size_t i = 0; i < shown; ++i) absl::StrAppend(&text, i == 0 ? "" : " ", ranks[i]);
  if (shown == ranks.size()) return text;
  return absl::StrCat(text, " .. ", ranks.back(), " (", ranks.size(), ")");
}

std::string Text(const Answer& answer) {
  const auto bytes = [](int64_t n) { return FormatBytes(double(n)); };
  std::vector<std::vector<std::string>> rows = {{"ranks", "weights", "optimizer", "gradients",
                                                 "activations", "kv", "ring", "communicator",
                                                 "checkpoint", "device", "total"}};
  for (const MemoryPlan::Group& group : answer.plan.groups) {
    const RankMemory& m = group.memory;
    rows.push_back({RanksText(group.ranks), bytes(m.weights), bytes(m.optimizer),
                    bytes(m.gradients), bytes(m.activations), bytes(m.kv), bytes(m.ring_buffers),
                    bytes(m.communicator), bytes(m.checkpoint_copy), bytes(m.device),
                    bytes(m.total())});
  }
  std::string text = Table(rows, ColourStdout());
  for (const auto& [what, seconds] : answer.seconds.items()) {
    absl::StrAppend(&text, "\n", what, ": ", FormatSeconds(seconds.get<double>()), " at least\n");
  }
  if (answer.limit > 0) {
    absl::StrAppend(&text, "\n", answer.fits() ? "fits into " : "does not fit into ",
                    bytes(answer.limit), " a rank\n");
    for (const std::string& line : answer.advice)
      absl::StrAppend(&text, "  fits with ", line, "\n");
  }
  if (answer.exchange) absl::StrAppend(&text, ExchangeText(*answer.exchange));
  return text;
}

// The mesh of a world that is as large as the mesh says.
absl::StatusOr<MeshShape> WholeMesh(const std::string& text) {
  if (absl::StrContains(text, "*")) {
    return UsageError(absl::StrCat("--mesh ", text,
                                   ": there is no world yet that * could be the rest of: give "
                                   "each axis a number, or leave it out"));
  }
  int64_t ranks = 1;
  for (const absl::string_view axis : absl::StrSplit(text, ',')) {
    int64_t number = 0;
    const size_t sign = axis.find('=');
    const bool read =
        sign != absl::string_view::npos && absl::SimpleAtoi(axis.substr(sign + 1), &number);
    if (read && number >= 1 && number <= int64_t{1} << 20) ranks *= number;
    if (ranks > int64_t{1} << 40) break;  // ParseMesh says what is wrong
  }
  return ParseMesh(text, ranks, "ring");
}

// What is planned, whether it was said by flags or by a job's file.
struct Question {
  std::string model;  // as it is shown
  MeshShape mesh;
  int64_t limit = 0;  // bytes of a rank that the job's file gives it
  std::shared_ptr<const ModelSource> source;
  std::variant<PlannedTraining, PlannedInference> job;
  std::vector<MeshShape> pod_meshes;  // of a job that trains, by pod; one: planned as two
};

bool IsJobFile(const std::string& path) {
  for (const char* end : {".textproto", ".json", ".yaml", ".yml"}) {
    if (absl::EndsWith(path, end)) return true;
  }
  return false;
}

absl::Status Open(const std::string& model, uint64_t seed, Question& question) {
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenModel(model, seed));
  question.model = model;
  question.source = std::make_shared<const ModelSource>(std::move(source));
  return absl::OkStatus();
}

absl::StatusOr<Question> QuestionOfFlags(const Arguments& arguments, const std::string& mesh) {
  Question question;
  TOROID_RETURN_IF_ERROR(Open(arguments.Text("MODEL"), arguments.Seed("--seed"), question));
  TOROID_ASSIGN_OR_RETURN(question.mesh, WholeMesh(mesh));
  if (arguments.Has("--set")) {
    return UsageError("--set without a job's file: it sets a field of a job");
  }
  const std::string task = arguments.Text("--task");
  const bool train =
      task == "train" ||
      (task == "auto" && (arguments.Has("--sequence-length") || arguments.Has("--batch-tokens")));
  if (train) {
    TOROID_ASSIGN_OR_RETURN(question.job,
                            TrainingOf(arguments, question.mesh, question.source->config));
    return question;
  }
  PlannedInference job;
  TOROID_ASSIGN_OR_RETURN(job.load, LoadOptions(arguments, "striped:16"));
  job.load.mesh = question.mesh;
  job.load.device = PlannedDevice(job.load);
  job.max_tokens = arguments.Count("--max-tokens");
  job.n = arguments.Count("--n");
  question.job = job;
  return question;
}

// Its mesh, if it says all of one.
absl::StatusOr<MeshShape> MeshOf(const MeshWish& wish, const std::string& path) {
  MeshShape mesh;
  for (const auto& [asked, axis] :
       {std::pair(wish.data, &mesh.data), std::pair(wish.ring, &mesh.ring),
        std::pair(wish.tensor, &mesh.tensor)}) {
    if (asked == MeshWish::kRest) {
      return UsageError(absl::StrCat(
          path, ": its mesh takes as many ranks as there are: say how many by --mesh"));
    }
    if (asked > 0) *axis = asked;
  }
  return mesh;
}

absl::StatusOr<Question> QuestionOfJob(const Arguments& arguments, const std::string& path,
                                       const std::string& mesh) {
  for (const char* name :
       {"--task", "--sequence-length", "--batch-tokens", "--packs-per-rank", "--remat",
        "--token-block", "--max-tokens", "--n", "--context", "--compute", "--layout",
        "--page-tokens", "--seed", "--threads", "--device"}) {
    if (arguments.OriginOf(name) == Origin::kFlag) {
      return UsageError(absl::StrCat(name, " with a job's file: use --set"));
    }
  }
  TOROID_ASSIGN_OR_RETURN(const JobSpec spec, ReadJobSpec(path, arguments.Texts("--set")));
  const LoadRequest& load = spec.placement.load;
  if (std::holds_alternative<PoolTask>(spec.task)) {
    return absl::UnimplementedError(
        absl::StrCat(path, ": a pool has no model: plan the jobs that are to run in it"));
  }
  Question question;
  TOROID_RETURN_IF_ERROR(Open(load.model, load.seed, question));
  if (mesh.empty()) {
    TOROID_ASSIGN_OR_RETURN(question.mesh, MeshOf(spec.placement.mesh, path));
  } else {
    TOROID_ASSIGN_OR_RETURN(question.mesh, WholeMesh(mesh));
  }
  if (const auto* train = std::get_if<TrainTask>(&spec.task)) {
    PlannedTraining job{train->plan.options, train->plan.data.sequence_length};
    job.of_spec = true;
    question.limit = train->plan.memory_limit;
    job.options.mesh = question.mesh;
    job.options.layout = load.layout;
    job.options.compute = load.compute;
    job.options.device = PlannedDevice(load);
    for (const BatchRamp::Stage& stage : train->plan.data.batch_tokens.stages) {
      job.batch_tokens = std::max(job.batch_tokens, stage.tokens);
      job.batch_unit = std::gcd(job.batch_unit, stage.tokens);
    }
    TrainingPlan plan = train->plan;  // as train runs it
    plan.options = job.options;
    plan.directory = spec.output_dir;
    TOROID_RETURN_IF_ERROR(Validate(plan, question.source->config, question.mesh.size()));
    question.job = job;
    for (const auto& [name, wish] : spec.placement.pod_meshes) {
      TOROID_ASSIGN_OR_RETURN(const MeshShape other, MeshOf(wish, path));
      TOROID_RETURN_IF_ERROR(CheckTensorAxis(question.source->config, other.tensor, "data"));
      question.pod_meshes.push_back(other);
    }
  } else if (const auto* generate = std::get_if<GenerateTask>(&spec.task)) {
    const GenerateRequest& request = generate->request;
    PlannedInference job{load, request.max_tokens,
                         1 + static_cast<int64_t>(generate->more_prompts.size()), request.n,
                         request.batch};
    job.load.mesh = question.mesh;
    job.load.device = PlannedDevice(load);
    question.job = job;
  } else {
    return absl::UnimplementedError(
        absl::StrCat(path, ": of jobs that score nothing is planned: plan a generate job"));
  }
  return question;
}

absl::Status RunPlan(const Arguments& arguments) {
  const std::string what = arguments.Text("MODEL");
  TOROID_ASSIGN_OR_RETURN(const std::string mesh, MeshText(arguments));
  TOROID_ASSIGN_OR_RETURN(const Question question, IsJobFile(what)
                                                       ? QuestionOfJob(arguments, what, mesh)
                                                       : QuestionOfFlags(arguments, mesh));
  const int64_t limit = arguments.Has("--memory") ? arguments.Count("--memory") : question.limit;
  const double rate = arguments.Real("--flops");
  const auto* train = std::get_if<PlannedTraining>(&question.job);
  TOROID_ASSIGN_OR_RETURN(const LinkQuestion link, LinkOptions(arguments));
  if (link.asked && train == nullptr) {
    return UsageError(
        "--link-rate: only training has an exchange between pods: give a job that trains");
  }
  TOROID_ASSIGN_OR_RETURN(
      Answer answer,
      std::visit([&](const auto& job) { return AnswerFor(question.source, job, limit, rate); },
                 question.job));
  if (link.asked) {
    std::vector<MeshShape> meshes = question.pod_meshes;  // the others have the job's
    meshes.resize(size_t(std::max<int64_t>(2, train->options.pods.count)), question.mesh);
    answer.exchange = ExchangeOf(question.source->config, *train, meshes, link, rate);
    TOROID_ASSIGN_OR_RETURN(answer.exchange->host,
                            ExchangeHostBytes(question.source, *train, int64_t(meshes.size())));
  }
  if (JsonOption(arguments)) {
    const ordered_json json = Json(answer, question.model, train != nullptr ? "train" : "generate");
    WriteStdout(
        absl::StrCat(json.dump(-1, ' ', false, ordered_json::error_handler_t::replace), "\n"));
  } else {
    WriteStdout(Text(answer));
  }
  if (answer.fits()) return absl::OkStatus();
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                          "the job does not fit: ", what, " on ", ToString(question.mesh), ": ",
                          answer.advice.empty() ? "no change was found that fits"
                                                : absl::StrCat("it fits with ", answer.advice[0]))),
                      kExitFailure);
}

const OptionTable kPlanOptions = {
    "job",
    {
        {"--set", ValueKind::kText, "A.B=V", "", "of a job's file: sets a field (repeat for more)",
         false, true},
        {"--memory", ValueKind::kBytes, "BYTES", "",
         "what a rank may take; default: the job's, or no limit"},
        {"--flops", ValueKind::kReal, "RATE", "0",
         "operations a second of a rank, as 5e10: the seconds of a step or a prefill are told"},
    }};

const OptionTable kModelAloneOptions = {
    "a job that no file says",
    {
        {"--task", ValueKind::kChoice, "auto|train|generate", "auto",
         "auto: train if a sequence length or a batch is given"},
        {"--max-tokens", ValueKind::kCount, "N", "256", "generate: of the context, made"},
        {"--n", ValueKind::kCount, "N", "1", "generate: answers, up to 64 of them made together"},
        {"--sequence-length", ValueKind::kCount, "N", "", "train: default the model's context"},
        {"--batch-tokens", ValueKind::kCount, "N", "",
         "train: of all ranks, a step; default one micro-batch"},
        {"--packs-per-rank", ValueKind::kCount, "N", "1",
         "train: of a micro-batch, on each data rank"},
        {"--remat", ValueKind::kChoice, "none|attention_output|block", "attention_output",
         "train: what a layer keeps for its backward"},
        {"--token-block", ValueKind::kCount, "N", "",
         "train: rows of a feed-forward block; default 512, on GPUs 8192"},
    }};

}  // namespace

const Verb kPlanVerb = {
    .name = "plan",
    .summary = "bytes of each rank before launch, and the smallest change that fits",
    .positionals = {{"MODEL", true,
                     "a model directory, a GGUF file, a checkpoint, random:NAME, or a job's file"}},
    .tables = {&kPlanOptions, &kPlanLinkOptions, &kModelAloneOptions, &kMeshOptions, &kModelOptions,
               &kOutputOptions},
    .examples =
        "toroid plan /models/llama --mesh ring=4,tensor=2 --context 128k --memory 16GiB\n"
        "toroid plan deploy/jobs/train.textproto --mesh data=4 --memory 2GiB\n"
        "toroid plan random:palm-540b --mesh data=64,ring=8,tensor=12 --sequence-length 2048 "
        "--batch-tokens 1M\n"
        "toroid plan deploy/jobs/train.textproto --mesh data=2 --link-rate 1MB --link-latency 20ms "
        "--step-seconds 2\n"
        "toroid plan random:llama3-8b --mesh ring=8 --sequence-length 128k --remat block -o json",
    .run = RunPlan,
    .details =
        "The job's own code runs on memory that only counts, so weights are not read and the ranks "
        "need not exist.\nOf a job's file all is as the file says, whatever defaults are shown "
        "below: --mesh and --memory take\nthe place of its own, --set of any field, and the other "
        "flags that say a job are refused.\n--device cuda (auto: where this "
        "machine has GPUs) tells of a GPU's memory, with what its driver takes\nfor the process "
        "(doctor measures it); NCCL's buffers are not foreseen.\n--link-rate tells of each mode "
        "and codec what "
        "the exchange between pods sends, what of it computation does not hide,\nthe speed-up that "
        "follows, the change of the job that hides it.\nExit code 1: some rank needs more than "
        "--memory.",
};

}  // namespace toroid
