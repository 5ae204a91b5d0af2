// The Inference service: generate, score, tokenize, verify, and clients that go away.
#include <gmock/gmock.h>

#include <future>

#include "rpc/error_info.h"
#include "tests/rpc/services_fixture.h"

namespace toroid {
namespace {

using ::testing::HasSubstr;

TEST_F(ServicesTest, FirstTokenArrivesBeforeTheLastIsComputed) {
  StartPod();
  gate_.Set(false);
  std::string seen;
  bool progress = false, accepted = false;
  GenerateObserver observer;
  observer.on_accepted = [&](const Accepted& where) {
    accepted = true;
    EXPECT_EQ(where.pod, "a");
    EXPECT_EQ(where.mesh.ring, 2);
  };
  observer.on_progress = [&](const Progress& p) { progress |= std::string(p.phase) == "prefill"; };
  observer.on_token = [&](const TokenEvent& token) {
    seen += token.text;
    gate_.Set(true);  // the world cannot go on until the client has the first token
  };
  const auto result = client_->Generate(Request("abc"), observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(accepted && progress);
  EXPECT_EQ(seen, "abc");
  EXPECT_EQ(result->text, "abc");
  EXPECT_EQ(result->report.timing.load_s, 2.5);
  const auto second = client_->Generate(Request("d"), GenerateObserver());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->report.timing.load_s, 0);
  ASSERT_EQ(client_->ListModels()->size(), 1u);
  EXPECT_EQ(client_->GetModel("random:tiny")->context, 100);
  EXPECT_EQ(client_->GetModel("x").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ServicesTest, SeveralAnswersComeWithTheirIndices) {
  StartPod();
  InferenceRequest request = Request("ab");
  GenerateTask& task = std::get<GenerateTask>(request.task);
  task.more_prompts.resize(1);
  task.more_prompts[0].text = "cde";
  task.request.n = 2;
  std::string seen;
  GenerateObserver observer;
  observer.on_token = [&](const TokenEvent& token) {
    absl::StrAppend(&seen, token.text, token.prompt_index, token.index, token.last ? ". " : " ");
  };
  const auto result = client_->Generate(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(seen, "a00 b00. a01 b01. c10 d10 e10. c11 d11 e11. ");
  EXPECT_EQ(result->text, "ab");
  ASSERT_EQ(result->more.size(), 3u);
  EXPECT_EQ(result->more[2].text, "cde");
  EXPECT_EQ(result->more[2].prompt_index, 1);
  EXPECT_EQ(result->more[2].index, 1);

  JobSpec job = Job();
  job.task = task;
  const auto submitted = client_->SubmitJob(job, "");
  ASSERT_TRUE(submitted.ok()) << submitted.status();
  const JobStatus ended = AwaitEnd(submitted->id);
  ASSERT_EQ(ended.state, JobState::kSucceeded) << ended.message;
  const auto stored = client_->GetJob(submitted->id);
  ASSERT_TRUE(stored.ok());
  EXPECT_EQ(std::get<GenerateResult>(stored->result).more.size(), 3u);
  EXPECT_EQ(std::get<GenerateResult>(stored->result).more[1].text, "cde");
}

TEST_F(ServicesTest, TheNumberOfAnswersHasLimitsAndABadPromptIsNamed) {
  StartPod();
  const auto refusal = [&](int64_t n, std::vector<std::string> more) {
    InferenceRequest request = Request("ab");
    GenerateTask& task = std::get<GenerateTask>(request.task);
    task.request.n = n;
    for (const std::string& text : more) {
      task.more_prompts.emplace_back();
      task.more_prompts.back().text = text;
    }
    return client_->Generate(request, GenerateObserver()).status();
  };
  EXPECT_THAT(refusal(0, {}).ToString(), HasSubstr("n is 0"));
  EXPECT_EQ(GetErrorInfo(refusal(0, {})).fields.at(0).field, "n");
  EXPECT_THAT(refusal(1025, {}).ToString(), HasSubstr("at most 1024 answers"));
  EXPECT_THAT(refusal(600, {"c"}).ToString(), HasSubstr("2 prompts with n = 600"));
  EXPECT_TRUE(refusal(2, {"c"}).ok());
  const absl::Status empty = refusal(1, {"c", ""});
  EXPECT_THAT(empty.ToString(), HasSubstr("prompt 2: "));
  EXPECT_EQ(GetErrorInfo(empty).fields.size(), 1u);
}

TEST_F(ServicesTest, ADisconnectedClientFreesTheWorld) {
  StartPod();
  gate_.Set(false);
  GenerateObserver observer;
  observer.on_token = [&](const TokenEvent&) { interrupt_ = true; };
  const auto result = client_->Generate(Request("abc"), observer);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(gate_.Await([this] { return gate_.cancelled_programs == 1; }));
  interrupt_ = false;
  gate_.Set(true);
  EXPECT_TRUE(client_->Generate(Request("abc"), GenerateObserver()).ok());
}

TEST_F(ServicesTest, ErrorsCarryReasonsAndNumbers) {
  auto result = client_->Generate(Request("a"), GenerateObserver());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(GetErrorInfo(result.status()).reason, "NO_POD");
  StartPod();
  result = client_->Generate(Request(std::string(101, 'x')), GenerateObserver());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(GetErrorInfo(result.status()).reason, "PROMPT_TOO_LONG");
  EXPECT_EQ(GetErrorInfo(result.status()).metadata.at("tokens"), "101");
  EXPECT_EQ(GetErrorInfo(result.status()).metadata.at("context"), "100");
  InferenceRequest bad = Request("a");
  std::get<GenerateTask>(bad.task).request.sampling.top_p = 2;
  result = client_->Generate(bad, GenerateObserver());
  ASSERT_EQ(GetErrorInfo(result.status()).fields.size(), 1u);
  EXPECT_EQ(GetErrorInfo(result.status()).fields[0].field, "sampling.top_p");
  result = client_->Generate(Request("\xff"), GenerateObserver());
  EXPECT_THAT(result.status().ToString(), HasSubstr("not UTF-8 at byte 0"));
  bad = Request("a");
  std::get<GenerateTask>(bad.task).prompt.kind = PromptSpec::Kind::kIds;
  std::get<GenerateTask>(bad.task).prompt.ids = {5, 300};
  result = client_->Generate(bad, GenerateObserver());
  EXPECT_THAT(result.status().ToString(), HasSubstr("token id 300 at position 1 is out of range"));
  // The world lives through all of that: no negative control needs a second launch.
  result = client_->Generate(Request("a"), GenerateObserver());
  ASSERT_TRUE(result.ok()) << result.status();
  bad = Request("a");
  bad.placement.load.model = "random:refused";
  EXPECT_EQ(client_->Generate(bad, GenerateObserver()).status().code(),
            absl::StatusCode::kNotFound);
  bad.placement.load.model = "random:bad";
  EXPECT_EQ(client_->Generate(bad, GenerateObserver()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(ServicesTest, ScoreTokenizeDetokenize) {
  StartPod();
  InferenceRequest request = Request("");
  ScoreTask task;
  task.text.text = "abcd";
  task.limit = 3;
  request.task = task;
  const auto score = client_->Score(request);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->tokens, 2);
  TokenizeRequest tokenize;
  tokenize.placement = request.placement;
  tokenize.text = "AB";
  const auto ids = client_->Tokenize(tokenize);
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(ids->ids, (std::vector<int32_t>{65, 66}));
  EXPECT_EQ(*client_->Detokenize(request.placement, {72, 105}), "Hi");
}

TEST_F(ServicesTest, VerifyAnswersWithProgressAndEveryTensor) {
  StartPod();
  InferenceRequest request = Request("");
  VerifyTask task;
  task.request.layers = 2;
  task.tokens = 3;
  request.task = task;
  std::vector<std::string> seen;
  RequestObserver observer;
  observer.on_accepted = [&](const Accepted& where) { seen.push_back(where.pod); };
  observer.on_progress = [&](const Progress& p) { seen.emplace_back(p.phase); };
  auto result = client_->Verify(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(seen, ::testing::ElementsAre("a", "verify"));
  EXPECT_TRUE(result->pass);
  EXPECT_EQ(result->worst.tensor, "logits");
  EXPECT_EQ(result->worst.layer, -1);
  EXPECT_EQ(result->worst.error, 0.25);
  EXPECT_EQ(result->worst.bound, 2);
  EXPECT_EQ(result->tensors.size(), 3u);
  EXPECT_EQ(result->report.timing.load_s, 2.5);

  task.text.emplace();  // a text's first tokens, however long it is
  task.text->text = "AB" + std::string(200, 'x');
  task.tokens = 2;
  request.task = task;
  result = client_->Verify(request, observer);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tensors.size(), 2u);
  EXPECT_EQ(result->tensors[1].layer, 'B');
  task.full = true;
  request.task = task;
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, observer).status()).reason, "PROMPT_TOO_LONG");
}

TEST_F(ServicesTest, VerifyRefusesAndIsCancelled) {
  StartPod();
  InferenceRequest request = Request("");
  request.task = VerifyTask();
  request.placement.load.model = "random:refused";
  EXPECT_EQ(client_->Verify(request, RequestObserver()).status().code(),
            absl::StatusCode::kNotFound);
  request.placement.load.model = "random:tiny";
  request.placement.mesh = {1, 3, 1};
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, RequestObserver()).status()).reason,
            "TOO_FEW_SLOTS");
  request.placement.mesh = MeshWish();
  VerifyTask bad;
  bad.request.layers = -1;
  request.task = bad;
  EXPECT_EQ(GetErrorInfo(client_->Verify(request, RequestObserver()).status()).fields.at(0).field,
            "layers");
  request.task = VerifyTask();
  gate_.Set(false);
  RequestObserver leave;
  leave.on_progress = [&](const Progress&) { interrupt_ = true; };
  EXPECT_EQ(client_->Verify(request, leave).status().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(gate_.Await([this] { return gate_.cancelled_programs == 1; }));
  interrupt_ = false;
  gate_.Set(true);
  EXPECT_TRUE(client_->Verify(request, RequestObserver()).ok());  // the world lives on
}

TEST_F(ServicesTest, AModelWithoutATokenizerTakesIdsAlone) {
  StartPod();
  InferenceRequest request = Request("abc");
  request.placement.load.model = "random:no-tokenizer";
  EXPECT_THAT(client_->Generate(request, GenerateObserver()).status().ToString(),
              HasSubstr("no tokenizer"));
  TokenizeRequest tokenize;
  tokenize.placement = request.placement;
  tokenize.text = "AB";
  EXPECT_THAT(client_->Tokenize(tokenize).status().ToString(), HasSubstr("no tokenizer"));
  EXPECT_THAT(client_->Detokenize(request.placement, {72}).status().ToString(),
              HasSubstr("no tokenizer"));
  PromptSpec& prompt = std::get<GenerateTask>(request.task).prompt;
  prompt.kind = PromptSpec::Kind::kIds;
  prompt.ids = {72, 105};
  EXPECT_TRUE(client_->Generate(request, GenerateObserver()).ok());
}

}  // namespace
}  // namespace toroid
