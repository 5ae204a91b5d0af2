#include "parallel/contributions_about.h"

#include "absl/strings/str_cat.h"
#include "core/io/model_config_json.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

using Json = nlohmann::json;

constexpr int kSchema = 1;

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
