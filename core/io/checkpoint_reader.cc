#include "core/io/checkpoint_reader.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/io/checkpoint_directory.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr size_t kOpenShards = 16;

// Columns of a row, counted in the whole parameter, that a run of a rectangle holds.
Range ColumnsOf(const CheckpointPiece& piece, int64_t row) {
  const int64_t cols = piece.slice.col_count, local = row - piece.slice.row_begin;
  const int64_t begin = std::max(piece.begin, local * cols) - local * cols;
  const int64_t end = std::min(piece.begin + piece.count, (local + 1) * cols) - local * cols;
  return {piece.slice.col_begin + begin, piece.slice.col_begin + end};
}

// Rows that it has elements of.
Range RowsOf(const CheckpointPiece& piece) {
  const int64_t cols = piece.slice.col_count;
  return {piece.slice.row_begin + piece.begin / cols,
          piece.slice.row_begin + (piece.begin + piece.count - 1) / cols + 1};
}

// Index of an element in the run.
int64_t IndexOf(const CheckpointPiece& piece, int64_t row, int64_t col) {
  return (row - piece.slice.row_begin) * piece.slice.col_count + col - piece.slice.col_begin -
         piece.begin;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(
    FileSystem& files, const std::string& directory) {
  TOROID_RETURN_IF_ERROR(files.List(directory).status());
  const std::string path = absl::StrCat(directory, "/", kManifestName);
  const absl::StatusOr<std::string> text = ReadWhole(files, path, kManifestBytes);
  if (absl::IsNotFound(text.status())) {
    return absl::DataLossError(absl::StrCat(path, ": missing"));
  }
  TOROID_RETURN_IF_ERROR(text.status());
  std::unique_ptr<CheckpointReader> reader(new CheckpointReader(files, directory));
  TOROID_ASSIGN_OR_RETURN(reader->manifest_, CheckpointManifest::Parse(*text, path));
  reader->hash_ = ManifestHash(*text);
  const CheckpointManifest& manifest = reader->manifest_;
  for (size_t i = 0; i < manifest.parameters.size(); ++i) {
    if (!reader->by_name_.emplace(manifest.parameters[i].name, i).second) {
      return absl::DataLossError(
          absl::StrCat(path, ": ", manifest.parameters[i].name, ": listed twice"));
    }
  }
  reader->places_.resize(manifest.parameters.size());
  for (size_t rank = 0; rank < manifest.shards.size(); ++rank) {
    int64_t offset = 0;
    const std::vector<CheckpointPiece>& pieces = manifest.shards[rank].pieces;
    for (size_t i = 0; i < pieces.size(); ++i) {
      reader->places_[pieces[i].parameter].push_back({int64_t(rank), int64_t(i), offset});
      offset += pieces[i].count;
    }
    reader->elements_.push_back(offset);
  }
  return reader;
}

int64_t CheckpointReader::FindParameter(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? -1 : found->second;
}

absl::StatusOr<ShardReader*> CheckpointReader::Shard(int64_t rank) {
  for (const OpenShard& shard : open_) {
    if (shard.rank == rank) return shard.reader.get();
  }
  const int64_t ranks = int64_t(manifest_.shards.size());
  const CheckpointShard& shard = manifest_.shards[rank];
  TOROID_ASSIGN_OR_RETURN(
      std::unique_ptr<ShardReader> reader,
      ShardReader::Open(files_, absl::StrCat(directory_, "/", ShardName(rank, ranks)),
                        {manifest_.save_id, manifest_.state.step, rank, ranks},
                        {shard.bytes, shard.hash}));
  if (open_.size() < kOpenShards) {
    next_open_ = open_.size();
    open_.emplace_back();
  }
  OpenShard& place = open_[next_open_];
  next_open_ = (next_open_ + 1) % kOpenShards;  // the one opened longest ago goes
  place = {rank, std::move(reader)};
  return place.reader.get();
}

// Elements [element, + count) of a piece.
absl::Status CheckpointReader::ReadPart(int kind, const Place& place, int64_t element,
                                        int64_t count, char* out) {
  TOROID_ASSIGN_OR_RETURN(ShardReader* const shard, Shard(place.shard));
  const int64_t first = int64_t{kind} * elements_[place.shard] + place.offset + element;
  return shard->Read(RowBytes(manifest_.dtype, first),
                     {reinterpret_cast<uint8_t*>(out), size_t(RowBytes(manifest_.dtype, count))});
}

// What the piece shares with the wanted run.
absl::Status CheckpointReader::ReadShared(int kind, const Place& place,
                                          const CheckpointPiece& wanted, char* out) {
  const CheckpointPiece& piece = manifest_.shards[place.shard].pieces[place.piece];
  const Range own = RowsOf(piece), other = RowsOf(wanted);
  const Range rows = {std::max(own.begin, other.begin), std::min(own.end, other.end)};
  const bool aligned = piece.slice.col_begin == wanted.slice.col_begin &&
                       piece.slice.col_count == wanted.slice.col_count;
  if (rows.size() > 0 && aligned) {  // one run of both
    const int64_t shift = IndexOf(piece, wanted.slice.row_begin, wanted.slice.col_begin) +
                          wanted.begin;  // of wanted element 0 in the piece
    const int64_t begin = std::max<int64_t>(0, -shift);
    const int64_t end = std::min(wanted.count, piece.count - shift);
    if (begin >= end) return absl::OkStatus();
    return ReadPart(kind, place, begin + shift, end - begin,
                    out + RowBytes(manifest_.dtype, begin));
  }
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const Range a = ColumnsOf(piece, row), b = ColumnsOf(wanted, row);
    const int64_t begin = std::max(a.begin, b.begin), end = std::min(a.end, b.end);
    if (begin >= end) continue;
    TOROID_RETURN_IF_ERROR(ReadPart(kind, place, IndexOf(piece, row, begin), end - begin,
                                    out + RowBytes(manifest_.dtype, IndexOf(wanted, row, begin))));
  }
  return absl::OkStatus();
}

absl::Status CheckpointReader::Read(int kind, int64_t parameter, const ParamSlice& slice,
                                    int64_t begin, int64_t count, void* out) {
  if (count == 0) return absl::OkStatus();
  const CheckpointParameter& whole = manifest_.parameters[parameter];
  TOROID_CHECK(slice.row_begin >= 0 && slice.row_begin + slice.row_count <= whole.rows &&
               slice.col_begin >= 0 && slice.col_begin + slice.col_count <= whole.cols);
  TOROID_CHECK(begin >= 0 && begin + count <= slice.row_count * slice.col_count);
  const CheckpointPiece wanted = {parameter, slice, begin, count};
  for (const Place& place : places_[parameter]) {
    TOROID_RETURN_IF_ERROR(ReadShared(kind, place, wanted, static_cast<char*>(out)));
  }
  return absl::OkStatus();
}

absl::Status CheckpointReader::CheckName() const {
  const TrainingState& state = manifest_.state;
  CheckpointEntry entry;
  if (!ParseCheckpointName(SplitCheckpointPath(directory_).second, entry)) return absl::OkStatus();
  if (entry.step == state.step && entry.branch == state.branch) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(directory_, "/", kManifestName, ": it is of ",
                                          CheckpointName(state.step, state.branch)));
}

absl::Status CheckpointReader::CheckShards() {
  for (size_t rank = 0; rank < manifest_.shards.size(); ++rank) {
    TOROID_RETURN_IF_ERROR(CheckShard(int64_t(rank)));
  }
  return absl::OkStatus();
}

absl::Status CheckpointReader::VerifyShard(int64_t rank) {
  TOROID_ASSIGN_OR_RETURN(ShardReader* const shard, Shard(rank));
  const int64_t size = RowBytes(manifest_.dtype, elements_[rank] * manifest_.kinds());
  std::vector<uint8_t> bytes;
  for (int64_t begin = 0; begin < size; begin += int64_t(bytes.size())) {
    bytes.resize(size_t(std::min<int64_t>(1 << 20, size - begin)));
    TOROID_RETURN_IF_ERROR(shard->Read(begin, absl::MakeSpan(bytes)));
  }
  return absl::OkStatus();
}

absl::Status CheckpointReader::Verify() {
  for (size_t rank = 0; rank < manifest_.shards.size(); ++rank) {
    TOROID_RETURN_IF_ERROR(VerifyShard(int64_t(rank)));
  }
  return absl::OkStatus();
}

std::string CheckpointBefore(FileSystem& files, const std::string& path) {
  const auto [directory, name] = SplitCheckpointPath(path);
  absl::StatusOr<std::vector<CheckpointEntry>> entries = ListCheckpoints(files, directory);
  if (!entries.ok()) return "";
  CheckpointEntry self;
  if (!ParseCheckpointName(name, self)) return "";
  entries->push_back(self);  // it may be the directory itself that is missing
  bool passed = false;
  for (const CheckpointEntry& entry : Loadable(*entries)) {
    const std::string other = absl::StrCat(directory, "/", entry.name);
    if (entry.name == name) {
      passed = true;
    } else if (passed && CheckpointReader::Open(files, other).ok()) {
      return other;
    }
  }
  return "";
}

absl::Status OfferBefore(FileSystem& files, const std::string& path, const absl::Status& status) {
  if (!absl::IsDataLoss(status) && !absl::IsNotFound(status)) return status;
  const std::string before = CheckpointBefore(files, path);
  if (before.empty()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(status.message(), "; the checkpoint before is ", before));
}

}  // namespace toroid
