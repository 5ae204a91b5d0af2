// Rank 0's stream to the controller, as a ProgramChannel.
#include <google/protobuf/util/json_util.h>
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <cstdio>
#include <deque>
#include <fstream>
#include <set>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "rpc/convert.h"
#include "rpc/dialled_stream.h"
#include "rpc/error_info.h"
#include "rpc/grpc_credentials.h"
#include "rpc/prompt.h"
#include "rpc/roots.h"
#include "rpc/training_job.h"
#include "rpc/worker_process.h"
#include "toroid/internal/v1/worker.grpc.pb.h"

namespace toroid {
namespace {

using internal::v1::WorkerMessage;
using internal::v1::WorldMessage;

constexpr absl::Duration kAttachTimeout = absl::Seconds(10);
constexpr absl::Duration kFinishTimeout = absl::Seconds(2);
constexpr absl::Duration kLogInterval = absl::Seconds(5);
constexpr int64_t kMaxPromptFile = int64_t{256} << 20;

// What the controller has not taken yet is told together.
bool Merge(WorkerMessage& last, const WorkerMessage& next) {
  if (last.number() != next.number()) return false;
  if (last.has_tokens() && next.has_tokens()) {
    last.mutable_tokens()->MergeFrom(next.tokens());
    return true;
  }
  if (last.has_progress() && next.has_progress()) {
    *last.mutable_progress() = next.progress();
    return true;
  }
  return false;
}

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

class Connection final : public WorkerConnection {
 public:
  Connection(const WorkerOptions& options, Tls tls)
      : options_(options),
        tls_(std::move(tls)),
        world_{options.job, options.epoch, options.view},
        stub_(internal::v1::Workers::NewStub(grpc::CreateCustomChannel(
            options.controller, DialCredentials(tls_), ClientChannelArguments()))),
        stream_([this](const WorldMessage& message) { Receive(message); },
                [this](const absl::Status& status) { Closed(status); }, Merge) {}

  ~Connection() override { stream_.Cancel(); }

  // Until the first program or a refusal.
  absl::Status Attach() {
    stream_.context()->set_wait_for_ready(true);
    stub_->async()->Attach(stream_.context(), &stream_);
    stream_.Begin();
    WorkerMessage message;
    *message.mutable_world() = ToProto(world_);
    internal::v1::Attach& attach = *message.mutable_attach();
    attach.set_pod(options_.pod);
    attach.set_credential(options_.credential);
    attach.set_pid(getpid());
    char host[256] = "";
    (void)gethostname(host, sizeof(host) - 1);
    attach.set_host(host);
    stream_.Push(std::move(message));
    std::unique_lock<std::mutex> lock(mutex_);
    const bool heard = changed_.wait_for(lock, absl::ToChronoMilliseconds(kAttachTimeout),
                                         [this] { return lost_ || !inbox_.empty(); });
    if (!heard) {
      TOROID_RETURN_IF_ERROR(WhyNoConnection(options_.controller, tls_));
      return absl::UnavailableError(
          absl::StrCat("controller is not reachable: ", options_.controller));
    }
    return inbox_.empty() ? (close_status_.ok() ? absl::UnavailableError("the stream was closed")
                                                : close_status_)
                          : absl::OkStatus();
  }

  ProgramChannel channel() override {
    ProgramChannel channel;
    channel.next = [this] { return Next(); };
    channel.cancelled = [this](uint64_t number) {
      const std::lock_guard<std::mutex> lock(mutex_);
      return lost_ || cancelled_.count(number) > 0;
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
    channel.training = [this](uint64_t number) { return Training(number); };
    channel.on_trained = [this](uint64_t number, const absl::StatusOr<TrainingResult>& run) {
      const absl::Status ended =
          run.ok() && run->stopped != StopAsked::kNo
              ? absl::CancelledError(
                    absl::StrCat("the controller is lost: checkpointed ", run->checkpoint))
              : run.status();
      if (!ended.ok()) {
        job_->End(ended);
        return Tell(number, ended);
      }
      TrainResult result = job_->Result(*run);
      job_->End(absl::OkStatus());
      result.directory = NameRoots(result.directory, options_.roots);
      result.run.checkpoint = NameRoots(result.run.checkpoint, options_.roots);
      Answer(number, absl::StatusOr<TrainResult>(std::move(result)));
    };
    return channel;
  }

  void Finish(const absl::Status& status) override {
    Tell(0, WorldEnding{Told(status)});
    stream_.End();
    if (!stream_.WaitClosed(kFinishTimeout)) stream_.Cancel();
  }

 private:
  void Receive(const WorldMessage& message) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!(FromProto(message.world()) == world_)) return;  // not of this epoch
    if (message.has_cancel()) {
      cancelled_.insert(message.number());
    } else {
      inbox_.push_back(message);
    }
    changed_.notify_all();
  }

  void Closed(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    lost_ = true;
    close_status_ = status;
    changed_.notify_all();
  }

  template <typename Body>
  void Tell(uint64_t number, Body body) {
    stream_.Push(ToProto(world_, WorldAnswer{number, std::move(body)}));
  }

  void Tell(uint64_t number, const absl::Status& error) {
    stream_.Push(ToProto(world_, WorldAnswer{number, Told(error)}));
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
        changed_.wait(lock, [this] { return lost_ || !inbox_.empty(); });
        if (lost_) return Program();  // kExit
        message = std::move(inbox_.front());
        inbox_.pop_front();
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
      program.number = message.number();
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
    // Without its controller the run has nobody to answer to; the next one goes on from here.
    events.stop = [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return lost_ ? StopAsked::kEnd : StopAsked::kNo;
    };
    return job_->Record(std::move(events));
  }

  void TellCheckpoint(uint64_t number, const CheckpointOutcome& checkpoint) {
    Tell(number, JobCheckpoint{options_.epoch, checkpoint.step,
                               NameRoots(checkpoint.path, options_.roots), checkpoint.hash});
  }

  // Into the job's log.
  void Print(const std::string& line) const {
    const std::string text = absl::StrCat(NameRoots(line, options_.roots), "\n");
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
    if (!output_dir_.empty()) {
      const absl::Status written = WriteResult(ToProto(*result));
      if (!written.ok()) Print(std::string(written.message()));  // what was made is made
    }
    Tell(number, *result);
  }

  absl::Status WriteResult(const google::protobuf::Message& message) {
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
  const Tls tls_;
  const WorldId world_;
  const std::unique_ptr<internal::v1::Workers::Stub> stub_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<WorldMessage> inbox_;
  std::set<uint64_t> cancelled_;
  bool lost_ = false;
  absl::Status close_status_;
  LoadedModel model_;                 // of the loop's thread
  std::string output_dir_;            // of the program that runs; of the loop's thread
  std::unique_ptr<TrainingJob> job_;  // of the program that trains; of the loop's thread
  absl::Time next_line_ = absl::InfinitePast();
  DialledStream<WorkerMessage, WorldMessage> stream_;  // last: its end waits for its reactions
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerConnection>> ConnectWorker(const WorkerOptions& options) {
  TOROID_ASSIGN_OR_RETURN(Tls tls, ReadTls(options.tls_dir));
  auto connection = std::make_unique<Connection>(options, std::move(tls));
  TOROID_RETURN_IF_ERROR(connection->Attach());
  return std::unique_ptr<WorkerConnection>(std::move(connection));
}

}  // namespace toroid
