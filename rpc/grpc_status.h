// Statuses over gRPC, and the settings that both sides of a connection share.
#pragma once

#include <google/protobuf/message_lite.h>
#include <grpcpp/support/channel_arguments.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace toroid {

// With ErrorInfo and BadRequest in grpc-status-details-bin; long sentences are cut to fit a header.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

inline constexpr int kMaxReceiveBytes = 16 << 20;
inline constexpr int kMaxControlBytes = 1 << 20;  // of a control method (grpc_method.h)
// A dead peer is noticed within 15 s: a ping after 10 s of silence, an answer within 5 s.
inline constexpr int kPingAfterMs = 10000;
inline constexpr int kPingAnswerMs = 5000;

// RESOURCE_EXHAUSTED (MESSAGE_TOO_LARGE), naming both sizes, if the message is larger than `limit`.
absl::Status CheckSize(const google::protobuf::MessageLite& message, size_t limit);

grpc::ChannelArguments ClientChannelArguments();

// gRPC's own log lines on stderr only if GRPC_VERBOSITY asks for them: our errors are one line.
void QuietGrpc();

// Whether "host:port" names a loopback address.
bool IsLoopback(absl::string_view address);

}  // namespace toroid
