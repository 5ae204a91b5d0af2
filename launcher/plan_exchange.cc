#include "launcher/plan_exchange.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"

namespace toroid {
namespace {

using Mode = ExchangeSpec::Mode;
using nlohmann::ordered_json;

// FormatSeconds shows tenths.
std::string Seconds(double seconds) {
  return seconds < 10 ? absl::StrFormat("%.3gs", seconds) : FormatSeconds(seconds);
}

ordered_json CostJson(const ExchangeCost& cost, bool timed) {
  const ExchangeSpec& spec = cost.spec;
  ordered_json json = {{"mode", ExchangeModeName(spec.mode)},
                       {"codec", CodecName(spec.codec)},
                       {"every", StepsOfRound(spec)}};
  if (spec.mode == Mode::kStreaming) {
    json["fragments"] = spec.fragments;
    json["tau"] = spec.tau;
  }
  json["turn_bytes"] = cost.turn_bytes;
  json["step_bytes"] = cost.step_bytes;
  json["turn_s"] = cost.turn_s;
  if (!timed) return json;
  json["exposed_s"] = cost.exposed_s;
  json["speed_up"] = cost.speed_up;
  json["needed_bytes_per_s"] = cost.needed_bytes_per_s;
  if (cost.least_every) json["least_every"] = *cost.least_every;
  if (cost.least_tau) json["least_tau"] = *cost.least_tau;
  return json;
}

std::vector<std::string> Row(const ExchangeCost& cost, bool timed) {
  const ExchangeSpec& spec = cost.spec;
  std::string rule = spec.gradients() ? "1" : absl::StrCat(spec.every);
  if (spec.mode == Mode::kStreaming)
    absl::StrAppend(&rule, "/", spec.fragments, ", tau ", spec.tau);
  std::vector<std::string> row = {
      ExchangeModeName(spec.mode),          CodecName(spec.codec),        rule,
      FormatBytes(double(cost.turn_bytes)), FormatBytes(cost.step_bytes), Seconds(cost.turn_s)};
  if (!timed) return row;
  std::string least = cost.least_every ? absl::StrCat("every ", *cost.least_every) : "";
  if (cost.least_tau) absl::StrAppend(&least, ", tau ", *cost.least_tau);
  row.insert(row.end(), {Seconds(cost.exposed_s), absl::StrFormat("%.3f", cost.speed_up),
                         absl::StrCat(FormatBytes(cost.needed_bytes_per_s), "/s"), least});
  return row;
}

// Settings that make `to` of a job that has `from`.
std::string Settings(const ExchangeSpec& from, const ExchangeSpec& to) {
  std::vector<std::string> settings;
  const auto set = [&settings](auto... words) {
    settings.push_back(absl::StrCat("--set train.exchange.", words...));
  };
  const std::string mode = ExchangeModeName(to.mode);
  const bool other = to.mode != from.mode;
  if (to.gradients()) {
    if (other) set(mode, "={}");
  } else {
    if (other || to.every != from.every) set(mode, ".every=", to.every);
    if (to.mode == Mode::kStreaming) {
      if (other || to.fragments != from.fragments) set(mode, ".fragments=", to.fragments);
      if (other || to.tau != from.tau) set(mode, ".tau=", to.tau);
    }
  }
  if (to.codec != from.codec) {
    set("codec=", absl::AsciiStrToUpper(CodecName(to.codec)));
  }
  return absl::StrJoin(settings, " ");
}

// Each mode with each codec that anyone would take; of the job's own mode its own numbers.
std::vector<ExchangeSpec> Others(const PlannedExchange& job) {
  std::vector<ExchangeSpec> specs;
  for (const Mode mode : {Mode::kExact, Mode::kDelayed, Mode::kDiLoCo, Mode::kStreaming}) {
    for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kE3m0}) {
      ExchangeSpec spec = job.spec;
      if (spec.mode != mode) {
        spec = ExchangeSpec();
        spec.mode = mode;
        if (mode == Mode::kStreaming) {
          spec.fragments = std::min<int64_t>(4, job.layers);
          spec.tau = 1;
        }
      }
      spec.codec = codec;
      specs.push_back(spec);
    }
  }
  return specs;
}

}  // namespace

const OptionTable kPlanLinkOptions = {
    "the link between the pods of a job that trains (on one pod: as if on two)",
    {
        {"--link-rate", ValueKind::kBytes, "BYTES", "",
         "that a rank sends each rank of the other pods a second"},
        {"--link-latency", ValueKind::kSeconds, "T", "0", "what is sent comes so late"},
        {"--step-seconds", ValueKind::kSeconds, "T", "",
         "of a step of one pod by itself; default: from --flops, if that is given"},
    }};

absl::StatusOr<LinkQuestion> LinkOptions(const Arguments& arguments) {
  LinkQuestion question;
  question.asked = arguments.Has("--link-rate");
  for (const char* flag : {"--link-latency", "--step-seconds"}) {
    if (!question.asked && arguments.OriginOf(flag) == Origin::kFlag) {
      return UsageError(absl::StrCat(flag, " without --link-rate: it is of a link between pods"));
    }
  }
  if (!question.asked) return question;
  question.link.bytes_per_s = double(arguments.Count("--link-rate"));
  question.link.latency_s = arguments.Real("--link-latency");
  if (arguments.Has("--step-seconds")) question.step_s = arguments.Real("--step-seconds");
  if (question.link.bytes_per_s < 1) {
    return UsageError("bad value of --link-rate: give bytes a second, as 125MB");
  }
  if (arguments.Has("--step-seconds") && !(question.step_s > 0)) {
    return UsageError("bad value of --step-seconds: give the time of a step, as 12");
  }
  return question;
}

ExchangeAnswer AnswerExchange(const ModelConfig& config, const PlannedExchange& job, bool told,
                              const LinkQuestion& question, const StepSeconds& seconds) {
  ExchangeAnswer answer;
  answer.job = job;
  answer.question = question;
  answer.seconds = seconds;
  answer.own = CostOf(config, job, question.link, seconds);
  for (const ExchangeSpec& spec : Others(job)) {
    PlannedExchange other = job;
    other.spec = spec;
    answer.others.push_back(CostOf(config, other, question.link, seconds));
  }
  if (seconds.step <= 0) return answer;
  answer.hidden = answer.own.exposed_s <= kHidden * seconds.step;
  if (answer.hidden) return answer;
  const auto changed = HiddenExchange(config, job, question.link, seconds);
  if (!changed) return answer;
  answer.advice = absl::StrFormat(
      "%s%s: speed-up %.3f of %d pods, %.3f as it is",
      told ? "" : absl::StrCat("--set mesh.pods=", job.meshes.size(), " "),
      Settings(job.spec, changed->spec), changed->speed_up, job.meshes.size(), answer.own.speed_up);
  return answer;
}

ordered_json ExchangeJson(const ExchangeAnswer& answer) {
  const bool timed = answer.seconds.step > 0;
  ordered_json modes = ordered_json::array();
  for (const ExchangeCost& cost : answer.others) modes.push_back(CostJson(cost, timed));
  ordered_json json = {{"pods", answer.job.meshes.size()},
                       {"link",
                        {{"bytes_per_s", answer.question.link.bytes_per_s},
                         {"latency_s", answer.question.link.latency_s}}},
                       {"host_bytes", answer.host.total()},
                       {"host",
                        {{"state", answer.host.state},
                         {"buffers", answer.host.buffers},
                         {"queues", answer.host.queues},
                         {"given", answer.host.given}}},
                       {"own", CostJson(answer.own, timed)},
                       {"modes", std::move(modes)}};
  if (timed) {
    json["step_s"] = answer.seconds.step;
    json["hidden"] = answer.hidden;
  }
  return json;
}

std::string ExchangeText(const ExchangeAnswer& answer) {
  const bool timed = answer.seconds.step > 0;
  std::vector<std::vector<std::string>> rows = {
      {"exchange", "codec", "every", "bytes a turn", "bytes a step", "a turn takes"}};
  if (timed) rows[0].insert(rows[0].end(), {"exposed a step", "speed-up", "hidden at", "or with"});
  for (const ExchangeCost& cost : answer.others) {
    rows.push_back(Row(cost, timed));
    if (cost.spec == answer.own.spec) rows.back()[0] += " *";
  }
  std::string text =
      absl::StrCat("\nof a rank, each way, ", answer.job.meshes.size(), " pods, link of ",
                   FormatBytes(answer.question.link.bytes_per_s), "/s and ",
                   Seconds(answer.question.link.latency_s),
                   " from rank to rank; *: the job's own\n", Table(rows, ColourStdout()));
  const ExchangeBytes& host = answer.host;
  absl::StrAppend(&text, "\nthe job's exchange takes ", FormatBytes(double(host.total())),
                  " of a rank's host memory: state ", FormatBytes(double(host.state)), ", buffers ",
                  FormatBytes(double(host.buffers)), ", queues at most ",
                  FormatBytes(double(host.queues)));
  if (host.given > 0) {
    absl::StrAppend(&text, ", the state on its way to a pod that comes ",
                    FormatBytes(double(host.given)));
  }
  text += "\n";
  if (!timed) return text + "give --step-seconds or --flops: what of it is exposed is told too\n";
  absl::StrAppendFormat(&text, "\nthe job's exchange: speed-up %.3f of %d pods, steps of %s: %s\n",
                        answer.own.speed_up, answer.job.meshes.size(), Seconds(answer.seconds.step),
                        answer.hidden ? "it is hidden" : "it is not hidden");
  if (!answer.advice.empty()) {
    absl::StrAppend(&text, "  hidden with ", answer.advice, "\n");
  } else if (!answer.hidden) {
    absl::StrAppend(&text, "  no mode hides it with up to 10000 steps between exchanges\n");
  }
  return text;
}

}  // namespace toroid
