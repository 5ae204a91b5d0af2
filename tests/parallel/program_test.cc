// The loop that every world runs: programs in order, one answer each, on all ranks.
#include "parallel/program.h"

#include <gtest/gtest.h>

#include <deque>
#include <fstream>
#include <functional>
#include <iterator>

#include "core/text/tokenizer.h"
#include "tests/support/model_files.h"
#include "tests/support/run_on_ranks.h"
#include "tests/support/source_path.h"

namespace toroid {
namespace {

Program LoadProgram(uint64_t number, MeshShape mesh, Compute compute = Compute::kF32) {
  Program program;
  program.number = number;
  program.kind = ProgramKind::kLoad;
  program.load.model = "random:tiny-gqa";
  program.load.mesh = mesh;
  program.load.compute = compute;
  program.load.threads = 1;
  return program;
}

Program GenerateProgram(uint64_t number) {
  Program program;
  program.number = number;
  program.kind = ProgramKind::kGenerate;
  program.generate.prompt_ids = {72, 101, 108, 108, 111};
  program.generate.max_tokens = 4;
  return program;
}

// What rank 0 heard, in order.
struct Heard {
  std::vector<LoadedModel> loaded;
  std::vector<GenerateResult> generated;
  std::vector<VerifyResult> verified;
  std::vector<absl::Status> errors;
  int tokens = 0;
};

Heard RunAll(
    int ranks, std::deque<Program> programs,
    const std::function<bool(uint64_t)>& cancelled = [](uint64_t) { return false; }) {
  Heard heard;
  programs.push_back(Program{});  // exit
  RunOnRanks(ranks, [&](std::unique_ptr<Communicator> world) {
    ProgramChannel channel;
    if (world->rank() == 0) {
      channel.next = [&] {
        Program next = programs.front();
        programs.pop_front();
        return next;
      };
      channel.cancelled = cancelled;
      channel.on_token = [&](uint64_t, const TokenEvent&) { ++heard.tokens; };
      channel.on_loaded = [&](uint64_t, const absl::StatusOr<LoadedModel>& m) {
        m.ok() ? heard.loaded.push_back(*m) : heard.errors.push_back(m.status());
      };
      channel.on_generated = [&](uint64_t, const absl::StatusOr<GenerateResult>& r) {
        r.ok() ? heard.generated.push_back(*r) : heard.errors.push_back(r.status());
      };
      channel.on_verified = [&](uint64_t, const absl::StatusOr<VerifyResult>& r) {
        r.ok() ? heard.verified.push_back(*r) : heard.errors.push_back(r.status());
      };
    }
    EXPECT_TRUE(RunPrograms(std::move(world), channel, nullptr).ok());
  });
  return heard;
}

TEST(ProgramTest, BytesComeBackAndDamageIsRefused) {
  Program program = GenerateProgram(9);
  program.generate.stop = {"a", "bc"};
  program.generate.more_prompt_ids = {{1, 2}, {}, {3}};
  program.generate.n = 7;
  program.generate.sampling.top_p = 0.5;
  program.load.model = "x";
  const std::string bytes = SerialiseProgram(program);
  const auto parsed = ParseProgram(bytes);
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->number, 9u);
  EXPECT_EQ(parsed->generate.stop, program.generate.stop);
  EXPECT_EQ(parsed->generate.prompt_ids, program.generate.prompt_ids);
  EXPECT_EQ(parsed->generate.more_prompt_ids, program.generate.more_prompt_ids);
  EXPECT_EQ(parsed->generate.n, 7);
  EXPECT_EQ(parsed->generate.sampling.top_p, 0.5);
  EXPECT_EQ(parsed->load, program.load);
  EXPECT_FALSE(ParseProgram(bytes.substr(0, bytes.size() - 1)).ok());
  EXPECT_FALSE(ParseProgram(bytes + "x").ok());
  EXPECT_FALSE(ParseProgram("").ok());
}

// Programs travel in one message or in two; the lengths meet the border exactly, too.
TEST(ProgramTest, EveryRankHasAllOfALongProgram) {
  const int64_t empty = int64_t(SerialiseProgram(GenerateProgram(1)).size());
  for (const int64_t bytes :
       {empty + 4, int64_t{3996}, int64_t{4000}, int64_t{4004}, int64_t{400000}}) {
    Program program = GenerateProgram(1);
    program.generate.stop = {std::string((4 - empty % 4) % 4, 'x')};
    const int64_t rest = bytes - int64_t(SerialiseProgram(program).size());
    for (int64_t i = 0; i < rest / 4; ++i) program.generate.prompt_ids.push_back(int32_t(i));
    const std::string want = SerialiseProgram(program);
    if (rest > 0) {
      EXPECT_EQ(int64_t(want.size()), bytes);
    }
    RunOnRanks(3, [&](std::unique_ptr<Communicator> world) {
      ProgramChannel channel;
      channel.next = [&] { return program; };
      const auto got = ProgramStream(*world, channel).Next();
      ASSERT_TRUE(got.ok()) << got.status();
      EXPECT_EQ(SerialiseProgram(*got), want) << world->rank();
    });
  }
}

TEST(ProgramTest, LoadsOnceAndGenerates) {
  const Heard heard = RunAll(2, {LoadProgram(1, {1, 2, 1}), GenerateProgram(2),
                                 LoadProgram(3, {1, 2, 1}), GenerateProgram(4)});
  EXPECT_TRUE(heard.errors.empty());
  ASSERT_EQ(heard.loaded.size(), 2u);
  EXPECT_GT(heard.loaded[0].load_s, 0);
  EXPECT_EQ(heard.loaded[1].load_s, 0);  // the same request costs nothing
  ASSERT_EQ(heard.generated.size(), 2u);
  EXPECT_GT(heard.generated[0].report.timing.load_s, 0);
  EXPECT_EQ(heard.generated[1].report.timing.load_s, 0);
  EXPECT_EQ(heard.generated[0].ids, heard.generated[1].ids);
  EXPECT_EQ(heard.tokens, 8);
}

TEST(ProgramTest, TheTemplateBesideTheTokenizerIsTheModels) {
  const std::string golden = SourcePath("tests/golden/models/llama/");
  const TemporaryDirectory directory;
  const auto copy = [&](const std::string& from, const std::string& name) {
    std::ifstream file(from, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    ASSERT_FALSE(bytes.empty()) << from;
    directory.Write(name, bytes);
  };
  copy(golden + "config.json", "config.json");
  copy(golden + "model.safetensors", "model.safetensors");
  Program load = LoadProgram(1, {1, 2, 1});
  load.load.model = directory.path();
  Heard heard = RunAll(2, {load});
  ASSERT_EQ(heard.loaded.size(), 1u);
  EXPECT_EQ(heard.loaded[0].tokenizer, nullptr);  // ids alone

  copy(SourcePath("tests/fuzz/corpus/tokenizer_json/qwen2"), "tokenizer.json");
  directory.Write("chat_template.jinja", "{{ messages[0].content }}");
  heard = RunAll(2, {load});
  for (const absl::Status& error : heard.errors) ADD_FAILURE() << error;
  ASSERT_EQ(heard.loaded.size(), 1u);
  ASSERT_NE(heard.loaded[0].tokenizer, nullptr);
  EXPECT_EQ(heard.loaded[0].tokenizer->chat_template(), "{{ messages[0].content }}");
}

TEST(ProgramTest, AnErrorOfARequestLeavesTheWorldAlive) {
  Program missing = LoadProgram(1, {1, 2, 1});
  missing.load.model = "/no/such/model";
  Program outside = GenerateProgram(3);
  outside.generate.prompt_ids = {-1};
  const Heard heard =
      RunAll(2, {missing, LoadProgram(2, {1, 1, 2}), outside, LoadProgram(4, {1, 3, 1}),
                 LoadProgram(5, {1, 2, 1}), GenerateProgram(6)});
  ASSERT_EQ(heard.errors.size(), 3u);
  EXPECT_NE(heard.errors[0].message().find("/no/such/model"), absl::string_view::npos);
  EXPECT_EQ(heard.errors[1].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heard.errors[2].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(heard.generated.size(), 1u);
}

TEST(ProgramTest, VerifyPassesOnMeshesAndNamesWhatIsWrong) {
  for (const MeshShape mesh :
       {MeshShape{1, 1, 1}, MeshShape{1, 2, 2}, MeshShape{1, 1, 4}, MeshShape{2, 2, 1}}) {
    for (const Compute compute : {Compute::kF32, Compute::kF64}) {
      Program verify;
      verify.number = 2;
      verify.kind = ProgramKind::kVerify;
      for (int i = 0; i < 23; ++i) verify.verify.ids.push_back(3 * i);
      Program part = verify;
      part.verify.layers = 1;
      const Heard heard = RunAll(int(mesh.size()), {LoadProgram(1, mesh, compute), verify, part});
      ASSERT_EQ(heard.verified.size(), 2u) << ToString(mesh);
      EXPECT_TRUE(heard.verified[0].pass)
          << heard.verified[0].worst.tensor << " layer " << heard.verified[0].worst.layer << " "
          << heard.verified[0].worst.error << " bound " << heard.verified[0].worst.bound;
      // Eight taps a layer and the logits.
      EXPECT_EQ(heard.verified[0].tensors.size() % 8, 1u);
      EXPECT_TRUE(heard.verified[1].pass);
      EXPECT_EQ(heard.verified[1].tensors.size(), 9u);
    }
  }
}

TEST(ProgramTest, ACancelledVerifyEndsInEachOfItsRuns) {
  Program verify;
  verify.number = 2;
  verify.kind = ProgramKind::kVerify;
  verify.verify.ids = {1, 2, 3, 4, 5};
  // Of the two runs of rank 0 alone and the one of the mesh, each asks at every layer: so often
  // that a stop in the middle of each is among these.
  int asked = 0;
  Heard heard = RunAll(2, {LoadProgram(1, {1, 2, 1}), verify}, [&](uint64_t number) {
    asked += number == 2;
    return false;
  });
  ASSERT_EQ(heard.verified.size(), 1u);  // negative control
  ASSERT_GE(asked, 6);
  for (int stop : {1, asked / 2, asked}) {
    int at = 0;
    heard = RunAll(2, {LoadProgram(1, {1, 2, 1}), verify, GenerateProgram(3)},
                   [&](uint64_t number) { return number == 2 && ++at == stop; });
    ASSERT_EQ(heard.errors.size(), 1u) << stop;
    EXPECT_EQ(heard.errors[0].code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(heard.generated.size(), 1u);  // the world takes the next program
  }
}

}  // namespace
}  // namespace toroid
