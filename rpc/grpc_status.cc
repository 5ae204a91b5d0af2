#include "rpc/grpc_status.h"

#include <grpc/impl/codegen/grpc_types.h>
#include <grpc/support/log.h>

#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

constexpr size_t kMaxSentence = 1500;

}  // namespace

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  absl::Status cut = status;
  if (status.message().size() > kMaxSentence) {
    cut = absl::Status(status.code(), status.message().substr(0, kMaxSentence));
    const ErrorInfo info = GetErrorInfo(status);
    if (!info.reason.empty()) cut = WithErrorInfo(cut, {info.reason, {}, {}});
  }
  const google::rpc::Status details = ToProto(cut);
  return grpc::Status(static_cast<grpc::StatusCode>(cut.code()), details.message(),
                      details.SerializeAsString());
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  google::rpc::Status details;
  if (!status.error_details().empty() && details.ParseFromString(status.error_details()) &&
      details.code() == static_cast<int>(status.error_code())) {
    return FromProto(details);
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

absl::Status CheckSize(const google::protobuf::MessageLite& message, size_t limit) {
  const size_t bytes = message.ByteSizeLong();
  if (bytes <= limit) return absl::OkStatus();
  return MakeError(
      absl::StatusCode::kResourceExhausted,
      absl::StrCat("message is too large: ", bytes, " bytes, this method takes at most ", limit,
                   ": put long texts into files under the pod's roots and name those"),
      {"MESSAGE_TOO_LARGE", {{"bytes", absl::StrCat(bytes)}, {"limit", absl::StrCat(limit)}}, {}});
}

void QuietGrpc() {
  if (std::getenv("GRPC_VERBOSITY") == nullptr) gpr_set_log_function([](gpr_log_func_args*) {});
}

grpc::ChannelArguments ClientChannelArguments() {
  QuietGrpc();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReceiveBytes);
  arguments.SetMaxSendMessageSize(kMaxReceiveBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kPingAfterMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingAnswerMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Also the limit of one attempt to connect, so not as short as the first back-off.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return arguments;
}

bool IsLoopback(absl::string_view address) {
  const size_t colon = address.rfind(':');
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  return host == "localhost" || host == "::1" ||
         (absl::StartsWith(host, "127.") && host.find_first_not_of("0123456789.") == host.npos);
}

}  // namespace toroid
