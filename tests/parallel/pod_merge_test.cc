// The mean of pods' shares, made some elements at a time: against the same made of whole ranges.
#include "parallel/pod_merge.h"

#include <gtest/gtest.h>

#include <atomic>
#include <map>

#include "core/random.h"
#include "parallel/param_hash.h"
#include "tests/support/small_models.h"

namespace toroid {
namespace {

// Groups of several thousand elements, which are no multiple of what is made at once.
ModelConfig Model() { return AwkwardModel(/*layers=*/1, /*dim=*/60, /*ffn=*/160, /*vocab=*/211); }

template <typename T>
constexpr DType kType = sizeof(T) == 8 ? DType::kF64 : DType::kF32;

template <typename T>
std::vector<T> Values(int64_t n, uint64_t seed) {
  std::vector<T> values(size_t(n), T(0));
  for (int64_t i = 0; i < n; ++i) values[size_t(i)] = T(NormalAt(seed, 0, uint64_t(i)));
  return values;
}

// Pod 1 is this one, of one rank; pods 0 and 2 are cut otherwise. Pod 2 has other weight.
template <typename T>
void ExpectMean(Codec codec, int threads) {
  const ModelConfig config = Model();
  const MeshShape own = {1, 1, 1};
  const std::vector<MeshShape> meshes = {{1, 1, 2}, own, {2, 1, 3}};
  const std::vector<double> weights = {3, 5, 11};
  ThreadPool pool(threads), one(1);
  const ExchangeCoder coder(config, config.layers, own, 0);
  const ExchangeLayout first(config, config.layers, own, 0, meshes[0]);
  const ExchangeLayout last(config, config.layers, own, 0, meshes[2]);
  const MergeRule rule = {codec, {&first, nullptr, &last}};
  const ParamGroups groups(config, ParamLayout(config, 0, 1), 0, 1, config.layers);
  bool long_one = false;
  for (int64_t g = 0; g < coder.groups(); ++g) {
    const int64_t n = coder.size(g);
    long_one = long_one || n > 2 * 4096;
    std::vector<PodShare> shares;
    std::vector<double> sum(size_t(n), 0.0);
    std::map<int64_t, uint64_t> hashes;
    for (int64_t pod = 0; pod < 3; ++pod) {
      PodShare& share = shares.emplace_back();
      share.pod = pod;
      share.weight = weights[size_t(pod)];
      std::vector<T> whole(size_t(n), T(0));
      if (pod == 1) {
        share.own = coder.Encode(one, g, Values<T>(n, 7).data(), codec, {});
        Decode(share.own, 0, n, whole.data());
      } else {
        const ExchangeLayout& layout = pod == 0 ? first : last;
        for (const ExchangePart& part : layout.receives(g)) {
          const ExchangeCoder theirs(config, config.layers, meshes[size_t(pod)], part.rank);
          const std::vector<T> values = Values<T>(theirs.size(g), uint64_t(100 * pod + part.rank));
          const CodedRange coded = theirs.Encode(one, g, values.data(), codec, {});
          const ExchangeLayout back(config, config.layers, meshes[size_t(pod)], part.rank, own);
          for (const ExchangePart& sent : back.sends(g))
            share.parts.push_back(PackPart(sent, coded));
          ASSERT_TRUE(UnpackPart(one, part, codec, share.parts.back(), whole.data()).ok());
        }
      }
      for (int64_t i = 0; i < n; ++i) sum[size_t(i)] += share.weight * double(whole[size_t(i)]);
      hashes[pod] = RangeHash(groups, g, 0, kType<T>, 0, n, whole.data());
    }
    std::vector<T> expected(size_t(n), T(0)), mean(size_t(n), T(-1));
    for (int64_t i = 0; i < n; ++i) expected[size_t(i)] = T(sum[size_t(i)] / 19.0);

    std::map<int64_t, std::atomic<uint64_t>> seen;
    std::map<int64_t, std::atomic<int64_t>> elements;
    for (const int64_t who : {-1, 0, 1, 2}) seen.try_emplace(who, 0), elements.try_emplace(who, 0);
    const MergeObserver<T> observe = [&](const PodShare* share, int64_t begin, int64_t count,
                                         const T* values) {
      const int64_t who = share == nullptr ? -1 : share->pod;
      elements.at(who) += count;
      seen.at(who) += RangeHash(groups, g, 0, kType<T>, begin, count, values);
    };
    const auto weight = MeanOfShares<T>(pool, rule, g, n, shares, observe, mean.data());
    ASSERT_TRUE(weight.ok()) << weight.status();
    EXPECT_EQ(*weight, 19.0);
    EXPECT_TRUE(mean == expected) << "group " << g;
    for (const auto& [who, hash] : seen) {
      EXPECT_EQ(elements.at(who), n);
      const uint64_t whole =
          who >= 0 ? hashes[who] : RangeHash(groups, g, 0, kType<T>, 0, n, mean.data());
      EXPECT_EQ(hash, whole) << who;
    }
    // Control: another weight is another mean.
    shares[2].weight = 12;
    ASSERT_TRUE(MeanOfShares<T>(pool, rule, g, n, shares, nullptr, mean.data()).ok());
    EXPECT_FALSE(mean == expected);
    // A payload that is cut is named.
    SharedBytes& part = shares[2].parts[0];
    part = part.Part(0, part.size() - 1);
    const auto cut = MeanOfShares<T>(pool, rule, g, n, shares, nullptr, mean.data());
    EXPECT_EQ(cut.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_NE(cut.status().message().find("of pod 2"), absl::string_view::npos) << cut.status();
  }
  EXPECT_TRUE(long_one) << "all groups were made at once";
}

TEST(PodMerge, SomeAtATimeIsTheWhole) {
  for (Codec codec : kCodecs) {
    SCOPED_TRACE(CodecName(codec));
    ExpectMean<float>(codec, 1);
    ExpectMean<double>(codec, 3);
  }
}

// A pod adds what others decode of its share, not the share itself: else no two had the same mean.
TEST(PodMerge, APodAddsItsOwnShareAsOthersGetIt) {
  const ModelConfig config = Model();
  const MeshShape one_rank = {1, 1, 1};
  const ExchangeCoder coder(config, config.layers, one_rank, 0);
  const ExchangeLayout other(config, config.layers, one_rank, 0, one_rank);
  ThreadPool pool(1);
  const int64_t g = 0, n = coder.size(g);
  for (const Codec codec : {Codec::kBf16, Codec::kInt8, Codec::kE3m0}) {
    SCOPED_TRACE(CodecName(codec));
    const auto encoded = [&](int64_t pod, Codec as) {
      return coder.Encode(pool, g, Values<float>(n, uint64_t(pod)).data(), as, {});
    };
    // As pod `self` makes it, its own share coded as `own`.
    const auto mean = [&](int64_t self, Codec own) {
      std::vector<PodShare> shares(2);
      MergeRule rule = {codec, {&other, &other}};
      rule.layouts[size_t(self)] = nullptr;
      for (int64_t pod = 0; pod < 2; ++pod) {
        shares[size_t(pod)].pod = pod;
        shares[size_t(pod)].weight = double(3 + pod);
        if (pod == self) {
          shares[size_t(pod)].own = encoded(pod, own);
          continue;
        }
        for (const ExchangePart& part : other.sends(g)) {
          shares[size_t(pod)].parts.push_back(PackPart(part, encoded(pod, codec)));
        }
      }
      std::vector<float> out(size_t(n), 0.0f);
      EXPECT_TRUE(MeanOfShares<float>(pool, rule, g, n, shares, nullptr, out.data()).ok());
      return out;
    };
    EXPECT_TRUE(mean(0, codec) == mean(1, codec));
    EXPECT_FALSE(mean(0, Codec::kFp32) == mean(1, codec));  // control: as it is
  }
}

}  // namespace
}  // namespace toroid
