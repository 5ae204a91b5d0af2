#include "parallel/param_store.h"

#include <algorithm>
#include <utility>

#include "core/io/weights.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kLoadBytes = 4 << 20;  // of a parameter read at a time

int64_t Aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Tensor Elements(const Tensor& flat, int64_t begin, int64_t count) {
  return flat.Rows(begin, count);
}

// [n] as one row, which ops take whole.
Tensor Row(const Tensor& flat) { return flat.Reshape({1, flat.rows()}); }

}  // namespace

ParamStore::ParamStore(Backend& ops, Stream s, Mesh& mesh, ParamGroups groups,
                       const Options& options)
    : ops_(ops),
      s_(s),
      weights_s_(ops.NewStream(/*communication=*/true)),
      mesh_(mesh),
      groups_(std::move(groups)),
      options_(options) {
  for (int64_t g = 0; g < groups_.count(); ++g) {
    const ParamGroup& group = groups_.group(g);
    pieces_.push_back(PiecesOf(group, groups_.Stored(g, mesh_.shard().rank())));
    for (const GroupMember& member : group.members) names_.push_back(member.spec.name);
  }
}

ParamStore::~ParamStore() {
  ops_.Join(s_, weights_s_);  // what still travels reads and writes this memory
  if (memory_ != nullptr) ops_.Free(memory_, state_bytes_ * 4 + buffer_bytes_);
}

absl::StatusOr<std::unique_ptr<ParamStore>> ParamStore::Create(Backend& ops, Stream s, Mesh& mesh,
                                                               ParamGroups groups,
                                                               const Options& options) {
  std::unique_ptr<ParamStore> store(new ParamStore(ops, s, mesh, std::move(groups), options));
  TOROID_RETURN_IF_ERROR(store->Allocate());
  return store;
}

absl::Status ParamStore::Allocate() {
  const DType type = ops_.dtype(), gathered = options_.narrow ? DType::kBF16 : type;
  const int64_t largest = groups_.largest(), shard = mesh_.shard().size();
  struct Part {
    Tensor* tensor;
    DType type;
    int64_t size;
  };
  std::vector<Part> states, buffers;
  for (Tensor& tensor : stored_) states.push_back({&tensor, type, groups_.stored_size()});
  for (int i = 0; i < 2; ++i) {
    if (gathers()) buffers.push_back({&gathered_[i], gathered, largest});
    if (options_.narrow) {
      int64_t most = 0;
      for (int64_t g = 0; g < groups_.count(); ++g) {
        most = std::max(most, groups_.group(g).vector_size);
      }
      buffers.push_back({&vectors_[i], type, most});
    }
    if (reduces()) buffers.push_back({&gradients_[i], type, largest});
  }
  if (shard > 1) buffers.push_back({&arriving_, type, largest / shard});
  buffers.push_back({&sums_, DType::kF64, int64_t(names_.size())});

  int64_t bytes = 0;
  const auto measure = [&](std::vector<Part>& parts) {
    for (Part& part : parts) {
      *part.tensor = Tensor(part.type, {part.size}, nullptr);
      bytes += Aligned(part.tensor->bytes());
    }
    return bytes;
  };
  state_bytes_ = measure(states) / 4;
  buffer_bytes_ = measure(buffers) - state_bytes_ * 4;
  TOROID_ASSIGN_OR_RETURN(void* memory, ops_.Allocate(bytes));
  memory_ = static_cast<char*>(memory);
  char* next = memory_;
  for (std::vector<Part>* parts : {&states, &buffers}) {
    for (Part& part : *parts) {
      part.tensor->data = next;
      next += Aligned(part.tensor->bytes());
      ops_.Fill(s_, Row(*part.tensor), 0.0);
    }
  }
  return absl::OkStatus();
}

int64_t ParamStore::gathered_bytes() const {
  int64_t bytes = 0;
  for (int i = 0; i < 2; ++i) bytes += Aligned(gathered_[i].bytes()) + Aligned(vectors_[i].bytes());
  return bytes;
}

absl::Status ParamStore::Load(const ModelSource& source, std::atomic<int64_t>* ticks) {
  for (int64_t g = 0; g < groups_.count(); ++g) {
    for (const ParamPiece& piece : pieces_[g]) {
      TOROID_RETURN_IF_ERROR(LoadPiece(source, groups_.group(g).members[piece.member], piece,
                                       Stored(Kind::kWeights, g, piece), ticks));
    }
  }
  return absl::OkStatus();
}

// Whole rows are read, a few at a time; of the first and the last only what the piece holds is
// kept.
absl::Status ParamStore::LoadPiece(const ModelSource& source, const GroupMember& member,
                                   const ParamPiece& piece, Tensor out,
                                   std::atomic<int64_t>* ticks) {
  const int64_t cols = member.slice.col_count, end = piece.begin + piece.count;
  const int64_t step = std::max<int64_t>(1, kLoadBytes / RowBytes(out.dtype, cols));
  std::vector<char> staging;
  for (int64_t row = piece.begin / cols; row * cols < end; row += step) {
    ParamSlice part = member.slice;
    part.row_begin += row;
    part.row_count = std::min(step, member.slice.row_count - row);
    staging.resize(size_t(SliceBytes(part, out.dtype)));
    TOROID_RETURN_IF_ERROR(LoadParam(source, member.spec, part, out.dtype, staging.data()));
    const int64_t first = std::max(piece.begin, row * cols);
    const int64_t last = std::min(end, (row + part.row_count) * cols);
    ops_.Upload(s_, staging.data() + RowBytes(out.dtype, first - row * cols),
                Elements(out, first - piece.begin, last - first));
    if (ticks != nullptr) ++*ticks;
  }
  return absl::OkStatus();
}

Tensor ParamStore::Stored(Kind kind, int64_t group) const {
  const int64_t begin = groups_.StoredBegin(group);
  return Elements(stored_[int(kind)], begin, groups_.StoredBegin(group + 1) - begin);
}

// --- gathering
// -----------------------------------------------------------------------------------

void ParamStore::StartGather(int64_t group, int buffer) {
  const Tensor whole = Elements(gathered_[buffer], 0, groups_.group(group).size);
  const Range range = groups_.Stored(group, mesh_.shard().rank());
  Tensor own = Stored(Kind::kWeights, group);
  if (options_.narrow) {
    const Tensor place = Elements(whole, range.begin, range.size());
    ops_.Copy(s_, Row(own), Row(place));
    own = place;
  }
  // weights_s waits for: the stored weights written, the buffer's last user done.
  ops_.Fork(s_, weights_s_);
  if (mesh_.shard().size() > 1) mesh_.shard().AllGather(weights_s_, own, whole);
  held_[buffer] = group;
}

FindParam ParamStore::Gather(int64_t group, int64_t next) {
  if (!gathers()) {
    return Finder(group, Stored(Kind::kWeights, group), Tensor());
  }
  const int buffer = held_[last_gathered_] == group ? last_gathered_ : 1 - last_gathered_;
  if (held_[buffer] != group) StartGather(group, buffer);
  ops_.Join(s_, weights_s_);  // s waits for: this group whole, the reduction before arrived
  AddArrived();
  StartReduction();
  last_gathered_ = buffer;
  if (options_.prefetch && next >= 0 && next != group && held_[1 - buffer] != next) {
    StartGather(next, 1 - buffer);
  }
  if (options_.narrow) Widen(group, buffer);
  return Finder(group, Elements(gathered_[buffer], 0, groups_.group(group).size), vectors_[buffer]);
}

void ParamStore::Widen(int64_t group, int buffer) {
  for (const GroupMember& member : groups_.group(group).members) {
    if (!member.vector()) continue;
    ops_.Copy(s_, Row(Elements(gathered_[buffer], member.offset, member.size())),
              Row(Elements(vectors_[buffer], member.vector_offset, member.size())));
  }
}

FindParam ParamStore::Finder(int64_t group, Tensor flat, Tensor vectors) const {
  return [members = &groups_.group(group), flat, vectors](const std::string& name) {
    const GroupMember* member = members->Find(name);
    if (member == nullptr) return Tensor();
    const Tensor elements = member->vector() && !vectors.empty()
                                ? Elements(vectors, member->vector_offset, member->size())
                                : Elements(flat, member->offset, member->size());
    return elements.Reshape({member->slice.row_count, member->slice.col_count});
  };
}

// --- reducing
// ------------------------------------------------------------------------------------

FindParam ParamStore::Gradients(int64_t group) {
  TOROID_CHECK_EQ(gradient_group_, -1);  // the one before was given to Reduce
  gradient_group_ = group;
  if (!reduces()) return Finder(group, Stored(Kind::kGradients, group), Tensor());
  gradient_buffer_ = 1 - gradient_buffer_;
  // No Gather has come since the last use of this buffer: what it holds must leave first.
  if (waiting_ >= 0 && waiting_buffer_ == gradient_buffer_) FinishReductions();
  if (travelling_ >= 0 && travelling_buffer_ == gradient_buffer_) {
    ops_.Join(s_, weights_s_);  // s waits for: the reduction that reads this buffer
    AddArrived();
  }
  const Tensor flat = Elements(gradients_[gradient_buffer_], 0, groups_.group(group).size);
  ops_.Fill(s_, Row(flat), 0.0);
  return Finder(group, flat, Tensor());
}

void ParamStore::Reduce(bool whole) {
  TOROID_CHECK_GE(gradient_group_, 0);
  const int64_t group = std::exchange(gradient_group_, -1);
  if (!reduces()) {
    if (whole) on_whole_(group);
    return;
  }
  if (waiting_ >= 0) FinishReductions();
  waiting_ = group;
  waiting_buffer_ = gradient_buffer_;
  waiting_whole_ = whole;
}

void ParamStore::RowsWhole(int64_t group, const std::string& parameter, std::vector<bool> rows) {
  if (reduces()) return;
  const GroupMember* member = groups_.group(group).Find(parameter);
  TOROID_CHECK(member != nullptr);
  TOROID_CHECK_EQ(int64_t(rows.size()), member->slice.row_count);
  on_rows_whole_(group, {member->offset, member->slice.col_count, std::move(rows)});
}

// REQUIRES: nothing travels.
void ParamStore::StartReduction() {
  if (waiting_ < 0) return;
  const Tensor whole = Elements(gradients_[waiting_buffer_], 0, groups_.group(waiting_).size);
  if (mesh_.shard().size() == 1) {
    const int64_t group = std::exchange(waiting_, -1);
    ops_.Add(s_, Row(Stored(Kind::kGradients, group)), Row(whole));
    if (waiting_whole_) on_whole_(group);
    return;
  }
  ops_.Fork(s_, weights_s_);  // weights_s waits for: the gradients written, arriving_ read
  mesh_.shard().ReduceScatter(weights_s_, Partial(whole),
                              Elements(arriving_, 0, whole.rows() / mesh_.shard().size()));
  travelling_ = waiting_;
  travelling_buffer_ = waiting_buffer_;
  travelling_whole_ = waiting_whole_;
  waiting_ = -1;
}

// REQUIRES: s has waited for weights_s.
void ParamStore::AddArrived() {
  if (travelling_ < 0) return;
  const int64_t group = std::exchange(travelling_, -1);
  const Tensor stored = Stored(Kind::kGradients, group);
  ops_.Add(s_, Row(stored), Row(Elements(arriving_, 0, stored.rows())));
  if (travelling_whole_) on_whole_(group);
}

void ParamStore::FinishReductions() {
  for (int i = 0; i < 2; ++i) {  // what travels, then what waits
    ops_.Join(s_, weights_s_);
    AddArrived();
    StartReduction();
  }
}

void ParamStore::ZeroGradients() { ops_.Fill(s_, Row(stored_[int(Kind::kGradients)]), 0.0); }

std::vector<double> ParamStore::SquaredSums(Kind kind) {
  ops_.Fill(s_, Row(sums_), 0.0);
  int64_t first = 0;  // of the group's parameters in the list
  for (int64_t g = 0; g < groups_.count(); ++g) {
    const ParamGroup& group = groups_.group(g);
    for (const ParamPiece& piece : pieces_[g]) {
      const int64_t begin = std::max(piece.begin, group.members[piece.member].counted_from);
      const int64_t count = piece.begin + piece.count - begin;
      if (count <= 0) continue;
      ops_.SquaredSum(s_, Stored(kind, g, piece).Rows(begin - piece.begin, count),
                      Elements(sums_, first + piece.member, 1));
    }
    first += int64_t(group.members.size());
  }
  const Tensor all = mesh_.world().AllReduce(s_, Partial(sums_));
  std::vector<double> sums(names_.size());
  ops_.Download(s_, all, sums.data());
  return sums;
}

}  // namespace toroid
