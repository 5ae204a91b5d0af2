#include <cmath>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/convert.h"
#include "rpc/convert_lists.h"
#include "rpc/error_info.h"

namespace toroid {
namespace {

using RateKind = LearningRateSchedule::Kind;

constexpr int64_t kMostSteps = int64_t{1} << 31;  // as in core/train/schedule.h

// The status of a check that knows no fields, as one about `field`.
absl::Status OfField(const char* field, const absl::Status& status) {
  return status.ok() ? status : BadField(field, std::string(status.message()));
}

absl::Status CheckRange(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadField(field, absl::StrCat(value, " is not ", low, " to ", high));
}

absl::Status CheckNumber(const char* field, int64_t value, int64_t low, int64_t high = kMostSteps) {
  if (value >= low && value <= high) return absl::OkStatus();
  return BadField(field, absl::StrCat(value, " is not ", low, " to ", high));
}

// --- data

v1::TrainData ToProto(const TrainingData& data) {
  v1::TrainData out;
  for (const std::string& path : data.paths) out.add_path(path);
  out.set_format(data.format == DataFormat::kText     ? v1::TrainData::TEXT
                 : data.format == DataFormat::kJsonl  ? v1::TrainData::JSONL
                 : data.format == DataFormat::kTokens ? v1::TrainData::TOKENS
                                                      : v1::TrainData::FORMAT_UNSPECIFIED);
  out.set_field(data.documents.field);
  out.set_separator(data.documents.separator);
  out.set_cache(data.cache);
  out.set_sequence_length(data.sequence_length);
  for (const BatchRamp::Stage& stage : data.batch_tokens.stages) {
    if (&stage == &data.batch_tokens.stages.front()) {
      out.set_batch_tokens(stage.tokens);
      continue;
    }
    v1::BatchStage& later = *out.add_ramp();
    later.set_first_step(stage.first_step);
    later.set_batch_tokens(stage.tokens);
  }
  out.set_shuffle(data.shuffle);
  out.set_epochs(data.epochs);
  out.set_join_documents(data.join_documents);
  out.set_skip(data.skipped.ToString());
  return out;
}

absl::StatusOr<TrainingData> FromProto(const v1::TrainData& in) {
  TrainingData out;
  if (in.path().empty()) return BadField("train.data.path", "missing: name files of text");
  for (const std::string& path : in.path()) {
    if (path.empty()) return BadField("train.data.path", "empty: name files of text");
    out.paths.push_back(path);
  }
  switch (in.format()) {
    case v1::TrainData::FORMAT_UNSPECIFIED:
      break;
    case v1::TrainData::TEXT:
      out.format = DataFormat::kText;
      break;
    case v1::TrainData::JSONL:
      out.format = DataFormat::kJsonl;
      break;
    case v1::TrainData::TOKENS:
      out.format = DataFormat::kTokens;
      break;
    default:
      return BadField("train.data.format",
                      absl::StrCat(int{in.format()}, " is not TEXT, JSONL or TOKENS"));
  }
  if (!in.field().empty()) out.documents.field = in.field();
  out.documents.separator = in.separator();
  TOROID_RETURN_IF_ERROR(OfField("train.data.separator", Validate(out.documents)));
  out.cache = in.cache();
  out.sequence_length = in.sequence_length();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.data.sequence_length", out.sequence_length, 1));
  out.batch_tokens.stages = {{0, in.batch_tokens()}};
  for (const v1::BatchStage& stage : in.ramp()) {
    out.batch_tokens.stages.push_back({stage.first_step(), stage.batch_tokens()});
  }
  TOROID_RETURN_IF_ERROR(
      OfField("train.data.batch_tokens", Validate(out.batch_tokens, out.sequence_length)));
  if (in.has_shuffle()) out.shuffle = in.shuffle();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.data.epochs", in.epochs(), 0));
  out.epochs = in.epochs();
  out.join_documents = in.join_documents();
  const auto skipped = SkipList::Parse(in.skip());
  TOROID_RETURN_IF_ERROR(OfField("train.data.skip", skipped.status()));
  out.skipped = *skipped;
  return out;
}

// --- optimizer and learning rate

v1::TrainOptimizer ToProto(const OptimizerSpec& optimizer) {
  v1::TrainOptimizer out;
  if (optimizer.kind == OptimizerSpec::Kind::kAdamW) {
    v1::AdamW& adamw = *out.mutable_adamw();
    adamw.set_lr(optimizer.rate.peak);
    adamw.set_beta1(optimizer.adamw.beta1);
    adamw.set_beta2(optimizer.adamw.beta2);
    adamw.set_epsilon(optimizer.adamw.epsilon);
    adamw.set_weight_decay(optimizer.decay.rate);
    return out;
  }
  v1::Adafactor& adafactor = *out.mutable_adafactor();
  adafactor.set_lr(optimizer.rate.peak);
  adafactor.set_beta1(optimizer.adafactor.beta1);
  adafactor.set_epsilon(optimizer.adafactor.epsilon);
  if (optimizer.decay.kind == WeightDecay::Kind::kTimesRate) {
    adafactor.set_weight_decay(optimizer.decay.rate);
  }
  return out;
}

// What both optimizers have; `field` is "train.optimizer.adamw".
template <typename Message>
absl::Status CheckOptimizer(const std::string& field, const Message& in) {
  const auto check = [&](const char* name, double value, double low, double high) {
    return CheckRange(absl::StrCat(field, ".", name).c_str(), value, low, high);
  };
  if (!(in.lr() > 0) || !std::isfinite(in.lr())) {
    return BadField(absl::StrCat(field, ".lr"), "missing: give a rate above 0");
  }
  if (in.has_beta1()) TOROID_RETURN_IF_ERROR(check("beta1", in.beta1(), 0, 1 - 1e-9));
  if (in.has_epsilon()) TOROID_RETURN_IF_ERROR(check("epsilon", in.epsilon(), 0, 1));
  return check("weight_decay", in.weight_decay(), 0, 1e3);
}

absl::StatusOr<OptimizerSpec> FromProto(const v1::TrainOptimizer& in) {
  OptimizerSpec out;
  if (in.has_adafactor()) {
    const v1::Adafactor& adafactor = in.adafactor();
    TOROID_RETURN_IF_ERROR(CheckOptimizer("train.optimizer.adafactor", adafactor));
    out.kind = OptimizerSpec::Kind::kAdafactor;
    out.rate.peak = adafactor.lr();
    if (adafactor.has_beta1()) out.adafactor.beta1 = adafactor.beta1();
    if (adafactor.has_epsilon()) out.adafactor.epsilon = adafactor.epsilon();
    out.decay = {WeightDecay::Kind::kRateSquared, 0};
    if (adafactor.has_weight_decay()) {
      out.decay = {WeightDecay::Kind::kTimesRate, adafactor.weight_decay()};
    }
    return out;
  }
  if (!in.has_adamw()) return BadField("train.optimizer", "missing: give adamw { lr: 3e-4 }");
  const v1::AdamW& adamw = in.adamw();
  TOROID_RETURN_IF_ERROR(CheckOptimizer("train.optimizer.adamw", adamw));
  out.rate.peak = adamw.lr();
  if (adamw.has_beta1()) out.adamw.beta1 = adamw.beta1();
  if (adamw.has_beta2()) out.adamw.beta2 = adamw.beta2();
  TOROID_RETURN_IF_ERROR(CheckRange("train.optimizer.adamw.beta2", out.adamw.beta2, 0, 1 - 1e-12));
  if (adamw.has_epsilon()) out.adamw.epsilon = adamw.epsilon();
  out.decay.rate = adamw.weight_decay();
  return out;
}

v1::TrainSchedule ToProto(const LearningRateSchedule& rate) {
  v1::TrainSchedule out;
  out.set_kind(rate.kind == RateKind::kCosine        ? v1::TrainSchedule::COSINE
               : rate.kind == RateKind::kWsd         ? v1::TrainSchedule::WSD
               : rate.kind == RateKind::kInverseSqrt ? v1::TrainSchedule::INVERSE_SQRT
                                                     : v1::TrainSchedule::CONSTANT);
  out.set_warmup(rate.warmup);
  out.set_final_lr(rate.final_rate);
  out.set_decay(rate.decay);
  out.set_hold(rate.hold);
  return out;
}

// Into `rate`, which has its peak.
absl::Status FromProto(const v1::TrainSchedule& in, int64_t steps, LearningRateSchedule& rate) {
  switch (in.kind()) {
    case v1::TrainSchedule::KIND_UNSPECIFIED:
    case v1::TrainSchedule::CONSTANT:
      break;
    case v1::TrainSchedule::COSINE:
      rate.kind = RateKind::kCosine;
      break;
    case v1::TrainSchedule::WSD:
      rate.kind = RateKind::kWsd;
      break;
    case v1::TrainSchedule::INVERSE_SQRT:
      rate.kind = RateKind::kInverseSqrt;
      break;
    default:
      return BadField("train.schedule.kind", absl::StrCat(int{in.kind()}, " is no schedule"));
  }
  rate.warmup = in.warmup();
  rate.final_rate = in.final_lr();
  rate.decay = in.decay();
  rate.hold = in.hold();
  if (rate.kind == RateKind::kCosine || rate.kind == RateKind::kWsd) rate.steps = steps;
  return OfField("train.schedule", Validate(rate));
}

// --- the spike rule

v1::SpikeRule ToProto(const SpikeRule& rule) {
  v1::SpikeRule out;
  out.set_window(rule.window);
  out.set_least_losses(rule.least_losses);
  out.set_deviations(rule.deviations);
  out.set_least_rise(rule.least_rise);
  out.set_rewind_steps(rule.rewind_steps);
  out.set_skip_steps(rule.skip_steps);
  out.set_max_rewinds(rule.max_rewinds);
  return out;
}

absl::StatusOr<SpikeRule> FromProto(const v1::SpikeRule& in) {
  SpikeRule out;
  if (in.has_window()) out.window = in.window();
  if (in.has_least_losses()) out.least_losses = in.least_losses();
  if (in.has_deviations()) out.deviations = in.deviations();
  if (in.has_least_rise()) out.least_rise = in.least_rise();
  if (in.has_rewind_steps()) out.rewind_steps = in.rewind_steps();
  if (in.has_skip_steps()) out.skip_steps = in.skip_steps();
  if (in.has_max_rewinds()) out.max_rewinds = in.max_rewinds();
  TOROID_RETURN_IF_ERROR(OfField("train.spike", Validate(out)));
  return out;
}

absl::StatusOr<Remat> FromProto(v1::TrainTask::Remat remat) {
  switch (remat) {
    case v1::TrainTask::NONE:
      return Remat::kNone;
    case v1::TrainTask::REMAT_UNSPECIFIED:
    case v1::TrainTask::ATTENTION_OUTPUT:
      return Remat::kAttentionOutput;
    case v1::TrainTask::BLOCK:
      return Remat::kBlock;
    default:
      return BadField("train.remat",
                      absl::StrCat(int{remat}, " is not NONE, ATTENTION_OUTPUT or BLOCK"));
  }
}

// The fields of a task that are numbers of TrainOptions.
absl::Status ReadOptions(const v1::TrainTask& in, TrainOptions& options) {
  if (in.has_clip()) options.max_norm = in.clip();
  TOROID_RETURN_IF_ERROR(CheckRange("train.clip", options.max_norm, 0, 1e9));
  options.zeta = in.zeta();
  TOROID_RETURN_IF_ERROR(CheckRange("train.zeta", options.zeta, 0, 1));
  options.dropout = in.dropout();
  TOROID_RETURN_IF_ERROR(CheckRange("train.dropout", options.dropout, 0, 1 - 1e-6));
  TOROID_ASSIGN_OR_RETURN(options.remat, FromProto(in.remat()));
  if (in.packs_per_rank() != 0) options.packs_per_rank = in.packs_per_rank();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.packs_per_rank", options.packs_per_rank, 1));
  if (in.token_block() != 0) options.token_block = in.token_block();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.token_block", options.token_block, 0));
  options.noise_scale_every = in.noise_scale_every();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.noise_scale_every", options.noise_scale_every, 0));
  if (in.has_prefetch()) options.prefetch = in.prefetch();
  options.deterministic = in.deterministic();
  return absl::OkStatus();
}

// --- the exchange between pods

v1::Exchange::Codec ToProto(Codec codec) {
  switch (codec) {
    case Codec::kFp64:
      return v1::Exchange::FP64;
    case Codec::kFp32:
      return v1::Exchange::FP32;
    case Codec::kBf16:
      return v1::Exchange::BF16;
    case Codec::kInt8:
      return v1::Exchange::INT8;
    case Codec::kE3m0:
      return v1::Exchange::E3M0;
  }
  return v1::Exchange::CODEC_UNSPECIFIED;
}

absl::StatusOr<Codec> FromProto(v1::Exchange::Codec codec) {
  if (codec == v1::Exchange::CODEC_UNSPECIFIED) return Codec::kFp32;
  for (const Codec known : kCodecs) {
    if (ToProto(known) == codec) return known;
  }
  return BadField("train.exchange.codec",
                  absl::StrCat(int{codec}, " is not FP64, FP32, BF16, INT8 or E3M0"));
}

absl::StatusOr<PodsOptions::Policy> FromProto(v1::Exchange::Policy policy) {
  if (policy == v1::Exchange::CONTINUE) return PodsOptions::Policy::kContinue;
  if (policy == v1::Exchange::HALT || policy == v1::Exchange::POLICY_UNSPECIFIED) {
    return PodsOptions::Policy::kHalt;
  }
  return BadField("train.exchange.policy", absl::StrCat(int{policy}, " is not HALT or CONTINUE"));
}

v1::Exchange ToProto(const PodsOptions& pods) {
  const ExchangeSpec& exchange = pods.exchange;
  v1::Exchange out;
  if (pods.policy == PodsOptions::Policy::kContinue) out.set_policy(v1::Exchange::CONTINUE);
  out.set_keep_contributions(pods.keep_contributions);
  switch (exchange.mode) {
    case ExchangeSpec::Mode::kExact:
      out.mutable_exact();
      break;
    case ExchangeSpec::Mode::kDelayed:
      out.mutable_delayed();
      break;
    case ExchangeSpec::Mode::kDiLoCo:
      out.mutable_diloco()->set_every(exchange.every);
      break;
    case ExchangeSpec::Mode::kStreaming: {
      v1::Exchange::Streaming& streaming = *out.mutable_streaming();
      streaming.set_every(exchange.every);
      streaming.set_fragments(exchange.fragments);
      streaming.set_tau(exchange.tau);
      streaming.set_alpha(exchange.alpha);
      break;
    }
  }
  out.set_codec(ToProto(exchange.codec));
  out.set_stochastic(exchange.stochastic);
  out.set_error_feedback(exchange.error_feedback);
  if (exchange.gradients()) return out;
  out.set_outer_lr(exchange.outer_rate);
  out.set_outer_momentum(exchange.outer_momentum);
  return out;
}

absl::StatusOr<ExchangeSpec> FromProto(v1::Exchange in) {
  TOROID_RETURN_IF_ERROR(LiftCodec(in));
  ExchangeSpec out;
  const auto every = [](int64_t said) { return said == 0 ? ExchangeSpec().every : said; };
  if (in.has_delayed()) out.mode = ExchangeSpec::Mode::kDelayed;
  if (in.has_diloco()) {
    out.mode = ExchangeSpec::Mode::kDiLoCo;
    out.every = every(in.diloco().every());
  }
  if (in.has_streaming()) {
    const v1::Exchange::Streaming& streaming = in.streaming();
    out.mode = ExchangeSpec::Mode::kStreaming;
    out.every = every(streaming.every());
    if (streaming.fragments() != 0) out.fragments = streaming.fragments();
    out.tau = streaming.tau();
    out.alpha = streaming.has_alpha() ? streaming.alpha() : 0.5;
    out.outer_rate = 0.4;
  }
  TOROID_ASSIGN_OR_RETURN(out.codec, FromProto(in.codec()));
  out.stochastic = in.stochastic();
  out.error_feedback = in.error_feedback();
  if (out.gradients() && (in.has_outer_lr() || in.has_outer_momentum())) {
    return BadField("train.exchange.outer_lr", "only of diloco and streaming");
  }
  if (in.has_outer_lr()) out.outer_rate = in.outer_lr();
  if (in.has_outer_momentum()) out.outer_momentum = in.outer_momentum();
  TOROID_RETURN_IF_ERROR(OfField("train.exchange", Validate(out)));
  return out;
}

}  // namespace

absl::Status LiftCodec(v1::Exchange& exchange) {
  const char* mode = "";
  v1::Exchange::Codec codec = v1::Exchange::CODEC_UNSPECIFIED;
  const auto take = [&](const char* name, auto* arm) {
    mode = name;
    codec = arm->codec();
    arm->clear_codec();
  };
  if (exchange.has_exact()) take("exact", exchange.mutable_exact());
  if (exchange.has_delayed()) take("delayed", exchange.mutable_delayed());
  if (exchange.has_diloco()) take("diloco", exchange.mutable_diloco());
  if (exchange.has_streaming()) take("streaming", exchange.mutable_streaming());
  if (codec == v1::Exchange::CODEC_UNSPECIFIED || codec == exchange.codec()) {
    return absl::OkStatus();
  }
  if (exchange.codec() != v1::Exchange::CODEC_UNSPECIFIED) {
    return BadField("train.exchange.codec",
                    absl::StrCat(v1::Exchange::Codec_Name(exchange.codec()), ", and ", mode,
                                 " { codec: ", v1::Exchange::Codec_Name(codec), " }: name one"));
  }
  exchange.set_codec(codec);
  return absl::OkStatus();
}

v1::TrainTask ToProto(const TrainTask& task) {
  v1::TrainTask out;
  const TrainingPlan& plan = task.plan;
  const TrainOptions& options = plan.options;
  *out.mutable_data() = ToProto(plan.data);
  *out.mutable_optimizer() = ToProto(options.optimizer);
  *out.mutable_schedule() = ToProto(options.optimizer.rate);
  out.set_steps(plan.steps);
  out.mutable_checkpoint()->set_every(plan.checkpoint_every);
  out.mutable_checkpoint()->set_keep(plan.keep);
  if (plan.spike.has_value()) *out.mutable_spike() = ToProto(*plan.spike);
  out.set_clip(options.max_norm);
  out.set_zeta(options.zeta);
  out.set_dropout(options.dropout);
  out.set_remat(options.remat == Remat::kNone    ? v1::TrainTask::NONE
                : options.remat == Remat::kBlock ? v1::TrainTask::BLOCK
                                                 : v1::TrainTask::ATTENTION_OUTPUT);
  out.set_packs_per_rank(options.packs_per_rank);
  out.set_token_block(options.token_block);
  out.set_prefetch(options.prefetch);
  out.set_deterministic(options.deterministic);
  out.set_noise_scale_every(options.noise_scale_every);
  out.set_param_hash_every(plan.param_hash_every);
  out.set_memory_limit(plan.memory_limit);
  out.set_export_model(task.export_model);
  out.set_skip_limit(plan.skip_limit);
  out.set_seed(plan.seed);
  out.set_peak_flops(task.peak_flops);
  if (options.pods.count > 1) *out.mutable_exchange() = ToProto(options.pods);
  return out;
}

absl::StatusOr<TrainTask> FromProto(const v1::TrainTask& in) {
  TrainTask out;
  TrainingPlan& plan = out.plan;
  plan.steps = in.steps();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.steps", plan.steps, 1));
  TOROID_ASSIGN_OR_RETURN(plan.data, FromProto(in.data()));
  TOROID_RETURN_IF_ERROR(ReadOptions(in, plan.options));
  TOROID_ASSIGN_OR_RETURN(plan.options.optimizer, FromProto(in.optimizer()));
  TOROID_RETURN_IF_ERROR(FromProto(in.schedule(), plan.steps, plan.options.optimizer.rate));
  plan.checkpoint_every = in.checkpoint().every();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.checkpoint.every", plan.checkpoint_every, 0));
  if (in.checkpoint().keep() != 0) plan.keep = in.checkpoint().keep();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.checkpoint.keep", plan.keep, 1));
  if (in.has_spike()) {
    TOROID_ASSIGN_OR_RETURN(plan.spike, FromProto(in.spike()));
  }
  plan.param_hash_every = in.param_hash_every();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.param_hash_every", plan.param_hash_every, 0));
  plan.memory_limit = in.memory_limit();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.memory_limit", plan.memory_limit, 0, int64_t{1} << 50));
  out.export_model = in.export_model();
  if (in.has_skip_limit()) plan.skip_limit = in.skip_limit();
  TOROID_RETURN_IF_ERROR(CheckNumber("train.skip_limit", plan.skip_limit, 0));
  TOROID_ASSIGN_OR_RETURN(plan.options.pods.exchange, FromProto(in.exchange()));
  plan.options.pods.keep_contributions = in.exchange().keep_contributions();
  TOROID_ASSIGN_OR_RETURN(plan.options.pods.policy, FromProto(in.exchange().policy()));
  plan.seed = plan.options.dropout_seed = in.seed();
  out.peak_flops = in.peak_flops();
  TOROID_RETURN_IF_ERROR(CheckRange("train.peak_flops", out.peak_flops, 0, 1e21));
  return out;
}

v1::TrainResult ToProto(const TrainResult& result) {
  v1::TrainResult out;
  out.set_steps(result.run.steps);
  out.set_tokens(result.run.tokens);
  out.set_first_loss(result.run.first_loss);
  out.set_last_loss(result.run.last_loss);
  out.set_skipped(result.run.skipped);
  out.set_rewinds(result.run.rewinds);
  out.set_checkpoint(MendUtf8(result.run.checkpoint));
  *out.mutable_mesh() = ToProto(result.mesh);
  out.mutable_mesh()->set_pods(static_cast<int32_t>(result.pods));
  out.set_seconds(result.seconds);
  out.set_tokens_per_s(result.tokens_per_s);
  if (result.mfu.has_value()) out.set_mfu(*result.mfu);
  out.set_peak_bytes(result.peak_bytes);
  out.set_directory(MendUtf8(result.directory));
  return out;
}

TrainResult FromProto(const v1::TrainResult& in) {
  TrainResult out;
  out.run.steps = in.steps();
  out.run.tokens = in.tokens();
  out.run.first_loss = in.first_loss();
  out.run.last_loss = in.last_loss();
  out.run.skipped = in.skipped();
  out.run.rewinds = in.rewinds();
  out.run.checkpoint = in.checkpoint();
  out.mesh = MeshFromProto(in.mesh());
  out.pods = std::max(1, in.mesh().pods());
  out.seconds = in.seconds();
  out.tokens_per_s = in.tokens_per_s();
  if (in.has_mfu()) out.mfu = in.mfu();
  out.peak_bytes = in.peak_bytes();
  out.directory = in.directory();
  return out;
}

}  // namespace toroid
