#include "rpc/exchange_wire.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace toroid::exchange {
namespace {

template <typename Message>
grpc::ByteBuffer Serialize(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::Status Unreadable() { return absl::DataLossError("broken stream: unreadable frame"); }

}  // namespace

Launch LaunchOf(const wire::ExchangeIdentity& identity) {
  return {identity.epoch(), identity.incarnation(), true};
}

PodIdentity FromProto(const wire::ExchangeIdentity& in) {
  PodIdentity out{in.job(), {in.pod(), in.rank()}, in.epoch(), {}};
  if (in.terms().empty() || !absl::StartsWith(in.terms(0), kFrameFormatTerm)) {
    out.terms.push_back(absl::StrCat(kFrameFormatTerm, "none"));
  }
  out.terms.insert(out.terms.end(), in.terms().begin(), in.terms().end());
  return out;
}

grpc::ByteBuffer ToBytes(const wire::StreamFrame& frame) { return Serialize(frame); }
grpc::ByteBuffer ToBytes(const wire::StreamAck& ack) { return Serialize(ack); }

grpc::ByteBuffer ToBytes(const PodFrame& frame) {
  std::vector<grpc::Slice> slices = {grpc::Slice(FrameHead(frame))};
  for (const absl::string_view piece : frame.data) {
    using Owner = std::shared_ptr<const void>;
    const auto release = [](void* owner) { delete static_cast<Owner*>(owner); };
    slices.emplace_back(const_cast<char*>(piece.data()), piece.size(), release,
                        new Owner(frame.owner));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::StatusOr<ReceivedFrame> FromBytes(grpc::ByteBuffer& in) {
  const auto slices = std::make_shared<std::vector<grpc::Slice>>();
  const bool whole = in.Dump(slices.get()).ok();
  in.Clear();
  if (!whole) return Unreadable();
  std::vector<absl::string_view> pieces;
  for (const grpc::Slice& slice : *slices) {
    pieces.emplace_back(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  auto parsed = ParseFrame(pieces);
  if (!parsed.ok()) return parsed.status();
  ReceivedFrame received;
  if (parsed->has_hello && !received.hello.emplace().ParseFromString(parsed->hello)) {
    return Unreadable();
  }
  received.frame = std::move(parsed->frame);
  received.frame.owner = slices;
  received.crc32c = parsed->checksum;
  received.alive = parsed->alive;
  return received;
}

}  // namespace toroid::exchange
