#include "core/io/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "core/io/gguf_config.h"
#include "core/io/model_source.h"
#include "tests/support/golden.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::HasSubstr;

absl::Span<const uint8_t> Span(const std::string& bytes) {
  return {reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()};
}

std::string ErrorOf(const std::string& bytes) {
  return std::string(GgufFile::Parse(Span(bytes), "f.gguf").status().message());
}

TEST(Gguf, ReadsKeysOfEveryType) {
  GgufBuilder file;
  file.Key("u8", 0, Raw(uint8_t{200}));
  file.Key("i8", 1, Raw(int8_t{-3}));
  file.Key("i16", 3, Raw(int16_t{-300}));
  file.Key("u64", 10, Raw(uint64_t{1} << 63));
  file.Key("f64", 12, Raw(2.5));
  file.Bool("yes", true);
  file.Strings("texts", {"a", "", "c"});
  file.Key("ints", 9, Raw(uint32_t{5}) + Raw(uint64_t{2}) + Raw(int32_t{7}) + Raw(int32_t{-7}));
  file.Ones("w", 3, 5);
  const std::string bytes = file.Build();
  const auto parsed = GgufFile::Parse(Span(bytes), "f");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(*parsed->Int("u8"), 200);
  EXPECT_EQ(*parsed->Int("i8"), -3);
  EXPECT_EQ(*parsed->Int("i16"), -300);
  EXPECT_EQ(*parsed->Double("f64"), 2.5);
  EXPECT_EQ(*parsed->Double("i8"), -3.0);
  EXPECT_TRUE(*parsed->Bool("yes"));
  EXPECT_EQ(*parsed->Strings("texts"), (std::vector<std::string>{"a", "", "c"}));
  EXPECT_EQ(*parsed->Ints("ints"), (std::vector<int64_t>{7, -7}));
  EXPECT_EQ(parsed->tensors()[0].shape, (std::vector<int64_t>{3, 5}));
  EXPECT_THAT(std::string(parsed->Int("u64").status().message()), HasSubstr("below 2^63"));
  EXPECT_THAT(std::string(parsed->Int("texts").status().message()), HasSubstr("a single value"));
  EXPECT_THAT(std::string(parsed->String("u8").status().message()), HasSubstr("is not a string"));
  EXPECT_TRUE(absl::IsNotFound(parsed->Int("absent").status()));
}

TEST(Gguf, BadFilesAreRefusedByRule) {
  struct Case {
    std::function<void(GgufBuilder&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](auto& f) { f.magic = "GGML"; }, "does not begin with GGUF"},
      {[](auto& f) { f.version = 2; }, "version 2; toroid reads version 3"},
      {[](auto& f) { f.version = 0x03000000; }, "big-endian"},
      {[](auto& f) { f.tensor_count = 100; }, "has 0 dimensions"},
      {[](auto& f) { f.tensor_count = int64_t{1} << 62; }, "has 0 dimensions"},
      {[](auto& f) { f.key_count = int64_t{1} << 62; }, "the name of a key is longer"},
      {[](auto& f) { f.Key("k", 13, ""); }, "key k has the unknown type 13"},
      {[](auto& f) { f.Key("k", 9, Raw(uint32_t{99}) + Raw(uint64_t{0})); }, "unknown type 99"},
      {[](auto& f) { f.Key("k", 9, Raw(uint32_t{9}) + Raw(uint64_t{0})); }, "array of arrays"},
      {[](auto& f) { f.Key("k", 9, Raw(uint32_t{4}) + Raw(~uint64_t{0})); }, "overflows"},
      {[](auto& f) { f.Key("k", 9, Raw(uint32_t{4}) + Raw(uint64_t{1} << 40)); }, "ends within"},
      {[](auto& f) { f.Key("k", 9, Raw(uint32_t{8}) + Raw(uint64_t{1} << 60)); }, "ends within"},
      {[](auto& f) { f.Key("k", 8, Raw(~uint64_t{0})); }, "ends within the value of key k"},
      {[](auto& f) { f.Key("k", 7, Raw(uint8_t{2})); }, "truth value above 1"},
      {[](auto& f) { f.Key(std::string(70000, 'k'), 0, "x"); }, "longer than 65535"},
      {[](auto& f) {
         f.Uint32("k", 1);
         f.Uint32("k", 1);
       },
       "key k appears twice"},
      {[](auto& f) { f.Uint32("general.alignment", 0); }, "no power of two"},
      {[](auto& f) { f.Uint32("general.alignment", 48); }, "general.alignment is 48"},
      {[](auto& f) { f.Uint32("general.alignment", 1u << 31); }, "no power of two"},
      {[](auto& f) { f.String("general.alignment", "32"); }, "32-bit unsigned"},
      {[](auto& f) { f.tensors[1].name = f.tensors[0].name; }, "appears twice"},
      {[](auto& f) { f.tensors[0].dims = {}; }, "has 0 dimensions"},
      {[](auto& f) {
         f.tensors[0].dims = {1, 1, 1, 1, 1};
       },
       "has 5 dimensions"},
      {[](auto& f) {
         f.tensors[0].dims = {0, 4};
       },
       "a dimension of 0"},
      {[](auto& f) {
         f.tensors[0].dims = {uint64_t{1} << 40, uint64_t{1} << 40};
       },
       "overflows"},
      {[](auto& f) { f.tensors[0].dims = {~uint64_t{0}}; }, "overflows"},
      {[](auto& f) { f.tensors[0].dims = {uint64_t{1} << 59}; }, "overflows"},
      {[](auto& f) { f.tensors[0].dims[1] += 1; }, "was expected: tensors lie one after the other"},
      {[](auto& f) { f.tensors[1].offset = 0; }, "begins at offset 0 where"},
      {[](auto& f) { f.tensors[1].offset = int64_t{1} << 62; }, "where"},
      {[](auto& f) { f.tensors[0].type = 10; }, "ggml type Q2_K, which toroid does not read"},
      {[](auto& f) { f.tensors[0].type = 39; }, "ggml type MXFP4"},
      {[](auto& f) { f.tensors[0].type = 4; }, "unknown ggml type 4"},
      {[](auto& f) { f.tensors[0].type = 12; }, "no multiple of 256, the block of q4_k"},
      {[](auto& f) { f.tensors.back().dims = {1 << 20}; }, "ends beyond the file"},
  };
  for (const Case& test : cases) {
    GgufBuilder file = SmallGguf("llama");
    test.spoil(file);
    EXPECT_THAT(ErrorOf(file.Build()), HasSubstr(test.message));
  }
}

// Wherever a file is cut it is refused, and the whole file is not (negative control).
TEST(Gguf, EveryTruncationIsRefused) {
  const std::string bytes = SmallGguf("llama").Build();
  EXPECT_EQ(ErrorOf(bytes), "");
  for (size_t length = 0; length < bytes.size(); length += length < 2000 ? 1 : 997) {
    EXPECT_NE(ErrorOf(bytes.substr(0, length)), "") << length;
  }
}

absl::Status OpenSpoilt(const std::string& architecture,
                        const std::function<void(GgufBuilder&)>& spoil) {
  const TemporaryDirectory directory;
  GgufBuilder file = SmallGguf(architecture);
  spoil(file);
  return OpenModel(directory.Write("m.gguf", file.Build())).status();
}

TEST(GgufModel, SmallModelsOpen) {
  for (const char* architecture : {"llama", "qwen2", "qwen3"}) {
    EXPECT_TRUE(OpenSpoilt(architecture, [](GgufBuilder&) {}).ok()) << architecture;
  }
}

TEST(GgufModel, WhatIsNotComputedIsRefusedByName) {
  struct Case {
    std::function<void(GgufBuilder&)> spoil;
    const char* message;
  };
  const Case cases[] = {
      {[](auto& f) { f.Remove("general.architecture"); }, "general.architecture is missing"},
      {[](auto& f) {
         f.Remove("general.architecture");
         f.String("general.architecture", "mamba");
       },
       "architecture mamba is not supported; GGUF files of llama, qwen2, qwen3 are"},
      {[](auto& f) { f.String("general.type", "adapter"); }, "general.type = adapter"},
      {[](auto& f) { f.Remove("llama.block_count"); }, "llama.block_count is missing"},
      {[](auto& f) { f.Uint32("llama.expert_count", 8); }, "llama.expert_count = 8"},
      {[](auto& f) { f.Float32("llama.attn_logit_softcapping", 30); },
       "llama.attn_logit_softcapping may change the mathematics"},
      {[](auto& f) { f.Float32("llama.logit_scale", 2); }, "llama.logit_scale"},
      {[](auto& f) { f.Uint32("llama.rope.dimension_count", 4); }, "rope.dimension_count = 4"},
      {[](auto& f) { f.Uint32("llama.attention.value_length", 16); }, "value_length = 16"},
      {[](auto& f) { f.String("llama.rope.scaling.type", "longrope"); }, "type = longrope"},
      {[](auto& f) { f.Bool("llama.attention.causal", false); }, "attention.causal = 0"},
      {[](auto& f) {
         f.String("llama.rope.scaling.type", "yarn");
         f.Float32("llama.rope.scaling.factor", 2);
         f.Float32("llama.rope.scaling.yarn_ext_factor", 0.5);
       },
       "yarn_ext_factor = 0.5"},
      {[](auto& f) {
         f.Strings("tokenizer.ggml.tokens", {"a"});
         f.Key("tokenizer.ggml.scores", 9, Raw(uint32_t{6}) + Raw(uint64_t{0}));
         f.Key("tokenizer.ggml.token_type", 9,
               Raw(uint32_t{5}) + Raw(uint64_t{2}) + Raw(uint64_t{0}));
       },
       "the numbers must agree"},
      {[](auto& f) { f.tensors.pop_back(); }, "mlp.down_proj.weight is missing"},
      {[](auto& f) { f.Ones("blk.0.attn_qkv.weight", 4, 4); },
       "tensor blk.0.attn_qkv.weight is no parameter"},
      {[](auto& f) { f.Ones("blk.1.ffn_up.weight", 64, 32); }, "model.layers.1.mlp.up_proj"},
      {[](auto& f) { f.Ones("blk.0.attn_q.bias", 0, 32); }, "k_proj.bias is missing"},
      {[](auto& f) {
         f.tensors.back().dims = {32, 64};
       },
       "has shape [64, 32], the configuration"},
      {[](auto& f) { f.Ones("rope_freqs.weight", 0, 7); }, "rope_freqs.weight: must be"},
      {[](auto& f) { f.Uint32("split.count", 3); }, "part 1 of a model in 3 files"},
  };
  for (const Case& test : cases) {
    const absl::Status status = OpenSpoilt("llama", test.spoil);
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message));
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf"));
  }
}

TEST(GgufModel, SplitFilesAreOneModel) {
  const TemporaryDirectory directory;
  GgufBuilder first = SmallGguf("llama");
  GgufBuilder second;
  second.tensors.assign(first.tensors.begin() + 4, first.tensors.end());
  first.tensors.resize(4);
  for (GgufBuilder* part : {&first, &second}) {
    part->Key("split.no", 2, Raw(uint16_t(part == &second)));
    part->Key("split.count", 2, Raw(uint16_t{2}));
  }
  const std::string path = directory.Write("m-00001-of-00002.gguf", first.Build());
  EXPECT_THAT(std::string(OpenModel(path).status().message()), HasSubstr("m-00002-of-00002.gguf"));
  const std::string other = directory.Write("m-00002-of-00002.gguf", second.Build());
  const auto source = OpenModel(path);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->tensors.at("model.norm.weight").file, 0);
  EXPECT_EQ(source->tensors.at("model.layers.0.mlp.down_proj.weight").file, 1);
  directory.Write("m-00002-of-00002.gguf", first.Build());
  EXPECT_THAT(std::string(OpenModel(path).status().message()), HasSubstr("says that it is part 1"));
  directory.Write("m-00002-of-00002.gguf", second.Build());
  EXPECT_THAT(std::string(OpenModel(other).status().message()), HasSubstr("is missing"));
}

TEST(GgufModel, RopeScalingAndTokenizer) {
  const TemporaryDirectory directory;
  GgufBuilder file = SmallGguf("llama");
  file.String("llama.rope.scaling.type", "yarn");
  file.Float32("llama.rope.scaling.factor", 4);
  file.Uint32("llama.rope.scaling.original_context_length", 64);
  file.Uint32("llama.attention.sliding_window", 16);
  file.String("tokenizer.ggml.model", "gpt2");
  file.Strings("tokenizer.ggml.tokens", {"a", "b", "c"});
  file.Uint32("tokenizer.ggml.eos_token_id", 2);
  file.Uint32("tokenizer.ggml.bos_token_id", ~0u);  // how some writers say "none"
  const auto source = OpenModel(directory.Write("m.gguf", file.Build()));
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->config.rope.kind, RopeScaling::Kind::kYarn);
  EXPECT_EQ(source->config.context, 256);  // 4 * 64 reaches beyond the stated 128
  EXPECT_EQ(source->config.windows, (std::vector<int64_t>{16}));
  EXPECT_TRUE(source->config.tied_embeddings);
  EXPECT_EQ(source->tokenizer.gguf.tokens.size(), 3u);
  EXPECT_EQ(source->generation.eos_ids, (std::vector<int64_t>{2}));
  EXPECT_FALSE(source->tokenizer.gguf.bos_id.has_value());
}

TEST(GgufModel, GoldenFilesOpen) {
  for (const char* name : {"llama_mixed", "llama_k_quants", "qwen2", "qwen3", "llama_llama3"}) {
    const auto source = OpenModel(GoldenModelPath(std::string("gguf/") + name + ".gguf"));
    EXPECT_TRUE(source.ok()) << source.status();
  }
  EXPECT_THAT(
      std::string(OpenModel(GoldenModelPath("gguf/unsupported_q2_k.gguf")).status().message()),
      HasSubstr("blk.0.attn_q.weight has ggml type Q2_K"));
}

}  // namespace
}  // namespace toroid
