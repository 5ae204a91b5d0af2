// Models with fewer KV heads than their files hold: what is pooled is the mean of the right heads,
// in every slice; heads that were equal lose nothing.
#include "core/io/kv_pooling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/io/convert.h"
#include "core/io/weights.h"
#include "tests/support/model_files.h"
#include "tests/support/repeated_heads.h"

namespace toroid {
namespace {

using Kind = KvPooling::Kind;
using ::testing::HasSubstr;

ModelSource Open(const std::string& model) {
  auto source = OpenModel(model, 3);
  EXPECT_TRUE(source.ok()) << source.status();
  return *std::move(source);
}

ModelSource Pooled(const std::string& model, int64_t kv_heads, Kind kind = Kind::kMean,
                   uint64_t seed = 0) {
  ModelSource source = Open(model);
  const absl::Status status = PoolKvHeads(source, kv_heads, kind, seed);
  EXPECT_TRUE(status.ok()) << status;
  return source;
}

template <typename T>
std::vector<T> Read(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                    DType type) {
  std::vector<T> values(size_t(slice.row_count * slice.col_count));
  const absl::Status status = LoadParam(source, spec, slice, type, values.data());
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

std::vector<double> Whole(const ModelSource& source, const ParamSpec& spec) {
  return Read<double>(source, spec, {0, spec.rows, 0, spec.cols}, DType::kF64);
}

int64_t Differences(const ModelSource& a, const ModelSource& b) {
  int64_t count = 0;
  for (const ParamSpec& spec : ParamTable(a.config)) count += Whole(a, spec) != Whole(b, spec);
  return count;
}

// Weights and biases: elements of a head lie together, row after row.
TEST(KvPooling, HeadsAreTheMeanOrTheFirstOfTheirGroup) {
  for (const auto& [model, kv_heads] :
       {std::pair{"random:tiny-mha", 2}, std::pair{"random:tiny-gqa", 1},
        std::pair{"random:tiny-qwen2", 1}}) {
    SCOPED_TRACE(model);
    const ModelSource source = Open(model);
    const ModelSource mean = Pooled(model, kv_heads), first = Pooled(model, kv_heads, Kind::kFirst);
    EXPECT_EQ(mean.config.kv_heads, kv_heads);
    const std::vector<ParamSpec> before = ParamTable(source.config),
                                 after = ParamTable(mean.config);
    ASSERT_EQ(before.size(), after.size());
    const size_t group = size_t(source.config.kv_heads / kv_heads);
    int64_t pooled = 0;
    for (size_t p = 0; p < after.size(); ++p) {
      const std::vector<double> theirs = Whole(source, before[p]), ours = Whole(mean, after[p]);
      if (after[p].split != Split::kKvHeads) {
        EXPECT_EQ(ours, theirs) << after[p].name;
        continue;
      }
      ++pooled;
      ASSERT_EQ(ours.size() * group, theirs.size());
      const size_t head = ours.size() / size_t(kv_heads);
      std::vector<double> expected, expected_first;
      for (size_t i = 0; i < ours.size(); ++i) {
        double sum = 0;
        const size_t begin = i / head * group * head + i % head;
        for (size_t g = 0; g < group; ++g) sum += theirs[begin + g * head];
        expected.push_back(sum / double(group));
        expected_first.push_back(theirs[begin]);
      }
      EXPECT_EQ(ours, expected) << after[p].name;
      EXPECT_EQ(Whole(first, after[p]), expected_first) << after[p].name;
    }
    EXPECT_EQ(pooled, source.config.layers * (source.config.qkv_bias ? 4 : 2));
  }
}

TEST(KvPooling, SlicesAreCutsOfTheWholeInEveryType) {
  const ModelSource source = Pooled("random:tiny-mha", 2);
  for (const ParamSpec& spec : ParamTable(source.config)) {
    if (spec.split != Split::kKvHeads) continue;
    const std::vector<double> whole = Whole(source, spec);
    const ParamSlice slice = {13, 11, 5, 50};  // across two heads
    const auto part = Read<double>(source, spec, slice, DType::kF64);
    const auto floats = Read<float>(source, spec, slice, DType::kF32);
    const auto halves = Read<uint16_t>(source, spec, slice, DType::kBF16);
    for (int64_t i = 0; i < slice.row_count * slice.col_count; ++i) {
      const int64_t row = slice.row_begin + i / slice.col_count;
      const double value = whole[row * spec.cols + slice.col_begin + i % slice.col_count];
      EXPECT_EQ(part[i], value);
      EXPECT_EQ(floats[i], float(value));
      EXPECT_EQ(halves[i], ToBf16(float(value)));
    }
  }
}

TEST(KvPooling, EqualHeadsLoseNothing) {
  const TemporaryDirectory directory;
  const std::string repeated = directory.path() + "/repeated";
  WriteWithRepeatedKvHeads("random:tiny-mqa", 3, 6, repeated);
  const ModelSource source = Open("random:tiny-mqa");
  EXPECT_EQ(Open(repeated).config.kv_heads, 6);
  for (const Kind kind : {Kind::kMean, Kind::kFirst}) {
    EXPECT_EQ(Differences(source, Pooled(repeated, 1, kind)), 0);
  }
  // Control: drawn anew, each weight of K and V is another.
  EXPECT_EQ(Differences(source, Pooled(repeated, 1, Kind::kRandom)), 2 * source.config.layers);
  EXPECT_EQ(Differences(Pooled(repeated, 1, Kind::kRandom), Pooled(repeated, 1, Kind::kRandom)), 0);
  EXPECT_GT(Differences(Pooled(repeated, 1, Kind::kRandom), Pooled(repeated, 1, Kind::kRandom, 9)),
            0);
}

TEST(KvPooling, AsManyAsThereAreIsTheSameModel) {
  const ModelSource source = Open("random:tiny-gqa"), same = Pooled("random:tiny-gqa", 3);
  EXPECT_FALSE(same.kv_pooling.has_value());
  EXPECT_EQ(Differences(source, same), 0);
  EXPECT_EQ(source.Fingerprint(), same.Fingerprint());
  EXPECT_NE(source.Fingerprint(), Pooled("random:tiny-gqa", 1).Fingerprint());
  EXPECT_NE(Pooled("random:tiny-gqa", 1, Kind::kFirst).Fingerprint(),
            Pooled("random:tiny-gqa", 1).Fingerprint());
}

TEST(KvPooling, IsWrittenAsAModelOfItsOwn) {
  const TemporaryDirectory directory;
  const ModelSource source = Pooled("random:tiny-mha", 2);
  const std::string exported = directory.path() + "/m", checkpoint = directory.path() + "/c";
  ASSERT_TRUE(WriteHuggingFace(source, exported, {}).ok());
  ASSERT_TRUE(WriteCheckpoint(source, checkpoint, {}).ok());
  for (const std::string& path : {exported, checkpoint}) {
    const ModelSource read = Open(path);
    EXPECT_EQ(read.config.kv_heads, 2);
    for (const ParamSpec& spec : ParamTable(source.config)) {
      const ParamSlice whole = {0, spec.rows, 0, spec.cols};
      EXPECT_EQ(Read<float>(read, spec, whole, DType::kF32),
                Read<float>(source, spec, whole, DType::kF32));
    }
  }
  // A checkpoint that is pooled once more is another one.
  ModelSource again = Open(checkpoint);
  EXPECT_FALSE(WriteCheckpoint(again, directory.path() + "/d", {}).ok());
  ASSERT_TRUE(PoolKvHeads(again, 1, Kind::kMean).ok());
  EXPECT_TRUE(WriteCheckpoint(again, directory.path() + "/d", {}).ok());
  EXPECT_EQ(Open(directory.path() + "/d").config.kv_heads, 1);
}

TEST(KvPooling, RefusesGroupsOfUnequalSize) {
  for (const int64_t kv_heads : {-1, 0, 3, 8}) {
    ModelSource source = Open("random:tiny-mha");
    const absl::Status status = PoolKvHeads(source, kv_heads, Kind::kMean);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << kv_heads;
    EXPECT_THAT(std::string(status.message()), HasSubstr("divides 4"));
    EXPECT_EQ(source.config.kv_heads, 4);
  }
  ModelSource pooled = Pooled("random:tiny-mha", 2);
  EXPECT_TRUE(absl::IsInvalidArgument(PoolKvHeads(pooled, 1, Kind::kMean)));
}

}  // namespace
}  // namespace toroid
