#include "parallel/program.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "core/train/run_log.h"
#include "parallel/broadcast_channel.h"
#include "parallel/engine.h"
#include "parallel/evidence.h"
#include "parallel/host_exchange.h"
#include "parallel/launcher_environment.h"
#include "parallel/progress_board.h"
#include "parallel/verify.h"
#include "parallel/verify_training.h"

namespace toroid {
namespace {

// --- bytes of a program: fields in order, little-endian as in memory; both ends are one build
// -------------

class Writer {
 public:
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void Put(const T& value) { bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T)); }
  void Put(const std::string& text) {
    Put(int64_t(text.size()));
    bytes_ += text;
  }
  template <typename T>
  void Put(const std::vector<T>& values) {
    Put(int64_t(values.size()));
    for (const T& value : values) Put(value);
  }
  void Put(const SkipList& list) { Put(list.ToString()); }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

class Reader {
 public:
  explicit Reader(absl::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  requires std::is_trivially_copyable_v<T>
  void Get(T& value) {
    if (bytes_.size() < sizeof(T)) {
      ok_ = false;
      return;
    }
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
  }
  void Get(std::string& text) {
    int64_t size = 0;
    Get(size);
    if (!Fits(size, 1)) return;
    text.assign(bytes_.data(), size);
    bytes_.remove_prefix(size);
  }
  template <typename T>
  void Get(std::vector<T>& values) {
    int64_t count = 0;
    Get(count);
    if (!Fits(count, std::is_trivially_copyable_v<T> ? sizeof(T) : sizeof(int64_t))) return;
    values.resize(count);
    for (T& value : values) Get(value);
  }
  void Get(SkipList& list) {
    std::string text;
    Get(text);
    auto parsed = SkipList::Parse(text);
    ok_ = ok_ && parsed.ok();
    if (parsed.ok()) list = *std::move(parsed);
  }
  bool done() const { return ok_ && bytes_.empty(); }

 private:
  bool Fits(int64_t count, size_t least_each) {
    ok_ = ok_ && count >= 0 && uint64_t(count) <= bytes_.size() / least_each;
    return ok_;
  }
  absl::string_view bytes_;
  bool ok_ = true;
};

// The one list of a program's fields, for both directions.
template <typename Stream, typename P>
void TrainFields(Stream&& field, P& p) {
  field(p.job);
  field(p.options);
  field(p.data.paths), field(p.data.format);
  field(p.data.documents.field), field(p.data.documents.separator);
  field(p.data.cache), field(p.data.sequence_length), field(p.data.batch_tokens.stages);
  field(p.data.shuffle), field(p.data.epochs), field(p.data.join_documents);
  field(p.data.skipped);
  field(p.steps), field(p.seed), field(p.directory), field(p.checkpoint_every), field(p.keep);
  field(p.epoch), field(p.joins), field(p.committed_step), field(p.committed_branch);
  field(p.spike), field(p.skip_limit);
  field(p.param_hash_every), field(p.memory_limit);
}
template <typename Stream, typename P>
void Fields(Stream&& field, P& p) {
  field(p.number), field(p.kind);
  field(p.load.model), field(p.load.tokenizer), field(p.load.mesh), field(p.load.layout),
      field(p.load.compute), field(p.load.device), field(p.load.share_gpus);
  field(p.load.context), field(p.load.page_tokens), field(p.load.threads), field(p.load.seed);
  field(p.load.verify_weights);
  field(p.generate.prompt_ids), field(p.generate.more_prompt_ids), field(p.generate.n);
  field(p.generate.batch);
  field(p.generate.max_tokens), field(p.generate.sampling);
  field(p.generate.stop), field(p.generate.stop_ids), field(p.generate.ignore_eos);
  field(p.generate.logprobs), field(p.generate.prompt_logprobs);
  field(p.score.ids), field(p.score.top), field(p.score.logprobs);
  field(p.verify.ids), field(p.verify.layers), field(p.verify.tokens);
  TrainFields(field, p.train);
}

// --- the loop
// -------------------------------------------------------------------------------------------

// One rank's state between programs: the model that is loaded.
class Runner {
 public:
  Runner(Communicator& world, const ProgramChannel& channel, ProgressBoard* board)
      : world_(world), channel_(channel), board_(board) {}

  void Run(const Program& program) {
    const uint64_t number = program.number;
    const bool speaks = world_.rank() == 0;
    switch (program.kind) {
      case ProgramKind::kLoad: {
        const auto loaded = Load(program);
        if (speaks) channel_.on_loaded(number, loaded);
        break;
      }
      case ProgramKind::kGenerate: {
        auto result = WithEngine<GenerateResult>(
            [&](Engine& engine) { return engine.Generate(program.generate, Events(number)); });
        if (speaks) channel_.on_generated(number, result);
        break;
      }
      case ProgramKind::kScore: {
        auto result = WithEngine<ScoreResult>(
            [&](Engine& engine) { return engine.Score(program.score, Events(number)); });
        if (speaks) channel_.on_scored(number, result);
        break;
      }
      case ProgramKind::kVerify: {
        const auto result = WithEngine<VerifyResult>([&](Engine& engine) {
          return Verify(engine, world_, program.verify, board_, Events(number));
        });
        if (speaks) channel_.on_verified(number, result);
        break;
      }
      case ProgramKind::kTrain: {
        const auto result = Train(program);
        if (board_ != nullptr) board_->Idle();  // rank 0 may export now, for as long as it takes
        if (speaks) channel_.on_trained(number, result);
        break;
      }
      case ProgramKind::kVerifyTraining: {
        const auto result = VerifyStep(program);
        if (speaks) channel_.on_verified(number, result);
        break;
      }
      case ProgramKind::kExit:
        break;
    }
  }

 private:
  EngineEvents Events(uint64_t number) const {
    EngineEvents events;
    if (world_.rank() != 0) return events;
    events.on_progress = [this, number](const Progress& p) { channel_.on_progress(number, p); };
    events.on_token = [this, number](const TokenEvent& token) { channel_.on_token(number, token); };
    events.cancelled = [this, number] { return channel_.cancelled(number); };
    return events;
  }

  // Timing.load_s counts once: for the first program after a load.
  template <typename Result, typename Function>
  absl::StatusOr<Result> WithEngine(Function run) {
    if (engine_ == nullptr)
      return absl::FailedPreconditionError("no model is loaded: load one first");
    absl::StatusOr<Result> result = run(*engine_);
    if (result.ok()) result->report.timing.load_s = std::exchange(fresh_load_s_, 0.0);
    return result;
  }

  absl::StatusOr<LoadedModel> Load(const Program& program) {
    double load_s = 0;
    if (engine_ == nullptr || !(asked_ == program.load)) {
      engine_.reset();
      TOROID_RETURN_IF_ERROR(LoadAnew(program));
      asked_ = program.load;
      load_s = fresh_load_s_ = engine_->load_seconds();
    }
    LoadedModel model;
    model.name = program.load.model;
    model.context = engine_->context();
    model.reach = engine_->reach();
    model.vocab = engine_->config().vocab;
    model.load_s = load_s;
    model.tokenizer = engine_->tokenizer();
    model.mesh = program.load.mesh;
    model.hosts = hosts_;
    return model;
  }

  // Threads are filled in; every rank opens the model for itself.
  absl::StatusOr<std::shared_ptr<const ModelSource>> Open(LoadRequest& request) {
    if (request.mesh.size() != world_.size()) {
      return absl::InvalidArgumentError("the mesh " + ToString(request.mesh) +
                                        " is not of the world's " + std::to_string(world_.size()) +
                                        " ranks");
    }
    const WorldHosts hosts = HostsOf(world_);
    hosts_ = hosts.names;
    if (request.threads <= 0) request.threads = int(ThreadsPerRank(AffinityCores(), hosts));
    absl::StatusOr<ModelSource> source = OpenModel(request.model, request.seed);
    TOROID_RETURN_IF_ERROR(ShareStatus(world_, source.status()));
    if (!request.tokenizer.empty()) {
      absl::StatusOr<ModelSource> other = OpenModel(request.tokenizer);
      TOROID_RETURN_IF_ERROR(ShareStatus(world_, other.status()));
      source->tokenizer = std::move(other->tokenizer);
    }
    return std::make_shared<const ModelSource>(*std::move(source));
  }

  // What a program trains, and how.
  struct Training {
    std::shared_ptr<const ModelSource> source;
    std::shared_ptr<const Tokenizer> tokenizer;  // null if the model has none
    TrainingPlan plan;
  };
  absl::StatusOr<Training> Prepare(const Program& program) {
    engine_.reset();
    LoadRequest load = program.load;
    Training training;
    TOROID_ASSIGN_OR_RETURN(training.source, Open(load));
    training.plan = program.train;
    training.plan.options.mesh = load.mesh;
    training.plan.options.layout = load.layout;
    training.plan.options.compute = load.compute;
    training.plan.options.device = load.device;
    training.plan.options.share_gpus = load.share_gpus;
    training.plan.options.threads = load.threads;
    absl::StatusOr<std::shared_ptr<const Tokenizer>> tokenizer = std::shared_ptr<const Tokenizer>();
    if (training.source->tokenizer.kind != TokenizerSource::Kind::kNone) {
      tokenizer = Tokenizer::FromSource(training.source->tokenizer);
    }
    TOROID_RETURN_IF_ERROR(ShareStatus(world_, tokenizer.status()));
    training.tokenizer = *std::move(tokenizer);
    return training;
  }

  // In the run's directory. Of rank 0, who speaks for all, its channel's owner keeps the log; a
  // rank that cannot write one computes all the same.
  std::optional<RunLog> LogOf(const TrainingPlan& plan) {
    if (world_.rank() == 0 || plan.directory.empty()) return std::nullopt;
    auto log = RunLog::Open(plan.directory, {plan.job, plan.epoch, world_.rank()});
    if (!log.ok()) return std::nullopt;
    (void)log->Write("begin", absl::StrCat("process ", getpid(), " on ", hosts_[world_.rank()]), 0);
    return *std::move(log);
  }

  absl::StatusOr<TrainingResult> Train(const Program& program) {
    TOROID_ASSIGN_OR_RETURN(const Training training, Prepare(program));
    std::optional<RunLog> log = LogOf(training.plan);
    int64_t step = 0;
    TrainingEvents events;
    if (log) {
      events.on_resumed = [&log, &step](const CheckpointOutcome& from) {
        step = from.step;
        (void)log->Write("resumed", from.path, step);
      };
    }
    const auto result = TrainHeard(program.number, training, std::move(events));
    if (log && result.ok()) (void)log->Write("end", result->checkpoint, result->steps);
    if (log && !result.ok()) {
      (void)log->Write("error", std::string(result.status().message()), step);
    }
    return result;
  }

  absl::StatusOr<TrainingResult> TrainHeard(uint64_t number, const Training& training,
                                            TrainingEvents events) {
    if (world_.rank() == 0) {
      events = channel_.training(number);
      events.stop = [this, number, stop = events.stop] {
        const StopAsked asked = stop();
        return asked == StopAsked::kNo && channel_.cancelled(number) ? StopAsked::kCancel : asked;
      };
    }
    TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<PodLink> link, Meet(training, events));
    auto run = TrainingRun::Create(world_.Split([](int) { return 0; }), training.source,
                                   training.tokenizer, training.plan, events, board_, link.get());
    TOROID_RETURN_IF_ERROR(ShareStatus(world_, run.status()));
    const std::string& directory = training.plan.directory;
    const KeepEvidence evidence(board_, directory.empty() ? "" : directory + "/evidence");
    absl::StatusOr<TrainingResult> result = (*run)->Run();
    if (!result.ok() && !absl::IsCancelled(result.status())) {
      evidence.Write(result.status().message());
    }
    return result;
  }

  // Null: the job has one pod, or nothing leads to the others, which the run refuses.
  absl::StatusOr<std::unique_ptr<PodLink>> Meet(const Training& training,
                                                const TrainingEvents& events) {
    const TrainingPlan& plan = training.plan;
    if (plan.options.pods.count == 1 || !channel_.meet) return std::unique_ptr<PodLink>();
    TOROID_RETURN_IF_ERROR(Validate(plan, training.source->config, world_.size()));
    const auto tick = [this] {
      if (board_ != nullptr) board_->Tick();
    };
    if (board_ != nullptr) board_->At("pods");
    return channel_.meet({world_, plan, training.source->config, tick,
                          [&events] { return events.stop() != StopAsked::kNo; }, events.on_note});
  }

  // The first step of what kTrain would do, whatever its directory holds.
  absl::StatusOr<VerifyResult> VerifyStep(const Program& program) {
    TOROID_ASSIGN_OR_RETURN(Training training, Prepare(program));
    TrainingPlan& plan = training.plan;
    plan.options.pods = {};  // the step of one pod
    TOROID_RETURN_IF_ERROR(Validate(plan, training.source->config, world_.size()));
    const EngineEvents events = Events(program.number);
    TOROID_ASSIGN_OR_RETURN(
        const TrainingTokens tokens,
        OpenTokens(
            world_, *training.source, training.tokenizer.get(), plan.data,
            [&](const TokenCacheProgress&) { return !events.cancelled(); }, board_));
    TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<const Batches> batches,
                            BatchesOf(tokens, plan.data, plan.seed, plan.data.skipped));
    TOROID_ASSIGN_OR_RETURN(TrainBatch batch, BatchOfStep(*batches, 0));
    if (program.verify.tokens > 0) {  // a whole micro-batch and one that is not
      const int64_t packs = plan.options.mesh.data * plan.options.packs_per_rank + 1;
      batch = FirstTokens(batch, packs, program.verify.tokens);
    }
    plan.options.layers = program.verify.layers;
    return VerifyTraining(world_.Split([](int) { return 0; }), training.source, plan.options, batch,
                          board_, events.on_progress);
  }

  absl::Status LoadAnew(const Program& program) {
    LoadRequest request = program.load;
    TOROID_ASSIGN_OR_RETURN(const std::shared_ptr<const ModelSource> source, Open(request));
    auto engine = Engine::Create(world_.Split([](int) { return 0; }), source, request, board_,
                                 Events(program.number));
    TOROID_RETURN_IF_ERROR(ShareStatus(world_, engine.status()));
    engine_ = *std::move(engine);
    return absl::OkStatus();
  }

  Communicator& world_;
  const ProgramChannel& channel_;
  ProgressBoard* board_;
  std::unique_ptr<Engine> engine_;
  LoadRequest asked_;
  std::vector<std::string> hosts_;  // by rank
  double fresh_load_s_ = 0;
};

}  // namespace

std::string SerialiseProgram(const Program& program) {
  Writer writer;
  Fields([&](const auto& value) { writer.Put(value); }, program);
  return writer.Take();
}

absl::StatusOr<Program> ParseProgram(absl::string_view bytes) {
  Program program;
  Reader reader(bytes);
  Fields([&](auto& value) { reader.Get(value); }, program);
  if (!reader.done() || program.kind > ProgramKind::kExit) {
    return absl::InvalidArgumentError("not a program: its bytes do not end where its fields do");
  }
  return program;
}

ProgramStream::ProgramStream(Communicator& world, const ProgramChannel& channel)
    : world_(world), channel_(channel), broadcasts_(BroadcastChannel::Create(world)) {}

ProgramStream::~ProgramStream() = default;

absl::StatusOr<Program> ProgramStream::Next() {
  if (world_.rank() == 0) {
    Program program = channel_.next();
    TOROID_RETURN_IF_ERROR(broadcasts_->Broadcast(SerialiseProgram(program)).status());
    return program;
  }
  TOROID_ASSIGN_OR_RETURN(const std::string bytes, broadcasts_->Broadcast(""));
  return ParseProgram(bytes);
}

absl::Status RunPrograms(std::unique_ptr<Communicator> world, const ProgramChannel& channel,
                         ProgressBoard* board) {
  Runner runner(*world, channel, board);
  ProgramStream programs(*world, channel);
  for (;;) {
    TOROID_ASSIGN_OR_RETURN(const Program program, programs.Next());
    if (program.kind == ProgramKind::kExit) return absl::OkStatus();
    if (board != nullptr) board->At("program");
    runner.Run(program);
    if (board != nullptr) board->Idle();
    TOROID_RETURN_IF_ERROR(world->Health());
  }
}

}  // namespace toroid
