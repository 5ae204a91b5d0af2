#include "launcher/json_output.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

RunReport Report() {
  RunReport report;
  report.mesh = {1, 2, 1};
  report.timing = {0.5, 0.25, 2, 16, 2};
  report.memory = {{10, 11}, {12, 13}, {1, 2}, {3, 4}, {5, 6}, {7, 8}, {90, 91}};
  report.comm = {{"ring", {100, 101}, {60, 61}, {4, 4}}};
  return report;
}

constexpr char kReportTail[] =
    R"("timing":{"load_s":0.5,"prefill_s":0.25,"decode_s":2.0,"prefill_tokens_per_s":16.0,)"
    R"("decode_tokens_per_s":2.0},"memory":{"peak_bytes":[10,11],"predicted_bytes":[12,13],)"
    R"("weights_bytes":[1,2],"kv_bytes":[3,4],"scratch_bytes":[5,6],"block_scratch_bytes":[7,8],)"
    R"("resident_bytes":[90,91]},"comm":{"by_axis":{"ring":{"bytes_sent":[100,101],)"
    R"("prefill_bytes_sent":[60,61],"calls":[4,4]}}}})";

TEST(JsonOutput, Generate) {
  GenerateResult result;
  result.prompt_tokens = 4;
  result.ids = {5, 6};
  result.text = "hi\n";
  result.finish = FinishReason::kStop;
  result.min_margin = 0.125;
  result.report = Report();
  const std::string head =
      R"({"schema":1,"model":"random:tiny","mesh":{"pods":1,"data":1,"ring":2,"tensor":1},)"
      R"("prompt_tokens":4,"ids":[5,6],"text":"hi\n","finish_reason":"stop",)";
  EXPECT_EQ(GenerateJson("random:tiny", result),
            head + R"("min_margin":0.125,"batch":1,)" + kReportTail);
  result.logprobs = {-0.5, -1};
  result.batch = 4;
  result.prompt_logprobs = {{3, -2.5}};
  EXPECT_EQ(
      GenerateJson("random:tiny", result),
      head +
          R"("logprobs":[-0.5,-1.0],"prompt_logprobs":[[3,-2.5]],"min_margin":0.125,"batch":4,)" +
          kReportTail);
}

TEST(JsonOutput, Train) {
  TrainResult result;
  result.run = {40, 512, 5.5, 2.25, 1, 2, StopAsked::kNo, "r/checkpoints/step-00000040"};
  result.mesh = {2, 1, 1};
  result.seconds = 4;
  result.tokens_per_s = 128;
  result.peak_bytes = 99;
  result.directory = "r";
  const std::string head =
      R"({"schema":1,"model":"m","mesh":{"pods":1,"data":2,"ring":1,"tensor":1},"steps":40,)"
      R"("tokens":512,"first_loss":5.5,"loss":2.25,"skipped":1,"rewinds":2,"seconds":4.0,)"
      R"("tokens_per_s":128.0,"mfu":)";
  const std::string tail =
      R"("peak_bytes":99,"directory":"r","checkpoint":"r/checkpoints/step-00000040","stopped":)";
  EXPECT_EQ(TrainJson("m", result), absl::StrCat(head, "null,", tail, "\"done\"}"));
  result.mfu = 0.5;
  result.run.stopped = StopAsked::kRequeue;
  EXPECT_EQ(TrainJson("m", result), absl::StrCat(head, "0.5,", tail, "\"requeue\"}"));
}

TEST(JsonOutput, SeveralAnswersSayWhichTheyAre) {
  GenerateResult result;
  result.more.resize(1);
  result.more[0].prompt_index = 2;
  result.more[0].index = 1;
  const auto parse = [](const std::string& text) { return nlohmann::json::parse(text); };
  const nlohmann::json one = parse(GenerateJson("m", result.more[0], /*several=*/true));
  EXPECT_EQ(one["prompt_index"], 2);
  EXPECT_EQ(one["index"], 1);
  EXPECT_FALSE(parse(GenerateJson("m", result)).contains("index"));
  JobStatus job;
  job.result = result;
  const nlohmann::json several = parse(JobJson(job));
  EXPECT_FALSE(several.contains("result"));
  ASSERT_EQ(several["results"].size(), 2u);
  EXPECT_EQ(several["results"][0]["index"], 0);
  EXPECT_EQ(several["results"][1]["prompt_index"], 2);
  result.more.clear();
  job.result = result;
  EXPECT_TRUE(parse(JobJson(job))["result"].contains("ids"));
}

TEST(JsonOutput, TheExchangeOfEachPodOfAJob) {
  JobStatus job;
  job.pods.resize(1);
  job.pods[0].progress = TaskProgress{"train", 3, 7, 2.5, 100};
  job.pods[0].progress->exchange = ExchangeProgress{2, 5, 1000, 0.25, 4, 0xab, 6, 9, 12};
  EXPECT_EQ(nlohmann::json::parse(JobJson(job))["pods"][0]["progress"]["exchange"].dump(),
            R"({"bytes_sent":1000,"dropped":6,"hash":"00000000000000ab","hash_step":4,)"
            R"("hurried":9,"reconnects":12,"staleness":5,"taking_part":2,"wait_share":0.25})");
}

TEST(JsonOutput, Score) {
  ScoreResult result;
  result.tokens = 3;
  result.mean_nll = 0.5;
  result.perplexity = 1.5;
  result.last_logsumexp = 7.5;
  result.last_top = {{9, 1.25}};
  result.report = Report();
  EXPECT_EQ(ScoreJson("m", result),
            std::string(R"({"schema":1,"model":"m","mesh":{"pods":1,"data":1,"ring":2,"tensor":1},)"
                        R"("tokens":3,"mean_nll":0.5,"perplexity":1.5,)"
                        R"("last":{"logsumexp":7.5,"top":[[9,1.25]]},)") +
                kReportTail);
}

TEST(JsonOutput, Verify) {
  VerifyResult result;
  result.pass = true;
  result.worst = {"k", 1, 1e-7, 1e-6};
  result.tensors = {result.worst};
  result.report = Report();
  EXPECT_EQ(
      VerifyJson("m", result),
      std::string(R"({"schema":1,"model":"m","mesh":{"pods":1,"data":1,"ring":2,"tensor":1},)"
                  R"("pass":true,"worst":{"tensor":"k","layer":1,"error":1e-07,"bound":1e-06},)"
                  R"("tensors":[{"tensor":"k","layer":1,"error":1e-07,"bound":1e-06}],)") +
          kReportTail);
}

TEST(JsonOutput, Tokenize) {
  EXPECT_EQ(TokenizeJson({{1, 2}, {"a", "b"}}, true),
            R"({"schema":1,"count":2,"ids":[1,2],"pieces":["a","b"]})");
  EXPECT_EQ(TokenizeJson({{1, 2}, {}}, false), R"({"schema":1,"count":2,"ids":[1,2]})");
}

TEST(JsonOutput, StreamsAreLinesOrOneObject) {
  JobEvent event;
  event.sequence = 3;
  event.status.id = "j";
  const auto parse = [](const std::string& text) { return nlohmann::json::parse(text); };
  EXPECT_EQ(parse(JobEventJson(event))["sequence"], 3);
  const nlohmann::json events = parse(JobEventListJson({event, event}));
  EXPECT_EQ(events["schema"], 1);
  ASSERT_EQ(events["events"].size(), 2u);
  EXPECT_EQ(events["events"][1], parse(JobEventJson(event)));
  EXPECT_EQ(LogListJson({}), R"({"schema":1,"lines":[]})");
  const std::string line = R"({"schema":1,"rank":2,"stream":"stderr","text":"x","next_offset":9})";
  EXPECT_EQ(LogLineJson({9, 2, true, "x"}), line);
  EXPECT_EQ(LogListJson({{9, 2, true, "x"}}), R"({"schema":1,"lines":[)" + line + "]}");
}

TEST(JsonOutput, OddNumbersAndTextStayJson) {
  GenerateResult result;
  result.text = "\xff\xfe";
  result.min_margin = std::numeric_limits<double>::infinity();
  const nlohmann::json json = nlohmann::json::parse(GenerateJson("m", result));
  EXPECT_TRUE(json["min_margin"].is_null());
  EXPECT_EQ(json["text"], "\xef\xbf\xbd\xef\xbf\xbd");
}

TEST(JsonOutput, FactsAndRows) {
  const std::vector<JsonRow> rows = {{{"op", "rope"}, {"gbs", 1.5}, {"size", 64.0}}};
  EXPECT_EQ(FactsJson({{"bench", "ops"}}, &rows),
            R"({"schema":1,"bench":"ops","rows":[{"op":"rope","gbs":1.5,"size":64}]})");
}

}  // namespace
}  // namespace toroid
