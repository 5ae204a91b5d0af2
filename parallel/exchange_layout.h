// ExchangeLayout: which elements of a group a rank sends to and takes from each rank of another
// pod, whose mesh may be another one. ExchangeCoder: a rank's stored range of a group as codes.
//
// A rank takes every element that it stores exactly once: from the peer pod's rank of its own
// number where that one holds the element (so equal meshes make twins), else from the lowest rank
// that does. Both sides work this out from the model and the two meshes alone.
//
// Blocks of codes begin where a parameter's slice does and never straddle a KV head, so every
// holder of replicated elements encodes them alike, whatever else it holds. The receiver decodes
// with the blocks and scales of the sender. Immutable, thread-safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/model/param_groups.h"
#include "kernels/exchange_codec.h"
#include "parallel/mesh.h"
#include "parallel/shared_bytes.h"

namespace toroid {

// Consecutive elements of one parameter in the group's stored ranges of this rank and of the peer.
struct ExchangeRun {
  int64_t own = 0, peer = 0, count = 0;
  // Elements of the parameter's blocks: element o of a stored range is of block o / block.
  int64_t block = kCodecBlock;
  bool operator==(const ExchangeRun&) const = default;
};

// What one rank of the other pod's world has to do with this rank, of one group. Runs are in
// ascending order on both sides, so both sides list the same.
struct ExchangePart {
  int64_t rank = 0;
  std::vector<ExchangeRun> runs;
};

// A group's stored range. Pads are zero.
struct CodedRange {
  Codec codec = Codec::kFp32;
  int64_t size = 0;              // elements
  int64_t unit = kCodecBlock;    // elements that share a scale at least: divides every block
  SharedBytes codes;             // CodeBytes(codec, size)
  std::vector<uint16_t> scales;  // bf16, of each unit; empty if the codec has none
  int64_t bytes() const { return int64_t(codes.size() + scales.size() * sizeof(uint16_t)); }
};

// The numbers that others will decode, which the sender itself must add too: of `count` elements
// from `begin` on.
template <typename T>
void Decode(const CodedRange& coded, int64_t begin, int64_t count, T* values);

// Elements in a block of this parameter's codes.
int64_t ExchangeBlock(const ParamSpec& spec, int64_t head_dim);

// What one rank stores of each group, as blocks.
class ExchangeCoder {
 public:
  // layers: the first so many, as ParamGroups. REQUIRES: 0 <= rank < mesh.size().
  ExchangeCoder(const ModelConfig& config, int64_t layers, const MeshShape& mesh, int64_t rank);

  int64_t groups() const { return int64_t(groups_.size()); }
  int64_t size(int64_t group) const { return groups_[group].size; }  // of the stored range

  // values: the stored range [size(group)]. The codes lie in memory that is used again once nobody
  // shares them any more: of `memory` for what comes once, so that as much is not kept for ever.
  template <typename T>
  CodedRange Encode(ThreadPool& pool, int64_t group, const T* values, Codec codec,
                    const CodecRounding& rounding, const BytePool* memory = nullptr) const;
  // The same a range after the other: room for all codes, pads zero, and then the codes of these
  // elements. REQUIRES: nobody shares the codes yet; a codec with scales takes all elements at
  // once.
  CodedRange NewRange(int64_t group, Codec codec, const BytePool* memory = nullptr) const;
  template <typename T>
  void EncodeRange(ThreadPool& pool, int64_t group, Range elements, const T* values,
                   const CodecRounding& rounding, CodedRange& coded) const;

 private:
  struct Piece {
    CodecPlace place;
    int64_t offset, count, block;
  };
  struct Group {
    int64_t size = 0, unit = kCodecBlock;
    std::vector<Piece> pieces;
  };
  std::vector<Group> groups_;
  BytePool memory_;
};

class ExchangeLayout {
 public:
  // Of world rank own_rank of a mesh `own` and all ranks of another pod's mesh `peer`.
  ExchangeLayout(const ModelConfig& config, int64_t layers, const MeshShape& own, int64_t own_rank,
                 const MeshShape& peer);

  int64_t groups() const { return int64_t(receives_.size()); }
  // What ranks of the peer take from this rank; what this rank takes from them. By rank, without
  // those that take nothing.
  const std::vector<ExchangePart>& sends(int64_t group) const { return sends_[group]; }
  const std::vector<ExchangePart>& receives(int64_t group) const { return receives_[group]; }

 private:
  std::vector<std::vector<ExchangePart>> sends_, receives_;
};

// Bytes of a part on the wire: the codes of all its runs, one after the other, and two for each
// block of the sender that they touch. `sent`: the part is one of sends(), else of receives().
int64_t PayloadBytes(const ExchangePart& part, bool sent, Codec codec);

// The payload of a part of sends(): the codes themselves where they are all of it, as between twins
// whose group has no pads; else a copy, in `memory` unless that is null.
SharedBytes PackPart(const ExchangePart& part, const CodedRange& own,
                     const BytePool* memory = nullptr);

// The payload of a part of receives(), to be decoded here and there. Immutable, thread-safe.
class PartReader {
 public:
  // InvalidArgument if the payload's size is not what it must be. Part and payload outlive the
  // reader.
  static absl::StatusOr<PartReader> Open(const ExchangePart& part, Codec codec,
                                         absl::string_view payload);
  // Elements [begin, begin + count) of the stored range into values[0 .. count); those that are not
  // of the part stay as they are.
  template <typename T>
  void Read(int64_t begin, int64_t count, T* values) const;

 private:
  // Where a run's codes and the scale of its first block are.
  struct Place {
    const ExchangeRun* run;
    int64_t code, scale;
  };
  Codec codec_ = Codec::kFp32;
  absl::string_view codes_;
  std::vector<uint16_t> scales_;
  std::vector<Place> places_;
};

// The whole of it into the stored range. Errors as PartReader::Open. REQUIRES: the part has runs.
template <typename T>
absl::Status UnpackPart(ThreadPool& pool, const ExchangePart& part, Codec codec,
                        absl::string_view payload, T* values);

}  // namespace toroid
