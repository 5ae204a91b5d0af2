#include "parallel/contributions_about.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "core/io/model_config_json.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using Json = nlohmann::json;

constexpr int kSchema = 1;
// By LearningRateSchedule::Kind.
constexpr const char* kSchedules[] = {"constant", "cosine", "wsd", "inverse sqrt"};

Json ToJson(const ExchangeSpec& spec) {
  return {{"mode", ExchangeModeName(spec.mode)},
          {"codec", CodecName(spec.codec)},
          {"every", spec.every},
          {"outer_rate", spec.outer_rate},
          {"outer_momentum", spec.outer_momentum},
          {"fragments", spec.fragments},
          {"tau", spec.tau}};
}

// What a replay needs of it; throws what the caller catches.
ExchangeSpec SpecOf(const Json& json) {
  ExchangeSpec spec;
  bool mode = false, codec = false;
  for (int m = 0; m <= int(ExchangeSpec::Mode::kStreaming); ++m) {
    if (json.at("mode") != ExchangeModeName(ExchangeSpec::Mode(m))) continue;
    spec.mode = ExchangeSpec::Mode(m);
    mode = true;
  }
  for (const Codec known : kCodecs) {
    if (json.at("codec") != CodecName(known)) continue;
    spec.codec = known;
    codec = true;
  }
  if (!mode || !codec) throw std::invalid_argument("a mode or codec that there is not");
  spec.every = json.at("every");
  spec.outer_rate = json.at("outer_rate");
  spec.outer_momentum = json.at("outer_momentum");
  spec.fragments = json.at("fragments");
  spec.tau = json.at("tau");
  return spec;
}

Json ToJson(const ContributionsUpdate& update) {
  const OptimizerSpec& spec = update.optimizer;
  const bool adamw = spec.kind == OptimizerSpec::Kind::kAdamW;
  return {{"optimizer", adamw ? "adamw" : "adafactor"},
          {"beta1", adamw ? spec.adamw.beta1 : spec.adafactor.beta1},
          {"beta2", spec.adamw.beta2},
          {"epsilon", adamw ? spec.adamw.epsilon : spec.adafactor.epsilon},
          {"decay_by_rate_squared", spec.decay.kind == WeightDecay::Kind::kRateSquared},
          {"decay_rate", spec.decay.rate},
          {"schedule", kSchedules[int(spec.rate.kind)]},
          {"rate", spec.rate.peak},
          {"warmup", spec.rate.warmup},
          {"final_rate", spec.rate.final_rate},
          {"steps", spec.rate.steps},
          {"decay", spec.rate.decay},
          {"hold", spec.rate.hold},
          {"max_norm", update.max_norm},
          {"updates", update.updates},
          {"pending", update.pending},
          {"on_gpus", update.on_gpus}};
}

// As SpecOf.
ContributionsUpdate UpdateOf(const Json& json) {
  ContributionsUpdate update;
  OptimizerSpec& spec = update.optimizer;
  const std::string name = json.at("optimizer"), schedule = json.at("schedule");
  const auto kind = std::find(std::begin(kSchedules), std::end(kSchedules), schedule);
  if ((name != "adamw" && name != "adafactor") || kind == std::end(kSchedules)) {
    throw std::invalid_argument("an optimizer or schedule that there is not");
  }
  if (name == "adafactor") spec.kind = OptimizerSpec::Kind::kAdafactor;
  spec.adamw = {json.at("beta1"), json.at("beta2"), json.at("epsilon")};
  spec.adafactor = {json.at("beta1"), json.at("epsilon")};
  if (json.at("decay_by_rate_squared")) spec.decay.kind = WeightDecay::Kind::kRateSquared;
  spec.decay.rate = json.at("decay_rate");
  spec.rate.kind = LearningRateSchedule::Kind(kind - std::begin(kSchedules));
  spec.rate.peak = json.at("rate");
  spec.rate.warmup = json.at("warmup");
  spec.rate.final_rate = json.at("final_rate");
  spec.rate.steps = json.at("steps");
  spec.rate.decay = json.at("decay");
  spec.rate.hold = json.at("hold");
  update.max_norm = json.at("max_norm");
  update.updates = json.at("updates");
  update.pending = json.at("pending");
  update.on_gpus = json.at("on_gpus");
  return update;
}

ContributionsAbout FromJson(const Json& json) {
  ContributionsAbout about;
  if (json.at("schema") != kSchema) throw std::invalid_argument("another schema");
  about.layers = json.at("layers");
  const std::string type = json.at("dtype");
  if (type != "float32" && type != "float64") throw std::invalid_argument("dtype");
  about.dtype = type == "float64" ? DType::kF64 : DType::kF32;
  about.pod = json.at("pod");
  for (const Json& mesh : json.at("meshes")) {
    about.meshes.push_back({mesh.at(0), mesh.at(1), mesh.at(2)});
  }
  about.exchange = SpecOf(json.at("exchange"));
  about.joined = json.value("joined", false);
  if (json.contains("update")) about.update = UpdateOf(json.at("update"));
  return about;
}

// Numbers that a file can have wrong.
absl::Status Check(const ContributionsAbout& about) {
  constexpr int64_t kMost = 1 << 20;
  bool fits = about.layers >= 1 && about.layers <= about.model.layers && about.pod >= 0 &&
              about.pod < int64_t(about.meshes.size());
  for (const MeshShape& mesh : about.meshes) {
    for (const int64_t axis : {mesh.data, mesh.ring, mesh.tensor}) {
      fits = fits && axis >= 1 && axis <= kMost;
    }
    fits = fits && mesh.size() <= kMost && mesh.tensor <= about.model.query_heads;
  }
  if (about.update) {
    TOROID_RETURN_IF_ERROR(Validate(about.update->optimizer));
    fits = fits && about.update->max_norm >= 0 && about.update->updates >= 0;
  }
  return fits ? Validate(about.exchange) : absl::InvalidArgumentError("a number out of range");
}

}  // namespace

std::string ToText(const ContributionsAbout& about) {
  Json json = {{"schema", kSchema},
               {"model", ModelConfigJson(about.model)},
               {"layers", about.layers},
               {"dtype", about.dtype == DType::kF64 ? "float64" : "float32"},
               {"pod", about.pod},
               {"meshes", Json::array()},
               {"exchange", ToJson(about.exchange)},
               {"joined", about.joined}};
  if (about.update) json["update"] = ToJson(*about.update);
  for (const MeshShape& mesh : about.meshes) {
    json["meshes"].push_back({mesh.data, mesh.ring, mesh.tensor});
  }
  return absl::StrCat(json.dump(1), "\n");
}

absl::StatusOr<ContributionsAbout> ParseContributionsAbout(absl::string_view text,
                                                           const std::string& name) {
  const auto wrong = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(name, ": ", what));
  };
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  ContributionsAbout about;
  try {
    about = FromJson(json);
    TOROID_ASSIGN_OR_RETURN(about.model, ReadModelConfig(json.at("model"), name));
  } catch (const std::exception& error) {
    return wrong(error.what());
  }
  const absl::Status fits = Check(about);
  return fits.ok() ? absl::StatusOr<ContributionsAbout>(std::move(about)) : wrong(fits.message());
}

}  // namespace toroid
