// toroid bench: measured rows with the bound beside each.
//   ops          products at prefill and decode sizes, norms, SwiGLU
//   attention    one causal tile, one query against a long cache
//   ring         a ring step: message, attention, both at once        (2 ranks
//   or more) collectives  every verb at three sizes (2 ranks or more) model
//   prefill and decode of a model on this mesh
#include "launcher/bench.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/options.h"
#include "launcher/suggest.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_communicator.h"

namespace toroid {

absl::Status BenchCheck(const std::string& name, double got, double expected, double tolerance) {
  if (std::abs(got - expected) <= tolerance) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("wrong result: %s: %.9g instead of %.9g: not timed, please report this", name,
                      got, expected));
}

void PrintBench(const Arguments& arguments, const std::string& suite, int ranks, int threads,
                const BenchPeaks& peaks, const std::vector<BenchRow>& rows) {
  if (arguments.Text("--format") == "json") {
    std::vector<JsonRow> json;
    for (const BenchRow& row : rows) {
      json.push_back({{"name", row.name},
                      {"size", row.size},
                      {"seconds", row.seconds},
                      {"rate", row.rate},
                      {"unit", row.unit},
                      {"bound", row.bound},
                      {"bound_by", row.bound_by},
                      {"percent_of_bound", row.bound > 0 ? 100 * row.rate / row.bound : 0}});
    }
    WriteStdout(absl::StrCat(FactsJson({{"bench", suite},
                                        {"ranks", double(ranks)},
                                        {"threads", double(threads)},
                                        {"peak_flops", peaks.flops},
                                        {"peak_read", peaks.read},
                                        {"peak_copy", peaks.copy}},
                                       &json),
                             "\n"));
    return;
  }
  std::vector<std::vector<std::string>> table = {
      {"case", "size", "time", "rate", "unit", "bound", "of bound", "bound by"}};
  for (const BenchRow& row : rows) {
    table.push_back({row.name, row.size, absl::StrFormat("%.3f ms", row.seconds * 1e3),
                     absl::StrFormat("%.2f", row.rate), row.unit,
                     absl::StrFormat("%.1f", row.bound),
                     row.bound > 0 ? absl::StrFormat("%.0f%%", 100 * row.rate / row.bound) : "-",
                     row.bound_by});
  }
  WriteStdout(Table(table, ColourStdout()));
  if (!arguments.Flag("--quiet")) {
    Talk(
        absl::StrFormat("%d rank(s) of %d thread(s); measured here: %.1f GF/s "
                        "f32, %.1f GB/s read, "
                        "%.1f GB/s copy",
                        ranks, threads, peaks.flops * 1e-9, peaks.read * 1e-9, peaks.copy * 1e-9));
  }
}

namespace {

absl::Status RunBench(const Arguments& arguments) {
  const std::string suite = arguments.Text("SUITE");
  const std::vector<std::string> suites = {"ops", "attention", "ring", "collectives", "model"};
  if (std::find(suites.begin(), suites.end(), suite) == suites.end()) {
    return UsageError(absl::StrCat("unknown benchmark: ", suite,
                                   DidYouMean(suite, suites,
                                              "give ops, attention, ring, "
                                              "collectives or model")));
  }
  if (suite == "model") return BenchModel(arguments);
  if (arguments.Has("MODEL")) {
    return UsageError(
        absl::StrCat("too many arguments: bench ", suite, " takes no model: drop it"));
  }
  EndWithLauncher();
  int argc = 0;
  char** argv = nullptr;
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world, NewWorld(&argc, &argv));
  int threads = static_cast<int>(arguments.Count("--threads"));
  if (threads <= 0) {
    threads = static_cast<int>(ThreadsPerRank(AffinityCores(), HostsOf(*world)));
  }
  const std::unique_ptr<Backend> backend = NewCpuBackend(DType::kF32, threads);
  const BenchPeaks peaks = MeasurePeaks(threads);  // on all ranks at once, as the cases run
  absl::StatusOr<std::vector<BenchRow>> rows;
  if (suite == "ops") {
    rows = BenchOps(*backend, peaks);
  } else if (suite == "attention") {
    rows = BenchAttention(*backend, peaks);
  } else if (suite == "ring") {
    rows = BenchRing(*backend, *world, peaks);
  } else {
    rows = BenchCollectives(*backend, *world, peaks);
  }
  TOROID_RETURN_IF_ERROR(rows.status());
  if (world->rank() == 0) PrintBench(arguments, suite, world->size(), threads, peaks, *rows);
  return absl::OkStatus();
}

const OptionTable kBenchOptions = {
    "benchmark",
    {
        {"--prompt-tokens", ValueKind::kCount, "N", "512", "model: tokens of the prompt"},
        {"--max-tokens", ValueKind::kCount, "N", "32", "model: tokens to make"},
    }};

}  // namespace

const Verb kBenchVerb = {
    .name = "bench",
    .summary =
        "time ops, attention, ring, collectives or a model, with the "
        "bound beside each",
    .positionals = {{"SUITE", true, "ops, attention, ring, collectives or model"},
                    {"MODEL", false, "for model: a directory, a GGUF file or random:NAME"}},
    .tables = {&kBenchOptions, &kModelOptions, &kMeshOptions, &kRunOptions, &kOutputOptions},
    .examples =
        "toroid bench attention\ntoroid launch -n 2 bench ring\n"
        "toroid launch -n 2 bench model random:124m --mesh ring=2 -o json",
    .run = RunBench,
    .details =
        "Every case checks its result first. Bounds are measured in the "
        "same run: float32\n"
        "multiply-adds, bytes read, bytes copied by this machine as it "
        "is loaded now.",
};

}  // namespace toroid
