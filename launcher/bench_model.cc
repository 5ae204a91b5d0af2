// bench model: prefill and decode of a model on this mesh, against arithmetic
// and memory.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/io/model_source.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/terminal.h"
#include "launcher/world.h"
#include "parallel/launcher_environment.h"

namespace toroid {
namespace {

// Multiplications and additions of a prompt of t tokens: two a weight and token
// in the layers' matrices, and 4 K a (query, key) pair and head in attention.
// The head runs for one position.
double PrefillFlops(const ModelConfig& c, int64_t t) {
  const double attention =
      double(c.dim) * double(c.head_dim) * double(2 * c.query_heads + 2 * c.kv_heads);
  const double weights = double(c.layers) * (attention + 3.0 * double(c.dim) * double(c.ffn));
  const double pairs = 0.5 * double(t) * double(t + 1);
  return 2 * weights * double(t) +
         4.0 * double(c.head_dim) * double(c.query_heads) * double(c.layers) * pairs +
         2.0 * double(c.dim) * double(c.vocab);
}

}  // namespace

absl::Status BenchModel(const Arguments& arguments) {
  if (!arguments.Has("MODEL")) {
    return UsageError(
        "missing argument: MODEL: bench model needs a directory, "
        "a file or random:NAME");
  }
  DirectRun run;
  TOROID_ASSIGN_OR_RETURN(run.load, LoadOptions(arguments, "striped:16"));
  TOROID_ASSIGN_OR_RETURN(run.mesh, MeshText(arguments));
  TakeLimits(arguments, &run);
  TOROID_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(run.load.model, run.load.seed));
  const int64_t prompt = std::max<int64_t>(arguments.Count("--prompt-tokens"), 1);
  int threads = static_cast<int>(arguments.Count("--threads"));
  if (threads <= 0) threads = static_cast<int>(AffinityCores());
  run.request = [&](const LoadedModel& model) -> absl::StatusOr<Program> {
    Program program;
    program.kind = ProgramKind::kGenerate;
    program.generate.max_tokens = std::max<int64_t>(arguments.Count("--max-tokens"), 1);
    program.generate.ignore_eos = true;
    for (int64_t i = 0; i < prompt; ++i) {
      program.generate.prompt_ids.push_back(static_cast<int32_t>((i * 7919 + 11) % model.vocab));
    }
    return program;
  };
  absl::Status answered = absl::OkStatus();
  run.channel.on_generated = [&](uint64_t, const absl::StatusOr<GenerateResult>& result) {
    answered = result.status();
    if (!result.ok()) return;
    const Timing& timing = result->report.timing;
    const BenchPeaks peaks = MeasurePeaks(threads);  // this host's cores, when the ranks are idle
    const double flops = PrefillFlops(source.config, prompt);
    double weights = 0;
    for (const int64_t bytes : result->report.memory.weights) weights += double(bytes);
    std::vector<BenchRow> rows;
    rows.push_back({"prefill", absl::StrCat(prompt, " tokens"), timing.prefill_s,
                    timing.prefill_tokens_per_s, "tokens/s", peaks.flops / (flops / double(prompt)),
                    "arithmetic"});
    rows.push_back({"decode", absl::StrCat(result->ids.size(), " tokens after ", prompt),
                    timing.decode_s, timing.decode_tokens_per_s, "tokens/s",
                    weights > 0 ? peaks.read / weights : 0, "memory"});
    PrintBench(arguments, "model", static_cast<int>(result->report.mesh.size()), threads, peaks,
               rows);
  };
  TOROID_RETURN_IF_ERROR(RunDirect(std::move(run)));
  return answered;
}

}  // namespace toroid
