#include "rpc/training_job.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "core/io/convert.h"
#include "core/io/hugging_face_config.h"
#include "core/status_macros.h"
#include "core/train/data_source.h"
#include "rpc/client.h"
#include "rpc/roots.h"

namespace toroid {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr char kMetrics[] = "metrics.jsonl";

absl::Status CannotWrite(const std::string& path) {
  return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", std::strerror(errno),
                                             ": training goes on; check the disk"));
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json OrNull(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

// The lines of metrics.jsonl of at most `steps` steps done, whole ones; a launch that was killed
// may have written half a line, and lines behind the checkpoint that the next one goes on from.
std::string LinesUpTo(const std::string& path, int64_t steps) {
  std::ifstream file(path);
  std::string kept, line;
  while (std::getline(file, line)) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;
    if (json["step"].get<int64_t>() <= steps) absl::StrAppend(&kept, line, "\n");
  }
  return kept;
}

// In one rename, so that a reader sees the old or the new one.
absl::Status Replace(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  std::ofstream file(fresh, std::ios::trunc | std::ios::binary);
  file << text;
  file.close();
  if (!file || std::rename(fresh.c_str(), path.c_str()) != 0) return CannotWrite(path);
  return absl::OkStatus();
}

}  // namespace

ToldHashes ParamHashes(const std::string& directory) {
  ToldHashes told;
  int64_t launch = 0, last_launch = 0;
  const auto epoch_of = [](const Json& json) -> int64_t {
    if (!json.is_object() || !json.contains("epoch") || !json["epoch"].is_number_integer())
      return 0;
    return json["epoch"].get<int64_t>();
  };
  std::ifstream log(RunLogPath(directory, /*rank=*/0));
  for (std::string line; std::getline(log, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    last_launch = std::max(last_launch, epoch_of(json));
  }
  std::ifstream file(absl::StrCat(directory, "/", kMetrics));
  for (std::string line; std::getline(file, line);) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    launch = std::max(launch, epoch_of(json));
    uint64_t hash = 0;
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer() ||
        !json.contains("param_hash") || !json["param_hash"].is_string() ||
        !absl::SimpleHexAtoi(json["param_hash"].get<std::string>(), &hash)) {
      continue;
    }
    told.by_step[json["step"].get<int64_t>()] = hash;
  }
  told.by_last_launch = launch >= last_launch;
  return told;
}

absl::StatusOr<std::unique_ptr<TrainingJob>> TrainingJob::Open(const JobSpec& spec,
                                                               const std::string& directory,
                                                               int64_t epoch) {
  std::unique_ptr<TrainingJob> job(new TrainingJob(spec, directory, epoch));
  TOROID_RETURN_IF_ERROR(job->CheckExport());
  TOROID_ASSIGN_OR_RETURN(RunLog log, RunLog::Open(directory, {spec.name, epoch, /*rank=*/0}));
  job->log_.emplace(std::move(log));
  job->Log("begin", absl::StrCat("mesh ", ToString(spec.placement.load.mesh)));
  return job;
}

Program TrainingJob::program() const {
  Program program;
  program.kind = ProgramKind::kTrain;
  program.load = spec_.placement.load;
  program.train = task_.plan;
  program.train.job = spec_.name;
  program.train.directory = directory_;
  program.train.epoch = epoch_;
  if (program.train.data.cache.empty()) program.train.data.cache = directory_ + "/tokens";
  return program;
}

Program VerifyProgram(const JobSpec& spec, const std::string& directory) {
  Program program;
  program.kind = ProgramKind::kVerifyTraining;
  program.load = spec.placement.load;
  program.train = std::get<TrainTask>(spec.task).plan;
  if (program.train.data.cache.empty()) program.train.data.cache = directory + "/tokens";
  if (!spec.verify->full) {
    program.verify.layers = spec.verify->request.layers;
    program.verify.tokens = spec.verify->tokens;
  }
  return program;
}

TrainingEvents TrainingJob::Record(TrainingEvents events) {
  alarm_ = events.on_alarm;
  TrainingEvents recorded = events;
  recorded.on_step = [this, events](const StepReport& report) {
    Step(report);
    events.on_step(report);
  };
  recorded.on_checkpoint = [this, events](const CheckpointOutcome& outcome) {
    Log(outcome.status.ok() ? "checkpoint" : "checkpoint failed",
        absl::StrCat("step ", outcome.step, " ",
                     outcome.status.ok() ? outcome.path : std::string(outcome.status.message())));
    events.on_checkpoint(outcome);
  };
  recorded.on_note = [this, events](const std::string& sentence) {
    Log("note", sentence);
    events.on_note(sentence);
  };
  recorded.on_alarm = [this, events](const std::string& sentence) {
    Log("alarm", sentence);
    events.on_alarm(sentence);
  };
  return recorded;
}

FlopsUse TrainingJob::Use(const TrainingFlops& flops, double seconds, double peak_flops) const {
  if (task_.peak_flops > 0) {
    peak_flops = task_.peak_flops * double(spec_.placement.load.mesh.size());
  }
  const double most = seconds * peak_flops;
  if (!(most > 0)) return {};
  return {flops.model / most, flops.hardware / most};
}

// A shape that cannot be exported is refused before hours of steps.
absl::Status TrainingJob::CheckExport() const {
  if (!task_.export_model) return absl::OkStatus();
  const LoadRequest& load = spec_.placement.load;
  TOROID_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(load.model, load.seed));
  return HuggingFaceConfigText(source, DType::kF32).status();
}

absl::Status TrainingJob::Export() {
  const std::string path = directory_ + "/export", fresh = directory_ + "/export.new";
  TOROID_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(directory_));
  std::error_code error;
  fs::remove_all(fresh, error);
  TOROID_ASSIGN_OR_RETURN(const ConvertedModel written, WriteHuggingFace(source, fresh, {}));
  fs::remove_all(path, error);  // of an earlier launch
  fs::rename(fresh, path, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path, ": ", error.message()));
  }
  std::string text = path;
  for (const std::string& lost : written.lost) absl::StrAppend(&text, "; ", lost);
  Log("export", text);
  return absl::OkStatus();
}

TrainResult TrainingJob::Result(const TrainingResult& run) {
  if (task_.export_model && run.stopped == StopAsked::kNo && !run.checkpoint.empty()) {
    const absl::Status exported = Export();
    if (!exported.ok()) {
      const std::string text = absl::StrCat("no export: ", exported.message());
      Log("export failed", text);
      if (alarm_) alarm_(text);
    }
  }
  TrainResult result;
  result.run = run;
  result.mesh = spec_.placement.load.mesh;
  result.pods = task_.plan.options.pods.count;
  result.seconds = seconds_;
  result.tokens_per_s = seconds_ > 0 ? double(run.tokens) / seconds_ : 0;
  result.mfu = Use(flops_, seconds_, peak_flops_).model;
  result.peak_bytes = peak_bytes_;
  result.directory = directory_;
  return result;
}

void TrainingJob::End(const absl::Status& status) {
  Log("end", status.ok() ? "ok" : std::string(status.message()));
}

// The first step that this launch does shows where it goes on.
absl::Status TrainingJob::OpenMetrics(int64_t step) {
  const std::string path = absl::StrCat(directory_, "/", kMetrics);
  metrics_.reset();
  TOROID_RETURN_IF_ERROR(Replace(path, LinesUpTo(path, step)));
  metrics_.reset(std::fopen(path.c_str(), "a"));
  return metrics_ == nullptr ? CannotWrite(path) : absl::OkStatus();
}

absl::Status TrainingJob::WriteMetrics(const StepReport& report) {
  const StepResult& step = report.result;
  const FlopsUse use = Use(report);
  Json line = {{"schema", 1},
               {"step", step.step + 1},
               {"epoch", epoch_},
               {"loss", step.labels > 0 ? Json(step.loss) : Json(nullptr)},
               {"grad_norm", step.grad_norm},
               {"lr", step.rate},
               {"tokens", step.tokens},
               {"tokens_per_s", report.tokens_per_s},
               {"mfu", OrNull(use.model)},
               {"hfu", OrNull(use.hardware)},
               {"step_s", report.seconds},
               {"comm_exposed_s", OrNull(report.exposed_seconds)},
               {"peak_bytes", report.peak_bytes}};
  if (report.param_hash) line["param_hash"] = absl::StrFormat("%016x", *report.param_hash);
  if (step.noise_scale) line["noise_scale"] = *step.noise_scale;
  if (report.pods) {
    line["pods"] = {
        {"taking_part", report.pods->taking_part}, {"staleness", report.pods->staleness},
        {"bytes_sent", report.pods->bytes_sent},   {"wait_s", report.pods->seconds_waited},
        {"dropped", report.pods->dropped},         {"hurried", report.pods->hurried},
        {"reconnects", report.pods->reconnects}};
    if (const auto hash = report.pods->outer_hash) {
      line["pods"]["outer_hash"] = absl::StrFormat("%016x", *hash);
    }
  }
  if (!step.skipped.empty()) line["skipped"] = step.skipped;
  const std::string text = Dump(line);
  if (std::fwrite(text.data(), 1, text.size(), metrics_.get()) != text.size() ||
      std::fflush(metrics_.get()) != 0) {
    return CannotWrite(absl::StrCat(directory_, "/", kMetrics));
  }
  std::vector<Scalar> scalars = {{"train/grad_norm", step.grad_norm},
                                 {"train/lr", step.rate},
                                 {"speed/tokens_per_s", report.tokens_per_s},
                                 {"speed/step_s", report.seconds},
                                 {"memory/peak_bytes", double(report.peak_bytes)}};
  if (step.labels > 0) scalars.push_back({"train/loss", step.loss});
  if (report.exposed_seconds) scalars.push_back({"speed/comm_exposed_s", *report.exposed_seconds});
  if (step.noise_scale) scalars.push_back({"train/noise_scale", *step.noise_scale});
  if (use.model) scalars.push_back({"speed/mfu", *use.model});
  if (use.hardware) scalars.push_back({"speed/hfu", *use.hardware});
  TOROID_RETURN_IF_ERROR(
      events_->Add(absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()), step.step + 1, scalars));
  return events_->Flush();
}

void TrainingJob::Step(const StepReport& report) {
  const int64_t before = report.result.step;  // steps done
  const auto write = [&]() -> absl::Status {
    if (!begun_) {
      TOROID_RETURN_IF_ERROR(
          Replace(absl::StrCat(directory_, "/config.textproto"), JobSpecText(spec_)));
    }
    if (!events_) {
      TOROID_ASSIGN_OR_RETURN(
          events_,
          EventsWriter::Create(directory_, absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch())));
    }
    if (!begun_ || before != step_) TOROID_RETURN_IF_ERROR(OpenMetrics(before));
    begun_ = true;
    step_ = before + 1;
    return WriteMetrics(report);
  };
  const absl::Status written = write();
  begun_ = begun_ && written.ok();  // else the file may end in half a line
  Alarm(written);
  Count(report);
}

void TrainingJob::Count(const StepReport& report) {
  seconds_ += report.seconds;
  flops_.model += report.flops.model;
  flops_.hardware += report.flops.hardware;
  peak_flops_ = report.peak_flops;
  peak_bytes_ = report.peak_bytes;
  if (!report.pods) return;
  if (!exchange_) exchange_.emplace();
  exchange_->taking_part = report.pods->taking_part;
  exchange_->staleness = std::max(exchange_->staleness, report.pods->staleness);
  exchange_->bytes_sent += report.pods->bytes_sent;
  exchange_->dropped += report.pods->dropped;
  exchange_->hurried += report.pods->hurried;
  exchange_->reconnects += report.pods->reconnects;
  waited_ += report.pods->seconds_waited;
  exchange_->wait_share = seconds_ > 0 ? waited_ / seconds_ : 0;
  // Where pods train by themselves their own weights are not alike.
  const bool own = std::get<TrainTask>(spec_.task).plan.options.pods.exchange.gradients();
  if (const auto hash = own ? report.param_hash : report.pods->outer_hash) {
    exchange_->hash_step = report.result.step + 1;
    exchange_->hash = *hash;
  }
}

void TrainingJob::Log(const char* event, const std::string& text) {
  Alarm(log_->Write(event, text, step_));
}

void TrainingJob::Alarm(const absl::Status& status) {
  if (status.ok() || std::exchange(alarmed_, true) || !alarm_) return;
  alarm_(std::string(status.message()));
}

namespace {

absl::StatusOr<std::vector<std::string>> ResolvePattern(const std::string& pattern,
                                                        DataFormat format,
                                                        const std::vector<Root>& roots) {
  const size_t wild = pattern.find_first_of("*?[");
  if (wild == std::string::npos) {
    TOROID_ASSIGN_OR_RETURN(std::string path, ResolvePath(pattern, roots));
    return std::vector<std::string>{std::move(path)};
  }
  const size_t slash = pattern.rfind('/', wild);
  const std::string rest = slash == std::string::npos ? pattern : pattern.substr(slash + 1);
  TOROID_ASSIGN_OR_RETURN(
      const std::string directory,
      ResolvePath(slash == std::string::npos ? rest : pattern.substr(0, slash), roots));
  TOROID_ASSIGN_OR_RETURN(const std::vector<SourceFile> files,
                          FindSources({absl::StrCat(directory, "/", rest)}, format));
  std::vector<std::string> paths;
  for (const SourceFile& file : files) {  // a link, or "..", may lead out of the root
    TOROID_ASSIGN_OR_RETURN(std::string path, ResolvePath(file.path, roots));
    paths.push_back(std::move(path));
  }
  return paths;
}

}  // namespace

absl::StatusOr<JobSpec> ResolveTraining(JobSpec spec, const std::vector<Root>& roots) {
  LoadRequest& load = spec.placement.load;
  TOROID_ASSIGN_OR_RETURN(load.model, ResolvePath(load.model, roots));
  if (!load.tokenizer.empty()) {
    TOROID_ASSIGN_OR_RETURN(load.tokenizer, ResolvePath(load.tokenizer, roots));
  }
  TrainingData& data = std::get<TrainTask>(spec.task).plan.data;
  std::vector<std::string> paths;
  for (const std::string& pattern : data.paths) {
    TOROID_ASSIGN_OR_RETURN(const std::vector<std::string> found,
                            ResolvePattern(pattern, data.format, roots));
    paths.insert(paths.end(), found.begin(), found.end());
  }
  data.paths = std::move(paths);
  if (!data.cache.empty()) {
    TOROID_ASSIGN_OR_RETURN(data.cache, MakeOutputDirectory(data.cache, roots));
  }
  return spec;
}

std::string StepLine(const StepReport& report, int64_t steps, const FlopsUse& use) {
  const StepResult& step = report.result;
  std::string line = absl::StrFormat(
      "step %d/%d  loss %.4f  grad norm %.3f  lr %.3g  %.1f tokens/s", step.step + 1, steps,
      step.loss, step.grad_norm, step.rate, report.tokens_per_s);
  if (use.model) absl::StrAppendFormat(&line, "  mfu %.1f%%", *use.model * 100);
  if (report.pods) absl::StrAppend(&line, "  ", PodsText(report));
  if (report.pods && report.pods->hurried) {
    absl::StrAppend(&line, "  left out its part of the batch: the other pods are ahead");
  } else if (step.labels == 0) {
    absl::StrAppend(&line, "  no update: no token has a successor to predict");
  }
  if (!step.skipped.empty()) {
    absl::StrAppend(&line, "  no update: the gradient of ", step.skipped, " is not finite");
  }
  return line;
}

std::string PodsText(const StepReport& report) {
  const StepReport::Pods& pods = *report.pods;
  std::string text =
      absl::StrFormat("%d pods, sent %.3g MB, waited %.0f%%", pods.taking_part,
                      double(pods.bytes_sent) / 1e6, 100 * pods.seconds_waited / report.seconds);
  if (pods.staleness > 0) absl::StrAppend(&text, ", staleness ", pods.staleness);
  if (pods.reconnects > 0) absl::StrAppend(&text, ", ", pods.reconnects, " streams cut");
  return text;
}

}  // namespace toroid
