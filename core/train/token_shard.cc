#include "core/train/token_shard.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/crc32c.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr char kMagic[] = "TOROIDTS";
constexpr uint32_t kVersion = 1;
constexpr int64_t kHeaderBytes = 64;
constexpr int64_t kBlockBytes = 64 << 10;

struct Header {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t vocab_size, documents, tokens, source;
  uint8_t zeros[12];
  uint32_t checksum;
};
static_assert(sizeof(Header) == kHeaderBytes);

absl::Span<const uint8_t> BytesOf(const void* data, size_t size) {
  return {static_cast<const uint8_t*>(data), size};
}

template <typename T>
absl::Span<const uint8_t> BytesOf(const std::vector<T>& values) {
  return BytesOf(values.data(), values.size() * sizeof(T));
}

template <typename T>
T At(absl::Span<const uint8_t> bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + size_t(index) * sizeof(T), sizeof(T));
  return value;
}

int64_t Pad8(int64_t bytes) { return (bytes + 7) / 8 * 8; }

// The ids of `count` tokens of T at `data`.
template <typename T>
void Widen(const uint8_t* data, int64_t count, int32_t* ids) {
  for (int64_t i = 0; i < count; ++i) {
    T id;
    std::memcpy(&id, data + size_t(i) * sizeof(T), sizeof(T));
    ids[i] = int32_t(id);
  }
}

template <typename T>
uint64_t Largest(absl::Span<const uint8_t> bytes) {
  T largest = 0;
  for (size_t i = 0; i < bytes.size() / sizeof(T); ++i) {
    largest = std::max(largest, At<T>(bytes, int64_t(i)));
  }
  return largest;
}

}  // namespace

absl::StatusOr<TokenShardWriter> TokenShardWriter::Create(const std::string& path,
                                                          int64_t vocab_size, uint64_t source) {
  TOROID_CHECK(vocab_size > 0 && vocab_size < (int64_t{1} << 31));
  TOROID_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  const std::vector<uint8_t> header(kHeaderBytes);  // its numbers are known at the end
  TOROID_RETURN_IF_ERROR(file.Append(header));
  return TokenShardWriter(std::move(file), vocab_size, source);
}

TokenShardWriter::TokenShardWriter(AtomicFile file, int64_t vocab_size, uint64_t source)
    : file_(std::move(file)),
      vocab_size_(vocab_size),
      source_(source),
      token_bytes_(vocab_size <= 65536 ? 2 : 4) {}

absl::Status TokenShardWriter::Add(std::span<const int32_t> ids) {
  if (ids.empty()) return absl::OkStatus();
  for (const int32_t id : ids) {
    TOROID_CHECK(id >= 0 && id < vocab_size_);
    uint8_t bytes[4];
    std::memcpy(bytes, &id, 4);
    block_.insert(block_.end(), bytes, bytes + token_bytes_);
    if (int64_t(block_.size()) == kBlockBytes) TOROID_RETURN_IF_ERROR(Flush());
  }
  begins_.push_back(begins_.back() + int64_t(ids.size()));
  return absl::OkStatus();
}

absl::Status TokenShardWriter::Flush() {
  if (block_.empty()) return absl::OkStatus();
  checksums_.push_back(Crc32c(block_));
  TOROID_RETURN_IF_ERROR(file_.Append(block_));
  block_.clear();
  return absl::OkStatus();
}

absl::Status TokenShardWriter::Finish() {
  TOROID_RETURN_IF_ERROR(Flush());
  const uint8_t zeros[8] = {};
  const size_t padding = size_t(Pad8(file_.written()) - file_.written());
  TOROID_RETURN_IF_ERROR(file_.Append(BytesOf(zeros, padding)));
  const uint32_t tables = Crc32c(BytesOf(checksums_), Crc32c(BytesOf(begins_)));
  TOROID_RETURN_IF_ERROR(file_.Append(BytesOf(begins_)));
  TOROID_RETURN_IF_ERROR(file_.Append(BytesOf(checksums_)));
  TOROID_RETURN_IF_ERROR(file_.Append(BytesOf(&tables, 4)));
  Header header = {.version = kVersion,
                   .token_bytes = uint32_t(token_bytes_),
                   .vocab_size = uint64_t(vocab_size_),
                   .documents = uint64_t(documents()),
                   .tokens = uint64_t(tokens()),
                   .source = source_};
  std::memcpy(header.magic, kMagic, 8);
  header.checksum = Crc32c(BytesOf(&header, kHeaderBytes - 4));
  TOROID_RETURN_IF_ERROR(file_.Overwrite(0, BytesOf(&header, kHeaderBytes)));
  return file_.Commit();
}

absl::StatusOr<TokenShard> TokenShard::Open(const std::string& path) {
  TOROID_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  TOROID_ASSIGN_OR_RETURN(TokenShard shard, Parse(file.bytes(), path));
  shard.file_ = std::move(file);
  return shard;
}

absl::StatusOr<TokenShard> TokenShard::Parse(absl::Span<const uint8_t> bytes, std::string name) {
  TokenShard shard;
  shard.name_ = std::move(name);
  TOROID_RETURN_IF_ERROR(shard.CheckHeader(bytes));
  TOROID_RETURN_IF_ERROR(shard.CheckTables());
  shard.checked_ = std::make_unique<std::atomic<bool>[]>(size_t(shard.blocks_));
  return shard;
}

absl::Status TokenShard::Wrong(absl::string_view rule) const {
  return absl::InvalidArgumentError(absl::StrCat(name_, ": no token shard: ", rule));
}

absl::Status TokenShard::CheckHeader(absl::Span<const uint8_t> bytes) {
  const uint64_t size = bytes.size();
  if (size < uint64_t(kHeaderBytes)) return Wrong("it is shorter than a header");
  Header header;
  std::memcpy(&header, bytes.data(), kHeaderBytes);
  if (std::memcmp(header.magic, kMagic, 8) != 0) {
    return Wrong(absl::StrCat("it does not begin with ", kMagic));
  }
  if (header.version != kVersion) {
    return Wrong(absl::StrCat("version ", header.version, "; this program reads ", kVersion));
  }
  if (header.checksum != Crc32c(bytes.subspan(0, kHeaderBytes - 4))) {
    return Wrong("the header is damaged");
  }
  if (header.token_bytes != 2 && header.token_bytes != 4) {
    return Wrong(absl::StrCat(header.token_bytes, " bytes per token; 2 and 4 exist"));
  }
  if (header.vocab_size == 0 || header.vocab_size >= uint64_t{1} << 31) {
    return Wrong(absl::StrCat("a vocabulary of ", header.vocab_size));
  }
  // Both are bounded by the file, so that no product below overflows.
  if (header.tokens > size || header.documents > header.tokens) {
    return Wrong(absl::StrCat(header.documents, " documents and ", header.tokens,
                              " tokens do not fit into ", size, " bytes"));
  }
  token_bytes_ = header.token_bytes;
  vocab_size_ = int64_t(header.vocab_size);
  documents_ = int64_t(header.documents);
  tokens_ = int64_t(header.tokens);
  source_ = header.source;
  const int64_t data = tokens_ * token_bytes_;
  blocks_ = (data + kBlockBytes - 1) / kBlockBytes;
  const int64_t expected = kHeaderBytes + Pad8(data) + 8 * (documents_ + 1) + 4 * blocks_ + 4;
  if (int64_t(size) != expected) {
    return Wrong(absl::StrCat("it has ", size, " bytes, its header asks for ", expected));
  }
  token_data_ = bytes.subspan(kHeaderBytes, size_t(data));
  for (const uint8_t pad : bytes.subspan(size_t(kHeaderBytes + data), size_t(Pad8(data) - data))) {
    if (pad != 0) return Wrong("what pads its tokens is not zero");
  }
  begins_ = bytes.subspan(size_t(kHeaderBytes + Pad8(data)), size_t(8 * (documents_ + 1)));
  checksums_ = bytes.subspan(bytes.size() - size_t(4 * blocks_ + 4), size_t(4 * blocks_ + 4));
  return absl::OkStatus();
}

absl::Status TokenShard::CheckTables() {
  checksum_ = At<uint32_t>(checksums_, blocks_);
  if (checksum_ != Crc32c(checksums_.subspan(0, size_t(4 * blocks_)), Crc32c(begins_))) {
    return Wrong("its tables are damaged");
  }
  if (Begin(0) != 0 || Begin(documents_) != tokens_) {
    return Wrong("its documents do not cover its tokens");
  }
  for (int64_t i = 0; i < documents_; ++i) {
    if (Begin(i) >= Begin(i + 1)) return Wrong(absl::StrCat("document ", i, " is empty"));
  }
  return absl::OkStatus();
}

int64_t TokenShard::Begin(int64_t document) const { return At<int64_t>(begins_, document); }

int64_t TokenShard::Length(int64_t document) const {
  TOROID_CHECK(document >= 0 && document < documents_);
  return Begin(document + 1) - Begin(document);
}

absl::Status TokenShard::CheckBlock(int64_t block) const {
  const int64_t begin = block * kBlockBytes;
  const auto bytes = token_data_.subspan(
      size_t(begin), size_t(std::min<int64_t>(kBlockBytes, tokens_ * token_bytes_ - begin)));
  if (Crc32c(bytes) != At<uint32_t>(checksums_, block)) {
    return absl::DataLossError(absl::StrCat(
        name_, ": the tokens are damaged in the 64 KiB from byte ", kHeaderBytes + begin,
        "; remove the file so that it is made again, or copy it anew"));
  }
  const uint64_t largest = token_bytes_ == 2 ? Largest<uint16_t>(bytes) : Largest<uint32_t>(bytes);
  if (largest >= uint64_t(vocab_size_)) {
    return Wrong(absl::StrCat("token ", largest, " in a vocabulary of ", vocab_size_));
  }
  return absl::OkStatus();
}

absl::Status TokenShard::Read(int64_t document, int64_t first, int64_t count, int32_t* ids) const {
  TOROID_CHECK(first >= 0 && count >= 0 && first + count <= Length(document));
  if (count == 0) return absl::OkStatus();
  const int64_t begin = (Begin(document) + first) * token_bytes_;
  const int64_t end = begin + count * token_bytes_;
  for (int64_t block = begin / kBlockBytes; block * kBlockBytes < end; ++block) {
    if (checked_[size_t(block)].load(std::memory_order_relaxed)) continue;
    TOROID_RETURN_IF_ERROR(CheckBlock(block));  // twice, if two threads meet here: harmless
    checked_[size_t(block)].store(true, std::memory_order_relaxed);
  }
  const uint8_t* data = token_data_.data() + begin;
  token_bytes_ == 2 ? Widen<uint16_t>(data, count, ids) : Widen<uint32_t>(data, count, ids);
  return absl::OkStatus();
}

}  // namespace toroid
