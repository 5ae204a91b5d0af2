#include "core/io/hugging_face_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace toroid {
namespace {

using nlohmann::json;
using testing::HasSubstr;

json Base(const std::string& type) {
  return {{"model_type", type},     {"hidden_size", 64},         {"intermediate_size", 128},
          {"num_hidden_layers", 4}, {"num_attention_heads", 4},  {"num_key_value_heads", 2},
          {"vocab_size", 100},      {"torch_dtype", "bfloat16"}, {"max_position_embeddings", 512}};
}

ModelConfig Read(const json& config) {
  const auto result = HuggingFaceConfig(config.dump(), "config.json");
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : ModelConfig();
}

TEST(HuggingFaceConfig, DefaultsAreThoseOfTransformers) {
  json llama = Base("llama");
  llama.erase("num_key_value_heads");
  llama.erase("max_position_embeddings");
  const ModelConfig config = Read(llama);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.context, 2048);
  EXPECT_EQ(config.norm_epsilon, 1e-6);
  EXPECT_EQ(config.rope_base, 10000.0);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_TRUE(config.windows.empty());
  EXPECT_EQ(Read(Base("qwen3")).head_dim, 128);
  EXPECT_TRUE(Read(Base("qwen3")).qk_norm);
  EXPECT_TRUE(Read(Base("qwen2")).qkv_bias);
  EXPECT_FALSE(Read(Base("qwen2")).output_bias);
}

TEST(HuggingFaceConfig, Gpt2SpeaksOfItselfInOtherWords) {
  const json base = {{"model_type", "gpt2"},
                     {"n_embd", 64},
                     {"n_layer", 3},
                     {"n_head", 4},
                     {"n_ctx", 512},
                     {"n_inner", nullptr},
                     {"attn_pdrop", 0.1},
                     {"summary_type", "cls_index"},
                     {"summary_use_proj", true}};
  const ModelConfig config = Read(base);
  EXPECT_EQ(config.architecture, "gpt");
  EXPECT_EQ(config.ffn, 256);
  EXPECT_EQ(config.kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.context, 1024);
  EXPECT_EQ(config.vocab, 50257);
  EXPECT_EQ(config.norm_epsilon, 1e-5);
  EXPECT_TRUE(config.tied_embeddings && config.qkv_bias && config.output_bias && config.mlp_bias);
  EXPECT_EQ(config.norm, NormKind::kLayer);
  EXPECT_EQ(config.activation, Activation::kGelu);
  EXPECT_EQ(config.positions, PositionKind::kLearned);
  for (const char* patch :
       {R"({"activation_function":"relu"})", R"({"scale_attn_weights":false})",
        R"({"scale_attn_by_inverse_layer_idx":true})", R"({"reorder_and_upcast_attn":true})",
        R"({"add_cross_attention":true})", R"({"n_head":5})", R"({"n_head":0})", R"({"n_embd":0})",
        R"({"architectures":["GPT2Model"]})", R"({"hidden_size":64})"}) {
    json changed = base;
    const json change = json::parse(patch);
    changed.update(change);
    const absl::Status status = HuggingFaceConfig(changed.dump(), "config.json").status();
    EXPECT_FALSE(status.ok()) << patch;
    EXPECT_NE(status.message().find(change.begin().key()), absl::string_view::npos) << status;
  }
}

TEST(HuggingFaceConfig, Windows) {
  using Windows = std::vector<int64_t>;
  json mistral = Base("mistral");
  EXPECT_EQ(Read(mistral).windows, (Windows{4096, 4096, 4096, 4096}));  // the key is absent
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(Read(mistral).windows, Windows());
  mistral["sliding_window"] = 8;
  EXPECT_EQ(Read(mistral).windows, (Windows{8, 8, 8, 8}));

  json qwen = Base("qwen2");
  qwen["sliding_window"] = 8;
  qwen["max_window_layers"] = 3;
  EXPECT_EQ(Read(qwen).windows, Windows());  // not in use
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(Read(qwen).windows, (Windows{0, 0, 0, 8}));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "full_attention", "full_attention"};
  EXPECT_EQ(Read(qwen).windows, (Windows{8, 0, 0, 0}));
}

TEST(HuggingFaceConfig, RopeOldAndNewSpelling) {
  const json yarn = {{"factor", 4.0}, {"original_max_position_embeddings", 256}};
  json old_style = Base("llama"), new_style = Base("llama");
  old_style["rope_theta"] = 5000;
  old_style["rope_scaling"] = yarn;
  old_style["rope_scaling"]["type"] = "yarn";
  new_style["rope_parameters"] = yarn;
  new_style["rope_parameters"]["rope_type"] = "yarn";
  new_style["rope_parameters"]["rope_theta"] = 5000;
  for (const json& spelling : {old_style, new_style}) {
    const ModelConfig config = Read(spelling);
    EXPECT_EQ(config.rope_base, 5000);
    EXPECT_EQ(config.rope.kind, RopeScaling::Kind::kYarn);
    EXPECT_EQ(config.rope.original_context, 256);
    EXPECT_EQ(config.context, 1024);
  }
  json dynamic = Base("llama");
  dynamic["rope_scaling"] = {{"rope_type", "dynamic"}, {"factor", 2.0}};
  EXPECT_EQ(Read(dynamic).rope.original_context, 512);
  EXPECT_EQ(Read(dynamic).context, 1024);
}

TEST(HuggingFaceConfig, HarmlessKeysPass) {
  json config = Base("llama");
  config["architectures"] = {"LlamaForCausalLM"};
  config["eos_token_id"] = {1, 2};
  config["initializer_range"] = 0.02;
  config["rope_interleaved"] = false;
  config["is_llama_config"] = true;
  config["pretraining_tp"] = 1;
  config["rope_scaling"] = nullptr;
  config["some_new_switch"] = false;
  config["another"] = nullptr;
  Read(config);
}

TEST(HuggingFaceConfig, WhatIsNotComputedIsRefusedByName) {
  struct Case {
    const char* type;
    const char* patch;
    const char* message;
  };
  const Case cases[] = {
      {"gemma2", "{}",
       "model_type \"gemma2\" is not supported; llama, mistral, qwen2, qwen3, gpt2 are"},
      {"llama", R"({"architectures":["LlamaForSequenceClassification"]})",
       "LlamaForCausalLM alone"},
      {"llama", R"({"hidden_act":"gelu"})", "hidden_act = gelu"},
      {"llama", R"({"attn_logit_softcapping":50.0})", "attn_logit_softcapping = 50.0"},
      {"llama", R"({"partial_rotary_factor":0.5})", "partial_rotary_factor = 0.5"},
      {"llama", R"({"num_experts":8})", "num_experts = 8"},
      {"llama", R"({"num_local_experts":8})", "num_local_experts"},
      {"llama", R"({"attention_multiplier":0.1})", "attention_multiplier"},
      {"llama", R"({"embedding_multiplier":12})", "embedding_multiplier"},
      {"llama", R"({"residual_multiplier":0.2})", "residual_multiplier"},
      {"llama", R"({"logits_scaling":8})", "logits_scaling"},
      {"llama", R"({"quantization_config":{"bits":4}})", "quantization_config"},
      {"llama", R"({"pretraining_tp":2})", "pretraining_tp = 2"},
      {"llama", R"({"auto_map":{"AutoModel":"x.py"}})", "auto_map"},
      {"llama", R"({"rope_interleaved":true})", "rope_interleaved = true"},
      {"llama", R"({"sliding_window":64})", "sliding_window = 64"},
      {"llama", R"({"key_of_tomorrow":"x"})", "key_of_tomorrow"},
      {"mistral", R"({"attention_bias":true})", "attention_bias"},
      {"mistral", R"({"sliding_window":0})", "must be at least 1 or null"},
      {"qwen2", R"({"use_mrope":true})", "use_mrope"},
      {"qwen3", R"({"layer_types":["full_attention"]})", "one text per layer"},
      {"qwen3",
       R"({"layer_types":["chunked_attention","full_attention","full_attention","full_attention"]})",
       "chunked_attention"},
      {"qwen3",
       R"({"layer_types":["sliding_attention","full_attention","full_attention","full_attention"]})",
       "no sliding window is in use"},
      {"llama", R"({"rope_scaling":{"rope_type":"longrope","factor":2}})", "rope_type = longrope"},
      {"llama", R"({"rope_scaling":{"type":"su","factor":2}})", "rope_type = su"},
      {"llama", R"({"rope_scaling":{"type":"linear"}})", "factor: is missing"},
      {"llama", R"({"rope_scaling":{"type":"linear","factor":2,"tweak":3}})",
       "config.json: rope_scaling: tweak = 3"},
      {"llama", R"({"rope_scaling":{"type":"default","factor":2}})", "factor = 2"},
      {"llama", R"({"rope_scaling":{"type":"linear","factor":-1e300}})", "between 1 and 1e6"},
      {"llama", R"({"rope_scaling":{"type":"dynamic","factor":1e7}})", "between 1 and 1e6"},
      {"llama", R"({"rope_scaling":"linear"})", "must be an object"},
      {"llama", R"({"rope_scaling":{"type":"llama3","factor":2,"low_freq_factor":1}})",
       "high_freq_factor: is missing"},
      {"llama", R"({"rope_parameters":{"full_attention":{"rope_type":"default"}}})",
       "full_attention"},
      {"llama", R"({"hidden_size":null})", "hidden_size = null: is missing"},
      {"llama", R"({"hidden_size":64.5})", "must be an integer"},
      {"llama", R"({"hidden_size":18446744073709551615})", "must be an integer"},
      {"llama", R"({"num_attention_heads":0})", "must be at least 1"},
      {"llama", R"({"num_attention_heads":-4})", "must be at least 1"},
      {"llama", R"({"num_hidden_layers":1000000000})", "between 1 and 4096"},
      {"llama", R"({"num_key_value_heads":3})", "multiple of the KV heads"},
      {"llama", R"({"tie_word_embeddings":"yes"})", "must be true or false"},
      {"llama", R"({"rms_norm_eps":0})", "rms_norm_eps"},
  };
  for (const Case& test : cases) {
    json config = Base(test.type);
    config.update(json::parse(test.patch));
    const absl::Status status = HuggingFaceConfig(config.dump(), "config.json").status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(test.message)) << test.patch;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json")) << test.patch;
  }
  EXPECT_THAT(std::string(HuggingFaceConfig("{", "c").status().message()), HasSubstr("valid JSON"));
  EXPECT_THAT(std::string(HuggingFaceConfig("[]", "c").status().message()),
              HasSubstr("no JSON obj"));
}

TEST(HuggingFaceGeneration, ReadsWhatIsThere) {
  const auto one = HuggingFaceGeneration(
      R"({"eos_token_id":7,"temperature":0.5,"top_k":20,"do_sample":true,"x":{}})", "g");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->eos_ids, (std::vector<int64_t>{7}));
  EXPECT_EQ(one->temperature, 0.5);
  EXPECT_EQ(one->top_k, 20);
  EXPECT_EQ(one->sample, true);
  EXPECT_FALSE(one->top_p.has_value());
  EXPECT_EQ(HuggingFaceGeneration(R"({"eos_token_id":[1,2]})", "g")->eos_ids,
            (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(HuggingFaceGeneration(R"({"eos_token_id":null})", "g")->eos_ids.empty());
  EXPECT_FALSE(HuggingFaceGeneration(R"({"eos_token_id":"x"})", "g").ok());
}

}  // namespace
}  // namespace toroid
