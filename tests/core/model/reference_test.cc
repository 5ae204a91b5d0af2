// The oracle itself: closed forms and identities that hold for any weights. Equality with
// transformers is golden_test.cc's.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "core/random.h"
#include "tests/reference/model.h"
#include "tests/support/all_close.h"

namespace toroid {
namespace {

using Array = std::vector<double>;

ModelConfig Config() {
  ModelConfig config;
  config.layers = 2;
  config.dim = 12;
  config.ffn = 20;
  config.query_heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.vocab = 17;
  config.context = 64;
  return config;
}

ReferenceParams RandomParams(const ModelConfig& c, uint64_t seed = 1) {
  ReferenceParams params;
  const auto add = [&](const std::string& name, int64_t size, double mean, double deviation) {
    Array& values = params[name];
    for (int64_t i = 0; i < size; ++i) {
      values.push_back(mean + deviation * NormalAt(seed, HashName(name.data(), name.size()), i));
    }
  };
  const int64_t H = c.query_heads * c.head_dim, G = c.kv_heads * c.head_dim;
  add("model.embed_tokens.weight", c.vocab * c.dim, 0, 1);
  add("model.norm.weight", c.dim, 1, 0.2);
  add("lm_head.weight", c.vocab * c.dim, 0, 0.5);
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    const std::string name = "model.layers." + std::to_string(layer) + ".";
    add(name + "input_layernorm.weight", c.dim, 1, 0.2);
    add(name + "post_attention_layernorm.weight", c.dim, 1, 0.2);
    add(name + "self_attn.q_proj.weight", H * c.dim, 0, 0.5);
    add(name + "self_attn.k_proj.weight", G * c.dim, 0, 0.5);
    add(name + "self_attn.v_proj.weight", G * c.dim, 0, 0.5);
    add(name + "self_attn.o_proj.weight", H * c.dim, 0, 0.5);
    add(name + "mlp.gate_proj.weight", c.ffn * c.dim, 0, 0.5);
    add(name + "mlp.up_proj.weight", c.ffn * c.dim, 0, 0.5);
    add(name + "mlp.down_proj.weight", c.ffn * c.dim, 0, 0.5);
  }
  return params;
}

ReferenceInput Input(const ModelConfig& c, std::vector<int32_t> ids) {
  ReferenceInput input;
  input.ids = std::move(ids);
  for (int64_t i = 0; i < c.head_dim / 2; ++i) {
    input.inv_freq.push_back(std::pow(100.0, -2.0 * double(i) / double(c.head_dim)));
  }
  input.taps = true;
  return input;
}

Array Rows(const Array& x, int64_t cols, int64_t begin, int64_t count) {
  return Array(x.begin() + begin * cols, x.begin() + (begin + count) * cols);
}

const std::vector<int32_t> kIds = {3, 14, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9};

// D = F = K = H = V = 2 in numbers small enough for paper. One token: attention returns its value.
TEST(Reference, OneTokenByHand) {
  ModelConfig c;
  c.layers = 1;
  c.dim = c.ffn = c.head_dim = c.vocab = 2;
  c.query_heads = c.kv_heads = 1;
  c.norm_epsilon = 0.5;
  const std::string name = "model.layers.0.";
  const Array identity = {1, 0, 0, 1};
  const ReferenceParams params = {{"model.embed_tokens.weight", {9, 9, 1, -2}},
                                  {name + "input_layernorm.weight", {1, 2}},
                                  {name + "self_attn.q_proj.weight", identity},
                                  {name + "self_attn.k_proj.weight", identity},
                                  {name + "self_attn.v_proj.weight", {1, 1, 0, 3}},
                                  {name + "self_attn.v_proj.bias", {10, 20}},
                                  {name + "self_attn.o_proj.weight", {0, 1, 2, 0}},
                                  {name + "post_attention_layernorm.weight", {1, 1}},
                                  {name + "mlp.gate_proj.weight", {1, 0, 0, 2}},
                                  {name + "mlp.up_proj.weight", {0, 1, 1, 0}},
                                  {name + "mlp.down_proj.weight", {1, 1, 0, 1}},
                                  {"model.norm.weight", {1, 1}},
                                  {"lm_head.weight", {1, 0, 1, 1}}};
  ReferenceInput input;
  input.ids = {1};
  input.inv_freq = {1};
  input.taps = true;
  const ReferenceOutput output = ReferenceForward(c, params, input);
  const ReferenceTaps& taps = output.taps[0];
  const double r = 1 / std::sqrt(2.5 + 0.5);  // x = (1, -2)
  EXPECT_LT(Distance(taps.attention_in, {r, -4 * r}), 1e-15);
  EXPECT_LT(Distance(taps.attention_out, {10 - 3 * r, 20 - 12 * r}), 1e-14);
  const double x0 = 1 + 20 - 12 * r, x1 = -2 + 2 * (10 - 3 * r);
  const double m = 1 / std::sqrt((x0 * x0 + x1 * x1) / 2 + 0.5);
  const double a0 = x0 * m, a1 = x1 * m;
  const double h0 = a0 / (1 + std::exp(-a0)) * a1, h1 = 2 * a1 / (1 + std::exp(-2 * a1)) * a0;
  EXPECT_LT(Distance(taps.mlp_out, {h0 + h1, h1}), 1e-14);
  const double y0 = x0 + h0 + h1, y1 = x1 + h1;
  EXPECT_LT(Distance(taps.residual, {y0, y1}), 1e-13);
  const double n = 1 / std::sqrt((y0 * y0 + y1 * y1) / 2 + 0.5);
  EXPECT_LT(Distance(output.logits, {y0 * n, (y0 + y1) * n}), 1e-14);
  EXPECT_NEAR(ReferenceLogP(output.logits.data(), 2, 0), -std::log(1 + std::exp(y1 * n)), 1e-14);
}

// A PaLM block: both halves read the same norm of x; the logits are scaled.
TEST(Reference, PalmTokenByHand) {
  ModelConfig c;
  c.layers = 1;
  c.dim = c.ffn = c.head_dim = c.vocab = 2;
  c.query_heads = c.kv_heads = 1;
  c.norm_epsilon = 0.5;
  c.parallel_block = c.tied_embeddings = true;
  c.logit_scale = 0.25;
  const std::string name = "model.layers.0.";
  const Array identity = {1, 0, 0, 1};
  const ReferenceParams params = {{"model.embed_tokens.weight", {9, 8, 1, -2}},
                                  {name + "input_layernorm.weight", {1, 2}},
                                  {name + "self_attn.q_proj.weight", identity},
                                  {name + "self_attn.k_proj.weight", identity},
                                  {name + "self_attn.v_proj.weight", {1, 1, 0, 3}},
                                  {name + "self_attn.o_proj.weight", identity},
                                  {name + "mlp.gate_proj.weight", identity},
                                  {name + "mlp.up_proj.weight", {0, 1, 1, 0}},
                                  {name + "mlp.down_proj.weight", {1, 1, 0, 1}},
                                  {"model.norm.weight", {1, 1}}};
  ReferenceInput input;
  input.ids = {1};
  input.inv_freq = {1};
  const ReferenceOutput output = ReferenceForward(c, params, input);
  const double r = 1 / std::sqrt(2.5 + 0.5), a0 = r, a1 = -4 * r;  // x = (1, -2)
  const double h0 = a0 / (1 + std::exp(-a0)) * a1, h1 = a1 / (1 + std::exp(-a1)) * a0;
  const double y0 = 1 + (a0 + a1) + (h0 + h1), y1 = -2 + 3 * a1 + h1;
  EXPECT_LT(Distance(output.residual, {y0, y1}), 1e-14);
  const double n = 0.25 / std::sqrt((y0 * y0 + y1 * y1) / 2 + 0.5);
  EXPECT_LT(Distance(output.logits, {(9 * y0 + 8 * y1) * n, (y0 - 2 * y1) * n}), 1e-14);
}

// A GPT block: learned position 1, LayerNorm, which of two numbers makes +-1, GELU, biases.
TEST(Reference, GptTokenByHand) {
  ModelConfig c;
  c.layers = 1;
  c.dim = c.ffn = c.head_dim = c.vocab = c.context = 2;
  c.query_heads = c.kv_heads = 1;
  c.norm_epsilon = 0;
  c.norm = NormKind::kLayer;
  c.activation = Activation::kGelu;
  c.positions = PositionKind::kLearned;
  const std::string name = "model.layers.0.";
  const Array identity = {1, 0, 0, 1};
  const ReferenceParams params = {{"model.embed_tokens.weight", {9, 9, 1, -2}},
                                  {"model.embed_positions.weight", {7, 7, 2, 1}},
                                  {name + "input_layernorm.weight", {2, 1}},
                                  {name + "input_layernorm.bias", {0.5, -0.5}},
                                  {name + "self_attn.q_proj.weight", identity},
                                  {name + "self_attn.k_proj.weight", identity},
                                  {name + "self_attn.v_proj.weight", {1, 1, 0, 3}},
                                  {name + "self_attn.o_proj.weight", identity},
                                  {name + "self_attn.o_proj.bias", {10, 20}},
                                  {name + "post_attention_layernorm.weight", {1, 3}},
                                  {name + "post_attention_layernorm.bias", {0, 1}},
                                  {name + "mlp.up_proj.weight", identity},
                                  {name + "mlp.up_proj.bias", {0.25, 0}},
                                  {name + "mlp.down_proj.weight", {1, 1, 0, 1}},
                                  {"model.norm.weight", {1, 1}},
                                  {"model.norm.bias", {0, 5}},
                                  {"lm_head.weight", identity}};
  ReferenceInput input;
  input.ids = {1};
  input.first_position = 1;
  input.taps = true;
  const ReferenceOutput output = ReferenceForward(c, params, input);
  // x = (3, -1), normed (1, -1); a = (2.5, -1.5); v = (1, -4.5); x2 = (14, 14.5)
  EXPECT_LT(Distance(output.taps[0].attention_in, {2.5, -1.5}), 1e-15);
  EXPECT_LT(Distance(output.taps[0].attention_out, {1, -4.5}), 1e-15);
  // normed (-1, 1); a = (-1, 4); hidden = gelu(-0.75), gelu(4)
  const auto gelu = [](double x) {
    return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  const double h0 = gelu(-0.75), h1 = gelu(4);
  EXPECT_LT(Distance(output.residual, {14 + h0 + h1, 14.5 + h1}), 1e-13);
  EXPECT_LT(Distance(output.logits, {-1, 6}), 1e-12);  // the second is larger: (-1, 1) + (0, 5)
}

// Two equal heads of three tokens whose scores are known: softmax of (0, ln 2, ln 5).
TEST(Reference, AttentionByHand) {
  ModelConfig c;
  c.layers = 1;
  c.dim = c.head_dim = 2;
  c.ffn = 1;
  c.vocab = 3;
  c.query_heads = 2;
  c.kv_heads = 1;
  c.norm_epsilon = 0;
  c.tied_embeddings = true;
  const std::string name = "model.layers.0.";
  const double two = std::sqrt(2.0);  // undoes 1 / sqrt(K); rows below have mean square 1
  const ReferenceParams params = {
      {"model.embed_tokens.weight", {1, 1, 1, -1, -1, 1}},
      {name + "input_layernorm.weight", {1, 1}},
      {name + "self_attn.q_proj.weight", {0, 0, 0, 0, 0, 0, 0, 0}},
      {name + "self_attn.q_proj.bias", {two, 0, two, 0}},
      // k . (1, 0) of the three tokens: 0, ln 2, ln 5.
      {name + "self_attn.k_proj.weight", {-std::log(5) / 2, -std::log(2) / 2, 0, 0}},
      {name + "self_attn.k_proj.bias", {(std::log(2) + std::log(5)) / 2, 0}},
      {name + "self_attn.v_proj.weight", {1, 0, 0, 1}},
      {name + "self_attn.o_proj.weight", {1, 0, 0, 0, 0, 1, 0, 0}},
      {name + "post_attention_layernorm.weight", {1, 1}},
      {name + "mlp.gate_proj.weight", {1, 1}},
      {name + "mlp.up_proj.weight", {1, 1}},
      {name + "mlp.down_proj.weight", {1, 1}},
      {"model.norm.weight", {1, 1}}};
  ReferenceInput input;
  input.ids = {0, 1, 2};
  input.inv_freq = {0};  // no rotation
  input.taps = true;
  input.logits = false;
  const ReferenceTaps taps = ReferenceForward(c, params, input).taps[0];
  const double third = 1.0 / 3;
  EXPECT_LT(Distance(Rows(taps.attention_out, 4, 0, 1), {1, 1, 1, 1}), 1e-15);
  EXPECT_LT(Distance(Rows(taps.attention_out, 4, 1, 1), {1, -third, 1, -third}), 1e-15);
  EXPECT_LT(Distance(Rows(taps.attention_out, 4, 2, 1), {-0.25, 0.5, -0.25, 0.5}), 1e-15);
}

TEST(Reference, APrefixHasThePrefixOfTheLogits) {
  const ModelConfig c = Config();
  const ReferenceParams params = RandomParams(c);
  const Array whole = ReferenceForward(c, params, Input(c, kIds)).logits;
  const std::vector<int32_t> prefix(kIds.begin(), kIds.begin() + 5);
  EXPECT_LT(Distance(ReferenceForward(c, params, Input(c, prefix)).logits, Rows(whole, 17, 0, 5)),
            1e-13);
  std::vector<int32_t> changed = kIds;
  changed[0] = 7;
  const Array other = ReferenceForward(c, params, Input(c, changed)).logits;
  EXPECT_GT(Distance(Rows(other, 17, 11, 1), Rows(whole, 17, 11, 1)), 1e-3);
}

TEST(Reference, OnlyDistancesMatter) {
  const ModelConfig c = Config();
  const ReferenceParams params = RandomParams(c);
  ReferenceInput input = Input(c, kIds);
  const ReferenceOutput at_zero = ReferenceForward(c, params, input);
  input.first_position = 1000;
  const ReferenceOutput later = ReferenceForward(c, params, input);
  EXPECT_LT(Distance(later.logits, at_zero.logits), 1e-11);
  EXPECT_GT(Distance(later.taps[0].query, at_zero.taps[0].query), 0.1);
  for (double& frequency : input.inv_freq) frequency *= 2;
  EXPECT_GT(Distance(ReferenceForward(c, params, input).logits, at_zero.logits), 1e-3);
  input = Input(c, kIds);
  input.rope_scale = 1.1;
  EXPECT_GT(Distance(ReferenceForward(c, params, input).logits, at_zero.logits), 1e-3);
}

// Query head i reads KV head i / (H / G): the same as G = H with each KV head written out twice.
TEST(Reference, GroupedHeadsAreRepeatedHeads) {
  const ModelConfig grouped = Config();
  ModelConfig full = grouped;
  full.kv_heads = 4;
  const ReferenceParams params = RandomParams(grouped);
  const auto repeat = [&](const std::vector<int64_t>& heads) {
    ReferenceParams repeated = params;
    for (auto& [name, values] : repeated) {
      if (name.find("k_proj") == std::string::npos && name.find("v_proj") == std::string::npos) {
        continue;
      }
      const Array before = values;
      values.clear();
      for (int64_t head : heads) {
        const Array rows = Rows(before, grouped.head_dim * grouped.dim, head, 1);
        values.insert(values.end(), rows.begin(), rows.end());
      }
    }
    return ReferenceForward(full, repeated, Input(full, kIds)).logits;
  };
  const Array expected = ReferenceForward(grouped, params, Input(grouped, kIds)).logits;
  EXPECT_LT(Distance(repeat({0, 0, 1, 1}), expected), 1e-13);
  EXPECT_GT(Distance(repeat({0, 1, 0, 1}), expected), 1e-3);
}

TEST(Reference, WindowsOfALayer) {
  ModelConfig c = Config();
  const ReferenceParams params = RandomParams(c);
  const ReferenceOutput none = ReferenceForward(c, params, Input(c, kIds));
  c.windows = {12, 12};
  EXPECT_EQ(ReferenceForward(c, params, Input(c, kIds)).logits, none.logits);
  c.windows = {1, 0};  // a token sees itself alone: attention returns its value
  const ReferenceOutput one = ReferenceForward(c, params, Input(c, kIds));
  for (int64_t t = 0; t < 12; ++t) {
    for (int64_t head = 0; head < 4; ++head) {
      EXPECT_LT(Distance(Rows(one.taps[0].attention_out, 6, t * 4 + head, 1),
                         Rows(one.taps[0].value, 6, t * 2 + head / 2, 1)),
                1e-15);
    }
  }
  EXPECT_GT(Distance(one.logits, none.logits), 1e-3);
  c.windows = {4, 0};  // the fourth token still sees the first, the fifth does not
  const ReferenceOutput four = ReferenceForward(c, params, Input(c, kIds));
  const int64_t row = 4 * 6;
  EXPECT_EQ(Rows(four.taps[0].attention_out, row, 0, 4),
            Rows(none.taps[0].attention_out, row, 0, 4));
  EXPECT_GT(Distance(Rows(four.taps[0].attention_out, row, 4, 1),
                     Rows(none.taps[0].attention_out, row, 4, 1)),
            1e-6);
}

TEST(Reference, TiedHeadIsTheEmbedding) {
  ModelConfig c = Config();
  ReferenceParams params = RandomParams(c);
  const Array untied = ReferenceForward(c, params, Input(c, kIds)).logits;
  params["lm_head.weight"] = params["model.embed_tokens.weight"];
  const Array copied = ReferenceForward(c, params, Input(c, kIds)).logits;
  params.erase("lm_head.weight");
  c.tied_embeddings = true;
  EXPECT_EQ(ReferenceForward(c, params, Input(c, kIds)).logits, copied);
  EXPECT_GT(Distance(untied, copied), 1e-3);
}

// q/k norms make attention blind to the length of a query head; without them it is not.
TEST(Reference, QkNormForgetsTheScale) {
  ModelConfig c = Config();
  c.norm_epsilon = 1e-30;
  ReferenceParams params = RandomParams(c);
  const auto scaled_query = [&] {
    ReferenceParams scaled = params;
    for (double& w : scaled["model.layers.0.self_attn.q_proj.weight"]) w *= 3;
    return Distance(ReferenceForward(c, scaled, Input(c, kIds)).logits,
                    ReferenceForward(c, params, Input(c, kIds)).logits);
  };
  EXPECT_GT(scaled_query(), 1e-3);
  for (const std::string layer : {"0", "1"}) {
    params["model.layers." + layer + ".self_attn.q_norm.weight"] = {1, 2, 0.5, 1, 1.5, 1};
    params["model.layers." + layer + ".self_attn.k_norm.weight"] = {1, 1, 2, 0.5, 1, 1};
  }
  EXPECT_LT(scaled_query(), 1e-12);
}

TEST(Reference, StopsAfterLayersAndMakesLogitsOfOneRow) {
  const ModelConfig c = Config();
  const ReferenceParams params = RandomParams(c);
  ReferenceInput input = Input(c, kIds);
  const ReferenceOutput whole = ReferenceForward(c, params, input);
  EXPECT_EQ(whole.taps.back().residual, whole.residual);
  EXPECT_EQ(ReferenceLogits(c, params, &whole.residual[5 * c.dim]), Rows(whole.logits, 17, 5, 1));
  input.layers = 1;
  input.logits = false;
  const ReferenceOutput first = ReferenceForward(c, params, input);
  EXPECT_EQ(first.residual, whole.taps[0].residual);
  EXPECT_EQ(first.taps.size(), 1u);
  EXPECT_TRUE(first.logits.empty());
}

}  // namespace
}  // namespace toroid
