#include "core/io/checkpoint_manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/checkpoint_shard.h"
#include "core/io/fingerprint.h"
#include "core/io/model_config_json.h"
#include "core/io/random_model.h"

namespace toroid {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Two ranks; "a" is cut in columns, "b" in the midst of a row.
CheckpointManifest Example() {
  CheckpointManifest m;
  m.state.step = 100;
  m.state.branch = 1;
  m.state.data_position = int64_t{1} << 52;
  m.state.seed = 0xfedcba9876543210u;
  m.state.skipped = *SkipList::Parse("4096-8192");
  m.state.numbers["loss"] = {0.1, -0.0, 1e-310, std::numeric_limits<double>::infinity(), 3};
  m.state.numbers["none"] = {};
  m.state.texts["data"] = "a \"text\" with \xc3\xa4 and\nlines";
  m.model = *RandomShape("tiny-qwen2");
  m.tensor = 2;
  m.epoch = 7;
  m.save_id = 0x8000000000000001u;
  m.dtype = DType::kF64;
  m.parameters = {{"a", 3, 4}, {"b", 2, 5}};
  m.shards.resize(2);
  m.shards[0].pieces = {{0, {0, 3, 0, 1}, 0, 3}, {1, {0, 2, 0, 5}, 0, 7}};
  m.shards[1].pieces = {{0, {0, 3, 1, 3}, 0, 9}, {1, {0, 2, 0, 5}, 7, 3}};
  for (CheckpointShard& shard : m.shards) {
    shard.bytes = ShardBytes(shard.elements() * 3 * 8);
    shard.hash = 0xffffffffffffffffu - uint64_t(shard.bytes);
  }
  return m;
}

// The text of an object with the hash that belongs to it.
std::string Sealed(const json& object) {
  json rest = object;
  rest.erase("hash");
  const std::string text = rest.dump().substr(1);
  FingerprintHash hash;
  hash.Text(text);
  return absl::StrCat("{\"hash\":\"", absl::Hex(hash.value(), absl::kZeroPad16), "\",\n", text);
}

std::string Refusal(const std::string& text) {
  const absl::Status status = CheckpointManifest::Parse(text, "DIR/manifest.json").status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("DIR/manifest.json"));
  return std::string(status.message());
}

TEST(CheckpointManifest, ComesBackAsItWas) {
  const CheckpointManifest m = Example();
  const std::string text = m.ToText();
  EXPECT_TRUE(json::accept(text));
  const auto parsed = CheckpointManifest::Parse(text, "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->state, m.state);
  EXPECT_TRUE(std::signbit(parsed->state.numbers.at("loss")[1]));
  EXPECT_EQ(parsed->parameters, m.parameters);
  EXPECT_EQ(parsed->shards, m.shards);
  EXPECT_EQ(FirstDifference(parsed->model, m.model), "");
  EXPECT_EQ(parsed->model.name, m.model.name);
  EXPECT_EQ(parsed->tensor, 2);
  EXPECT_EQ(parsed->save_id, m.save_id);
  EXPECT_EQ(parsed->epoch, 7);
  EXPECT_EQ(parsed->ToText(), text);
  EXPECT_EQ(Sealed(json::parse(text)), text);

  CheckpointManifest nan = m;
  nan.state.numbers["loss"] = {std::nan("")};
  EXPECT_TRUE(
      std::isnan(CheckpointManifest::Parse(nan.ToText(), "f")->state.numbers.at("loss")[0]));
}

TEST(CheckpointManifest, AnyFlippedBitIsRefused) {
  const std::string text = Example().ToText();
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string flipped = text;
      flipped[i] = char(flipped[i] ^ (1 << bit));
      ASSERT_FALSE(CheckpointManifest::Parse(flipped, "f").ok()) << "byte " << i << " bit " << bit;
    }
  }
  for (size_t size : {size_t{0}, size_t{1}, size_t{20}, size_t{28}, text.size() - 1}) {
    EXPECT_FALSE(CheckpointManifest::Parse(text.substr(0, size), "f").ok()) << size;
  }
}

TEST(CheckpointManifest, WrongNumbersAreRefusedByName) {
  const json good = json::parse(Example().ToText());
  EXPECT_TRUE(CheckpointManifest::Parse(Sealed(good), "f").ok());
  struct Case {
    const char* pointer;
    json value;
    const char* says;
  };
  const json piece = good["shards"][0]["pieces"][0];
  const Case cases[] = {
      {"/state/step", -1, "step"},
      {"/state/step", 1.5, "step"},
      {"/state/step", uint64_t{1} << 63, "step"},
      {"/state/seed", "12", "seed"},
      {"/state/skipped", "9-3", "skipped"},
      {"/state/numbers/loss/0", "big", "numbers: loss"},
      {"/state/texts/data", 3, "texts: data"},
      {"/state/more", 3, "does not know"},
      {"/more", 3, "does not know"},
      {"/schema", 2, "schema 2"},
      {"/dtype", "bf16", "f32 or f64"},
      {"/mesh", {1, 1, 3}, "mesh"},
      {"/mesh/2", "x", "mesh"},
      {"/model/dim", "x", "model: dim"},
      {"/model/dim", 1.5, "model: dim"},
      {"/model/dim", uint64_t{1} << 63, "model: dim"},
      {"/model/name", 3, "model: name"},
      {"/model/qk_norm", 1, "model: qk_norm"},
      {"/model/rope_base", "x", "model: rope_base"},
      {"/model/windows", {1.5}, "model: windows"},
      {"/model/layers", 0, "layers"},
      {"/model/rope/kind", 99, "model: rope: kind"},
      {"/model/colour", 3, "fields are not known"},
      {"/parameters/0", {"a", 3}, "parameters"},
      {"/parameters/0/1", 0, "parameters"},
      {"/parameters/0/1", int64_t{1} << 60, "parameters"},
      {"/parameters/0/1", 4, "a: the shards do not hold each element exactly once"},
      {"/shards/0/file", "../../etc/passwd", "file"},
      {"/shards/0/bytes", 64, "shard-00000-of-00002.bin: its length"},
      {"/shards/0/hash", 5, "hash"},
      {"/shards/1", 5, "shard-00001-of-00002.bin: no object"},
      {"/shards/0/pieces/0", {0, 0, 3, 0, 1, 0}, "pieces"},
      {"/shards/0/pieces/0/0", 2, "of no parameter"},
      {"/shards/0/pieces/0/2", 4, "does not lie within a"},
      {"/shards/0/pieces/0/3", int64_t{1} << 60, "does not lie within a"},
      {"/shards/0/pieces/0/5", 1, "does not lie within a"},
      {"/shards/0/pieces/0/6", 0, "does not lie within a"},
      {"/shards/0/pieces/0/3", 1, "a: the shards do not hold"},  // overlaps
      {"/shards/0/pieces/0/6", 2, "a: the shards do not hold"},  // a hole
      {"/shards/1/pieces/1/5", 6, "b: the shards do not hold"},  // both
  };
  for (const Case& c : cases) {
    json bad = good;
    bad[json::json_pointer(c.pointer)] = c.value;
    EXPECT_THAT(Refusal(Sealed(bad)), HasSubstr(c.says)) << c.pointer << " = " << c.value;
  }
  for (const char* key : {"schema", "state", "model", "mesh", "parameters", "shards", "save_id"}) {
    json bad = good;
    bad.erase(key);
    EXPECT_THAT(Refusal(Sealed(bad)), HasSubstr(key));
  }
}

TEST(CheckpointManifest, CoversOnceSeesEveryHoleAndOverlap) {
  const std::vector<CheckpointParameter> one = {{"w", 6, 7}};
  // Runs of a rectangle of columns 1..6 and the two columns beside it, cut anywhere.
  for (int64_t cut = 1; cut < 30; ++cut) {
    std::vector<CheckpointShard> shards(2);
    shards[0].pieces = {{0, {0, 6, 1, 5}, 0, cut}, {0, {0, 6, 0, 1}, 0, 6}};
    shards[1].pieces = {{0, {0, 6, 1, 5}, cut, 30 - cut}, {0, {0, 6, 6, 1}, 0, 6}};
    EXPECT_TRUE(CoversOnce(one, shards).ok()) << cut;
    std::vector<CheckpointShard> moved = shards;
    moved[1].pieces[0].begin -= 1;
    EXPECT_FALSE(CoversOnce(one, moved).ok()) << cut;
    moved = shards;
    moved[1].pieces[1].slice.col_begin = 0;
    EXPECT_FALSE(CoversOnce(one, moved).ok()) << cut;
    moved = shards;
    moved[0].pieces.pop_back();
    EXPECT_FALSE(CoversOnce(one, moved).ok()) << cut;
  }
}

// A value that an aggregate's field of any type can be made of.
struct Any {
  template <typename T>
  operator T() const;
};
template <typename T, typename... Fields>
constexpr size_t FieldCount() {
  if constexpr (requires { T{Fields{}..., Any{}}; }) {
    return FieldCount<T, Fields..., Any>();
  } else {
    return sizeof...(Fields);
  }
}

TEST(ModelConfigJson, HasEveryField) {
  EXPECT_EQ(ModelConfigJson(ModelConfig()).size(), FieldCount<ModelConfig>());
  EXPECT_EQ(ModelConfigJson(ModelConfig())["rope"].size(), FieldCount<RopeScaling>());
}

TEST(ModelConfigJson, ComesBackAndTellsDifferences) {
  for (ModelConfig config : RandomShapes()) {
    config.rope.kind = RopeScaling::Kind::kLinear;
    config.rope.factor = 1.1;
    const auto read = ReadModelConfig(json::parse(ModelConfigJson(config).dump()), "f");
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(FirstDifference(*read, config), "");
    EXPECT_EQ(ModelConfigJson(*read), ModelConfigJson(config));
    ModelConfig other = config;
    other.name = "another name";
    EXPECT_EQ(FirstDifference(config, other), "");
    other.rope_base += 1;
    EXPECT_THAT(FirstDifference(config, other), HasSubstr("rope_base: "));
  }
  json absent = ModelConfigJson(*RandomShape("tiny-mha"));
  absent.erase("qk_norm");  // as written before there was such a field
  EXPECT_TRUE(ReadModelConfig(absent, "f").ok());
}

std::vector<CheckpointEntry> Entries(const std::vector<std::string>& names) {
  std::vector<CheckpointEntry> entries;
  for (const std::string& name : names) {
    CheckpointEntry entry;
    EXPECT_TRUE(ParseCheckpointName(name, entry)) << name;
    entries.push_back(entry);
  }
  return entries;
}

std::vector<std::string> Names(const std::vector<CheckpointEntry>& entries) {
  std::vector<std::string> names;
  for (const CheckpointEntry& entry : entries) names.push_back(entry.name);
  return names;
}

TEST(CheckpointDirectory, NamesAreReadAsTheyAreWritten) {
  CheckpointEntry entry;
  for (int64_t step : {int64_t{0}, int64_t{100}, int64_t{123456789012}}) {
    for (int64_t branch : {0, 3}) {
      ASSERT_TRUE(ParseCheckpointName(CheckpointName(step, branch), entry));
      EXPECT_EQ(entry.kind, CheckpointEntry::Kind::kWhole);
      EXPECT_EQ(entry.step, step);
      EXPECT_EQ(entry.branch, branch);
      ASSERT_TRUE(ParseCheckpointName(PartialName(step, branch, 7, 0xabc), entry));
      EXPECT_EQ(entry.kind, CheckpointEntry::Kind::kPartial);
      EXPECT_EQ(entry.epoch, 7);
      ASSERT_TRUE(ParseCheckpointName(ReplacedName(step, branch, 7, 0xabc), entry));
      EXPECT_EQ(entry.kind, CheckpointEntry::Kind::kReplaced);
      EXPECT_EQ(entry.step, step);
      EXPECT_EQ(entry.branch, branch);
    }
  }
  EXPECT_EQ(CheckpointName(100, 0), "step-00000100");
  for (const char* other : {"", "step-", "step-1", "step-00000100 ", "step-+0000100", "best",
                            "step-00000100-b0", "step-00000100-bx", "step-00000100.bak",
                            "step-00000100.tmp-x-1", "step-99999999999999999999"}) {
    EXPECT_FALSE(ParseCheckpointName(other, entry)) << other;
  }
}

TEST(CheckpointDirectory, LaterBranchesAreNewer) {
  EXPECT_THAT(
      Names(Loadable(Entries({"step-00000100", "step-00000100-b1", "step-00000200",
                              "step-00000150.tmp-0-1", "step-00000200.old-0-1"}))),
      ElementsAre("step-00000100-b1", "step-00000200", "step-00000200.old-0-1", "step-00000100"));
}

TEST(CheckpointDirectory, WhatIsSuperfluousGoes) {
  const auto gone = [](const std::vector<std::string>& names, const std::string& committed,
                       int64_t keep) {
    return Names(Superfluous(Entries(names), Entries({committed})[0], keep, /*epoch=*/5));
  };
  const std::vector<std::string> three = {"step-00000100", "step-00000200", "step-00000300"};
  EXPECT_THAT(gone(three, "step-00000300", 2), ElementsAre("step-00000100"));
  EXPECT_THAT(gone(three, "step-00000300", 1), ElementsAre("step-00000200", "step-00000100"));
  EXPECT_THAT(gone(three, "step-00000300", 3), IsEmpty());
  // A newer one, which could not be loaded, neither goes nor takes a place.
  EXPECT_THAT(gone(three, "step-00000200", 2), IsEmpty());
  EXPECT_THAT(gone(three, "step-00000200", 1), ElementsAre("step-00000100"));
  // Left by others: an earlier launch's goes, a later launch's stays.
  EXPECT_THAT(
      gone({"step-00000100.tmp-5-1", "step-00000100.tmp-6-1", "step-00000300"}, "step-00000300", 2),
      ElementsAre("step-00000100.tmp-5-1"));
  // Replaced: garbage once its successor stands, else a checkpoint like others.
  EXPECT_THAT(gone({"step-00000200", "step-00000300", "step-00000300.old-0-1"}, "step-00000300", 2),
              ElementsAre("step-00000300.old-0-1"));
  EXPECT_THAT(gone({"step-00000200.old-0-1", "step-00000300"}, "step-00000300", 2), IsEmpty());
  // The run went back to step 100: what it had made since is left behind.
  EXPECT_THAT(gone({"step-00000050", "step-00000100", "step-00000100-b1", "step-00000200"},
                   "step-00000100-b1", 3),
              ElementsAre("step-00000200", "step-00000100"));
}

}  // namespace
}  // namespace toroid
