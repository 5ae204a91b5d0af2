#include "parallel/pod_frame.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "core/io/crc32c.h"

namespace toroid {
namespace {

// Protobuf's wire format: a field is its number * 8 + one of these, then what that says.
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
// The fields of StreamFrame.
enum Field : uint32_t {
  kHello = 1,
  kNumber = 2,
  kMessage = 3,
  kOffset = 4,
  kSize = 5,
  kData = 6,
  kChecksum = 7,
  kView = 8,
  kKind = 9,
  kStep = 10,
  kFragment = 11,
  kCodec = 12,
  kWeight = 13,
  kAlive = 14,
  kJob = 15,
  kPod = 16,
  kEpoch = 17,
};
constexpr uint32_t Tag(uint32_t field, WireType type) { return field * 8 + type; }

template <typename T>
void AppendLittleEndian(T value, std::string* out) {
  for (size_t i = 0; i < sizeof(T); ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

void AppendVarint(uint64_t value, std::string* out) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

// Zeros are left out. A negative number is the 64 bits of its two's complement.
void AppendNumber(uint32_t field, int64_t value, std::string* out) {
  if (value == 0) return;
  AppendVarint(Tag(field, kVarint), out);
  AppendVarint(static_cast<uint64_t>(value), out);
}

// Bytes in pieces, from the first to the last. Each call is false where they end too early.
class Reader {
 public:
  explicit Reader(absl::Span<const absl::string_view> pieces) : pieces_(pieces) {
    for (const absl::string_view piece : pieces) left_ += piece.size();
  }
  size_t left() const { return left_; }

  // At most `longest` bytes long, and no larger than `most`.
  bool ReadVarint(int longest, uint64_t most, uint64_t* value) {
    *value = 0;
    for (int i = 0; i < longest && left_ > 0; ++i) {
      const uint64_t byte = static_cast<uint8_t>(Next());
      if (i == 9 && byte > 1) return false;  // more than 64 bits
      *value |= (byte & 0x7f) << (7 * i);
      if (byte < 0x80) return *value <= most;
    }
    return false;
  }
  template <typename T>
  bool ReadLittleEndian(T* value) {
    if (left_ < sizeof(T)) return false;
    *value = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      *value |= static_cast<T>(static_cast<uint8_t>(Next())) << (8 * i);
    }
    return true;
  }
  // A size, and so many bytes: each piece of them to `take`.
  template <typename Take>
  bool ReadBytes(const Take& take) {
    uint64_t bytes = 0;
    if (!ReadVarint(5, left_, &bytes) || bytes > left_) return false;
    while (bytes > 0) {
      const absl::string_view here = Here();
      const size_t taken = std::min<size_t>(here.size(), bytes);
      take(here.substr(0, taken));
      at_ += taken;
      left_ -= taken;
      bytes -= taken;
    }
    return true;
  }
  bool Skip(uint32_t type) {
    uint64_t wide = 0;
    uint32_t narrow = 0;
    switch (type) {
      case kVarint:
        return ReadVarint(10, std::numeric_limits<uint64_t>::max(), &wide);
      case kFixed64:
        return ReadLittleEndian(&wide);
      case kFixed32:
        return ReadLittleEndian(&narrow);
      case kBytes:
        return ReadBytes([](absl::string_view) {});
      default:
        return false;  // groups, which no sender makes
    }
  }

 private:
  // What is left of the piece that is next. REQUIRES left() > 0.
  absl::string_view Here() {
    while (at_ == pieces_[piece_].size()) {
      ++piece_;
      at_ = 0;
    }
    return pieces_[piece_].substr(at_);
  }
  char Next() {
    const char byte = Here().front();
    ++at_;
    --left_;
    return byte;
  }

  const absl::Span<const absl::string_view> pieces_;
  size_t piece_ = 0, at_ = 0, left_ = 0;
};

// The numbers of a frame. A 32-bit one is the low half of what is read, as protobuf has it.
bool SetNumber(uint32_t field, uint64_t value, ParsedFrame& parsed) {
  PodFrame& frame = parsed.frame;
  const auto wide = static_cast<int64_t>(value);
  const auto narrow = static_cast<int32_t>(static_cast<uint32_t>(value));
  switch (field) {
    case kNumber:
      frame.number = value;
      return true;
    case kMessage:
      frame.message = value;
      return true;
    case kOffset:
      frame.offset = wide;
      return true;
    case kSize:
      frame.size = wide;
      return true;
    case kView:
      frame.words.view = value;
      return true;
    case kKind:
      frame.words.kind = narrow;
      return true;
    case kStep:
      frame.words.step = wide;
      return true;
    case kFragment:
      frame.words.fragment = narrow;
      return true;
    case kCodec:
      frame.words.codec = narrow;
      return true;
    case kAlive:
      parsed.alive = value != 0;
      return true;
    case kPod:
      frame.words.from.pod = wide;
      return true;
    case kEpoch:
      frame.words.epoch = value;
      return true;
    default:
      return false;
  }
}

// The field behind `tag`. False: the bytes end in it, or it is of no such type.
bool ReadField(uint32_t tag, Reader& in, ParsedFrame& parsed) {
  uint64_t wide = 0;
  switch (tag) {
    case Tag(kHello, kBytes):  // parts of a message that comes twice add up
      parsed.has_hello = true;
      return in.ReadBytes(
          [&](absl::string_view piece) { parsed.hello.append(piece.data(), piece.size()); });
    case Tag(kData, kBytes):
      parsed.frame.data.clear();
      return in.ReadBytes([&](absl::string_view piece) { parsed.frame.data.push_back(piece); });
    case Tag(kJob, kBytes):
      parsed.frame.job.clear();
      return in.ReadBytes(
          [&](absl::string_view piece) { parsed.frame.job.append(piece.data(), piece.size()); });
    case Tag(kChecksum, kFixed32):
      return in.ReadLittleEndian(&parsed.checksum);
    case Tag(kWeight, kFixed64):
      if (!in.ReadLittleEndian(&wide)) return false;
      parsed.frame.words.weight = std::bit_cast<double>(wide);
      return true;
    default:
      break;
  }
  if (tag % 8 != kVarint) return in.Skip(tag % 8);
  if (!in.ReadVarint(10, std::numeric_limits<uint64_t>::max(), &wide)) return false;
  (void)SetNumber(tag / 8, wide, parsed);
  return true;
}

}  // namespace

int64_t PodFrame::bytes() const {
  size_t bytes = 0;
  for (const absl::string_view piece : data) bytes += piece.size();
  return static_cast<int64_t>(bytes);
}

uint32_t FrameChecksum(const PodFrame& frame) {
  const PodMessage& words = frame.words;
  uint64_t numbers[12] = {frame.number,
                          frame.message,
                          static_cast<uint64_t>(frame.offset),
                          static_cast<uint64_t>(frame.size),
                          words.view,
                          static_cast<uint64_t>(words.kind),
                          static_cast<uint64_t>(words.step),
                          static_cast<uint64_t>(words.fragment),
                          static_cast<uint64_t>(words.codec),
                          static_cast<uint64_t>(words.from.pod),
                          words.epoch,
                          0};
  std::memcpy(&numbers[11], &words.weight, sizeof(words.weight));
  uint8_t bytes[sizeof(numbers)];  // little-endian, whatever the host is
  for (size_t i = 0; i < sizeof(bytes); ++i) {
    bytes[i] = static_cast<uint8_t>(numbers[i / 8] >> (8 * (i % 8)));
  }
  uint32_t checksum = Crc32c(bytes);
  checksum =
      Crc32c({reinterpret_cast<const uint8_t*>(frame.job.data()), frame.job.size()}, checksum);
  for (const absl::string_view piece : frame.data) {
    checksum = Crc32c({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()}, checksum);
  }
  return checksum;
}

std::string FrameHead(const PodFrame& frame) {
  const PodMessage& words = frame.words;
  std::string out;
  AppendNumber(kNumber, static_cast<int64_t>(frame.number), &out);
  AppendNumber(kMessage, static_cast<int64_t>(frame.message), &out);
  AppendNumber(kOffset, frame.offset, &out);
  AppendNumber(kSize, frame.size, &out);
  AppendVarint(Tag(kChecksum, kFixed32), &out);
  AppendLittleEndian(FrameChecksum(frame), &out);
  AppendNumber(kView, static_cast<int64_t>(words.view), &out);
  AppendNumber(kKind, words.kind, &out);
  AppendNumber(kStep, words.step, &out);
  AppendNumber(kFragment, words.fragment, &out);
  AppendNumber(kCodec, words.codec, &out);
  AppendVarint(Tag(kWeight, kFixed64), &out);
  AppendLittleEndian(std::bit_cast<uint64_t>(words.weight), &out);
  AppendVarint(Tag(kJob, kBytes), &out);
  AppendVarint(frame.job.size(), &out);
  out += frame.job;
  AppendNumber(kPod, words.from.pod, &out);
  AppendNumber(kEpoch, static_cast<int64_t>(words.epoch), &out);
  AppendVarint(Tag(kData, kBytes), &out);
  AppendVarint(static_cast<uint64_t>(frame.bytes()), &out);
  return out;
}

absl::StatusOr<ParsedFrame> ParseFrame(absl::Span<const absl::string_view> pieces) {
  constexpr uint64_t kMostTag = std::numeric_limits<uint32_t>::max();
  ParsedFrame parsed;
  Reader in(pieces);
  while (in.left() > 0) {
    uint64_t tag = 0;
    if (!in.ReadVarint(5, kMostTag, &tag) || tag < 8 ||
        !ReadField(static_cast<uint32_t>(tag), in, parsed)) {
      return absl::DataLossError("broken stream: unreadable frame");
    }
  }
  // What has a number is a frame whatever else it says, and its checksum tells what was spoilt.
  parsed.alive = parsed.alive && parsed.frame.number == 0;
  return parsed;
}

}  // namespace toroid
