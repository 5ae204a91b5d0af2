// A checkpoint as a model: what training wrote is what generate, score and inspect read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/io/checkpoint_directory.h"
#include "core/io/describe.h"
#include "core/io/model_checkpoint.h"
#include "core/io/model_origin.h"
#include "core/io/weights.h"
#include "core/text/tokenizer.h"
#include "parallel/checkpoint.h"
#include "tests/support/engine_on_mesh.h"
#include "tests/support/golden.h"
#include "tests/support/model_files.h"
#include "tests/support/run_on_ranks.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

// The model's weights, written as checkpoints of these steps by a world of its own.
void Write(const ModelSource& source, const std::string& directory, MeshShape shape,
           const std::vector<int64_t>& steps, DType type = DType::kF32) {
  const std::string origin = *OriginText(source);
  const ModelConfig& config = source.config;
  RunOnMesh(shape, [&](Mesh& mesh) {
    const auto ops = NewCpuBackend(type, 1);
    const ParamLayout layout(config, mesh.tensor_rank(), shape.tensor);
    auto store = ParamStore::Create(
        *ops, ops->NewStream(/*communication=*/false), mesh,
        ParamGroups(config, layout, mesh.tensor_rank(), mesh.shard().size(), config.layers), {});
    ASSERT_TRUE((*store)->Load(source).ok());
    const auto writer =
        CheckpointWriter::Create(**store, config, {directory, /*keep=*/9, /*epoch=*/0, origin});
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (const int64_t step : steps) {
      TrainingState state;
      state.step = step;
      state.data_position = 64 * step;
      ASSERT_TRUE((*writer)->Save(state).ok());
      const CheckpointOutcome outcome = *(*writer)->Wait();
      ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    }
  });
}

std::vector<char> Bytes(const ModelSource& source, const ParamSpec& spec, const ParamSlice& slice,
                        DType type) {
  std::vector<char> bytes(size_t(SliceBytes(slice, type)));
  const absl::Status status = LoadParam(source, spec, slice, type, bytes.data());
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

// Elements of the parameters that differ, read in three ranks' slices.
int64_t Differences(const ModelSource& a, const ModelSource& b, DType type) {
  int64_t count = 0;
  for (const ParamSpec& spec : ParamTable(a.config)) {
    for (int64_t rank = 0; rank < 3; ++rank) {
      const ParamSlice slice = ParamLayout(a.config, rank, 3).Slice(spec);
      if (slice.row_count * slice.col_count == 0) continue;
      count += Bytes(a, spec, slice, type) != Bytes(b, spec, slice, type);
    }
  }
  return count;
}

void Flip(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char old = char(file.get());
  file.seekp(at);
  file.put(char(old ^ 16));
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(CheckpointModel, HoldsTheWeightsThatTrainingHad) {
  for (const char* name : {"random:tiny-gqa", "random:tiny-mqa", "random:gpt3-tiny"}) {
    SCOPED_TRACE(name);
    const TemporaryDirectory run;
    const ModelSource source = *OpenModel(name, 5);
    const std::string directory = run.path() + "/checkpoints";
    Write(source, directory, {2, 1, 2}, {100, 200});
    for (const std::string& path :
         {run.path(), directory, directory + "/step-00000200", directory + "/step-00000100/"}) {
      const auto opened = OpenModel(path);
      ASSERT_TRUE(opened.ok()) << opened.status();
      EXPECT_EQ(opened->path, path);
      EXPECT_EQ(opened->format, "checkpoint");
      EXPECT_EQ(opened->checkpoint->manifest().state.step,
                path.back() == '/' ? 100 : 200);  // of a directory the newest
      EXPECT_EQ(Differences(source, *opened, DType::kF32), 0);
      EXPECT_EQ(opened->tokenizer.kind, TokenizerSource::Kind::kBytes);
    }
    // Control: other weights differ.
    EXPECT_GT(Differences(*OpenModel(name, 6), *OpenModel(run.path()), DType::kF32), 0);
    EXPECT_EQ(Differences(source, *OpenModel(run.path()), DType::kBF16), 0);
    EXPECT_NE(OpenModel(run.path())->Fingerprint(),
              OpenModel(directory + "/step-00000100")->Fingerprint());
  }
}

TEST(CheckpointModel, Float64StaysFloat64) {
  const TemporaryDirectory run;
  const ModelSource source = *OpenModel("random:tiny-gqa", 5);
  Write(source, run.path() + "/checkpoints", {1, 1, 1}, {1}, DType::kF64);
  const ModelSource opened = *OpenModel(run.path());
  const ParamSpec matrix = ParamTable(opened.config)[0];
  EXPECT_EQ(StoredType(opened, matrix, DType::kF64), DType::kF64);
  EXPECT_EQ(StoredType(opened, matrix, DType::kF32), DType::kF32);
  EXPECT_EQ(StoredType(opened, matrix, DType::kBF16), DType::kBF16);
  EXPECT_EQ(Differences(source, opened, DType::kF64), 0);
}

TEST(CheckpointModel, ScoresAsTheModelItWasWrittenFrom) {
  const TemporaryDirectory run;
  Write(*TestSource("random:tiny-qwen3"), run.path() + "/checkpoints", {1, 2, 1}, {7});
  const ScoreRequest request{MixedIds(40, 256), 0, true};
  EngineCase c;
  c.mesh = {1, 1, 2};
  c.model = "random:tiny-qwen3";
  const std::vector<double> expected = ScoreOn(c, request).logprobs;
  EXPECT_EQ(expected.size(), 39u);
  c.model = run.path();
  EXPECT_EQ(ScoreOn(c, request).logprobs, expected);
  c.model = "random:tiny-qwen2";  // control
  EXPECT_NE(ScoreOn(c, request).logprobs, expected);
}

// --- the tokenizer ------------------------------------------------------------------------------

TEST(ModelOrigin, TokenizersComeBackAsTheyWere) {
  for (const std::string& model :
       {GoldenModelPath("gguf/llama_mixed.gguf"), GoldenModelPath("llama")}) {
    ModelSource source = *OpenModel(model);
    source.generation.eos_ids = {2, 7};
    source.generation.temperature = 0.1;
    source.generation.sample = false;
    if (source.tokenizer.kind == TokenizerSource::Kind::kNone) {
      source.tokenizer.kind = TokenizerSource::Kind::kHuggingFace;
      source.tokenizer.tokenizer_json = "{\"a\": \"\xc3\xa4\n\"}";
      source.tokenizer.chat_template = "{{ x }}";
    }
    source.tokenizer.gguf.scores = {-1e4f, 0.1f, 1e-38f};
    const absl::StatusOr<std::string> text = OriginText(source);
    ASSERT_TRUE(text.ok()) << text.status();
    ModelSource read;
    ASSERT_TRUE(ReadOrigin(*text, "origin.json", read).ok());
    EXPECT_EQ(*OriginText(read), *text);
    EXPECT_EQ(read.tokenizer.kind, source.tokenizer.kind);
    EXPECT_EQ(read.tokenizer.tokenizer_json, source.tokenizer.tokenizer_json);
    EXPECT_EQ(read.tokenizer.chat_template, source.tokenizer.chat_template);
    EXPECT_EQ(read.tokenizer.gguf.tokens, source.tokenizer.gguf.tokens);
    EXPECT_EQ(read.tokenizer.gguf.scores, source.tokenizer.gguf.scores);
    EXPECT_EQ(read.tokenizer.gguf.bos_id, source.tokenizer.gguf.bos_id);
    EXPECT_EQ(read.generation.eos_ids, source.generation.eos_ids);
    EXPECT_EQ(read.generation.temperature, 0.1);
    EXPECT_EQ(read.generation.sample, false);
    EXPECT_FALSE(read.generation.top_k.has_value());
  }
}

TEST(ModelOrigin, RefusesWhatItCannotKeepOrRead) {
  ModelSource source = *OpenModel("random:tiny-gqa");
  EXPECT_TRUE(OriginText(source).ok());  // control
  source.tokenizer.gguf.tokens = {"\xff"};
  EXPECT_THAT(Message(OriginText(source).status()), HasSubstr("not UTF-8"));
  source.tokenizer.gguf.tokens.clear();
  source.tokenizer.gguf.scores = {std::numeric_limits<float>::infinity()};
  EXPECT_THAT(Message(OriginText(source).status()), HasSubstr("not finite"));
  ModelSource out;
  for (const char* text :
       {"", "[]", "{}", R"({"generation":{},"texts":{},"gguf":{},"tokenizer":"other"})",
        R"({"generation":{"top_k":"x"},"texts":{},"gguf":{},"tokenizer":"none"})",
        R"({"generation":{"new":1},"texts":{},"gguf":{},"tokenizer":"none"})",
        R"({"generation":{},"texts":{},"gguf":{"bos_id":4294967296},"tokenizer":"none"})"}) {
    const absl::Status status = ReadOrigin(text, "DIR/origin.json", out);
    EXPECT_TRUE(absl::IsDataLoss(status)) << text << ": " << status;
    EXPECT_THAT(Message(status), HasSubstr("DIR/origin.json"));
  }
}

// --- damage -------------------------------------------------------------------------------------

TEST(CheckpointModel, NamesWhatIsDamagedAndTheOneBefore) {
  namespace fs = std::filesystem;
  const TemporaryDirectory run;
  const ModelSource source = *OpenModel("random:tiny-gqa", 5);
  const std::string directory = run.path() + "/checkpoints";
  const std::string second = directory + "/step-00000200", shard = "/shard-00001-of-00002.bin";
  const auto anew = [&] {
    fs::remove_all(directory);
    Write(source, directory, {2, 1, 1}, {100, 200});
  };
  const auto refused = [&](absl::string_view file) {
    const absl::Status status = OpenModel(run.path()).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(std::string(file)));
    EXPECT_THAT(Message(status),
                HasSubstr("the checkpoint before is " + directory + "/step-00000100"));
  };
  anew();
  EXPECT_TRUE(OpenModel(run.path()).ok());  // control
  EXPECT_TRUE(DescribeCheckpoint(second, true)->status.ok());

  Flip(second + shard, 5000);  // a value: found by whoever reads it
  const auto opened = OpenModel(run.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  absl::Status worst;
  std::vector<char> bytes;
  for (const ParamSpec& spec : ParamTable(opened->config)) {
    const ParamSlice all = {0, spec.rows, 0, spec.cols};
    bytes.resize(size_t(SliceBytes(all, DType::kF32)));
    worst.Update(LoadParam(*opened, spec, all, DType::kF32, bytes.data()));
  }
  EXPECT_TRUE(absl::IsDataLoss(worst)) << worst;
  EXPECT_THAT(Message(worst), HasSubstr(second + shard));
  EXPECT_THAT(Message(worst), HasSubstr("the checkpoint before is"));
  const CheckpointDescription described = *DescribeCheckpoint(second, /*whole=*/true);
  EXPECT_THAT(Message(described.status), HasSubstr(second + shard));
  EXPECT_TRUE(described.shards[0].status.ok());
  EXPECT_FALSE(described.shards[1].status.ok());
  EXPECT_EQ(described.before, directory + "/step-00000100");
  EXPECT_TRUE(DescribeCheckpoint(second, /*whole=*/false)->status.ok());  // a header is no proof

  anew();
  fs::remove(second + shard);
  refused(shard);
  EXPECT_FALSE(DescribeCheckpoint(second, /*whole=*/false)->status.ok());
  anew();
  fs::resize_file(second + shard, 1000);
  refused(shard);
  anew();
  fs::copy_file(second + "/shard-00000-of-00002.bin", second + shard,
                fs::copy_options::overwrite_existing);
  refused(shard);
  anew();
  Flip(second + "/origin.json", 10);
  refused("/origin.json");
  EXPECT_THAT(Message(DescribeCheckpoint(second, false)->status), HasSubstr("/origin.json"));
  anew();
  fs::remove(second + "/origin.json");
  refused("/origin.json");
  anew();
  Flip(second + "/manifest.json", 100);
  refused("/manifest.json");
  EXPECT_TRUE(absl::IsDataLoss(DescribeCheckpoint(second, true).status()));
  anew();
  fs::remove(second + "/manifest.json");
  refused("/manifest.json");
  anew();
  fs::rename(second, directory + "/step-00000300");
  refused("step-00000300/manifest.json: it is of step-00000200");
}

TEST(CheckpointModel, PartialOnesAreNoneAndValuesMustBeNumbers) {
  const TemporaryDirectory run;
  const std::string directory = run.path() + "/checkpoints";
  std::filesystem::create_directories(directory + "/step-00000100.tmp-0-00000000000000aa");
  const absl::Status none = OpenModel(run.path()).status();
  EXPECT_TRUE(absl::IsNotFound(none)) << none;
  EXPECT_THAT(Message(none), HasSubstr("no checkpoint in it yet"));
  EXPECT_TRUE(absl::IsNotFound(OpenModel(directory).status()));

  const ModelSource source = *OpenModel("random:tiny-gqa", 5);
  RunOnMesh({1, 1, 1}, [&](Mesh& mesh) {
    const auto ops = NewCpuBackend(DType::kF32, 1);
    const ParamLayout layout(source.config, 0, 1);
    auto store = ParamStore::Create(*ops, ops->NewStream(false), mesh,
                                    ParamGroups(source.config, layout, 0, 1, 2), {});
    ASSERT_TRUE((*store)->Load(source).ok());
    (*store)->Stored(ParamStore::Kind::kWeights, 0).as<float>()[3] = NAN;
    const auto writer = CheckpointWriter::Create(**store, source.config, {directory});
    ASSERT_TRUE((*writer)->Save({}).ok());
    ASSERT_TRUE((*writer)->Wait()->status.ok());
  });
  const auto opened = OpenModel(run.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->tokenizer.kind, TokenizerSource::Kind::kNone);  // it was written without
  const ParamSpec spec = ParamTable(opened->config)[0];
  std::vector<float> values(size_t(spec.rows * spec.cols));
  const absl::Status status =
      LoadParam(*opened, spec, {0, spec.rows, 0, spec.cols}, DType::kF32, values.data());
  EXPECT_THAT(Message(status), HasSubstr(spec.name));
  EXPECT_THAT(Message(status), HasSubstr("diverged"));
}

TEST(CheckpointModel, IsDescribed) {
  const TemporaryDirectory run;
  Write(*OpenModel("random:tiny-gqa", 5), run.path(), {1, 2, 3}, {50});
  const std::string path = run.path() + "/step-00000050";
  const ModelDescription model = Describe(*OpenModel(path));
  EXPECT_EQ(model.format, "checkpoint");
  EXPECT_EQ(model.tokenizer, "bytes");
  EXPECT_EQ(model.files.size(), 6u);
  EXPECT_EQ(model.tensor_bytes, 4 * model.parameters);
  const CheckpointDescription checkpoint = *DescribeCheckpoint(path, true);
  EXPECT_EQ(checkpoint.manifest.state.step, 50);
  EXPECT_EQ(checkpoint.manifest.state.data_position, 3200);
  EXPECT_EQ(checkpoint.manifest.tensor, 3);
  EXPECT_EQ(checkpoint.before, "");
  int64_t elements = 0;
  for (const auto& shard : checkpoint.shards) elements += shard.elements;
  EXPECT_EQ(elements, model.parameters);
}

}  // namespace
}  // namespace toroid
