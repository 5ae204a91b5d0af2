// What plan tells of the exchange of a job's pods on a link: each mode and codec, and the change of
// the job that hides it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "launcher/command_line.h"
#include "parallel/exchange_plan.h"
#include "parallel/rank_memory.h"
#include "rpc/job.h"

namespace toroid {

extern const OptionTable kPlanLinkOptions;  // --link-rate, --link-latency, --step-seconds

struct LinkQuestion {
  PodLinkSpeed link;
  double step_s = 0;  // 0: not said
  bool asked = false;
};
// UsageError if one of them says nothing.
absl::StatusOr<LinkQuestion> LinkOptions(const Arguments& arguments);

struct ExchangeAnswer {
  PlannedExchange job;
  LinkQuestion question;
  StepSeconds seconds;               // 0: not known, nothing is told of what is exposed
  ExchangeCost own;                  // as the job has it
  std::vector<ExchangeCost> others;  // the same of each mode and codec
  std::string advice;  // settings of the job's spec that hide it; empty: none needed, or none found
  bool hidden = false;
  // Host memory of rank 0 for it; of a job on several pods part of what plan tells as
  // `communicator`.
  ExchangeBytes host;
};
// `told`: the job's spec says that it has so many pods. seconds.step 0: not known.
ExchangeAnswer AnswerExchange(const ModelConfig& config, const PlannedExchange& job, bool told,
                              const LinkQuestion& question, const StepSeconds& seconds);

// {"pods", "link", "host_bytes", "host": {..}, "step_s", "own": {..}, "modes": [..], "hidden"}
nlohmann::ordered_json ExchangeJson(const ExchangeAnswer& answer);
std::string ExchangeText(const ExchangeAnswer& answer);

}  // namespace toroid
