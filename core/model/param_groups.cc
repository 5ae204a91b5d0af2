#include "core/model/param_groups.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/check.h"

namespace toroid {
namespace {

constexpr int64_t kAlign = 64;  // elements

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The first element of this tensor rank's slice that no lower rank holds.
int64_t CountedFrom(const ParamSpec& spec, const ParamSlice& slice, const HeadLayout& heads,
                    int64_t head_dim, int64_t tensor_rank) {
  const int64_t size = slice.row_count * slice.col_count;
  if (spec.split == Split::kReplicated) return tensor_rank == 0 ? 0 : size;
  if (spec.split != Split::kKvHeads || heads.owns_kv(0)) return 0;
  return head_dim * (spec.rows == 1 ? 1 : slice.col_count);  // only the first head may be shared
}

}  // namespace

const GroupMember* ParamGroup::Find(const std::string& parameter) const {
  for (const GroupMember& member : members) {
    if (member.spec.name == parameter) return &member;
  }
  return nullptr;
}

ParamGroups::ParamGroups(const ModelConfig& config, const ParamLayout& layout, int64_t tensor_rank,
                         int64_t shard_size, int64_t layers)
    : shard_size_(shard_size) {
  const bool tied = config.tied_embeddings;
  groups_.resize(1 + layers + (tied ? 0 : 1));
  groups_[0].name = "embedding";
  for (int64_t i = 0; i < layers; ++i) groups_[layer(i)].name = absl::StrCat("layer ", i);
  head_ = tied ? 0 : 1 + layers;
  if (!tied) groups_[head_].name = "final";

  bool before_layers = true;  // the table's order: embedding, layers, final norm, head
  for (ParamSpec& spec : ParamTable(config)) {
    if (spec.layer >= 0) before_layers = false;
    if (spec.layer >= layers || !spec.alias.empty()) continue;
    ParamGroup& group = groups_[spec.layer >= 0 ? layer(spec.layer) : before_layers ? 0 : head_];
    GroupMember member;
    member.slice = layout.Slice(spec);
    member.offset = group.size;
    member.counted_from =
        CountedFrom(spec, member.slice, layout.heads(), config.head_dim, tensor_rank);
    member.vector_offset = group.vector_size;
    member.spec = std::move(spec);
    group.size += RoundUp(member.size(), kAlign);
    if (member.vector()) group.vector_size += RoundUp(member.size(), kAlign);
    group.members.push_back(std::move(member));
  }
  stored_begin_ = {0};
  for (ParamGroup& group : groups_) {
    group.size = RoundUp(group.size, shard_size * kAlign);
    largest_ = std::max(largest_, group.size);
    stored_begin_.push_back(stored_begin_.back() + group.size / shard_size);
  }
}

std::vector<ParamPiece> PiecesOf(const ParamGroup& group, Range range) {
  std::vector<ParamPiece> pieces;
  for (size_t i = 0; i < group.members.size(); ++i) {
    const GroupMember& member = group.members[i];
    const int64_t begin = std::max(range.begin, member.offset);
    const int64_t end = std::min(range.end, member.offset + member.size());
    if (begin >= end) continue;
    pieces.push_back({int64_t(i), begin - member.offset, end - begin, begin - range.begin});
  }
  return pieces;
}

}  // namespace toroid
