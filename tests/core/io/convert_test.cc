// Models written anew hold what was read: parameters bit for bit, configuration, tokenizer.
#include "core/io/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "core/io/model_checkpoint.h"
#include "core/io/model_config_json.h"
#include "core/io/safetensors.h"
#include "core/io/safetensors_writer.h"
#include "core/io/weights.h"
#include "tests/support/faulty_files.h"
#include "tests/support/golden.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

std::vector<char> Bytes(const ModelSource& source, const ParamSpec& spec, DType type) {
  const ParamSlice whole = {0, spec.rows, 0, spec.cols};
  std::vector<char> bytes(size_t(SliceBytes(whole, type)));
  const absl::Status status = LoadParam(source, spec, whole, type, bytes.data());
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

// Parameters that differ when both are read as `type`.
int64_t Differences(const ModelSource& a, const ModelSource& b, DType type) {
  int64_t count = 0;
  for (const ParamSpec& spec : ParamTable(a.config)) {
    count += Bytes(a, spec, type) != Bytes(b, spec, type);
  }
  return count;
}

std::string TestName(const ::testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

class Convert : public ::testing::TestWithParam<std::string> {
 protected:
  ModelSource Source() const {
    const std::string name = GetParam();
    auto source = OpenModel(name.rfind("random:", 0) == 0 ? name : GoldenModelPath(name), 3);
    EXPECT_TRUE(source.ok()) << source.status();
    return *std::move(source);
  }
  const TemporaryDirectory directory_;
  const std::string out_ = directory_.path() + "/new/model";
};

TEST_P(Convert, HuggingFaceDirectoryIsTheSameModel) {
  const ModelSource source = Source();
  const auto written = WriteHuggingFace(source, out_, {});
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT(written->lost, IsEmpty());
  const auto read = OpenModel(out_);
  ASSERT_TRUE(read.ok()) << read.status();
  ModelConfig expected = source.config;
  if (expected.rope.kind == RopeScaling::Kind::kDivisors) {
    EXPECT_EQ(read->config.rope.kind, RopeScaling::Kind::kLlama3);
    expected.rope = read->config.rope;
  }
  const auto kind = expected.rope.kind;  // these two have no use for it
  if (kind == RopeScaling::Kind::kNone || kind == RopeScaling::Kind::kLinear) {
    expected.rope.original_context = read->config.rope.original_context;
  }
  EXPECT_EQ(FirstDifference(expected, read->config), "");
  EXPECT_EQ(Differences(source, *read, DType::kF32), 0);
  EXPECT_EQ(read->tokenizer.kind == TokenizerSource::Kind::kNone,
            source.tokenizer.kind == TokenizerSource::Kind::kNone);
  EXPECT_EQ(read->generation.eos_ids, source.generation.eos_ids);
}

TEST_P(Convert, CheckpointIsTheSameModel) {
  const ModelSource source = Source();
  const auto written = WriteCheckpoint(source, out_, {});
  ASSERT_TRUE(written.ok()) << written.status();
  const auto read = OpenModel(out_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->format, "checkpoint");
  EXPECT_EQ(FirstDifference(source.config, read->config), "");
  EXPECT_EQ(Differences(source, *read, DType::kF32), 0);
  EXPECT_EQ(read->tokenizer.kind, source.tokenizer.kind);
  EXPECT_TRUE(DescribeCheckpoint(out_, /*whole=*/true)->status.ok());
  // And from there to a directory for transformers.
  const std::string again = directory_.path() + "/again";
  ASSERT_TRUE(WriteHuggingFace(*read, again, {}).ok());
  EXPECT_EQ(Differences(source, *OpenModel(again), DType::kF32), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Models, Convert,
    ::testing::Values("random:tiny-gqa", "random:tiny-mqa", "random:tiny-mistral",
                      "random:tiny-qwen2", "random:tiny-qwen3", "random:gpt2-tiny", "llama",
                      "llama_sharded", "llama_linear", "llama_dynamic", "llama_llama3",
                      "llama_yarn", "llama_yarn_attention", "llama_yarn_mscale", "mistral",
                      "mistral_full", "qwen2", "qwen2_window", "qwen3", "qwen3_window",
                      "gguf/llama_mixed.gguf", "gguf/llama_k_quants.gguf", "gguf/llama_linear.gguf",
                      "gguf/llama_llama3.gguf", "gguf/llama_yarn.gguf", "gguf/qwen2.gguf",
                      "gguf/qwen3.gguf"),
    TestName);

TEST(ConvertOptions, Bf16IsRoundedOnce) {
  const TemporaryDirectory directory;
  const ModelSource source = *OpenModel("random:tiny-gqa", 3);
  ConvertOptions options;
  options.dtype = DType::kBF16;
  ASSERT_TRUE(WriteHuggingFace(source, directory.path() + "/m", options).ok());
  const ModelSource read = *OpenModel(directory.path() + "/m");
  EXPECT_EQ(read.tensors.at("model.norm.weight").dtype, DType::kBF16);
  EXPECT_EQ(Differences(source, read, DType::kBF16), 0);
  EXPECT_GT(Differences(source, read, DType::kF32), 0);  // control
}

// --- GPT-2's own names and orders

struct Gpt2File {
  std::map<std::string, SafetensorsTensor> tensors;
  MappedFile file;
};

Gpt2File ReadGpt2(const std::string& directory) {
  Gpt2File read{{}, *MappedFile::Open(directory + "/model.safetensors")};
  const std::vector<SafetensorsTensor> tensors = *ParseSafetensors(read.file.bytes(), "m");
  for (const SafetensorsTensor& tensor : tensors) read.tensors[tensor.name] = tensor;
  return read;
}

float At(const SafetensorsTensor& tensor, int64_t i) {
  float value;
  std::memcpy(&value, tensor.data.data() + i * 4, 4);
  return value;
}

std::vector<float> Floats(const ModelSource& source, const std::string& name,
                          ParamSlice slice = {}) {
  for (const ParamSpec& spec : ParamTable(source.config)) {
    if (spec.name != name) continue;
    if (slice.row_count == 0) slice = {0, spec.rows, 0, spec.cols};
    std::vector<float> values(size_t(slice.row_count * slice.col_count));
    EXPECT_TRUE(LoadParam(source, spec, slice, DType::kF32, values.data()).ok());
    return values;
  }
  ADD_FAILURE() << name;
  return {};
}

TEST(ConvertGpt2, ProductsLieAsGpt2HasThem) {
  const TemporaryDirectory directory;
  const ModelSource source = *OpenModel("random:gpt2-tiny", 3);
  const std::string out = directory.path() + "/m";
  ASSERT_TRUE(WriteHuggingFace(source, out, {}).ok());
  const Gpt2File read = ReadGpt2(out);
  EXPECT_EQ(read.tensors.size(), 2u + 2 + 12 * 2);
  const int64_t D = 64, F = 256;
  const SafetensorsTensor& qkv = read.tensors.at("transformer.h.1.attn.c_attn.weight");
  ASSERT_EQ(qkv.shape, (std::vector<int64_t>{D, 3 * D}));
  int64_t part = 0;
  for (const char* name : {"q", "k", "v"}) {
    const std::string product = absl::StrCat("model.layers.1.self_attn.", name, "_proj");
    const std::vector<float> weight = Floats(source, product + ".weight");
    const std::vector<float> bias = Floats(source, product + ".bias");
    for (int64_t row = 0; row < D; ++row) {
      for (int64_t col = 0; col < D; ++col) {
        ASSERT_EQ(At(qkv, col * 3 * D + part * D + row), weight[size_t(row * D + col)]);
      }
      ASSERT_EQ(At(read.tensors.at("transformer.h.1.attn.c_attn.bias"), part * D + row),
                bias[size_t(row)]);
    }
    ++part;
  }
  const std::vector<float> up = Floats(source, "model.layers.0.mlp.up_proj.weight");
  const SafetensorsTensor& fc = read.tensors.at("transformer.h.0.mlp.c_fc.weight");
  ASSERT_EQ(fc.shape, (std::vector<int64_t>{D, F}));
  EXPECT_EQ(At(fc, 5 * F + 200), up[200 * D + 5]);
  EXPECT_NE(At(fc, 5 * F + 200), up[5 * D + 200 % D]);  // control
  const std::vector<float> positions = Floats(source, "model.embed_positions.weight");
  EXPECT_EQ(At(read.tensors.at("transformer.wpe.weight"), 7 * D + 3), positions[7 * D + 3]);
  // A rank's share is a cut of the whole, kept in 16 bits too.
  ConvertOptions narrow;
  narrow.dtype = DType::kBF16;
  ASSERT_TRUE(WriteHuggingFace(source, out + "16", narrow).ok());
  for (const std::string& path : {out, out + "16"}) {
    const ModelSource model = *OpenModel(path);
    for (const char* name : {"self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"}) {
      const std::string product = absl::StrCat("model.layers.1.", name, ".weight");
      const std::vector<float> whole = Floats(model, product);
      const int64_t cols = int64_t(whole.size()) / D;
      const std::vector<float> cut = Floats(model, product, {3, 61, 5, 40});
      for (int64_t i = 0; i < 61; ++i) {
        for (int64_t j = 0; j < 40; ++j) {
          ASSERT_EQ(cut[size_t(i * 40 + j)], whole[size_t((3 + i) * cols + 5 + j)]) << product;
        }
      }
    }
  }
}

// The files that OpenAI's weights were published as: no "transformer." in front, and masks.
TEST(ConvertGpt2, PublishedFilesAreRead) {
  const TemporaryDirectory directory;
  const ModelSource source = *OpenModel("random:gpt2-tiny", 3);
  const std::string out = directory.path() + "/m", file = out + "/model.safetensors";
  ASSERT_TRUE(WriteHuggingFace(source, out, {}).ok());
  const std::string mask = "h.0.attn.bias";
  // With a mask in front, each tensor of `out` by the name that `renamed` gives.
  const auto write = [&](const std::function<std::string(const std::string&)>& renamed,
                         const std::string& changed) {
    Gpt2File read = ReadGpt2(out);
    read.tensors.erase(mask);
    std::vector<SafetensorsEntry> entries = {{mask, DType::kF32, {1, 1, 2, 2}}};
    for (const auto& [name, tensor] : read.tensors) {
      entries.push_back({renamed(name), tensor.dtype, tensor.shape});
      if (name == changed) std::swap(entries.back().shape[0], entries.back().shape[1]);
    }
    auto writer = *SafetensorsWriter::Create(PosixFiles(), file + ".new", entries);
    ASSERT_TRUE(writer.Append(std::vector<uint8_t>(16)).ok());
    for (const auto& [name, tensor] : read.tensors) ASSERT_TRUE(writer.Append(tensor.data).ok());
    ASSERT_TRUE(writer.Finish().ok());
    fs::rename(file + ".new", file);
  };
  const std::string prefix = "transformer.";
  write([&](const std::string& name) { return name.substr(prefix.size()); }, "");
  const auto read = OpenModel(out);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Differences(source, *read, DType::kF32), 0);
  const std::string fc = "h.1.mlp.c_fc.weight";  // by now without a prefix
  write([](const std::string& name) { return name; }, fc);
  EXPECT_THAT(Message(OpenModel(out).status()), HasSubstr("mlp.c_fc.weight has shape [256, 64]"));
  write([&](const std::string& name) { return name == fc ? "h.1.mlp.c_fd.weight" : name; }, fc);
  EXPECT_THAT(Message(OpenModel(out).status()), HasSubstr("h.1.mlp.c_fc.weight is missing"));
}

TEST(ConvertOptions, FilesAreNoLargerThanAskedAndPiecesAreSmall) {
  const TemporaryDirectory directory;
  const ModelSource source = *OpenModel("random:tiny-1m", 3);
  ConvertOptions options;
  options.shard_bytes = 3'000'000;
  int64_t before = 0, largest = 0, last = 0, total = 0;
  options.progress = [&](int64_t done, int64_t all) {
    largest = std::max(largest, done - before);
    before = last = done;
    total = all;
  };
  const std::string out = directory.path() + "/m";
  const auto written = WriteHuggingFace(source, out, options);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, written->tensor_bytes);
  EXPECT_LE(largest, 4 << 20);
  int64_t files = 0;
  for (const std::string& name : written->files) {
    if (name.find(".safetensors") == std::string::npos || name.find("index") != std::string::npos) {
      continue;
    }
    EXPECT_EQ(name.find("model-0000"), 0u);
    EXPECT_LE(int64_t(fs::file_size(out + "/" + name)), options.shard_bytes + 10'000);
    ++files;
  }
  EXPECT_GT(files, 3);
  EXPECT_EQ(Differences(source, *OpenModel(out), DType::kF32), 0);
}

TEST(ConvertErrors, NothingIsReplacedAndNothingIsHalfThere) {
  const TemporaryDirectory directory, graveyard;
  const ModelSource source = *OpenModel("random:tiny-mqa", 3);
  const std::string there = directory.path() + "/there";
  fs::create_directory(there);
  for (const auto write : {WriteHuggingFace, WriteCheckpoint}) {
    const absl::Status refused = write(source, there, {}, PosixFiles()).status();
    EXPECT_TRUE(absl::IsAlreadyExists(refused)) << refused;
    EXPECT_THAT(Message(refused), HasSubstr(there));
    EXPECT_TRUE(fs::is_empty(there));
    const std::string out = directory.path() + "/out";
    int64_t calls = 0;
    {
      FaultyFiles files(PosixFiles(), graveyard.path());
      ASSERT_TRUE(write(source, out, {}, files).ok());
      calls = files.calls();
      fs::remove_all(out);
    }
    ASSERT_GT(calls, 10);
    for (int64_t call = 1; call <= calls; ++call) {
      FaultyFiles files(PosixFiles(), graveyard.path());
      files.KillAt(call);
      const bool ok = write(source, out, {}, files).ok();
      if (fs::exists(out)) {  // then it is whole
        EXPECT_EQ(Differences(source, *OpenModel(out), DType::kF32), 0) << call;
      }
      EXPECT_FALSE(ok) << call;
      files.Revive();
      for (const auto& entry : fs::directory_iterator(directory.path())) {
        if (entry.path() != there) fs::remove_all(entry.path());
      }
    }
    {  // An error, not a death: nothing stays.
      FaultyFiles files(PosixFiles(), graveyard.path());
      files.SetSpace(50'000);
      EXPECT_TRUE(absl::IsResourceExhausted(write(source, out, {}, files).status()));
      EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), {}), 1);
    }
  }
}

TEST(ConvertErrors, WhatTransformersDoesNotComputeIsNamed) {
  const TemporaryDirectory directory;
  const std::string out = directory.path() + "/m";
  for (const char* name : {"palm", "gpt3"}) {
    const ModelSource source = *OpenModel(absl::StrCat("random:", name, "-tiny"));
    const absl::Status status = WriteHuggingFace(source, out, {}).status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(source.config.positions == PositionKind::kLearned
                                               ? "GPT2LMHeadModel of transformers has no "
                                               : "architecture palm"));
  }
  ModelSource source = *OpenModel("random:tiny-gqa");
  source.config.qkv_bias = true;  // and none of the output
  absl::Status status = WriteHuggingFace(source, out, {}).status();
  EXPECT_THAT(Message(status), HasSubstr("output_bias: false"));
  source = *OpenModel("random:tiny-gqa");
  source.config.windows = {0, 64};
  status = WriteHuggingFace(source, out, {}).status();
  EXPECT_THAT(Message(status), HasSubstr("windows: [0,64]"));
  source = *OpenModel("random:gpt2-tiny");
  source.config.windows = {0, 24};  // bands
  status = WriteHuggingFace(source, out, {}).status();
  EXPECT_THAT(Message(status), HasSubstr("windows: [0,24]"));
  source = *OpenModel("random:tiny-gqa");
  source.config.logit_scale = 0.5;
  status = WriteHuggingFace(source, out, {}).status();
  EXPECT_THAT(Message(status), HasSubstr("logit_scale: 0.5"));
  EXPECT_FALSE(fs::exists(out));
  ASSERT_TRUE(WriteCheckpoint(*OpenModel("random:palm-tiny"), out, {}).ok());
  status = WriteCheckpoint(*OpenModel(out), out + "2", {}).status();
  EXPECT_THAT(Message(status), HasSubstr("is a checkpoint already"));
}

// A tokenizer that toroid cannot read is left out, and it is said.
TEST(ConvertErrors, ATokenizerThatIsNotUnderstoodIsLost) {
  const TemporaryDirectory directory;
  ModelSource source = *OpenModel("random:tiny-gqa");
  source.tokenizer.kind = TokenizerSource::Kind::kGguf;
  source.tokenizer.gguf.model = "rwkv";
  source.tokenizer.gguf.tokens = {"a"};
  const auto written = WriteHuggingFace(source, directory.path() + "/m", {});
  ASSERT_TRUE(written.ok()) << written.status();
  ASSERT_EQ(written->lost.size(), 1u);
  EXPECT_THAT(written->lost[0], HasSubstr("rwkv"));
}

}  // namespace
}  // namespace toroid
