// How training divides the parameters of one rank of `tensor` over the axis `shard`.
//
// A *group* is what is gathered and reduced at once: the embedding (with the final norm, if the
// output head is the embedding), each layer, the final norm with an output head of its own. This
// rank's slices of a group lie one after the other in one flat buffer, in ParamTable's order, each
// begun at a multiple of 64 elements; the buffer is padded to a multiple of shard x 64, and shard
// rank i stores elements [i n / shard, (i + 1) n / shard). Pads are zero and belong to no
// parameter. Init, load, optimizer, checkpoint and plan all speak of pieces: runs of one
// parameter's elements.
//
// Sharding of weights over data as in ZeRO-3 (Rajbhandari et al. 2020) and GSPMD's 2D finalized
// scheme (Xu et al. 2021) that PaLM used.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/model/model_config.h"
#include "core/model/params.h"

namespace toroid {

// One parameter in a group's buffer.
struct GroupMember {
  ParamSpec spec;
  ParamSlice slice;    // of the whole parameter
  int64_t offset = 0;  // of its first element in the buffer
  // Elements of the slice from here on are counted by this tensor rank (in norms, in checkpoints);
  // those before it by a lower rank, which holds them too. Every element is counted once.
  int64_t counted_from = 0;
  // Of a vector: of its first element where the group's vectors alone lie one after the other, each
  // begun as above.
  int64_t vector_offset = 0;
  bool vector() const { return spec.rows == 1; }
  int64_t size() const { return slice.row_count * slice.col_count; }
};

struct ParamGroup {
  std::string name;         // "embedding", "layer 3", "final"
  int64_t size = 0;         // elements of the buffer, pads included: a multiple of shard x 64
  int64_t vector_size = 0;  // of the vectors alone
  std::vector<GroupMember> members;

  // Null if the group has no such parameter.
  const GroupMember* Find(const std::string& parameter) const;
};

// Consecutive elements [begin, begin + count) of a member's slice (row after row), at `offset` of
// the range asked for.
struct ParamPiece {
  int64_t member = 0;
  int64_t begin = 0, count = 0;
  int64_t offset = 0;
};

class ParamGroups {
 public:
  // tensor_rank: the one that `layout` was made for; `layers`: the first so many.
  ParamGroups(const ModelConfig& config, const ParamLayout& layout, int64_t tensor_rank,
              int64_t shard_size, int64_t layers);

  int64_t count() const { return int64_t(groups_.size()); }
  const ParamGroup& group(int64_t i) const { return groups_[i]; }
  int64_t embedding() const { return 0; }
  int64_t layer(int64_t i) const { return 1 + i; }
  // The group of the final norm and the output head: the embedding's if they are tied.
  int64_t head() const { return head_; }
  int64_t largest() const { return largest_; }  // elements of the largest group

  // What a shard rank stores of a group's buffer.
  Range Stored(int64_t group, int64_t shard_rank) const {
    const int64_t each = groups_[group].size / shard_size_;
    return {shard_rank * each, (shard_rank + 1) * each};
  }
  // Elements that a shard rank stores of all groups, pads included; where a group's range begins
  // among them.
  int64_t stored_size() const { return stored_begin_.back(); }
  int64_t StoredBegin(int64_t group) const { return stored_begin_[group]; }

 private:
  int64_t shard_size_, head_ = 0, largest_ = 0;
  std::vector<ParamGroup> groups_;
  std::vector<int64_t> stored_begin_;  // one more than groups
};

// The pieces of a range of a group's buffer, in order; pads are left out.
std::vector<ParamPiece> PiecesOf(const ParamGroup& group, Range range);

}  // namespace toroid
