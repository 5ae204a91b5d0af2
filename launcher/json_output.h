// The JSON that tools read: one object, one line, every object with "schema":1. Fields are only
// ever added. Numbers that are not finite become null; text that is not UTF-8 gets U+FFFD.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "launcher/replay.h"
#include "parallel/request.h"
#include "parallel/verify_self_test.h"
#include "rpc/job.h"

namespace toroid {

inline constexpr int kJsonSchema = 1;

// One answer; `several`: of a request with more than one, so its prompt_index and index are told.
std::string GenerateJson(absl::string_view model, const GenerateResult& answer,
                         bool several = false);
std::string ScoreJson(absl::string_view model, const ScoreResult& result);
// `stopped`: "done", "requeue" or "interrupted".
std::string TrainJson(absl::string_view model, const TrainResult& result);
std::string VerifyJson(absl::string_view model, const VerifyResult& result);
std::string SelfTestJson(const SelfTestResult& result);
std::string ReplayJson(const ReplayResult& result);
std::string TokenizeJson(const TokenizeResult& result, bool pieces);
std::string JobJson(const JobStatus& status);
std::string JobListJson(const JobPage& page);
std::string JobEventJson(const JobEvent& event);
std::string JobEventListJson(const std::vector<JobEvent>& events);
std::string PodJson(const PodStatus& pod);
std::string PodListJson(const std::vector<PodStatus>& pods);
std::string ModelListJson(const std::vector<ModelStatus>& models);
std::string LogLineJson(const LogLine& line);
std::string LogListJson(const std::vector<LogLine>& lines);

// Rows of a benchmark or a table of facts: names in order, values as text or numbers.
struct JsonField {
  std::string name;
  std::string text;
  double number = 0;
  bool is_number = false;
  JsonField(std::string n, std::string t) : name(std::move(n)), text(std::move(t)) {}
  JsonField(std::string n, const char* t) : name(std::move(n)), text(t) {}
  JsonField(std::string n, double x) : name(std::move(n)), number(x), is_number(true) {}
};
using JsonRow = std::vector<JsonField>;
// {"schema":1, facts.., "rows":[{..},..]}; without rows if `rows` is null.
std::string FactsJson(const JsonRow& facts, const std::vector<JsonRow>* rows = nullptr);

// "stop", "length", "cancelled".
const char* FinishReasonName(FinishReason reason);

}  // namespace toroid
