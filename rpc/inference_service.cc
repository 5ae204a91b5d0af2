// toroid.v1.Inference.
#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/grpc_method.h"
#include "rpc/grpc_status.h"
#include "rpc/grpc_stream.h"
#include "rpc/services.h"
#include "toroid/v1/inference.grpc.pb.h"

namespace toroid {
namespace {

constexpr absl::Duration kDefaultTimeout = absl::Hours(1);
constexpr absl::Duration kMaxTimeout = absl::Hours(24);

// The call's own deadline, or the default; at most the cap.
absl::Duration TimeoutOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return kDefaultTimeout;
  return std::min(absl::FromChrono(deadline) - absl::Now(), kMaxTimeout);
}

// Tokens that a lagging reader has not taken yet travel together.
bool Merge(v1::GenerateResponse& last, const v1::GenerateResponse& next) {
  if (!last.has_tokens() || !next.has_tokens()) return false;
  last.mutable_tokens()->MergeFrom(next.tokens());
  return true;
}
bool Merge(v1::VerifyResponse&, const v1::VerifyResponse&) { return false; }

void PutTokens(const std::vector<TokenEvent>& tokens, v1::GenerateResponse& message) {
  for (const TokenEvent& token : tokens) *message.mutable_tokens()->add_tokens() = ToProto(token);
}
void PutTokens(const std::vector<TokenEvent>&, v1::VerifyResponse&) {}

// A request whose answers are a stream: accepted, progress, tokens where there are any, done.
template <typename Response, typename Result>
class RequestStream final : public grpc::ServerWriteReactor<Response> {
 public:
  explicit RequestStream(Controller* controller)
      : controller_(controller),
        outbox_([this](const Response* message) { this->StartWrite(message); },
                [](Response& last, const Response& next) { return Merge(last, next); }) {}

  static RequestStream* Start(Controller* controller, const absl::StatusOr<RequestSpec>& spec) {
    auto stream = std::make_shared<RequestStream>(controller);
    stream->self_ = stream;
    if (!spec.ok()) {
      stream->End(spec.status());
      return stream.get();
    }
    RequestSink sink;
    sink.accepted = [stream](const Accepted& accepted) {
      Response message;
      message.mutable_accepted()->set_request(accepted.request);
      message.mutable_accepted()->set_pod(accepted.pod);
      *message.mutable_accepted()->mutable_mesh() = ToProto(accepted.mesh);
      message.mutable_accepted()->set_kept(accepted.kept);
      stream->outbox_.Push(std::move(message));
    };
    sink.progress = [stream](const ProgressAnswer& progress) {
      Response message;
      *message.mutable_progress() = ToProto(progress);
      stream->outbox_.Push(std::move(message));
    };
    sink.tokens = [stream](const std::vector<TokenEvent>& tokens) {
      Response message;
      PutTokens(tokens, message);
      stream->outbox_.Push(std::move(message));
    };
    sink.done = [stream](const absl::StatusOr<RequestResult>& result) {
      if (result.ok()) {
        Response message;
        *message.mutable_done() = ToProto(std::get<Result>(*result));
        stream->outbox_.Push(std::move(message));
      }
      stream->End(result.status());
    };
    stream->request_ = controller->StartRequest(*spec, std::move(sink));
    return stream.get();
  }

  void OnWriteDone(bool ok) override { outbox_.Written(ok); }
  void OnCancel() override {
    controller_->CancelRequest(request_);
    outbox_.Close([this] { this->Finish(grpc::Status::CANCELLED); }, /*discard=*/true);
  }
  void OnDone() override { self_.reset(); }

 private:
  void End(const absl::Status& status) {
    outbox_.Close([this, status] { this->Finish(ToGrpc(status)); });
  }

  Controller* const controller_;
  Outbox<Response> outbox_;
  std::atomic<uint64_t> request_{0};
  std::shared_ptr<RequestStream> self_;  // until OnDone
};

// A request with one answer.
class UnaryCall final : public grpc::ServerUnaryReactor {
 public:
  // fill: puts a result into the response.
  static UnaryCall* Start(Controller* controller, const absl::StatusOr<RequestSpec>& spec,
                          std::function<void(const RequestResult&)> fill) {
    auto call = std::make_shared<UnaryCall>();
    call->self_ = call;
    call->controller_ = controller;
    if (!spec.ok()) {
      call->End(spec.status());
      return call.get();
    }
    RequestSink sink;
    sink.done = [call, fill = std::move(fill)](const absl::StatusOr<RequestResult>& result) {
      const std::lock_guard<std::mutex> lock(call->mutex_);
      if (call->ended_) return;
      if (result.ok()) fill(*result);
      call->ended_ = true;
      call->Finish(ToGrpc(result.status()));
    };
    call->request_ = controller->StartRequest(*spec, std::move(sink));
    return call.get();
  }

  void OnCancel() override {
    controller_->CancelRequest(request_);
    End(absl::CancelledError("cancelled"));
  }
  void OnDone() override { self_.reset(); }

 private:
  void End(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return;
    ended_ = true;
    Finish(ToGrpc(status));
  }

  Controller* controller_ = nullptr;
  std::atomic<uint64_t> request_{0};
  std::mutex mutex_;
  bool ended_ = false;
  std::shared_ptr<UnaryCall> self_;  // until OnDone
};

template <typename Task>
absl::StatusOr<RequestSpec> Spec(const v1::Placement& placement, absl::StatusOr<Task> task,
                                 const grpc::CallbackServerContext& context) {
  RequestSpec spec;
  TOROID_ASSIGN_OR_RETURN(spec.placement, FromProto(placement, &spec.keep_alive));
  TOROID_ASSIGN_OR_RETURN(spec.task, std::move(task));
  spec.timeout = TimeoutOf(context);
  return spec;
}

class InferenceService final : public v1::Inference::CallbackService {
 public:
  explicit InferenceService(Controller* controller) : controller_(controller) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return RequestStream<v1::GenerateResponse, GenerateResult>::Start(
        controller_, Spec(request->placement(), FromProto(request->task()), *context));
  }

  grpc::ServerWriteReactor<v1::VerifyResponse>* Verify(grpc::CallbackServerContext* context,
                                                       const v1::VerifyRequest* request) override {
    return RequestStream<v1::VerifyResponse, VerifyResult>::Start(
        controller_, Spec(request->placement(), FromProto(request->task()), *context));
  }

  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context,
                                  const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override {
    return UnaryCall::Start(controller_,
                            Spec(request->placement(), FromProto(request->task()), *context),
                            [response](const RequestResult& result) {
                              *response->mutable_result() = ToProto(std::get<ScoreResult>(result));
                            });
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    const TokenizeTask task{request->text(), !request->no_special()};
    return UnaryCall::Start(controller_, Spec<TokenizeTask>(request->placement(), task, *context),
                            [response](const RequestResult& result) {
                              *response = ToProto(std::get<TokenizeResult>(result));
                            });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    const DetokenizeTask task{{request->ids().begin(), request->ids().end()}};
    return UnaryCall::Start(controller_, Spec<DetokenizeTask>(request->placement(), task, *context),
                            [response](const RequestResult& result) {
                              response->set_text(MendUtf8(std::get<DetokenizeAnswer>(result).text));
                            });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::ModelInfo* response) override {
    return Answer(context, *request, [&] {
      for (const ModelStatus& model : controller_->ListModels()) {
        if (model.name != request->name()) continue;
        *response = ToProto(model);
        return grpc::Status::OK;
      }
      return ToGrpc(MakeError(
          absl::StatusCode::kNotFound,
          absl::StrCat("model is not loaded: ", MendUtf8(request->name()), ": see toroid models"),
          {"NO_MODEL", {}, {}}));
    });
  }

  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context,
                                       const v1::ListModelsRequest* request,
                                       v1::ListModelsResponse* response) override {
    return Answer(context, *request, [&] {
      for (const ModelStatus& model : controller_->ListModels()) {
        *response->add_models() = ToProto(model);
      }
      return grpc::Status::OK;
    });
  }

 private:
  Controller* const controller_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewInferenceService(Controller* controller) {
  return std::make_unique<InferenceService>(controller);
}

}  // namespace toroid
