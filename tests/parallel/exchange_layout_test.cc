// Which rank of another pod sends which elements, and what arrives, on many pairs of meshes.
#include "parallel/exchange_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/random.h"
#include "tests/support/small_models.h"

namespace toroid {
namespace {

// Columns and blocks (of 16 and 2) that are no multiples of 64.
ModelConfig Model() { return AwkwardModel(/*layers=*/2, /*dim=*/40, /*ffn=*/96, /*vocab=*/53); }

const MeshShape kMeshes[] = {{1, 1, 1}, {2, 1, 1}, {1, 1, 2}, {1, 1, 3},
                             {1, 2, 3}, {2, 2, 2}, {1, 1, 4}, {5, 1, 1}};

// What a rank stores: the element of the model at each place of each group, -1 for pads.
struct Place {
  int64_t parameter = -1, element = -1;
  auto operator<=>(const Place&) const = default;
};
using Stored = std::vector<std::vector<Place>>;

Stored StoredBy(const ModelConfig& config, const MeshShape& mesh, int64_t rank) {
  const int64_t tensor_rank = rank % mesh.tensor, shard_rank = rank / mesh.tensor;
  const ParamGroups groups(config, ParamLayout(config, tensor_rank, mesh.tensor), tensor_rank,
                           mesh.data * mesh.ring, config.layers);
  std::map<std::string, int64_t> numbers;
  for (const ParamSpec& spec : ParamTable(config)) numbers.emplace(spec.name, numbers.size());
  Stored stored;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const Range range = groups.Stored(g, shard_rank);
    std::vector<Place>& places = stored.emplace_back(range.size());
    for (const GroupMember& member : groups.group(g).members) {
      const ParamSlice& slice = member.slice;
      for (int64_t i = 0; i < member.size(); ++i) {
        const int64_t at = member.offset + i - range.begin;
        if (at < 0 || at >= range.size()) continue;
        const int64_t row = slice.row_begin + i / slice.col_count;
        const int64_t col = slice.col_begin + i % slice.col_count;
        places[at] = {numbers[member.spec.name], row * member.spec.cols + col};
      }
    }
  }
  return stored;
}

template <typename T>
std::vector<T> ValuesOf(const std::vector<Place>& places, uint64_t pod) {
  std::vector<T> values;
  for (const Place& place : places) {
    values.push_back(place.parameter < 0
                         ? T(0)
                         : T(float(NormalAt(pod, place.parameter, uint64_t(place.element)))));
  }
  return values;
}

template <typename Body>
void ForEachPair(Body body) {
  for (const MeshShape& own : kMeshes) {
    for (const MeshShape& peer : kMeshes) {
      SCOPED_TRACE(ToString(own) + " beside " + ToString(peer));
      body(own, peer);
    }
  }
}

TEST(ExchangeLayout, EveryElementComesExactlyOnceFromARankThatHoldsIt) {
  const ModelConfig config = Model();
  ForEachPair([&](const MeshShape& own, const MeshShape& peer) {
    std::vector<Stored> theirs;
    for (int64_t rank = 0; rank < peer.size(); ++rank) {
      theirs.push_back(StoredBy(config, peer, rank));
    }
    for (int64_t rank = 0; rank < own.size(); ++rank) {
      const Stored ours = StoredBy(config, own, rank);
      const ExchangeLayout layout(config, config.layers, own, rank, peer);
      ASSERT_EQ(layout.groups(), int64_t(ours.size()));
      for (size_t g = 0; g < ours.size(); ++g) {
        std::vector<int> times(ours[g].size());
        for (const ExchangePart& part : layout.receives(g)) {
          for (const ExchangeRun& run : part.runs) {
            for (int64_t i = 0; i < run.count; ++i) {
              ++times[run.own + i];
              ASSERT_EQ(ours[g][run.own + i], theirs[part.rank][g][run.peer + i]);
            }
          }
        }
        for (size_t i = 0; i < times.size(); ++i) {
          ASSERT_EQ(times[i], ours[g][i].parameter < 0 ? 0 : 1) << "rank " << rank << " at " << i;
        }
      }
    }
  });
}

// The sender: the rank of the same number if it holds the element, else the lowest that does.
TEST(ExchangeLayout, TheSenderIsTheTwinOrTheLowestHolder) {
  const ModelConfig config = Model();
  int64_t replicas = 0;  // elements that several ranks could have sent
  ForEachPair([&](const MeshShape& own, const MeshShape& peer) {
    std::vector<std::map<Place, std::vector<int64_t>>> all_holders(4);  // of each group
    for (int64_t other = 0; other < peer.size(); ++other) {
      const Stored theirs = StoredBy(config, peer, other);
      ASSERT_EQ(theirs.size(), all_holders.size());
      for (size_t g = 0; g < theirs.size(); ++g) {
        for (const Place& place : theirs[g]) all_holders[g][place].push_back(other);
      }
    }
    for (int64_t rank = 0; rank < own.size(); ++rank) {
      const Stored ours = StoredBy(config, own, rank);
      const ExchangeLayout layout(config, config.layers, own, rank, peer);
      for (size_t g = 0; g < ours.size(); ++g) {
        std::map<Place, std::vector<int64_t>>& holders = all_holders[g];
        for (const ExchangePart& part : layout.receives(g)) {
          for (const ExchangeRun& run : part.runs) {
            const std::vector<int64_t>& held = holders[ours[g][run.own]];
            const bool twin = std::find(held.begin(), held.end(), rank) != held.end();
            ASSERT_EQ(part.rank, twin ? rank : held.front());
            replicas += held.size() > 1 ? 1 : 0;
          }
        }
      }
    }
  });
  EXPECT_GT(replicas, 100);  // control: the choice was there
}

TEST(ExchangeLayout, BothSidesListTheSameRuns) {
  const ModelConfig config = Model();
  ForEachPair([&](const MeshShape& own, const MeshShape& peer) {
    std::vector<ExchangeLayout> theirs;
    for (int64_t rank = 0; rank < peer.size(); ++rank) {
      theirs.emplace_back(config, config.layers, peer, rank, own);
    }
    for (int64_t rank = 0; rank < own.size(); ++rank) {
      const ExchangeLayout layout(config, config.layers, own, rank, peer);
      for (int64_t g = 0; g < layout.groups(); ++g) {
        size_t parts = 0;
        for (const ExchangePart& sent : layout.sends(g)) {
          for (const ExchangePart& part : theirs[sent.rank].receives(g)) {
            if (part.rank != rank) continue;
            ++parts;
            std::vector<ExchangeRun> turned = part.runs;
            for (ExchangeRun& run : turned) std::swap(run.own, run.peer);
            EXPECT_EQ(sent.runs, turned);
          }
        }
        EXPECT_EQ(parts, layout.sends(g).size());
      }
    }
  });
}

TEST(ExchangeLayout, EqualMeshesAreTwins) {
  const ModelConfig config = Model();
  for (const MeshShape& mesh : kMeshes) {
    for (int64_t rank = 0; rank < mesh.size(); ++rank) {
      const ExchangeLayout layout(config, config.layers, mesh, rank, mesh);
      for (int64_t g = 0; g < layout.groups(); ++g) {
        for (const auto* parts : {&layout.sends(g), &layout.receives(g)}) {
          ASSERT_LE(parts->size(), 1u);  // none if all that it stores of the group is padding
          for (const ExchangePart& part : *parts) {
            EXPECT_EQ(part.rank, rank);
            for (const ExchangeRun& run : part.runs) EXPECT_EQ(run.own, run.peer);
          }
        }
      }
    }
  }
  // Control: unlike meshes are not.
  const ExchangeLayout layout(config, config.layers, {2, 1, 1}, 0, {1, 1, 2});
  EXPECT_GT(layout.receives(1).size(), 1u);
}

// One group of one rank: what arrives from all peers, and what each peer says that it sent.
template <typename T>
void ExpectArrives(const ModelConfig& config, const MeshShape& own, int64_t rank,
                   const MeshShape& peer, Codec codec) {
  ThreadPool pool(1);
  const CodecRounding rounding = {true, 7, 3};
  const ExchangeLayout layout(config, config.layers, own, rank, peer);
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const std::vector<Place> ours = StoredBy(config, own, rank)[g];
    std::vector<T> arrived(ours.size(), T(0)), expected(ours.size(), T(0));
    for (const ExchangePart& part : layout.receives(g)) {
      const ExchangeCoder coder(config, config.layers, peer, part.rank);
      const std::vector<T> sent = ValuesOf<T>(StoredBy(config, peer, part.rank)[g], 5);
      const CodedRange coded = coder.Encode(pool, g, sent.data(), codec, rounding);
      std::vector<T> decoded(sent.size());
      Decode(coded, 0, coded.size, decoded.data());
      const ExchangeLayout other(config, config.layers, peer, part.rank, own);
      for (const ExchangePart& back : other.sends(g)) {
        if (back.rank != rank) continue;
        SharedBytes payload = PackPart(back, coded);
        EXPECT_EQ(int64_t(payload.size()), PayloadBytes(part, false, codec));
        EXPECT_EQ(int64_t(payload.size()), PayloadBytes(back, true, codec));
        ASSERT_TRUE(UnpackPart(pool, part, codec, payload, arrived.data()).ok());
        const auto reader = PartReader::Open(part, codec, payload);
        ASSERT_TRUE(reader.ok()) << reader.status();
        const int64_t n = int64_t(arrived.size());
        for (const int64_t at_once : {1, 63, 257}) {  // the same a piece at a time
          std::vector<T> pieces(arrived.size(), T(0)), again(sent.size());
          for (int64_t i = 0; i < n; i += at_once) {
            reader->Read(i, std::min(at_once, n - i), &pieces[size_t(i)]);
          }
          for (const ExchangeRun& run : part.runs) {
            EXPECT_TRUE(
                std::equal(&pieces[run.own], &pieces[run.own] + run.count, &arrived[run.own]));
          }
          for (int64_t i = 0; i < coded.size; i += at_once) {
            Decode(coded, i, std::min(at_once, coded.size - i), &again[size_t(i)]);
          }
          EXPECT_EQ(again, decoded);
        }
        payload = payload.Part(0, payload.size() - 1);
        const absl::Status shorter = UnpackPart(pool, part, codec, payload, arrived.data());
        EXPECT_EQ(shorter.code(), absl::StatusCode::kInvalidArgument);
      }
      for (const ExchangeRun& run : part.runs) {
        std::copy_n(&decoded[run.peer], run.count, &expected[run.own]);
      }
    }
    EXPECT_EQ(arrived, expected);
    if (codec == Codec::kFp64) {
      EXPECT_EQ(arrived, ValuesOf<T>(ours, 5));
    }
    const std::vector<T> other = ValuesOf<T>(ours, 6);  // control: another pod's
    EXPECT_EQ(arrived == other, other == std::vector<T>(ours.size(), T(0)));
  }
}

TEST(ExchangeLayout, WhatArrivesIsWhatTheSenderAdds) {
  const ModelConfig config = Model();
  const std::pair<MeshShape, MeshShape> pairs[] = {{{1, 1, 1}, {1, 1, 3}},
                                                   {{1, 2, 1}, {1, 1, 2}},
                                                   {{1, 1, 4}, {1, 2, 3}},
                                                   {{2, 2, 2}, {2, 2, 2}},
                                                   {{5, 1, 1}, {1, 1, 4}}};
  for (const auto& [own, peer] : pairs) {
    for (Codec codec : kCodecs) {
      SCOPED_TRACE(ToString(own) + " beside " + ToString(peer) + " " + CodecName(codec));
      for (int64_t rank = 0; rank < own.size(); ++rank) {
        ExpectArrives<float>(config, own, rank, peer, codec);
        ExpectArrives<double>(config, own, rank, peer, codec);
      }
    }
  }
}

// All holders of an element decode the same number, of KV heads and of norms and biases.
TEST(ExchangeLayout, ReplicasAreEncodedAlike) {
  const ModelConfig config = Model();
  ThreadPool pool(1);
  for (Codec codec : kCodecs) {
    for (const MeshShape& mesh : kMeshes) {
      std::map<Place, float> known;
      int64_t again = 0;
      for (int64_t rank = 0; rank < mesh.size(); ++rank) {
        const Stored stored = StoredBy(config, mesh, rank);
        const ExchangeCoder coder(config, config.layers, mesh, rank);
        for (int64_t g = 0; g < coder.groups(); ++g) {
          ASSERT_EQ(coder.size(g), int64_t(stored[g].size()));
          const std::vector<float> values = ValuesOf<float>(stored[g], 5);
          std::vector<float> decoded(values.size());
          Decode(coder.Encode(pool, g, values.data(), codec, {true, 1, 2}), 0, coder.size(g),
                 decoded.data());
          for (size_t i = 0; i < decoded.size(); ++i) {
            if (stored[g][i].parameter < 0) {
              EXPECT_EQ(decoded[i], 0.0f);
              continue;
            }
            const auto [place, fresh] = known.emplace(stored[g][i], decoded[i]);
            ASSERT_EQ(place->second, decoded[i]);
            again += fresh ? 0 : 1;
          }
        }
      }
      EXPECT_EQ(again > 0, mesh.tensor > 1);  // control: there are replicas where there should be
    }
  }
}

TEST(ExchangeLayout, BytesAreTheFormulas) {
  // Heads of 64: every block has 64 elements but a parameter's last.
  ModelConfig config = Model();
  config.dim = 192, config.head_dim = 64;
  for (const MeshShape& mesh : {MeshShape{1, 1, 1}, MeshShape{2, 1, 2}, MeshShape{1, 2, 3}}) {
    int64_t bytes[5] = {}, elements = 0, blocks = 0, whole_bytes = 0;
    for (int64_t rank = 0; rank < mesh.size(); ++rank) {
      const ExchangeLayout layout(config, config.layers, mesh, rank, mesh);
      for (int64_t g = 0; g < layout.groups(); ++g) {
        for (const ExchangePart& part : layout.sends(g)) {
          int64_t sum = 0;
          for (const ExchangeRun& run : part.runs) {
            EXPECT_EQ(run.block, 64);
            sum += run.count;
            blocks += (run.count + 63) / 64;
          }
          elements += sum;
          whole_bytes += (sum + 1) / 2;
          for (Codec codec : kCodecs) bytes[int(codec)] += PayloadBytes(part, true, codec);
        }
      }
    }
    EXPECT_EQ(bytes[int(Codec::kFp64)], 8 * elements);
    EXPECT_EQ(bytes[int(Codec::kFp32)], 4 * elements);
    EXPECT_EQ(bytes[int(Codec::kBf16)], 2 * elements);
    EXPECT_EQ(bytes[int(Codec::kInt8)], elements + 2 * blocks);
    EXPECT_EQ(bytes[int(Codec::kE3m0)], whole_bytes + 2 * blocks);
    if (mesh.size() == 1) {
      EXPECT_EQ(elements, config.ParameterCount());
    }
  }
}

TEST(ExchangeLayout, BlocksNeverStraddleAKvHead) {
  const ModelConfig config = Model();
  std::set<int64_t> blocks;
  for (const ParamSpec& spec : ParamTable(config)) {
    const int64_t block = ExchangeBlock(spec, config.head_dim);
    blocks.insert(block);
    if (spec.split != Split::kKvHeads) continue;
    EXPECT_EQ(config.head_dim * (spec.rows == 1 ? 1 : spec.cols) % block, 0);
  }
  EXPECT_EQ(blocks, (std::set<int64_t>{2, 16, 64}));
}

}  // namespace
}  // namespace toroid
