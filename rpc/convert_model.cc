#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/convert_lists.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

constexpr char kPreset[] = "preset:";  // how OpenModel calls a shape
constexpr int64_t kMaxContext = int64_t{1} << 40;

v1::Mesh ToProto(const MeshWish& wish) {
  v1::Mesh out;
  out.set_data(static_cast<int32_t>(wish.data));
  out.set_ring(static_cast<int32_t>(wish.ring));
  out.set_tensor(static_cast<int32_t>(wish.tensor));
  return out;
}

v1::Prompt ToProto(const PromptSpec& prompt) {
  v1::Prompt out;
  switch (prompt.kind) {
    case PromptSpec::Kind::kText:
      out.set_text(prompt.text);
      break;
    case PromptSpec::Kind::kIds:
      CopyAll(prompt.ids, out.mutable_ids()->mutable_ids());
      break;
    case PromptSpec::Kind::kFile:
      out.set_file(prompt.file);
      break;
  }
  out.set_chat(prompt.chat);
  out.set_system(prompt.system);
  out.set_no_special(!prompt.add_special);
  return out;
}

absl::StatusOr<PromptSpec> FromProto(const v1::Prompt& prompt, const std::string& field) {
  PromptSpec out;
  switch (prompt.source_case()) {
    case v1::Prompt::kText:
      out.text = prompt.text();
      break;
    case v1::Prompt::kIds:
      out.kind = PromptSpec::Kind::kIds;
      out.ids = ToVector<int32_t>(prompt.ids().ids());
      if (out.ids.empty()) return BadField(field + ".ids", "empty: at least one id is needed");
      break;
    case v1::Prompt::kFile:
      out.kind = PromptSpec::Kind::kFile;
      out.file = prompt.file();
      if (out.file.empty()) return BadField(field + ".file", "empty: name a file");
      break;
    case v1::Prompt::SOURCE_NOT_SET:
      return BadField(field, "missing: give text, ids or file");
  }
  out.chat = prompt.chat();
  out.system = prompt.system();
  out.add_special = !prompt.no_special();
  if (out.chat && out.kind == PromptSpec::Kind::kIds) {
    return BadField(field + ".chat", "ids are used as they are: give text or file");
  }
  if (!out.system.empty() && !out.chat) return BadField(field + ".system", "needs chat");
  return out;
}

absl::Status CheckSampling(const SamplingParams& s) {
  const auto finite = [](double x) { return std::isfinite(x); };
  if (!finite(s.temperature) || s.temperature < 0) {
    return BadField("sampling.temperature", absl::StrCat(s.temperature, " is not 0 or more"));
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return BadField("sampling.top_p", absl::StrCat(s.top_p, " is not in (0, 1]"));
  }
  if (s.top_k < 0) return BadField("sampling.top_k", absl::StrCat(s.top_k, " is below 0"));
  if (!(s.min_p >= 0 && s.min_p < 1)) {
    return BadField("sampling.min_p", absl::StrCat(s.min_p, " is not in [0, 1)"));
  }
  if (!finite(s.repetition_penalty) || s.repetition_penalty <= 0) {
    return BadField("sampling.repetition_penalty",
                    absl::StrCat(s.repetition_penalty, " is not above 0"));
  }
  if (!finite(s.presence_penalty)) return BadField("sampling.presence_penalty", "not finite");
  if (!finite(s.frequency_penalty)) return BadField("sampling.frequency_penalty", "not finite");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<absl::Duration> ReadDuration(const std::string& text, const char* field,
                                            absl::Duration missing) {
  if (text.empty()) return missing;
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration()) {
    return BadField(field, absl::StrCat("'", text, "' is no duration: write 5m, 500ms or 2h"));
  }
  return duration;
}

v1::Mesh ToProto(const MeshShape& mesh) {
  v1::Mesh out;
  out.set_pods(1);
  out.set_data(static_cast<int32_t>(mesh.data));
  out.set_ring(static_cast<int32_t>(mesh.ring));
  out.set_tensor(static_cast<int32_t>(mesh.tensor));
  return out;
}

MeshShape MeshFromProto(const v1::Mesh& mesh) {
  return {std::max(1, mesh.data()), std::max(1, mesh.ring()), std::max(1, mesh.tensor())};
}

absl::Status CheckSizes(absl::string_view field, const MeshWish& wish) {
  for (const auto& [axis, size] : {std::pair("data", wish.data), std::pair("ring", wish.ring),
                                   std::pair("tensor", wish.tensor)}) {
    if (size < MeshWish::kRest) {
      return BadField(absl::StrCat(field, ".", axis), absl::StrCat(size, " is no size"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<MeshWish> WishFromProto(const v1::Mesh& mesh) {
  if (mesh.pods() != 0 && mesh.pods() != 1) {
    return BadField("mesh.pods", absl::StrCat(mesh.pods(), ": only training runs on several pods"));
  }
  const MeshWish wish{mesh.data(), mesh.ring(), mesh.tensor()};
  TOROID_RETURN_IF_ERROR(CheckSizes("mesh", wish));
  return wish;
}

v1::Placement ToProto(const Placement& placement, absl::Duration keep_alive) {
  v1::Placement out;
  const LoadRequest& load = placement.load;
  v1::Model& model = *out.mutable_model();
  if (absl::StartsWith(load.model, kPreset)) {
    model.mutable_shape()->set_preset(load.model.substr(sizeof(kPreset) - 1));
  } else {
    model.set_path(load.model);
  }
  model.set_tokenizer(load.tokenizer);
  model.set_layout(ToString(load.layout));
  model.set_context(load.context);
  model.set_page_tokens(load.page_tokens);
  model.set_threads(load.threads);
  model.set_verify_weights(load.verify_weights);
  model.set_seed(load.seed);
  *out.mutable_mesh() = ToProto(placement.mesh);
  out.set_compute(load.compute == Compute::kF32   ? v1::FP32
                  : load.compute == Compute::kF64 ? v1::FP64
                                                  : v1::BF16);
  out.set_pod(placement.pod);
  out.set_on_pool(placement.on_pool);
  out.set_keep_alive(absl::FormatDuration(keep_alive));
  return out;
}

absl::StatusOr<Placement> FromProto(const v1::Placement& in, absl::Duration* keep_alive) {
  Placement out;
  const v1::Model& model = in.model();
  LoadRequest& load = out.load;
  load.model = model.path();
  if (!model.shape().preset().empty()) {
    if (!load.model.empty()) return BadField("model.shape", "given with path: give one of them");
    load.model = absl::StrCat(kPreset, model.shape().preset());
  }
  if (load.model.empty()) return BadField("model.path", "missing: name a model");
  if (model.page_tokens() < 0 || model.page_tokens() > 1 << 20) {
    return BadField("model.page_tokens", absl::StrCat(model.page_tokens(), " is not 1 to 1048576"));
  }
  load.page_tokens = model.page_tokens() == 0 ? 16 : model.page_tokens();
  load.layout = {LayoutRule::Kind::kStriped, load.page_tokens};
  if (!model.layout().empty()) {
    auto layout = ParseLayoutRule(model.layout());
    if (!layout.ok()) return BadField("model.layout", std::string(layout.status().message()));
    load.layout = *layout;
  }
  if (model.context() < 0 || model.context() > kMaxContext) {
    return BadField("model.context", absl::StrCat(model.context(), " is no length"));
  }
  load.context = model.context();
  if (model.threads() < 0 || model.threads() > 1 << 16) {
    return BadField("model.threads", absl::StrCat(model.threads(), " is no number of threads"));
  }
  load.threads = model.threads();
  load.verify_weights = model.verify_weights();
  load.tokenizer = model.tokenizer();
  load.seed = model.seed();
  switch (in.compute()) {
    case v1::COMPUTE_UNSPECIFIED:
    case v1::FP32:
      load.compute = Compute::kF32;
      break;
    case v1::FP64:
      load.compute = Compute::kF64;
      break;
    case v1::BF16:
      load.compute = Compute::kBF16;
      break;
    default:
      return BadField("compute", absl::StrCat(in.compute(), " is not FP32, FP64 or BF16"));
  }
  TOROID_ASSIGN_OR_RETURN(out.mesh, WishFromProto(in.mesh()));
  out.pod = in.pod();
  out.on_pool = in.on_pool();
  if (keep_alive != nullptr) {
    TOROID_ASSIGN_OR_RETURN(*keep_alive,
                            ReadDuration(in.keep_alive(), "keep_alive", absl::Minutes(5)));
  }
  return out;
}

v1::GenerateTask ToProto(const GenerateTask& task) {
  v1::GenerateTask out;
  *out.mutable_prompt() = ToProto(task.prompt);
  for (const PromptSpec& prompt : task.more_prompts) *out.add_more_prompts() = ToProto(prompt);
  const GenerateRequest& request = task.request;
  out.set_max_tokens(request.max_tokens);
  v1::Sampling& sampling = *out.mutable_sampling();
  sampling.set_temperature(request.sampling.temperature);
  sampling.set_top_p(request.sampling.top_p);
  sampling.set_top_k(request.sampling.top_k);
  sampling.set_min_p(request.sampling.min_p);
  sampling.set_repetition_penalty(request.sampling.repetition_penalty);
  sampling.set_presence_penalty(request.sampling.presence_penalty);
  sampling.set_frequency_penalty(request.sampling.frequency_penalty);
  sampling.set_seed(request.sampling.seed);
  for (const std::string& stop : request.stop) out.add_stop(stop);
  CopyAll(request.stop_ids, out.mutable_stop_ids());
  out.set_ignore_eos(request.ignore_eos);
  out.set_logprobs(request.logprobs);
  out.set_prompt_logprobs(request.prompt_logprobs);
  out.set_n(request.n);
  out.set_batch(request.batch);
  return out;
}

absl::StatusOr<GenerateTask> FromProto(const v1::GenerateTask& in) {
  GenerateTask out;
  TOROID_ASSIGN_OR_RETURN(out.prompt, FromProto(in.prompt(), "prompt"));
  for (int i = 0; i < in.more_prompts_size(); ++i) {
    TOROID_ASSIGN_OR_RETURN(PromptSpec prompt,
                            FromProto(in.more_prompts(i), absl::StrCat("more_prompts[", i, "]")));
    out.more_prompts.push_back(std::move(prompt));
  }
  GenerateRequest& request = out.request;
  if (in.has_n()) request.n = in.n();
  const absl::Status answers = CheckAnswers(1 + in.more_prompts_size(), request.n);
  if (!answers.ok()) return BadField("n", answers.message());
  if (in.batch() < 0) return BadField("batch", absl::StrCat(in.batch(), " is below 0"));
  request.batch = in.batch();
  if (in.has_max_tokens()) request.max_tokens = in.max_tokens();
  if (request.max_tokens < 1 || request.max_tokens > kMaxContext) {
    return BadField("max_tokens", absl::StrCat(request.max_tokens, " is not 1 or more"));
  }
  const v1::Sampling& sampling = in.sampling();
  request.sampling = {sampling.temperature(),
                      sampling.has_top_p() ? sampling.top_p() : 1,
                      sampling.top_k(),
                      sampling.min_p(),
                      sampling.has_repetition_penalty() ? sampling.repetition_penalty() : 1,
                      sampling.presence_penalty(),
                      sampling.frequency_penalty(),
                      sampling.seed()};
  TOROID_RETURN_IF_ERROR(CheckSampling(request.sampling));
  if (in.stop_size() > 64) return BadField("stop", "more than 64 stop strings");
  for (const std::string& stop : in.stop()) {
    if (stop.empty()) return BadField("stop", "an empty stop string");
    request.stop.push_back(stop);
  }
  request.stop_ids = ToVector<int32_t>(in.stop_ids());
  request.ignore_eos = in.ignore_eos();
  request.logprobs = in.logprobs();
  if (in.prompt_logprobs() < 0) return BadField("prompt_logprobs", "below 0");
  request.prompt_logprobs = in.prompt_logprobs();
  return out;
}

v1::ScoreTask ToProto(const ScoreTask& task) {
  v1::ScoreTask out;
  *out.mutable_text() = ToProto(task.text);
  out.set_top(task.request.top);
  out.set_logprobs(task.request.logprobs);
  out.set_limit(task.limit);
  return out;
}

absl::StatusOr<ScoreTask> FromProto(const v1::ScoreTask& in) {
  ScoreTask out;
  TOROID_ASSIGN_OR_RETURN(out.text, FromProto(in.text(), "text"));
  if (in.top() < 0) return BadField("top", absl::StrCat(in.top(), " is below 0"));
  if (in.limit() < 0) return BadField("limit", absl::StrCat(in.limit(), " is below 0"));
  out.request.top = in.top();
  out.request.logprobs = in.logprobs();
  out.limit = in.limit();
  return out;
}

v1::VerifyTask ToProto(const VerifyTask& task) {
  v1::VerifyTask out;
  if (task.text.has_value()) *out.mutable_text() = ToProto(*task.text);
  out.set_tokens(task.tokens);
  out.set_full(task.full);
  out.set_layers(task.request.layers);
  return out;
}

absl::StatusOr<VerifyTask> FromProto(const v1::VerifyTask& in) {
  VerifyTask out;
  if (in.has_text()) {
    TOROID_ASSIGN_OR_RETURN(out.text, FromProto(in.text(), "text"));
  }
  if (in.has_tokens()) out.tokens = in.tokens();
  if (out.tokens < 1) return BadField("tokens", absl::StrCat(out.tokens, " is not 1 or more"));
  out.full = in.full();
  if (in.layers() < 0) return BadField("layers", absl::StrCat(in.layers(), " is below 0"));
  out.request.layers = in.layers();
  return out;
}

}  // namespace toroid
