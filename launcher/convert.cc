// toroid convert: a model written anew, as a Hugging Face directory or as a checkpoint.
#include "core/io/convert.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

absl::StatusOr<ConvertOptions> OptionsOf(const Arguments& arguments, bool checkpoint) {
  ConvertOptions options;
  options.dtype = arguments.Text("--dtype") == "bf16" ? DType::kBF16 : DType::kF32;
  options.shard_bytes = arguments.Count("--shard-size");
  if (options.shard_bytes < 1) return UsageError("--shard-size 0: use 1 or more, as in 5GB");
  for (const char* name : {"--dtype", "--shard-size"}) {
    if (!checkpoint || !arguments.Has(name)) continue;
    return UsageError(absl::StrCat(name,
                                   " with --to checkpoint: a checkpoint is one shard of f32: "
                                   "leave it out"));
  }
  return options;
}

// MHA to GQA to MQA, if asked for.
absl::Status PoolIfAsked(const Arguments& arguments, ModelSource& source) {
  if (!arguments.Has("--kv-heads")) {
    if (!arguments.Has("--kv-pool")) return absl::OkStatus();
    return UsageError("--kv-pool without --kv-heads: say how many are to stay, as in --kv-heads 1");
  }
  const std::string name = arguments.Text("--kv-pool");
  const auto kind = name == "first"    ? KvPooling::Kind::kFirst
                    : name == "random" ? KvPooling::Kind::kRandom
                                       : KvPooling::Kind::kMean;
  return PoolKvHeads(source, arguments.Count("--kv-heads"), kind, arguments.Seed("--seed"));
}

absl::Status RunConvert(const Arguments& arguments) {
  const std::string in = arguments.Text("IN"), out = arguments.Text("OUT");
  const bool checkpoint = arguments.Text("--to") == "checkpoint";
  TOROID_ASSIGN_OR_RETURN(ConvertOptions options, OptionsOf(arguments, checkpoint));
  TOROID_ASSIGN_OR_RETURN(ModelSource source, OpenModel(in, arguments.Seed("--seed")));
  TOROID_RETURN_IF_ERROR(PoolIfAsked(arguments, source));
  ProgressMeter meter(ProgressOption(arguments));
  options.progress = [&](int64_t done, int64_t total) {
    meter.Update("convert", done, total, "bytes");
  };
  TOROID_ASSIGN_OR_RETURN(
      const ConvertedModel result,
      checkpoint ? WriteCheckpoint(source, out, options) : WriteHuggingFace(source, out, options));
  meter.Clear();
  for (const std::string& sentence : result.lost) Talk(sentence);
  if (JsonOption(arguments)) {
    const nlohmann::ordered_json json = {{"schema", kJsonSchema},
                                         {"from", in},
                                         {"to", out},
                                         {"format", checkpoint ? "checkpoint" : "hugging face"},
                                         {"dtype", Info(options.dtype).name},
                                         {"parameters", source.config.ParameterCount()},
                                         {"tensor_bytes", result.tensor_bytes},
                                         {"files", result.files},
                                         {"lost", result.lost}};
    WriteStdout(absl::StrCat(
        json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace), "\n"));
    return absl::OkStatus();
  }
  WriteStdout(absl::StrCat(out, ": ", source.config.ParameterCount(), " parameters, ",
                           FormatBytes(double(result.tensor_bytes)), " of ",
                           Info(options.dtype).name, " in ", absl::StrJoin(result.files, ", "),
                           "\n"));
  return absl::OkStatus();
}

const OptionTable kConvertOptions = {
    "result",
    {
        {"--to", ValueKind::kChoice, "hugging-face|checkpoint", "hugging-face",
         "a directory for transformers, or a checkpoint of step 0"},
        {"--dtype", ValueKind::kChoice, "f32|bf16", "f32", "of the tensors that are written"},
        {"--shard-size", ValueKind::kBytes, "BYTES", "5GB", "of a safetensors file, at most"},
        {"--kv-heads", ValueKind::kCount, "N", "",
         "KV heads of the result: a divisor of the model's"},
        {"--kv-pool", ValueKind::kChoice, "mean|first|random", "mean",
         "what a KV head becomes of those that it replaces"},
        {"--seed", ValueKind::kSeed, "N", "0", "of random:NAME and --kv-pool random: weights"},
    }};

}  // namespace

const Verb kConvertVerb = {
    .name = "convert",
    .summary = "a model written as a Hugging Face directory, or as a checkpoint",
    .positionals = {{"IN", true,
                     "a model directory, a GGUF file, a checkpoint, a run's directory or "
                     "random:NAME"},
                    {"OUT", true, "the directory to make; there must be nothing of this name"}},
    .tables = {&kConvertOptions, &kOutputOptions},
    .examples =
        "toroid convert runs/book exports/book --dtype bf16\n"
        "toroid convert /models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf smollm2\n"
        "toroid convert /models/mha /models/gqa --kv-heads 8\n"
        "toroid convert /models/llama runs/book/checkpoints/step-00000000 --to checkpoint",
    .run = RunConvert,
    .details =
        "Tensors pass one after the other, so a model need not fit into memory. The result appears "
        "under its\nname when all of it is on the disk. With --kv-heads the KV heads of a group "
        "become "
        "one (MHA to GQA to\nMQA): train it on for a twentieth of its steps.",
};

}  // namespace toroid
