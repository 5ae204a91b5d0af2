#include "rpc/exchange_wire.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

namespace toroid::exchange {
namespace {

namespace pb = google::protobuf::io;

// Protobuf's wire format: a field is its number * 8 + one of these, then what that says.
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
constexpr uint32_t kDataTag = wire::StreamFrame::kDataFieldNumber * 8 + kBytes;

// A tag or a size: of more than 32 bits is none.
bool ReadUpTo32(pb::CodedInputStream& in, uint32_t* value) {
  uint64_t wide = 0;
  if (!in.ReadVarint64(&wide) || wide > std::numeric_limits<uint32_t>::max()) return false;
  *value = static_cast<uint32_t>(wide);
  return true;
}

// Copies one field behind its tag. False: the bytes end in it, or it is of no such type.
bool CopyField(uint32_t tag, pb::CodedInputStream& in, pb::CodedOutputStream& out) {
  out.WriteTag(tag);
  uint64_t wide = 0;
  uint32_t narrow = 0;
  std::string text;
  switch (tag % 8) {
    case kVarint:
      if (!in.ReadVarint64(&wide)) return false;
      out.WriteVarint64(wide);
      return true;
    case kFixed64:
      if (!in.ReadLittleEndian64(&wide)) return false;
      out.WriteLittleEndian64(wide);
      return true;
    case kFixed32:
      if (!in.ReadLittleEndian32(&narrow)) return false;
      out.WriteLittleEndian32(narrow);
      return true;
    case kBytes:
      if (!ReadUpTo32(in, &narrow) || !in.ReadString(&text, static_cast<int>(narrow))) return false;
      out.WriteVarint32(narrow);
      out.WriteString(text);
      return true;
    default:
      return false;
  }
}

// The next `bytes` of `in`, where they lie.
bool ViewBytes(uint32_t bytes, pb::CodedInputStream& in, std::vector<absl::string_view>& views) {
  while (bytes > 0) {
    const void* begin = nullptr;
    int here = 0;
    if (!in.GetDirectBufferPointer(&begin, &here)) return false;
    const uint32_t taken = std::min(bytes, static_cast<uint32_t>(here));
    views.emplace_back(static_cast<const char*>(begin), taken);
    if (!in.Skip(static_cast<int>(taken))) return false;
    bytes -= taken;
  }
  return true;
}

// Of a StreamFrame of `size` bytes all fields but `data` are copied to `words`, `data` is left
// where it lies.
bool Split(pb::CodedInputStream& in, size_t size, std::string& words,
           std::vector<absl::string_view>& data) {
  pb::StringOutputStream stream(&words);
  pb::CodedOutputStream out(&stream);
  while (static_cast<size_t>(in.CurrentPosition()) < size) {
    uint32_t tag = 0, bytes = 0;
    if (!ReadUpTo32(in, &tag)) return false;
    if (tag != kDataTag) {
      if (!CopyField(tag, in, out)) return false;
    } else {
      data.clear();  // a field that comes twice is what it was last
      if (!ReadUpTo32(in, &bytes) || !ViewBytes(bytes, in, data)) return false;
    }
  }
  return true;
}

template <typename Message>
grpc::ByteBuffer Serialize(const Message& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

Launch LaunchOf(const wire::ExchangeIdentity& identity) {
  return {identity.epoch(), identity.incarnation(), true};
}

PodIdentity FromProto(const wire::ExchangeIdentity& in) {
  return {in.job(),
          {in.pod(), in.rank()},
          in.epoch(),
          std::vector<std::string>(in.terms().begin(), in.terms().end())};
}

grpc::ByteBuffer ToBytes(const wire::StreamFrame& frame) { return Serialize(frame); }
grpc::ByteBuffer ToBytes(const wire::StreamAck& ack) { return Serialize(ack); }

grpc::ByteBuffer ToBytes(const PodFrame& frame) {
  wire::StreamFrame out;
  out.set_number(frame.number);
  out.set_message(frame.message);
  out.set_offset(frame.offset);
  out.set_size(frame.size);
  out.set_crc32c(FrameChecksum(frame));
  out.set_view(frame.words.view);
  out.set_kind(frame.words.kind);
  out.set_step(frame.words.step);
  out.set_fragment(frame.words.fragment);
  out.set_codec(frame.words.codec);
  out.set_weight(frame.words.weight);
  out.set_job(frame.job);
  out.set_pod(frame.words.from.pod);
  out.set_epoch(frame.words.epoch);
  std::string words = out.SerializeAsString();
  {
    pb::StringOutputStream stream(&words);  // behind what is there
    pb::CodedOutputStream coded(&stream);
    coded.WriteTag(kDataTag);
    coded.WriteVarint32(static_cast<uint32_t>(frame.bytes()));
  }
  std::vector<grpc::Slice> slices = {grpc::Slice(words)};
  for (const absl::string_view piece : frame.data) {
    using Owner = std::shared_ptr<const void>;
    const auto release = [](void* owner) { delete static_cast<Owner*>(owner); };
    slices.emplace_back(const_cast<char*>(piece.data()), piece.size(), release,
                        new Owner(frame.owner));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

absl::StatusOr<ReceivedFrame> FromBytes(grpc::ByteBuffer& in) {
  ReceivedFrame received;
  const auto bytes = std::make_shared<grpc::ByteBuffer>();
  bytes->Swap(&in);
  std::string words;
  bool whole = false;
  {
    grpc::ProtoBufferReader reader(bytes.get());
    pb::CodedInputStream coded(&reader);
    whole = Split(coded, bytes->Length(), words, received.frame.data);
  }
  wire::StreamFrame parsed;
  if (!whole || !parsed.ParseFromString(words)) {
    return absl::InvalidArgumentError("broken stream: unreadable frame");
  }
  if (parsed.has_hello()) received.hello = std::move(*parsed.mutable_hello());
  received.crc32c = parsed.crc32c();
  received.alive = parsed.alive();
  PodFrame& frame = received.frame;
  frame.owner = bytes;
  frame.number = parsed.number();
  frame.message = parsed.message();
  frame.offset = parsed.offset();
  frame.size = parsed.size();
  frame.words.view = parsed.view();
  frame.words.kind = parsed.kind();
  frame.words.step = parsed.step();
  frame.words.fragment = parsed.fragment();
  frame.words.codec = parsed.codec();
  frame.words.weight = parsed.weight();
  frame.job = std::move(*parsed.mutable_job());
  frame.words.from.pod = parsed.pod();
  frame.words.epoch = parsed.epoch();
  return received;
}

}  // namespace toroid::exchange
