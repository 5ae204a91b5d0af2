#include "core/io/model_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "core/io/describe.h"
#include "core/io/weights.h"
#include "kernels/dequantize.h"
#include "tests/support/golden.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

ParamSlice Whole(const ParamSpec& spec) { return {0, spec.rows, 0, spec.cols}; }

ParamSpec Spec(const ModelConfig& config, const std::string& name) {
  for (const ParamSpec& spec : ParamTable(config)) {
    if (spec.name == name) return spec;
  }
  ADD_FAILURE() << name;
  return {};
}

std::vector<float> LoadFloats(const ModelSource& source, const ParamSpec& spec,
                              const ParamSlice& slice) {
  std::vector<float> values(slice.row_count * slice.col_count, -1.0f);
  const absl::Status status = LoadParam(source, spec, slice, DType::kF32, values.data());
  EXPECT_TRUE(status.ok()) << status;
  return values;
}

TEST(OpenModel, MissingThings) {
  EXPECT_THAT(Message(OpenModel("/no/such/model").status()), HasSubstr("/no/such/model"));
  EXPECT_TRUE(absl::IsNotFound(OpenModel("/no/such/model").status()));
  EXPECT_THAT(Message(OpenModel("random:huge").status()), HasSubstr("there are tiny-1m"));
  EXPECT_THAT(Message(OpenModel("random:tiny-1m:q9_9").status()), HasSubstr("q8_0, q4_0, q4_1"));
  EXPECT_THAT(Message(OpenModel("random:huge:q8_0").status()), HasSubstr("there are tiny-1m"));
  const TemporaryDirectory directory;
  EXPECT_THAT(Message(OpenModel(directory.path()).status()), HasSubstr("config.json: no such"));
  EXPECT_THAT(Message(OpenModel(directory.Write("empty.gguf", "")).status()), HasSubstr("empty"));
  EXPECT_THAT(Message(OpenModel("/dev/null").status()), HasSubstr("not a regular file"));
}

// What ranks load together is what one rank loads, for every mesh and kind of file.
TEST(LoadParam, SlicesAreCutsOfTheWhole) {
  const std::string models[] = {"random:tiny-gqa",
                                "random:tiny-qwen2",
                                "random:tiny-1m:q8_0",
                                "random:tiny-1m:q4_1",
                                GoldenModelPath("llama_sharded"),
                                GoldenModelPath("qwen3"),
                                GoldenModelPath("gguf/llama_mixed.gguf"),
                                GoldenModelPath("gguf/llama_k_quants.gguf")};
  for (const std::string& model : models) {
    const auto source = OpenModel(model, 7);
    ASSERT_TRUE(source.ok()) << source.status();
    for (const ParamSpec& spec : ParamTable(source->config)) {
      const std::vector<float> whole = LoadFloats(*source, spec, Whole(spec));
      const int64_t size = std::min<int64_t>(3, source->config.query_heads);
      for (int64_t rank = 0; rank < size; ++rank) {
        const ParamSlice slice = ParamLayout(source->config, rank, size).Slice(spec);
        const std::vector<float> part = LoadFloats(*source, spec, slice);
        for (int64_t r = 0; r < slice.row_count; ++r) {
          for (int64_t c = 0; c < slice.col_count; ++c) {
            ASSERT_EQ(part[r * slice.col_count + c],
                      whole[(slice.row_begin + r) * spec.cols + slice.col_begin + c])
                << model << " " << spec.name << " rank " << rank;
          }
        }
      }
    }
  }
}

// What is kept as stored has the file's bytes: decoding them gives what loading as f32 gives.
TEST(LoadParam, KeptBlocksDecodeToTheSame) {
  const auto source = OpenModel(GoldenModelPath("gguf/llama_mixed.gguf"));
  ASSERT_TRUE(source.ok()) << source.status();
  int quantised = 0;
  for (const ParamSpec& spec : ParamTable(source->config)) {
    const DType stored = StoredType(*source, spec, DType::kF32);
    const int64_t count = spec.rows * spec.cols;
    quantised += IsQuantised(stored);
    std::vector<uint8_t> bytes(SliceBytes(Whole(spec), stored));
    ASSERT_TRUE(LoadParam(*source, spec, Whole(spec), stored, bytes.data()).ok());
    std::vector<float> decoded(count);
    DecodeRow(stored, bytes.data(), 0, count, decoded.data());
    EXPECT_EQ(decoded, LoadFloats(*source, spec, Whole(spec))) << spec.name;
  }
  EXPECT_GE(quantised, 3);
}

// convert_hf_to_gguf stores row a K/2 + b of a head at 2 b + a; qwen2 it leaves alone.
TEST(LoadParam, LlamaRowsOfGgufArePutBack) {
  for (const char* architecture : {"llama", "qwen2"}) {
    GgufBuilder file = SmallGguf(architecture);
    for (GgufBuilder::Tensor& tensor : file.tensors) {
      const bool key = tensor.name == "blk.0.attn_k.weight";
      if (!key && tensor.name != "blk.0.attn_q.weight") continue;
      tensor.data.clear();
      for (int64_t i = 0; i < (key ? 16 : 32) * 32; ++i) tensor.data += Raw(float(i / 32));
    }
    const TemporaryDirectory directory;
    const auto source = OpenModel(directory.Write("m.gguf", file.Build()));
    ASSERT_TRUE(source.ok()) << source.status();
    const int64_t head_dim = 8;
    for (const char* name : {"q_proj", "k_proj"}) {
      const ParamSpec spec =
          Spec(source->config, std::string("model.layers.0.self_attn.") + name + ".weight");
      const std::vector<float> rows = LoadFloats(*source, spec, Whole(spec));
      for (int64_t row = 0; row < spec.rows; ++row) {
        const int64_t head = row / head_dim, a = row % head_dim / 4, b = row % 4;
        const int64_t stored = architecture[0] == 'l' ? head * head_dim + 2 * b + a : row;
        EXPECT_EQ(rows[row * spec.cols], float(stored)) << name << " row " << row;
      }
    }
  }
}

TEST(LoadParam, NotANumberIsRefusedByName) {
  const TemporaryDirectory directory;
  for (const char* name : {"blk.0.ffn_up.weight", "output_norm.weight"}) {
    GgufBuilder file = SmallGguf("llama");
    for (GgufBuilder::Tensor& tensor : file.tensors) {
      if (tensor.name == name) tensor.data.replace(8, 4, Raw(std::nanf("")));
    }
    const auto source = OpenModel(directory.Write("m.gguf", file.Build()));
    ASSERT_TRUE(source.ok());
    int refused = 0;
    for (const ParamSpec& spec : ParamTable(source->config)) {
      std::vector<float> values(spec.rows * spec.cols);
      const absl::Status status = LoadParam(*source, spec, Whole(spec), DType::kF32, values.data());
      if (status.ok()) continue;
      ++refused;
      EXPECT_THAT(Message(status), HasSubstr("not a number"));
      EXPECT_THAT(Message(status), HasSubstr(spec.name));
    }
    EXPECT_EQ(refused, 1);
  }
}

TEST(StoredType, FollowsFileAndCompute) {
  const auto source = OpenModel(GoldenModelPath("gguf/llama_k_quants.gguf"));
  ASSERT_TRUE(source.ok()) << source.status();
  for (const ParamSpec& spec : ParamTable(source->config)) {
    const DType f32 = StoredType(*source, spec, DType::kF32);
    if (spec.group == "norm") {
      EXPECT_EQ(f32, DType::kF32);
      EXPECT_EQ(StoredType(*source, spec, DType::kF64), DType::kF64);
    } else {
      // Kept as stored unless `tensor` would cut the columns within a block: heads of 16, blocks
      // of 32.
      const bool cut = spec.split == Split::kQueryCols && source->config.head_dim % 32 != 0;
      const DType in_file = cut ? DType::kF32 : source->tensors.at(spec.name).dtype;
      EXPECT_EQ(f32, in_file == DType::kQ8_0 ? in_file : DType::kF32) << spec.name;
      EXPECT_EQ(StoredType(*source, spec, DType::kF64), f32);
      EXPECT_EQ(StoredType(*source, spec, DType::kBF16),
                in_file == DType::kQ8_0 ? in_file : DType::kBF16);
    }
  }
}

TEST(RandomModel, SeedAndNameDecide) {
  const auto a = OpenModel("random:tiny-qwen2", 1), b = OpenModel("random:tiny-qwen2", 2);
  const ParamSpec query = Spec(a->config, "model.layers.0.self_attn.q_proj.weight");
  const ParamSpec key = Spec(a->config, "model.layers.0.self_attn.k_proj.weight");
  const std::vector<float> values = LoadFloats(*a, query, Whole(query));
  EXPECT_EQ(values, LoadFloats(*a, query, Whole(query)));
  EXPECT_NE(values, LoadFloats(*b, query, Whole(query)));
  EXPECT_NE(values[0], LoadFloats(*a, key, Whole(key))[0]);
  EXPECT_NE(a->Fingerprint(), b->Fingerprint());
  double sum = 0, squares = 0;
  for (const float value : values) {
    sum += value;
    squares += double(value) * value;
  }
  const double count = double(values.size());
  EXPECT_NEAR(std::sqrt(squares / count) / query.init_deviation, 1.0, 0.05);
  EXPECT_LT(std::abs(sum / count), 4 * query.init_deviation / std::sqrt(count));
  // Gains and biases differ from 1 and 0, so that a forgotten one shows.
  const ParamSpec bias = Spec(a->config, "model.layers.0.self_attn.q_proj.bias");
  const ParamSpec gain = Spec(a->config, "model.norm.weight");
  EXPECT_NE(LoadFloats(*a, bias, Whole(bias))[0], 0.0f);
  EXPECT_NEAR(LoadFloats(*a, gain, Whole(gain))[0], 1.0f, 0.6f);
  // A tied head is the embedding; f64 holds the same numbers.
  const ParamSpec head = Spec(a->config, "lm_head.weight");
  const ParamSpec embedding = Spec(a->config, "model.embed_tokens.weight");
  EXPECT_EQ(LoadFloats(*a, head, Whole(head)), LoadFloats(*a, embedding, Whole(embedding)));
  std::vector<double> doubles(values.size());
  ASSERT_TRUE(LoadParam(*a, query, Whole(query), DType::kF64, doubles.data()).ok());
  EXPECT_EQ(std::vector<float>(doubles.begin(), doubles.end()), values);
}

// Golden bits, computed by a separate Philox in Python: the same on every machine and in every
// version.
TEST(RandomModel, ValuesAreFixed) {
  const auto source = OpenModel("random:tiny-mha", 42);
  const ParamSpec spec = Spec(source->config, "model.embed_tokens.weight");
  const std::vector<float> values = LoadFloats(*source, spec, {319, 1, 62, 2});
  EXPECT_EQ(values, (std::vector<float>{0x1.eb8b300000000p-1f, -0x1.9a5db80000000p-1f}));
}

// A type in the name: matrices whose rows have whole blocks are kept in it, their numbers are the
// drawn ones within half a step of the block, and whoever loads them widened sees the same.
TEST(RandomModel, HoldsTheTypeOfItsName) {
  const struct {
    DType type;
    double error;  // at most so much of the largest of 32 numbers
  } cases[] = {{DType::kF32, 0},
               {DType::kBF16, 1.0 / 256},
               {DType::kQ8_0, 0.57 / 127},
               {DType::kQ4_0, 1.02 / 8},  // the largest of the other sign is cut
               {DType::kQ4_1, 1.04 / 15}};
  const auto drawn = OpenModel("random:tiny-1m", 7);
  for (const auto& c : cases) {
    const auto source = OpenModel(std::string("random:tiny-1m:") + Info(c.type).name, 7);
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_NE(source->Fingerprint(), drawn->Fingerprint());
    for (const ParamSpec& spec : ParamTable(source->config)) {
      if (!spec.alias.empty()) continue;
      const DType stored = StoredType(*source, spec, DType::kBF16);
      EXPECT_EQ(stored, spec.rows > 1 ? c.type : DType::kF32) << spec.name;
      std::vector<uint8_t> bytes(SliceBytes(Whole(spec), stored));
      ASSERT_TRUE(LoadParam(*source, spec, Whole(spec), stored, bytes.data()).ok());
      std::vector<float> held(spec.rows * spec.cols);
      DecodeRow(stored, bytes.data(), 0, int64_t(held.size()), held.data());
      EXPECT_EQ(held, LoadFloats(*source, spec, Whole(spec))) << spec.name;
      const std::vector<float> exact = LoadFloats(*drawn, spec, Whole(spec));
      double worst = 0;
      for (size_t i = 0; i < held.size(); i += 32) {
        double largest = 0, error = 0;
        for (size_t j = i; j < i + 32; ++j) {
          largest = std::max(largest, std::abs(double(exact[j])));
          error = std::max(error, std::abs(double(exact[j]) - double(held[j])));
        }
        worst = std::max(worst, error / largest);
      }
      if (spec.rows == 1) {
        EXPECT_EQ(worst, 0);
        continue;
      }
      EXPECT_LE(worst, c.error) << spec.name << " " << Info(c.type).name;
      EXPECT_GE(worst, c.error / 4);  // negative control: it was stored in no wider type
    }
  }
  // tiny-gqa's heads are half a block, so that a rank's columns of o_proj are none.
  const auto gqa = OpenModel("random:tiny-gqa:q8_0", 7);
  const std::string attention = "model.layers.0.self_attn.";
  EXPECT_EQ(StoredType(*gqa, Spec(gqa->config, attention + "o_proj.weight"), DType::kF32),
            DType::kF32);
  EXPECT_EQ(StoredType(*gqa, Spec(gqa->config, attention + "q_proj.weight"), DType::kF32),
            DType::kQ8_0);
}

double Deviation(const std::vector<float>& values) {
  double squares = 0;
  for (const float value : values) squares += double(value) * value;
  return std::sqrt(squares / double(values.size()));
}

// What training begins with: deviations as published, gains 1, biases 0.
TEST(Preset, HasTheWeightsOfItsField) {
  const auto gpt = OpenPreset("gpt3-tiny", 3), palm = OpenPreset("palm-tiny", 3);
  ASSERT_TRUE(gpt.ok() && palm.ok());
  const auto values = [](const ModelSource& source, const std::string& name) {
    const ParamSpec spec = Spec(source.config, name);
    return LoadFloats(source, spec, Whole(spec));
  };
  const std::string layer = "model.layers.1.";
  const double residual = 0.02 / std::sqrt(2 * 4.0);
  EXPECT_NEAR(Deviation(values(*gpt, "model.embed_tokens.weight")) / 0.02, 1, 0.05);
  EXPECT_NEAR(Deviation(values(*gpt, layer + "self_attn.q_proj.weight")) / 0.02, 1, 0.05);
  EXPECT_NEAR(Deviation(values(*gpt, layer + "self_attn.o_proj.weight")) / residual, 1, 0.05);
  EXPECT_NEAR(Deviation(values(*gpt, layer + "mlp.down_proj.weight")) / residual, 1, 0.05);
  EXPECT_EQ(Deviation(values(*gpt, layer + "mlp.down_proj.bias")), 0);
  EXPECT_EQ(values(*gpt, "model.norm.weight"), std::vector<float>(64, 1.0f));
  EXPECT_NEAR(Deviation(values(*palm, "model.embed_tokens.weight")), 1, 0.05);
  const double ffn = double(palm->config.ffn);
  EXPECT_NEAR(Deviation(values(*palm, layer + "mlp.down_proj.weight")) * std::sqrt(ffn), 1, 0.05);
  EXPECT_NEAR(Deviation(values(*palm, layer + "mlp.up_proj.weight")) * 8, 1, 0.05);
}

// A function of (seed, name, element): other seeds and the random model of the shape differ, a
// slice does not.
TEST(Preset, DependsOnTheSeedAndNotOnWhoAsks) {
  const auto one = OpenPreset("tiny-gqa", 1), two = OpenPreset("tiny-gqa", 2);
  const auto random = OpenModel("random:tiny-gqa", 1);
  ASSERT_TRUE(one.ok() && two.ok() && random.ok());
  EXPECT_NE(one->Fingerprint(), two->Fingerprint());
  EXPECT_NE(one->Fingerprint(), random->Fingerprint());
  const ParamSpec spec = Spec(one->config, "model.layers.0.mlp.down_proj.weight");
  const std::vector<float> whole = LoadFloats(*one, spec, Whole(spec));
  EXPECT_NE(whole, LoadFloats(*two, spec, Whole(spec)));
  EXPECT_NE(whole, LoadFloats(*random, spec, Whole(spec)));
  const std::vector<float> part = LoadFloats(*one, spec, {3, 2, 10, 5});
  for (int64_t i = 0; i < 10; ++i) {
    EXPECT_EQ(part[i], whole[(3 + i / 5) * spec.cols + 10 + i % 5]);
  }
  EXPECT_EQ(OpenPreset("huge", 0).status().code(), absl::StatusCode::kNotFound);
}

TEST(Fingerprint, SeesEveryFieldOfAFile) {
  const TemporaryDirectory directory;
  const auto of = [&](const GgufBuilder& file) {
    const auto source = OpenModel(directory.Write("m.gguf", file.Build()));
    EXPECT_TRUE(source.ok()) << source.status();
    return source->Fingerprint();
  };
  const GgufBuilder file = SmallGguf("llama");
  const uint64_t base = of(file);
  EXPECT_EQ(base, of(file));
  GgufBuilder weight = file, key = file;
  weight.tensors[3].data[0] ^= 1;
  key.Remove("llama.rope.freq_base");
  EXPECT_NE(base, of(weight));
  EXPECT_NE(base, of(key));
}

// The texts of a one-layer Hugging Face directory, to be spoilt before they are written.
struct DirectoryFiles {
  std::string config, header, data;
};
DirectoryFiles SmallDirectory() {
  DirectoryFiles files;
  files.config =
      R"({"model_type":"llama","hidden_size":4,"intermediate_size":6,"num_hidden_layers":1,)"
      R"("num_attention_heads":2,"num_key_value_heads":1,"vocab_size":5,"tie_word_embeddings":true})";
  const auto source = [&] {
    ModelConfig config;
    config.architecture = "llama";
    config.layers = 1, config.dim = 4, config.ffn = 6, config.query_heads = 2;
    config.kv_heads = 1, config.head_dim = 2, config.vocab = 5, config.context = 8;
    config.tied_embeddings = true;
    return ParamTable(config);
  }();
  files.header = "{";
  for (const ParamSpec& spec : source) {
    if (!spec.alias.empty()) continue;
    const size_t begin = files.data.size();
    for (int64_t i = 0; i < spec.rows * spec.cols; ++i) files.data += Raw(float(i));
    if (files.header.size() > 1) files.header += ",";
    files.header += "\"" + spec.name + "\":{\"dtype\":\"F32\",\"shape\":[" +
                    (spec.group == "norm" ? "" : std::to_string(spec.rows) + ",") +
                    std::to_string(spec.cols) + "],\"data_offsets\":[" + std::to_string(begin) +
                    "," + std::to_string(files.data.size()) + "]}";
  }
  files.header += "}";
  return files;
}

TEST(HuggingFaceModel, TiedHeadThatIsThereAllTheSame) {
  // transformers ties equal tensors and keeps both of unequal ones.
  for (const bool equal : {true, false}) {
    DirectoryFiles files = SmallDirectory();
    const size_t begin = files.data.size();
    for (int i = 0; i < 20; ++i) files.data += Raw(float(equal ? i : i + 1));
    files.header.pop_back();
    files.header += R"(,"lm_head.weight":{"dtype":"F32","shape":[5,4],"data_offsets":[)" +
                    std::to_string(begin) + "," + std::to_string(files.data.size()) + "]}}";
    const TemporaryDirectory directory;
    directory.Write("config.json", files.config);
    directory.Write("model.safetensors", SafetensorsBytes(files.header, files.data));
    const auto source = OpenModel(directory.path());
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(source->config.tied_embeddings, equal);
  }
}

TEST(HuggingFaceModel, BadDirectories) {
  struct Case {
    std::function<void(DirectoryFiles&)> spoil;
    const char* message;
  };
  const auto rename = [](const char* from, const char* to) {
    return [=](DirectoryFiles& files) {
      files.header.replace(files.header.find(from), std::strlen(from), to);
    };
  };
  const Case cases[] = {
      {[](auto&) {}, ""},
      {rename("model.norm.weight", "model.norms.weight"), "model.norm.weight is missing"},
      {rename("model.norm.weight", "norm.weight"), "model.norm.weight is missing"},
      {rename("[5,4]", "[4,5]"), "has shape [4, 5], the configuration says [5, 4]"},
      {rename("\"shape\":[4]", "\"shape\":[2,2]"), "has shape [2, 2]"},
      {rename("F32", "I32"), "holds i32, no weights"},
      {[](auto& f) {
         f.header.pop_back();
         f.header += R"(,"extra":{"dtype":"F32","shape":[0],"data_offsets":[)" +
                     std::to_string(f.data.size()) + "," + std::to_string(f.data.size()) + "]}}";
       },
       "tensor extra is no parameter of a llama model"},
      {[](auto& f) { f.data.pop_back(); }, "may be truncated"},
      {[](auto& f) { f.config = "{}"; }, "model_type"},
  };
  for (const Case& test : cases) {
    DirectoryFiles files = SmallDirectory();
    test.spoil(files);
    const TemporaryDirectory directory;
    directory.Write("config.json", files.config);
    directory.Write("model.safetensors", SafetensorsBytes(files.header, files.data));
    EXPECT_THAT(Message(OpenModel(directory.path()).status()), HasSubstr(test.message));
    EXPECT_EQ(OpenModel(directory.path()).ok(), std::strlen(test.message) == 0);
  }
}

TEST(HuggingFaceModel, BadIndexes) {
  const DirectoryFiles files = SmallDirectory();
  const TemporaryDirectory directory;
  directory.Write("config.json", files.config);
  EXPECT_THAT(Message(OpenModel(directory.path()).status()), HasSubstr("safetensors files alone"));
  directory.Write("a.safetensors", SafetensorsBytes(files.header, files.data));
  std::string map;
  for (const ParamSpec& spec : ParamTable(OpenModel(GoldenModelPath("llama"))->config)) {
    if (spec.layer > 0 || !spec.alias.empty()) continue;
    map += (map.empty() ? "\"" : ",\"") + spec.name + "\":\"a.safetensors\"";
  }
  struct Case {
    std::string map;
    const char* message;
  };
  const Case cases[] = {
      {"{" + map + "}", ""},
      {"{" + map + ",\"more\":\"a.safetensors\"}", "tensor more is missing"},
      {"{" + map + ",\"more\":\"b.safetensors\"}", "b.safetensors: No such file"},
      {"{\"model.norm.weight\":\"a.safetensors\"}", "is extra: model.safetensors.index.json"},
      {"{\"x\":\"../a.safetensors\"}", "no *.safetensors file name"},
      {"{\"x\":\"a.bin\"}", "no *.safetensors file name"},
      {"{\"x\":1}", "is no text"},
      {"{}", "missing or empty"},
      {"[]", "missing or empty"},
  };
  for (const Case& test : cases) {
    directory.Write("model.safetensors.index.json", "{\"weight_map\":" + test.map + "}");
    EXPECT_THAT(Message(OpenModel(directory.path()).status()), HasSubstr(test.message)) << test.map;
    EXPECT_EQ(OpenModel(directory.path()).ok(), std::strlen(test.message) == 0) << test.map;
  }
}

TEST(HuggingFaceModel, TextsAreFound) {
  const DirectoryFiles files = SmallDirectory();
  const TemporaryDirectory directory;
  directory.Write("config.json", files.config);
  directory.Write("model.safetensors", SafetensorsBytes(files.header, files.data));
  EXPECT_EQ(OpenModel(directory.path())->tokenizer.kind, TokenizerSource::Kind::kNone);
  directory.Write("tokenizer.json", "{}");
  directory.Write("chat_template.jinja", "{{ x }}");
  directory.Write("generation_config.json", R"({"eos_token_id":[3,4]})");
  const auto source = OpenModel(directory.path() + "/");
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->tokenizer.kind, TokenizerSource::Kind::kHuggingFace);
  EXPECT_EQ(source->tokenizer.chat_template, "{{ x }}");
  EXPECT_EQ(source->generation.eos_ids, (std::vector<int64_t>{3, 4}));
}

TEST(Describe, CountsAndNames) {
  const auto source = OpenModel(GoldenModelPath("gguf/llama_mixed.gguf"));
  ASSERT_TRUE(source.ok()) << source.status();
  const ModelDescription description = Describe(*source);
  EXPECT_EQ(description.format, "gguf");
  EXPECT_EQ(description.parameters, source->config.ParameterCount());
  EXPECT_EQ(description.tensors.size(), source->tensors.size());
  int64_t bytes = 0;
  for (const auto& type : description.types) bytes += type.bytes;
  EXPECT_EQ(bytes, description.tensor_bytes);
  EXPECT_GT(bytes, 0);
  EXPECT_EQ(Describe(*OpenModel("random:tiny-1m")).tensor_bytes, 3998976 * 4);
}

}  // namespace
}  // namespace toroid
