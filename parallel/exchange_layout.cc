#include "parallel/exchange_layout.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

constexpr int64_t kGrain = 256 * kCodecBlock;  // elements that a thread decodes at once

// Elements [begin, begin + count) of a slice, row after row, which lie at `offset` of the stored
// range of the rank that holds them.
struct Holding {
  ParamSlice slice;
  int64_t begin = 0, count = 0, offset = 0;
};

// A rank's holdings: by group, then by member; count 0 where it holds nothing.
using Holdings = std::vector<std::vector<Holding>>;

// The same elements in two stored ranges.
struct Overlap {
  int64_t own, peer, count;
};

ParamGroups GroupsOf(const ModelConfig& config, int64_t layers, const MeshShape& mesh,
                     int64_t tensor_rank) {
  return ParamGroups(config, ParamLayout(config, tensor_rank, mesh.tensor), tensor_rank,
                     mesh.data * mesh.ring, layers);
}

Holdings HoldingsOf(const ParamGroups& groups, int64_t shard_rank) {
  Holdings holdings(groups.count());
  for (int64_t g = 0; g < groups.count(); ++g) {
    const ParamGroup& group = groups.group(g);
    for (const GroupMember& member : group.members) holdings[g].push_back({member.slice});
    for (const ParamPiece& piece : PiecesOf(group, groups.Stored(g, shard_rank))) {
      Holding& holding = holdings[g][piece.member];
      holding.begin = piece.begin;
      holding.count = piece.count;
      holding.offset = piece.offset;
    }
  }
  return holdings;
}

// The holdings of all ranks of a world.
std::vector<Holdings> HoldingsOfWorld(const ModelConfig& config, int64_t layers,
                                      const MeshShape& mesh) {
  std::vector<Holdings> world(mesh.size());
  for (int64_t tensor_rank = 0; tensor_rank < mesh.tensor; ++tensor_rank) {
    const ParamGroups groups = GroupsOf(config, layers, mesh, tensor_rank);
    for (int64_t shard_rank = 0; shard_rank < mesh.data * mesh.ring; ++shard_rank) {
      world[shard_rank * mesh.tensor + tensor_rank] = HoldingsOf(groups, shard_rank);
    }
  }
  return world;
}

// Calls visit(overlap) for what both hold, in ascending order: one run if their slices have the
// same columns, else one of each row.
template <typename Visit>
void ForEachOverlap(const Holding& own, const Holding& peer, const Visit& visit) {
  if (own.count == 0 || peer.count == 0) return;
  const ParamSlice &a = own.slice, &b = peer.slice;
  // `count` elements that follow each other in both slices, cut to what both hold.
  const auto visit_common = [&](int64_t own_from, int64_t peer_from, int64_t count) {
    const int64_t skip = std::max({int64_t{0}, own.begin - own_from, peer.begin - peer_from});
    const int64_t end =
        std::min({count, own.begin + own.count - own_from, peer.begin + peer.count - peer_from});
    if (skip >= end) return;
    visit(Overlap{own_from + skip - own.begin + own.offset,
                  peer_from + skip - peer.begin + peer.offset, end - skip});
  };
  const int64_t top = std::max(a.row_begin, b.row_begin);
  const int64_t bottom = std::min(a.row_begin + a.row_count, b.row_begin + b.row_count);
  const int64_t left = std::max(a.col_begin, b.col_begin);
  const int64_t right = std::min(a.col_begin + a.col_count, b.col_begin + b.col_count);
  if (top >= bottom || left >= right) return;
  if (a.col_begin == b.col_begin && a.col_count == b.col_count) {
    visit_common((top - a.row_begin) * a.col_count, (top - b.row_begin) * b.col_count,
                 (bottom - top) * a.col_count);
    return;
  }
  const int64_t first = std::max(
      {top, a.row_begin + own.begin / a.col_count, b.row_begin + peer.begin / b.col_count});
  const int64_t last =
      std::min({bottom - 1, a.row_begin + (own.begin + own.count - 1) / a.col_count,
                b.row_begin + (peer.begin + peer.count - 1) / b.col_count});
  for (int64_t row = first; row <= last; ++row) {
    visit_common((row - a.row_begin) * a.col_count + left - a.col_begin,
                 (row - b.row_begin) * b.col_count + left - b.col_begin, right - left);
  }
}

// `left` without elements [begin, end) of the receiver's stored range.
std::vector<Overlap> Without(const std::vector<Overlap>& left, int64_t begin, int64_t end) {
  std::vector<Overlap> rest;
  for (const Overlap& run : left) {
    const int64_t stop = run.own + run.count;
    if (run.own < begin) {
      rest.push_back({run.own, run.peer, std::min(stop, begin) - run.own});
    }
    if (stop > end) {
      const int64_t from = std::max(run.own, end);
      rest.push_back({from, run.peer + from - run.own, stop - from});
    }
  }
  return rest;
}

// What `receiver` (its rank, one member's holding) takes from rank `sender` of `senders`.
std::vector<Overlap> Taken(const std::vector<Holdings>& senders, int64_t group, int64_t member,
                           bool replicated, int64_t sender, int64_t receiver,
                           const Holding& holding) {
  std::vector<Overlap> taken;
  ForEachOverlap(holding, senders[sender][group][member],
                 [&](const Overlap& overlap) { taken.push_back(overlap); });
  if (!replicated || sender == receiver || taken.empty()) return taken;
  const auto leave_to = [&](int64_t other) {
    ForEachOverlap(holding, senders[other][group][member], [&](const Overlap& overlap) {
      taken = Without(taken, overlap.own, overlap.own + overlap.count);
    });
  };
  if (receiver < int64_t(senders.size())) leave_to(receiver);
  for (int64_t other = 0; other < sender && !taken.empty(); ++other) leave_to(other);
  return taken;
}

// Visits the runs with where each begins: visit(run, first code, scale of its first block), and the
// numbers of codes and of scales in all. A block that ends one run and begins the next has one
// scale.
struct Extent {
  int64_t codes = 0, scales = 0;
};
template <typename Visit>
Extent ForEachRun(const ExchangePart& part, bool sent, const Visit& visit) {
  Extent extent;
  int64_t last = -1;  // first element of the block whose scale came last
  for (const ExchangeRun& run : part.runs) {
    const int64_t from = sent ? run.own : run.peer;
    const int64_t first = from / run.block, end = (from + run.count - 1) / run.block;
    const int64_t shared = first * run.block == last ? 1 : 0;
    visit(run, extent.codes, extent.scales - shared);
    extent.codes += run.count;
    extent.scales += end + 1 - first - shared;
    last = end * run.block;
  }
  return extent;
}

int64_t PayloadBytes(const Extent& extent, Codec codec) {
  return CodeBytes(codec, extent.codes) + (HasScales(codec) ? extent.scales * 2 : 0);
}

const uint8_t* Bytes(const char* text) { return reinterpret_cast<const uint8_t*>(text); }
uint8_t* Bytes(char* text) { return reinterpret_cast<uint8_t*>(text); }

}  // namespace

int64_t ExchangeBlock(const ParamSpec& spec, int64_t head_dim) {
  if (spec.split != Split::kKvHeads) return kCodecBlock;
  return std::gcd(kCodecBlock, head_dim * (spec.rows == 1 ? 1 : spec.cols));
}

ExchangeCoder::ExchangeCoder(const ModelConfig& config, int64_t layers, const MeshShape& mesh,
                             int64_t rank) {
  TOROID_CHECK_GE(rank, 0);
  TOROID_CHECK_LT(rank, mesh.size());
  const ParamGroups groups = GroupsOf(config, layers, mesh, rank % mesh.tensor);
  std::vector<std::string> names;
  for (const ParamSpec& spec : ParamTable(config)) names.push_back(spec.name);
  for (int64_t g = 0; g < groups.count(); ++g) {
    const ParamGroup& group = groups.group(g);
    const Range stored = groups.Stored(g, rank / mesh.tensor);
    Group& coded = groups_.emplace_back();
    coded.size = stored.size();
    for (const ParamPiece& piece : PiecesOf(group, stored)) {
      const GroupMember& member = group.members[piece.member];
      const ParamSlice& slice = member.slice;
      const int64_t block = ExchangeBlock(member.spec, config.head_dim);
      TOROID_CHECK_EQ(piece.begin % kCodecBlock, 0);
      TOROID_CHECK_EQ(piece.offset % kCodecBlock, 0);
      CodecPlace place;
      place.parameter = std::find(names.begin(), names.end(), member.spec.name) - names.begin();
      place.begin = piece.begin;
      place.origin = slice.row_begin * member.spec.cols + slice.col_begin;
      place.cols = slice.col_count;
      place.stride = member.spec.cols;
      coded.pieces.push_back({place, piece.offset, piece.count, block});
      coded.unit = std::gcd(coded.unit, block);
    }
  }
}

CodedRange ExchangeCoder::NewRange(int64_t group, Codec codec, const BytePool* memory) const {
  const Group& own = groups_[group];
  CodedRange coded{codec, own.size, own.unit};
  coded.codes = (memory != nullptr ? *memory : memory_).Take(size_t(CodeBytes(codec, own.size)));
  char* const codes = coded.codes.mutable_data();
  int64_t done = 0;  // bytes
  const auto pad_to = [&](int64_t byte) {
    if (byte > done) std::memset(codes + done, 0, size_t(byte - done));
  };
  for (const Piece& piece : own.pieces) {
    const int64_t begin = CodeBytes(codec, piece.offset);  // pieces begin at whole bytes
    pad_to(begin);
    done = begin + CodeBytes(codec, piece.count);
  }
  pad_to(int64_t(coded.codes.size()));
  if (HasScales(codec)) coded.scales.resize(own.size / own.unit);
  return coded;
}

template <typename T>
void ExchangeCoder::EncodeRange(ThreadPool& pool, int64_t group, Range elements, const T* values,
                                const CodecRounding& rounding, CodedRange& coded) const {
  const Group& own = groups_[group];
  const Codec codec = coded.codec;
  TOROID_CHECK(!HasScales(codec) || elements == (Range{0, own.size}));
  char* const codes = coded.codes.mutable_data();
  std::vector<uint16_t> scales;
  for (const Piece& piece : own.pieces) {
    const int64_t from = std::max(elements.begin, piece.offset);
    const int64_t to = std::min(elements.end, piece.offset + piece.count);
    if (from >= to) continue;
    CodecPlace place = piece.place;
    place.begin += from - piece.offset;
    scales.resize(HasScales(codec) ? size_t((to - from + piece.block - 1) / piece.block) : 0);
    EncodeBlocks(pool, codec, rounding, place, piece.block, to - from, values + from,
                 Bytes(codes) + CodeBytes(codec, from), scales.data());
    const int64_t units = piece.block / own.unit;  // of each block: all get its scale
    for (size_t i = 0; i < scales.size(); ++i) {
      std::fill_n(coded.scales.begin() + piece.offset / own.unit + int64_t(i) * units, units,
                  scales[i]);
    }
  }
}

template <typename T>
CodedRange ExchangeCoder::Encode(ThreadPool& pool, int64_t group, const T* values, Codec codec,
                                 const CodecRounding& rounding, const BytePool* memory) const {
  CodedRange coded = NewRange(group, codec, memory);
  EncodeRange(pool, group, {0, coded.size}, values, rounding, coded);
  return coded;
}

template <typename T>
void Decode(const CodedRange& coded, int64_t begin, int64_t count, T* values) {
  DecodeBlocks(coded.codec, coded.unit, begin, count, Bytes(coded.codes.data()), begin,
               coded.scales.data(), values);
}

ExchangeLayout::ExchangeLayout(const ModelConfig& config, int64_t layers, const MeshShape& own,
                               int64_t own_rank, const MeshShape& peer) {
  TOROID_CHECK_GE(own_rank, 0);
  TOROID_CHECK_LT(own_rank, own.size());
  const std::vector<Holdings> ours = HoldingsOfWorld(config, layers, own);
  const std::vector<Holdings> theirs = HoldingsOfWorld(config, layers, peer);
  const ParamGroups groups = GroupsOf(config, layers, own, own_rank % own.tensor);
  sends_.resize(groups.count());
  receives_.resize(groups.count());
  for (int64_t g = 0; g < groups.count(); ++g) {
    const std::vector<GroupMember>& members = groups.group(g).members;
    for (int64_t rank = 0; rank < peer.size(); ++rank) {
      ExchangePart sent{rank, {}}, received{rank, {}};
      for (int64_t m = 0; m < int64_t(members.size()); ++m) {
        const ParamSpec& spec = members[m].spec;
        const int64_t block = ExchangeBlock(spec, config.head_dim);
        const bool replicated = spec.split == Split::kReplicated || spec.split == Split::kKvHeads;
        for (const Overlap& run :
             Taken(ours, g, m, replicated, own_rank, rank, theirs[rank][g][m])) {
          sent.runs.push_back({run.peer, run.own, run.count, block});
        }
        for (const Overlap& run :
             Taken(theirs, g, m, replicated, rank, own_rank, ours[own_rank][g][m])) {
          received.runs.push_back({run.own, run.peer, run.count, block});
        }
      }
      if (!sent.runs.empty()) sends_[g].push_back(std::move(sent));
      if (!received.runs.empty()) receives_[g].push_back(std::move(received));
    }
  }
}

int64_t PayloadBytes(const ExchangePart& part, bool sent, Codec codec) {
  return PayloadBytes(ForEachRun(part, sent, [](const ExchangeRun&, int64_t, int64_t) {}), codec);
}

// First the scales, then the codes.
SharedBytes PackPart(const ExchangePart& part, const CodedRange& own, const BytePool* memory) {
  bool all = !HasScales(own.codec);
  const Extent extent = ForEachRun(part, true, [&](const ExchangeRun& run, int64_t code, int64_t) {
    all = all && run.own == code;
  });
  if (all && extent.codes == own.size) return own.codes;
  const int64_t bytes = PayloadBytes(extent, own.codec);
  const int64_t scale_bytes = bytes - CodeBytes(own.codec, extent.codes);
  SharedBytes payload =
      memory == nullptr ? BytePool().Take(size_t(bytes)) : memory->Take(size_t(bytes));
  char* const out = payload.mutable_data();
  if (bytes > scale_bytes) out[bytes - 1] = 0;  // where codes may end within a byte
  std::vector<uint16_t> scales(scale_bytes / 2);
  ForEachRun(part, true, [&](const ExchangeRun& run, int64_t code, int64_t scale) {
    CopyCodes(own.codec, run.count, Bytes(own.codes.data()), run.own, Bytes(out) + scale_bytes,
              code);
    if (!HasScales(own.codec)) return;
    const int64_t end = (run.own + run.count - 1) / run.block;
    for (int64_t block = run.own / run.block; block <= end; ++block) {
      scales[scale++] = own.scales[block * run.block / own.unit];
    }
  });
  if (!scales.empty()) std::memcpy(out, scales.data(), size_t(scale_bytes));
  return payload;
}

absl::StatusOr<PartReader> PartReader::Open(const ExchangePart& part, Codec codec,
                                            absl::string_view payload) {
  PartReader reader;
  reader.codec_ = codec;
  reader.places_.reserve(part.runs.size());
  const Extent extent =
      ForEachRun(part, false, [&](const ExchangeRun& run, int64_t code, int64_t scale) {
        reader.places_.push_back({&run, code, scale});
      });
  const int64_t bytes = PayloadBytes(extent, codec);
  if (int64_t(payload.size()) != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("exchange: rank ", part.rank, " of a peer pod sent ", payload.size(),
                     " bytes of ", CodecName(codec), " codes where ", bytes,
                     " are due: are its "
                     "model and mesh what this pod was told?"));
  }
  reader.scales_.resize(size_t(bytes - CodeBytes(codec, extent.codes)) / 2);
  const size_t scale_bytes = reader.scales_.size() * 2;
  if (scale_bytes > 0) std::memcpy(reader.scales_.data(), payload.data(), scale_bytes);
  reader.codes_ = payload.substr(scale_bytes);
  return reader;
}

template <typename T>
void PartReader::Read(int64_t begin, int64_t count, T* values) const {
  const auto ends_before = [](const Place& place, int64_t element) {
    return place.run->own + place.run->count <= element;
  };
  auto place = std::lower_bound(places_.begin(), places_.end(), begin, ends_before);
  for (; place != places_.end() && place->run->own < begin + count; ++place) {
    const ExchangeRun& run = *place->run;
    const int64_t from = std::max(begin, run.own);
    const int64_t to = std::min(begin + count, run.own + run.count);
    DecodeBlocks(codec_, run.block, run.peer % run.block + from - run.own, to - from,
                 Bytes(codes_.data()), place->code + from - run.own, scales_.data() + place->scale,
                 values + from - begin);
  }
}

template <typename T>
absl::Status UnpackPart(ThreadPool& pool, const ExchangePart& part, Codec codec,
                        absl::string_view payload, T* values) {
  TOROID_ASSIGN_OR_RETURN(const PartReader reader, PartReader::Open(part, codec, payload));
  const int64_t first = part.runs.front().own;
  const int64_t size = part.runs.back().own + part.runs.back().count - first;
  pool.ParallelFor(size, kGrain, [&](int64_t begin, int64_t end, int) {
    reader.Read(first + begin, end - begin, values + first + begin);
  });
  return absl::OkStatus();
}

#define TOROID_INSTANTIATE(T)                                                             \
  template void Decode(const CodedRange&, int64_t, int64_t, T*);                          \
  template void PartReader::Read(int64_t, int64_t, T*) const;                             \
  template CodedRange ExchangeCoder::Encode(ThreadPool&, int64_t, const T*, Codec,        \
                                            const CodecRounding&, const BytePool*) const; \
  template void ExchangeCoder::EncodeRange(ThreadPool&, int64_t, Range, const T*,         \
                                           const CodecRounding&, CodedRange&) const;      \
  template absl::Status UnpackPart(ThreadPool&, const ExchangePart&, Codec, absl::string_view, T*);
TOROID_INSTANTIATE(float)
TOROID_INSTANTIATE(double)
#undef TOROID_INSTANTIATE

}  // namespace toroid
