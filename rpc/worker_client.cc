// Rank 0's stream to the controller, as a ProgramChannel.
#include <google/protobuf/util/json_util.h>

#include <cstdio>
#include <deque>
#include <fstream>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "core/io/checkpoint_directory.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "parallel/checkpoint_lost.h"
#include "parallel/gang_queue.h"
#include "parallel/host_exchange.h"
#include "rpc/connect_pods.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/prepared_program.h"
#include "rpc/roots.h"
#include "rpc/training_job.h"
#include "rpc/worker_link.h"
#include "rpc/worker_process.h"

namespace toroid {
namespace {

using internal::v1::WorldMessage;

constexpr absl::Duration kFinishTimeout = absl::Seconds(2);
constexpr absl::Duration kLogInterval = absl::Seconds(5);
constexpr size_t kKnownModels = 4;  // whose tokenizers are kept for programs that are to come

absl::Status NoTokenizer() {
  return MakeError(absl::StatusCode::kFailedPrecondition,
                   "the model has no tokenizer: give token ids instead of text",
                   {"NO_TOKENIZER", {}, {}});
}

// What the controller can do something about.
absl::Status WithReason(const absl::Status& ended) {
  return IsCheckpointLost(ended) ? WithErrorInfo(ended, {kCheckpointLostReason, {}, {}}) : ended;
}

// This rank's way to the job's other pods; pod and controller count on rank 0.
absl::StatusOr<std::unique_ptr<PodLink>> MeetPods(const PodMeeting& meeting,
                                                  const WorkerOptions& options, int64_t pod,
                                                  const PodsOfController& controller) {
  const auto tls = ReadTls(options.tls_dir);
  TOROID_RETURN_IF_ERROR(ShareStatus(meeting.world, tls.status()));
  JoinPodsOptions join;
  join.tls = *tls;
  join.throttle = options.throttle;
  join.throttle.seed += options.epoch;  // no two launches have one
  join.tick = meeting.tick;
  join.stop = meeting.stop;
  PodIdentity identity;
  identity.job = options.job;
  identity.self.pod = pod;
  identity.epoch = options.epoch;
  identity.terms = PodTerms(meeting.plan, meeting.model);
  return JoinPods(meeting.world, std::move(identity), controller, join);
}

class Connection final : public WorkerConnection {
 public:
  Connection(const WorkerOptions& options, const Tls& tls, const Preparation& preparation)
      : options_(options),
        preparation_(preparation),
        world_{options.job, options.epoch, options.view},
        link_(
            options, tls, [this](const WorldMessage& message) { Receive(message); },
            [this] { Gone(); }) {}

  absl::Status Attach() { return link_.Attach(); }

  ProgramChannel channel() override {
    ProgramChannel channel;
    channel.next = [this] { return Next(); };
    channel.cancelled = [this](uint64_t number) {
      const std::lock_guard<std::mutex> lock(mutex_);
      return gone_ || cancelled_.count(number) > 0;
    };
    channel.on_progress = [this](uint64_t number, const Progress& progress) {
      Tell(number, ProgressAnswer{progress.phase, progress.done, progress.total});
    };
    channel.on_token = [this](uint64_t number, const TokenEvent& token) {
      Tell(number, std::vector<TokenEvent>{token});
    };
    channel.on_loaded = [this](uint64_t number, const absl::StatusOr<LoadedModel>& model) {
      if (!model.ok()) {
        waiting_.reset();
        return Tell(number, model.status());
      }
      model_ = *model;
      if (waiting_ != nullptr) {  // of a pool's program, which answers for both
        Know(*waiting_->load, *model);
        return;
      }
      ModelStatus status;
      status.name = model->name;
      status.context = model->context;
      status.vocab = model->vocab;
      status.mesh = model->mesh;
      status.pod = options_.pod;
      status.has_chat_template =
          model->tokenizer != nullptr && !model->tokenizer->chat_template().empty();
      Tell(number, LoadAnswer{status, model->load_s});
    };
    channel.on_generated = [this](uint64_t number, const absl::StatusOr<GenerateResult>& result) {
      Answer(number, result);
    };
    channel.on_scored = [this](uint64_t number, const absl::StatusOr<ScoreResult>& result) {
      Answer(number, result);
    };
    channel.on_verified = [this](uint64_t number, const absl::StatusOr<VerifyResult>& result) {
      Answer(number, result);
    };
    channel.meet = [this](const PodMeeting& meeting) {
      return MeetPods(meeting, options_, pod_,
                      {[this](const std::vector<std::string>& addresses) {
                         TellDurably(number_, ListensAnswer{addresses});
                       },
                       [this] { return AwaitTable(); }});
    };
    channel.training = [this](uint64_t number) { return Training(number); };
    channel.on_trained = [this](uint64_t number, const absl::StatusOr<TrainingResult>& run) {
      const absl::Status ended = run.ok() && run->stopped != StopAsked::kNo
                                     ? absl::CancelledError(absl::StrCat(
                                           link_.gone() ? "the controller is lost" : "told to end",
                                           ": checkpointed ", run->checkpoint))
                                     : run.status();
      if (!ended.ok()) {
        job_->End(ended);
        return TellDurably(number, Told(WithReason(ended)));
      }
      TrainResult result = job_->Result(*run);
      job_->End(absl::OkStatus());
      result.directory = NameRoots(result.directory, options_.roots);
      result.run.checkpoint = NameRoots(result.run.checkpoint, options_.roots);
      WriteResult(result);
      TellDurably(number, std::move(result));
    };
    return channel;
  }

  void Finish(const absl::Status& status) override {
    Tell(0, WorldEnding{Told(status)});
    link_.Finish(kFinishTimeout);
  }

 private:
  void Receive(const WorldMessage& message) {
    if (!message.has_pods() && !message.has_cancel()) return Push(message);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (message.has_pods()) {
      PodTable table = FromProto(message.pods());
      if (!table_ || table.view > table_->view) table_ = std::move(table);
    } else {
      (message.cancel().save() ? saved_ : cancelled_).insert(message.number());
    }
    changed_.notify_all();
  }

  // Programs of a pool need nothing of earlier ones but, some, a model, which they wait for, and
  // some, files that were not there yet: what could not be prepared ahead is, once more, at its
  // turn.
  void Push(const WorldMessage& message) {
    auto prepared = std::make_shared<PreparedProgram>();
    const auto prepare = [this, prepared, message] {
      auto order = FromProto(message);
      prepared->status = order.status();
      if (order.ok()) prepared->order = *std::move(order);
      prepared->order.number = message.number();
      if (Cancelled(message.number())) return;  // by the time that it could begin
      if (preparation_.begins) preparation_.begins(prepared->order);
      PrepareFiles(*prepared, options_.roots);
      if (const auto model = Known(prepared->load)) PrepareIds(*prepared, *model);
    };
    const auto run = [this, prepared, prepare, ahead = message.has_pooled()] {
      if (ahead && !prepared->status.ok()) {
        *prepared = PreparedProgram();
        prepare();
      }
      taken_ = prepared;
    };
    programs_.Push({message.number(), prepare, /*ahead=*/message.has_pooled(), run});
  }

  void Gone() {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    changed_.notify_all();
    programs_.Close();
  }

  // Programs before this one are through.
  void ForgetBefore(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::set<uint64_t>* numbers : {&cancelled_, &saved_}) {
      numbers->erase(numbers->begin(), numbers->lower_bound(number));
    }
  }

  bool Cancelled(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return cancelled_.count(number) > 0;
  }

  // The model is loaded now; its tokenizer serves what is prepared from here on.
  void Know(const LoadRequest& load, const LoadedModel& model) {
    const std::lock_guard<std::mutex> lock(mutex_);
    loaded_ = load;
    std::erase_if(known_, [&load](const auto& known) { return known.first == load; });
    known_.push_front({load, model});
    if (known_.size() > kKnownModels) known_.pop_back();
  }
  std::optional<LoadedModel> Known(const std::optional<LoadRequest>& load) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [known, model] : known_) {
      if (load.has_value() && known == *load) return model;
    }
    return std::nullopt;
  }

  template <typename Body>
  void Tell(uint64_t number, Body body) {
    link_.Push(ToProto(world_, WorldAnswer{number, std::move(body)}));
  }
  template <typename Body>
  void TellDurably(uint64_t number, Body body) {
    link_.PushDurably(ToProto(world_, WorldAnswer{number, std::move(body)}));
  }

  void Tell(uint64_t number, const absl::Status& error) {
    link_.Push(ToProto(world_, WorldAnswer{number, Told(error)}));
  }
  // Of an error, what clients may hear; the rest is for the agent.
  absl::Status Told(const absl::Status& status) const {
    return ForClient(status, options_.roots, [](const std::string& kept) {
      const std::string line = absl::StrCat(kForAgent, kept, "\n");
      std::fputs(line.c_str(), stderr);
    });
  }

  // The next program for the ranks; what needs no ranks is answered on the way.
  Program Next() {
    while (true) {
      std::shared_ptr<PreparedProgram> prepared = std::exchange(waiting_, nullptr);
      if (prepared == nullptr) {
        if (!programs_.Ready()) link_.Flush();  // nobody's answer joins those that wait
        const std::optional<GangQueue::Gang> gang = programs_.Next();
        if (!gang.has_value()) return Program();  // the controller is lost: kExit
        gang->run();
        prepared = std::exchange(taken_, nullptr);
        link_.Release();  // the controller has what the last program had to say
      }
      const uint64_t number = prepared->order.number;
      ForgetBefore(number);
      if (Cancelled(number)) {
        Tell(number, absl::Status(absl::CancelledError("cancelled")));
        continue;
      }
      if (prepared->status.ok() && prepared->load.has_value() && loaded_ != prepared->load) {
        Program load;
        load.number = number;
        load.kind = ProgramKind::kLoad;
        load.load = *prepared->load;
        loaded_.reset();  // of the ranks, whatever becomes of this one
        waiting_ = std::move(prepared);
        return load;
      }
      Program program;
      const absl::StatusOr<bool> runs = Begin(*prepared, program);
      if (runs.ok() && *runs) return program;
      if (!runs.ok()) Tell(number, runs.status());
    }
  }

  // Fills `program`, which is at its turn. False: it has been answered.
  absl::StatusOr<bool> Begin(PreparedProgram& prepared, Program& program) {
    const WorldProgram& order = prepared.order;
    PrepareIds(prepared, model_);
    TOROID_RETURN_IF_ERROR(prepared.status);
    output_dir_ = prepared.output_dir;
    speaks_for_ = order.pool.has_value() ? order.pool->job : "";
    if (const auto* tokenize = std::get_if<TokenizeTask>(&order.task)) {
      TOROID_ASSIGN_OR_RETURN(TokenizeResult result, Tokenize(*tokenize));
      Tell(order.number, std::move(result));
      return false;
    }
    if (const auto* detokenize = std::get_if<DetokenizeTask>(&order.task)) {
      if (model_.tokenizer == nullptr) return NoTokenizer();
      Tell(order.number, DetokenizeAnswer{model_.tokenizer->Decode(detokenize->ids, false)});
      return false;
    }
    if (prepared.training.has_value()) return BeginTraining(prepared, program);
    program = std::move(prepared.program);
    return true;
  }

  absl::StatusOr<bool> BeginTraining(const PreparedProgram& prepared, Program& program) {
    const WorldProgram& order = prepared.order;
    const JobSpec& spec = *prepared.training;
    loaded_.reset();  // it takes the place of what was loaded
    if (spec.verify.has_value()) {
      program = VerifyProgram(spec, output_dir_);
      program.number = order.number;
      return true;
    }
    epoch_ = order.pool.has_value() ? order.pool->epoch : options_.epoch;
    TOROID_ASSIGN_OR_RETURN(job_,
                            TrainingJob::Open(spec, output_dir_, static_cast<int64_t>(epoch_)));
    program = job_->program();
    program.number = number_ = order.number;
    pod_ = std::get<TrainOrder>(order.task).pod;
    program.train.joins = std::get<TrainOrder>(order.task).joins;
    ReadCommitted(std::get<TrainOrder>(order.task), program.train);
    pods_ = std::get<TrainTask>(spec.task).plan.options.pods.count;
    // A pool's world does not outlive its stream: its other programs would wait for nobody.
    if (!order.pool.has_value()) link_.Hold(program.number);
    return true;
  }

  // What is durable of the job. Branches are of one directory: of another's they say nothing.
  void ReadCommitted(const TrainOrder& order, TrainingPlan& plan) const {
    plan.committed_step = order.committed_step;
    plan.committed_branch = kMostBranches;
    const auto [directory, name] = SplitCheckpointPath(order.committed_path);
    CheckpointEntry entry;
    if (ParseCheckpointName(name, entry) &&
        directory == NameRoots(absl::StrCat(output_dir_, "/", kCheckpointsName), options_.roots)) {
      plan.committed_branch = entry.branch;
    }
  }

  // Where all pods of the job listen, once the controller says so; waits a second at most.
  std::optional<PodTable> AwaitTable() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(1),
                      [this] { return gone_ || table_.has_value(); });
    return table_;
  }

  // Who takes part in the job, as the controller has told last.
  std::optional<MembershipView> View() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!table_) return std::nullopt;
    std::map<int64_t, uint64_t> launches;
    for (const PodAddresses& pod : table_->pods) launches[pod.pod] = pod.epoch;
    MembershipView view{table_->view, {}, {}};
    for (const auto& [pod, epoch] : launches) {
      view.members.push_back(pod);
      view.launches.push_back(epoch);
    }
    return view;
  }

  // To the controller how far it is, to the job's log how it goes.
  TrainingEvents Training(uint64_t number) {
    TrainingEvents events;
    events.on_tokenised = [this, number](const TokenCacheProgress& progress) {
      Tell(number, ProgressAnswer{"tokenise", progress.bytes_done, progress.bytes});
    };
    events.on_step = [this, number](const StepReport& report) {
      const int64_t done = report.result.step + 1, steps = job_->steps();
      ProgressAnswer progress{"train", done, steps};
      if (report.result.labels > 0) progress.loss = report.result.loss;
      progress.tokens_per_s = report.tokens_per_s;
      progress.exchange = job_->exchange();
      Tell(number, std::move(progress));
      const absl::Time now = absl::Now();
      if (now < next_line_ && done < steps && report.result.skipped.empty()) return;
      next_line_ = now + kLogInterval;
      Print(StepLine(report, steps, job_->Use(report)));
    };
    events.on_checkpoint = [this, number](const CheckpointOutcome& outcome) {
      if (outcome.status.ok()) Print(absl::StrCat("checkpoint ", outcome.path));
      if (outcome.status.ok()) TellCheckpoint(number, outcome);
    };
    events.on_resumed = [this, number](const CheckpointOutcome& from) {
      TellCheckpoint(number, from);
    };
    events.on_note = [this](const std::string& sentence) { Print(sentence); };
    events.on_alarm = events.on_note;
    events.view = [this] { return View(); };
    events.on_silent = [this, number](int64_t pod) { TellSilent(number, pod, 0); };
    events.on_slow = [this, number](int64_t pod, double s) { TellSilent(number, pod, s); };
    // Without its controller the run has nobody to answer to; the next one goes on from here.
    events.stop = [this, number] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return gone_ || saved_.count(number) > 0 ? StopAsked::kEnd : StopAsked::kNo;
    };
    return job_->Record(std::move(events));
  }

  // slow_s: waited for a pod that is heard; 0: it is not.
  void TellSilent(uint64_t number, int64_t pod, double slow_s) {
    const std::optional<MembershipView> view = View();
    if (!view || !view->Has(pod)) return;
    Print(slow_s > 0 ? absl::StrFormat("pod %d is slow and is waited for since %.1f s", pod, slow_s)
                     : absl::StrCat("pod ", pod, " says nothing and is waited for"));
    Tell(number,
         SilentAnswer{pod, view->LaunchOf(pod), slow_s});  // it is said again while it is so
  }

  void TellCheckpoint(uint64_t number, const CheckpointOutcome& checkpoint) {
    TellDurably(number, JobCheckpoint{epoch_, checkpoint.step,
                                      NameRoots(checkpoint.path, options_.roots), checkpoint.hash});
  }

  // Into the job's log.
  void Print(const std::string& line) const {
    const std::string text = absl::StrCat(speaks_for_, speaks_for_.empty() ? "" : ": ",
                                          pods_ > 1 ? absl::StrCat("pod ", pod_, ": ") : "",
                                          NameRoots(line, options_.roots), "\n");
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

  absl::StatusOr<TokenizeResult> Tokenize(const TokenizeTask& task) {
    TokenizeResult result;
    if (model_.tokenizer == nullptr) return NoTokenizer();
    TOROID_ASSIGN_OR_RETURN(result.ids, model_.tokenizer->Encode(task.text, {false, task.special}));
    for (int32_t id : result.ids) result.pieces.emplace_back(model_.tokenizer->Piece(id));
    return result;
  }

  template <typename Result>
  void Answer(uint64_t number, const absl::StatusOr<Result>& result) {
    if (!result.ok()) return Tell(number, result.status());
    WriteResult(*result);
    Tell(number, *result);
  }

  // What was made is made, whether it can be written or not.
  template <typename Result>
  void WriteResult(const Result& result) {
    if (output_dir_.empty()) return;
    const absl::Status written = WriteMessage(ToProto(result));
    if (!written.ok()) Print(std::string(written.message()));
  }

  absl::Status WriteMessage(const google::protobuf::Message& message) {
    std::string text;
    google::protobuf::util::JsonPrintOptions print;
    print.add_whitespace = true;
    print.preserve_proto_field_names = true;
    (void)google::protobuf::util::MessageToJsonString(message, &text, print);
    const std::string path = output_dir_ + "/result.json";
    std::ofstream file(path + ".new", std::ios::trunc);
    file << text;
    file.close();
    if (!file || rename((path + ".new").c_str(), path.c_str()) != 0) {
      return absl::UnavailableError(absl::StrCat("cannot write ", path, ": check the disk"));
    }
    return absl::OkStatus();
  }

  const WorkerOptions options_;
  const Preparation preparation_;
  const WorldId world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<uint64_t> cancelled_, saved_;  // programs that are to end, and how
  bool gone_ = false;
  std::optional<PodTable> table_;
  std::deque<std::pair<LoadRequest, LoadedModel>> known_;  // of a pool: the newest first
  // From here on of the loop's thread.
  std::shared_ptr<PreparedProgram> taken_;    // from the queue
  std::shared_ptr<PreparedProgram> waiting_;  // for its model, which is being loaded
  std::optional<LoadRequest> loaded_;         // what the ranks hold for a pool
  LoadedModel model_;
  std::string output_dir_;  // of the program that runs
  std::string speaks_for_;  // the job of a pool's client whose program runs; empty: of its own
  // Of the program that trains.
  std::unique_ptr<TrainingJob> job_;
  uint64_t number_ = 0, epoch_ = 0;
  int64_t pod_ = 0, pods_ = 1;
  absl::Time next_line_ = absl::InfinitePast();
  GangQueue programs_{preparation_.threads};
  WorkerLink link_;  // last: its end waits for its reactions
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerConnection>> ConnectWorker(const WorkerOptions& options,
                                                                const Preparation& preparation) {
  TOROID_ASSIGN_OR_RETURN(const Tls tls, ReadTls(options.tls_dir));
  auto connection = std::make_unique<Connection>(options, tls, preparation);
  TOROID_RETURN_IF_ERROR(connection->Attach());
  return std::unique_ptr<WorkerConnection>(std::move(connection));
}

ProgramChannel RankChannel(const WorkerOptions& options) {
  ProgramChannel channel;
  channel.meet = [options](const PodMeeting& meeting) {
    return MeetPods(meeting, options, /*pod=*/0, PodsOfController());
  };
  return channel;
}

}  // namespace toroid
