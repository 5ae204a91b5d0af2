// Rank 0's stream to the controller, as a ProgramChannel.
#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "parallel/host_exchange.h"
#include "rpc/connect_pods.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/prompt.h"
#include "rpc/roots.h"
#include "rpc/training_job.h"
#include "rpc/worker_link.h"
#include "rpc/worker_process.h"

namespace toroid {
namespace {

using internal::v1::WorldMessage;

constexpr absl::Duration kFinishTimeout = absl::Seconds(2);
constexpr absl::Duration kLogInterval = absl::Seconds(5);
constexpr int64_t kMaxPromptFile = int64_t{256} << 20;

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("file not readable: ", path));
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxPromptFile) {
    return absl::InvalidArgumentError(absl::StrCat("file is too large: ", path, ": ", size,
                                                   " bytes, the most is ", kMaxPromptFile));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) return absl::NotFoundError(absl::StrCat("file not readable: ", path));
  return text;
}

absl::Status NoTokenizer() {
  return MakeError(absl::StatusCode::kFailedPrecondition,
                   "the model has no tokenizer: give token ids instead of text",
                   {"NO_TOKENIZER", {}, {}});
}

// This rank's way to the job's other pods; pod and controller count on rank 0.
absl::StatusOr<std::unique_ptr<PodLink>> MeetPods(const PodMeeting& meeting,
                                                  const WorkerOptions& options, int64_t pod,
                                                  const PodsOfController& controller) {
  const auto tls = ReadTls(options.tls_dir);
  TOROID_RETURN_IF_ERROR(ShareStatus(meeting.world, tls.status()));
  JoinPodsOptions join;
  join.tls = *tls;
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
  Connection(const WorkerOptions& options, const Tls& tls)
      : options_(options),
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
      if (!model.ok()) return Tell(number, model.status());
      model_ = *model;
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
        return TellDurably(number, Told(ended));
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
    const std::lock_guard<std::mutex> lock(mutex_);
    if (message.has_pods()) {
      PodTable table = FromProto(message.pods());
      if (!table_ || table.view > table_->view) table_ = std::move(table);
    } else if (message.has_cancel()) {
      (message.cancel().save() ? saved_ : cancelled_).insert(message.number());
    } else {
      inbox_.push_back(message);
    }
    changed_.notify_all();
  }

  void Gone() {
    const std::lock_guard<std::mutex> lock(mutex_);
    gone_ = true;
    changed_.notify_all();
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
      WorldMessage message;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return gone_ || !inbox_.empty(); });
        if (gone_) return Program();  // kExit
        message = std::move(inbox_.front());
        inbox_.pop_front();
        link_.Release();  // the controller has what the last program had to say
        if (cancelled_.count(message.number()) > 0) {
          Tell(message.number(), absl::Status(absl::CancelledError("cancelled")));
          continue;
        }
      }
      Program program;
      program.number = message.number();
      const absl::StatusOr<bool> runs = Prepare(message, program);
      if (runs.ok() && *runs) return program;
      if (!runs.ok()) Tell(message.number(), runs.status());
    }
  }

  // Fills `program`. False: it has been answered.
  absl::StatusOr<bool> Prepare(const WorldMessage& message, Program& program) {
    TOROID_ASSIGN_OR_RETURN(const WorldProgram task, FromProto(message));
    output_dir_.clear();
    if (!task.output_dir.empty()) {
      TOROID_ASSIGN_OR_RETURN(output_dir_, MakeOutputDirectory(task.output_dir, options_.roots));
    }
    if (const auto* load = std::get_if<LoadTask>(&task.task)) {
      program.kind = ProgramKind::kLoad;
      program.load = load->load;
      TOROID_ASSIGN_OR_RETURN(program.load.model, ResolvePath(load->load.model, options_.roots));
      if (!load->load.tokenizer.empty()) {
        TOROID_ASSIGN_OR_RETURN(program.load.tokenizer,
                                ResolvePath(load->load.tokenizer, options_.roots));
      }
    } else if (const auto* generate = std::get_if<GenerateTask>(&task.task)) {
      program.kind = ProgramKind::kGenerate;
      GenerateTask filled = *generate;
      TOROID_RETURN_IF_ERROR(
          SetPromptIds(filled, [this](const PromptSpec& prompt) { return Ids(prompt); }));
      program.generate = std::move(filled.request);
    } else if (const auto* score = std::get_if<ScoreTask>(&task.task)) {
      program.kind = ProgramKind::kScore;
      program.score = score->request;
      PromptSpec text = score->text;
      TOROID_ASSIGN_OR_RETURN(program.score.ids, Ids(text, score->limit));
    } else if (const auto* train = std::get_if<TrainOrder>(&task.task)) {
      TOROID_ASSIGN_OR_RETURN(const JobSpec spec, ResolveTraining(train->spec, options_.roots));
      if (spec.verify.has_value()) {
        program = VerifyProgram(spec, output_dir_);
        program.number = message.number();
        return true;
      }
      TOROID_ASSIGN_OR_RETURN(
          job_, TrainingJob::Open(spec, output_dir_, static_cast<int64_t>(options_.epoch)));
      program = job_->program();
      program.number = number_ = message.number();
      pod_ = train->pod;
      pods_ = std::get<TrainTask>(spec.task).plan.options.pods.count;
      link_.Hold(program.number);
    } else if (const auto* verify = std::get_if<VerifyTask>(&task.task)) {
      program.kind = ProgramKind::kVerify;
      program.verify = verify->request;
      std::string text;
      if (verify->text.has_value()) {
        TOROID_ASSIGN_OR_RETURN(text, Text(*verify->text));
      }
      TOROID_ASSIGN_OR_RETURN(program.verify.ids, VerifyIds(*verify, text, model_));
    } else if (const auto* tokenize = std::get_if<TokenizeTask>(&task.task)) {
      TOROID_ASSIGN_OR_RETURN(TokenizeResult result, Tokenize(*tokenize));
      Tell(message.number(), std::move(result));
      return false;
    } else if (const auto* detokenize = std::get_if<DetokenizeTask>(&task.task)) {
      if (model_.tokenizer == nullptr) return NoTokenizer();
      Tell(message.number(), DetokenizeAnswer{model_.tokenizer->Decode(detokenize->ids, false)});
      return false;
    } else {
      program.kind = ProgramKind::kExit;
    }
    return true;
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
    MembershipView view{table_->view, {}};
    for (const PodAddresses& pod : table_->pods) view.members.push_back(pod.pod);
    std::sort(view.members.begin(), view.members.end());
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
    // Without its controller the run has nobody to answer to; the next one goes on from here.
    events.stop = [this, number] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return gone_ || saved_.count(number) > 0 ? StopAsked::kEnd : StopAsked::kNo;
    };
    return job_->Record(std::move(events));
  }

  void TellCheckpoint(uint64_t number, const CheckpointOutcome& checkpoint) {
    TellDurably(number, JobCheckpoint{options_.epoch, checkpoint.step,
                                      NameRoots(checkpoint.path, options_.roots), checkpoint.hash});
  }

  // Into the job's log.
  void Print(const std::string& line) const {
    const std::string text = absl::StrCat(pods_ > 1 ? absl::StrCat("pod ", pod_, ": ") : "",
                                          NameRoots(line, options_.roots), "\n");
    std::fputs(text.c_str(), stdout);
    std::fflush(stdout);
  }

  // What the prompt says, or its file.
  absl::StatusOr<std::string> Text(const PromptSpec& prompt) {
    if (prompt.kind != PromptSpec::Kind::kFile) return prompt.text;
    TOROID_ASSIGN_OR_RETURN(const std::string path, ResolvePath(prompt.file, options_.roots));
    return ReadPromptFile(path);
  }

  absl::StatusOr<std::vector<int32_t>> Ids(const PromptSpec& prompt, int64_t limit = 0) {
    TOROID_ASSIGN_OR_RETURN(const std::string text, Text(prompt));
    LoadedModel model = model_;
    if (limit > 0) model.context = 0;  // of a longer text only the first tokens are wanted
    TOROID_ASSIGN_OR_RETURN(std::vector<int32_t> ids, PromptIds(prompt, text, model));
    if (limit > 0 && static_cast<int64_t>(ids.size()) > limit) ids.resize(limit);
    return ids;
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
  const WorldId world_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<WorldMessage> inbox_;
  std::set<uint64_t> cancelled_, saved_;  // programs that are to end, and how
  bool gone_ = false;
  std::optional<PodTable> table_;
  LoadedModel model_;       // of the loop's thread
  std::string output_dir_;  // of the program that runs; of the loop's thread
  // Of the program that trains; of the loop's thread.
  std::unique_ptr<TrainingJob> job_;
  uint64_t number_ = 0;
  int64_t pod_ = 0, pods_ = 1;
  absl::Time next_line_ = absl::InfinitePast();
  WorkerLink link_;  // last: its end waits for its reactions
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerConnection>> ConnectWorker(const WorkerOptions& options) {
  TOROID_ASSIGN_OR_RETURN(const Tls tls, ReadTls(options.tls_dir));
  auto connection = std::make_unique<Connection>(options, tls);
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
