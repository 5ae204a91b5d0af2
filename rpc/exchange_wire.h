// Identities and frames between pods as messages of proto/toroid/internal/v1/exchange.proto.
// Included by exchange_*.cc only.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "parallel/pod_frame.h"
#include "parallel/pod_link.h"
#include "toroid/internal/v1/exchange.pb.h"

namespace toroid::exchange {

namespace wire = internal::v1;

// A launch of a rank, as its epoch and its process tell.
struct Launch {
  uint64_t epoch = 0, incarnation = 0;
  bool known = false;
  bool operator==(const Launch&) const = default;
};

Launch LaunchOf(const wire::ExchangeIdentity& identity);
// Of whatever build: one that names no format of its frames has "frame format: none".
PodIdentity FromProto(const wire::ExchangeIdentity& in);
constexpr char kFrameFormatTerm[] = "frame format: ";  // the first of the terms

// A StreamFrame whose `data` refers to the frame's own, which is kept until gRPC is done with it
// (parallel/pod_frame.h says why protobuf does not do it).
grpc::ByteBuffer ToBytes(const PodFrame& frame);
grpc::ByteBuffer ToBytes(const wire::StreamFrame& frame);
grpc::ByteBuffer ToBytes(const wire::StreamAck& ack);

// A StreamFrame as it came: who speaks, or a frame.
struct ReceivedFrame {
  std::optional<wire::ExchangeIdentity> hello;
  PodFrame frame;  // its data are views of the bytes, which it keeps
  uint32_t crc32c = 0;
  bool alive = false;  // nothing but a sign of life
};
// Takes the bytes out of `in`. DataLoss: they are no StreamFrame.
absl::StatusOr<ReceivedFrame> FromBytes(grpc::ByteBuffer& in);

}  // namespace toroid::exchange
