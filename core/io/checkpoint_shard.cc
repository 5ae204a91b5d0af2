#include "core/io/checkpoint_shard.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/fingerprint.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kBlock = 1 << 20;
// A slow disk gets no more than this to do in one call.
constexpr int64_t kSyncBytes = 256 * kBlock;

struct FileHeader {
  char magic[8] = {'T', 'O', 'R', 'O', 'I', 'D', 'S', 'H'};
  ShardHeader shard;
  int64_t data_bytes = 0;
  char zeros[16] = {};
};
static_assert(sizeof(FileHeader) == 64);

template <typename T>
absl::Span<const uint8_t> BytesOf(const T* values, size_t count) {
  return {reinterpret_cast<const uint8_t*>(values), count * sizeof(T)};
}

uint64_t HashOf(absl::Span<const uint8_t> bytes) {
  FingerprintHash hash;
  hash.Bytes(bytes);
  return hash.value();
}

uint64_t HashOfAll(const FileHeader& header, const std::vector<uint64_t>& hashes) {
  FingerprintHash hash;
  hash.Bytes(BytesOf(&header, 1));
  hash.Bytes(BytesOf(hashes.data(), hashes.size()));
  return hash.value();
}

FileHeader HeaderOf(const ShardHeader& shard, int64_t data_bytes) {
  FileHeader header;
  header.shard = shard;
  header.data_bytes = data_bytes;
  return header;
}

int64_t Blocks(int64_t data_bytes) { return (data_bytes + kBlock - 1) / kBlock; }

absl::Status Refuse(const std::string& path, absl::string_view why) {
  return absl::DataLossError(absl::StrCat("shard ", path, ": ", why));
}

// OK if a file that begins with `found` is the one that is wanted, by its own word.
absl::Status CheckName(const std::string& path, const FileHeader& found, const FileHeader& wanted) {
  if (std::memcmp(found.magic, wanted.magic, sizeof found.magic) != 0) {
    return Refuse(path, "damaged: it does not begin as a shard of a checkpoint");
  }
  const ShardHeader &is = found.shard, &want = wanted.shard;
  if (is.step != want.step) {
    return Refuse(path, absl::StrCat("it is of step ", is.step, ", the checkpoint of ", want.step));
  }
  if (is.rank != want.rank || is.ranks != want.ranks) {
    return Refuse(path, absl::StrCat("it is the shard of rank ", is.rank, " of ", is.ranks,
                                     ", not of rank ", want.rank, " of ", want.ranks));
  }
  if (is.save_id != want.save_id) {
    return Refuse(path, absl::StrCat("it is of another checkpoint of step ", is.step));
  }
  return absl::OkStatus();
}

}  // namespace

int64_t ShardBytes(int64_t data_bytes) {
  return int64_t(sizeof(FileHeader)) + data_bytes + 8 * Blocks(data_bytes);
}

absl::StatusOr<std::unique_ptr<ShardWriter>> ShardWriter::Create(FileSystem& files,
                                                                 const std::string& path,
                                                                 const ShardHeader& header,
                                                                 int64_t data_bytes) {
  std::unique_ptr<ShardWriter> writer(new ShardWriter());
  writer->header_ = header;
  writer->data_bytes_ = data_bytes;
  const FileHeader head = HeaderOf(header, data_bytes);
  TOROID_ASSIGN_OR_RETURN(writer->file_, files.Create(path));
  TOROID_RETURN_IF_ERROR(writer->file_->Append(BytesOf(&head, 1)));
  return writer;
}

absl::Status ShardWriter::WriteBlock(absl::Span<const uint8_t> block) {
  hashes_.push_back(HashOf(block));
  written_ += int64_t(block.size());
  TOROID_RETURN_IF_ERROR(file_->Append(block));
  return written_ % kSyncBytes == 0 ? file_->Sync() : absl::OkStatus();
}

// Whole blocks are written from where they lie; what is left of a piece waits for the next.
absl::Status ShardWriter::Append(absl::Span<const uint8_t> data) {
  while (!data.empty()) {
    if (block_.empty() && data.size() >= size_t{kBlock}) {
      TOROID_RETURN_IF_ERROR(WriteBlock(data.first(kBlock)));
      data.remove_prefix(kBlock);
      continue;
    }
    const size_t count = std::min(data.size(), size_t{kBlock} - block_.size());
    block_.insert(block_.end(), data.begin(), data.begin() + ptrdiff_t(count));
    data.remove_prefix(count);
    if (block_.size() < size_t{kBlock}) continue;
    TOROID_RETURN_IF_ERROR(WriteBlock(block_));
    block_.clear();
  }
  return absl::OkStatus();
}

absl::StatusOr<ShardSeal> ShardWriter::Finish() {
  if (!block_.empty()) TOROID_RETURN_IF_ERROR(WriteBlock(block_));
  TOROID_CHECK_EQ(written_, data_bytes_);
  TOROID_RETURN_IF_ERROR(file_->Append(BytesOf(hashes_.data(), hashes_.size())));
  TOROID_RETURN_IF_ERROR(file_->Sync());
  TOROID_RETURN_IF_ERROR(file_->Close());
  return ShardSeal{ShardBytes(data_bytes_), HashOfAll(HeaderOf(header_, data_bytes_), hashes_)};
}

absl::StatusOr<ShardSeal> WriteShard(FileSystem& files, const std::string& path,
                                     const ShardHeader& header, absl::Span<const uint8_t> data) {
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<ShardWriter> writer,
                          ShardWriter::Create(files, path, header, int64_t(data.size())));
  TOROID_RETURN_IF_ERROR(writer->Append(data));
  return writer->Finish();
}

absl::StatusOr<std::unique_ptr<ShardReader>> ShardReader::Open(FileSystem& files,
                                                               const std::string& path,
                                                               const ShardHeader& header,
                                                               const ShardSeal& seal) {
  absl::StatusOr<std::unique_ptr<ReadableFile>> file = files.Open(path);
  if (absl::IsNotFound(file.status())) return Refuse(path, "missing");
  TOROID_RETURN_IF_ERROR(file.status());
  FileHeader wanted, found;
  wanted.shard = header;
  const int64_t size = (*file)->size();
  if (size >= int64_t(sizeof found)) {  // the file's own word tells most
    TOROID_RETURN_IF_ERROR((*file)->Read(0, {reinterpret_cast<uint8_t*>(&found), sizeof found}));
    TOROID_RETURN_IF_ERROR(CheckName(path, found, wanted));
  }
  if (size != seal.bytes) {
    return Refuse(path, absl::StrCat(size, " bytes, the manifest says ", seal.bytes));
  }
  std::unique_ptr<ShardReader> reader(new ShardReader());
  reader->path_ = path;
  reader->data_bytes_ = found.data_bytes;
  if (found.data_bytes < 0 || found.data_bytes > size || ShardBytes(found.data_bytes) != size) {
    return Refuse(path, "damaged: its header gives another length");
  }
  reader->hashes_.resize(size_t(Blocks(found.data_bytes)));
  TOROID_RETURN_IF_ERROR((*file)->Read(int64_t(sizeof found) + found.data_bytes,
                                       {reinterpret_cast<uint8_t*>(reader->hashes_.data()),
                                        reader->hashes_.size() * sizeof(uint64_t)}));
  if (HashOfAll(found, reader->hashes_) != seal.hash) {
    return Refuse(path, "damaged: its header or its table of hashes is not what was written");
  }
  reader->file_ = std::move(*file);
  return reader;
}

absl::Status ShardReader::ReadBlock(int64_t block) {
  if (held_ == block) return absl::OkStatus();
  held_ = -1;
  block_.resize(size_t(std::min(kBlock, data_bytes_ - block * kBlock)));
  TOROID_RETURN_IF_ERROR(
      file_->Read(int64_t(sizeof(FileHeader)) + block * kBlock, absl::MakeSpan(block_)));
  if (HashOf(block_) != hashes_[block]) {
    return Refuse(path_,
                  absl::StrCat("damaged: bytes ", sizeof(FileHeader) + block * kBlock,
                               " and the next ", block_.size(), " are not what was written"));
  }
  held_ = block;
  return absl::OkStatus();
}

absl::Status ShardReader::Read(int64_t offset, absl::Span<uint8_t> out) {
  TOROID_CHECK(offset >= 0 && offset + int64_t(out.size()) <= data_bytes_);
  while (!out.empty()) {
    TOROID_RETURN_IF_ERROR(ReadBlock(offset / kBlock));
    const int64_t within = offset % kBlock;
    const size_t count = std::min(out.size(), block_.size() - size_t(within));
    std::memcpy(out.data(), block_.data() + within, count);
    offset += int64_t(count);
    out.remove_prefix(count);
  }
  return absl::OkStatus();
}

}  // namespace toroid
