// toroid bench: measured rows with the bound beside each. Inputs are random, outputs poisoned;
// every case is verified before it is timed. Workloads:
//
//   ops          peaks of this machine: multiply-adds, memory read, memory copy
//                matmul f32 2048^3; products of SmolLM2-135M at 512 tokens, f32, bf16, q4_1
//                matvec of its feed-forward and output head: f32, bf16, q8_0, q4_1, cold in memory
//                rms_norm, rope, swiglu on arrays larger than the caches
//   attention    causal f32: 9 heads of 64, 9 on 3 KV heads, 8 on 2 of 128, at 2,048 and 8,192;
//                backward of the same at 2,048
//                decode: one query on 4,096 keys, f32 and bf16, cold in memory
//                on a GPU: causal and its backward, 32 heads on 8 KV heads of 128, 16 on 1 of 256,
//                32 on 8 of 64, at 4,096 and 16,384, by each kernel
//   model M      prefill of 512 and 4,000 tokens, 32 tokens of decode of --batch answers after each
//   train M      one step of AdamW on 1,024 tokens; with two ranks or more also one rank with all
//                threads, on the same batch
//   ring [M]     ring prefill of M at 4,000 tokens, or attention alone at 8,192: against one rank
//                with all threads; per round compute and exposed exchange (2 ranks or more)
//   collectives  every verb from 1 KiB to 16 MiB (2 ranks or more)
#include "launcher/bench.h"

#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "kernels/isa.h"
#include "launcher/bench_cuda.h"
#include "launcher/exit_code.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/quantity.h"
#include "launcher/suggest.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"
#include "launcher/world.h"
#include "parallel/launcher_environment.h"
#include "parallel/mpi_communicator.h"

namespace toroid {

absl::Status BenchRun::Case(const std::string& name, const std::function<void()>& call,
                            const std::function<absl::Status()>& verify,
                            const std::function<BenchRow(double seconds)>& row) {
  if (!Wants(name)) return absl::OkStatus();
  on_case_(name);
  call();
  TOROID_RETURN_IF_ERROR(verify());
  Add(row(MedianSeconds(samples_, call)));
  return absl::OkStatus();
}

double BenchRun::fma_peak() {
  if (fma_peak_ == 0) fma_peak_ = MeasureFmaPeak(pool_);
  return fma_peak_;
}
double BenchRun::memory_read() {
  if (memory_read_ == 0) memory_read_ = MeasureMemoryRead(pool_);
  return memory_read_;
}
double BenchRun::memory_copy() {
  if (memory_copy_ == 0) memory_copy_ = MeasureMemoryCopy(pool_);
  return memory_copy_;
}

absl::Status ExpectClose(const std::string& name, double actual, double expected,
                         double tolerance) {
  if (std::abs(actual - expected) <= tolerance * (1 + std::abs(expected))) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("wrong result: ", name, ": ", actual, " instead of ",
                                          expected, ": not timed, please report this"));
}

std::string BenchJson(const std::string& workload, int ranks, const BenchRun& run) {
  std::vector<JsonRow> rows;
  for (const BenchRow& row : run.rows()) {
    rows.push_back({{"case", row.name},
                    {"size", row.size},
                    {"seconds", row.seconds},
                    {"rate", row.rate},
                    {"unit", row.unit},
                    {"bound", row.bound > 0 ? row.bound : std::nan("")},
                    {"percent", PercentOfBound(row)}});
    if (std::isfinite(row.error)) rows.back().push_back({"error", row.error});
  }
  double load[1] = {0};
  getloadavg(load, 1);
  return FactsJson({{"workload", workload},
                    {"isa", IsaName(CurrentIsa())},
                    {"ranks", double(ranks)},
                    {"threads", double(run.threads())},
                    {"samples", double(run.samples())},
                    {"load_average", load[0]}},
                   &rows);
}

namespace {

const std::vector<std::string>& Workloads() {
  static const auto& names =
      *new std::vector<std::string>{"ops", "attention", "model", "train", "ring", "collectives"};
  return names;
}

// --tokens, or the workload's own lengths.
absl::StatusOr<std::vector<int64_t>> Lengths(const Arguments& arguments,
                                             const std::string& workload) {
  std::vector<int64_t> lengths;
  for (const std::string& text : arguments.Texts("--tokens")) {
    TOROID_ASSIGN_OR_RETURN(const int64_t tokens, ParseCount(text));
    if (tokens < 1) return UsageError("bad value of --tokens: 0: give at least 1");
    lengths.push_back(tokens);
  }
  if (!lengths.empty()) return lengths;
  if (workload == "model") return std::vector<int64_t>{512, 4000};
  if (workload == "train") return std::vector<int64_t>{1024};
  return std::vector<int64_t>{arguments.Has("MODEL") ? 4000 : 8192};
}

absl::Status CheckWorkload(const Arguments& arguments) {
  const std::string workload = arguments.Text("WORKLOAD");
  bool known = false;
  for (const std::string& name : Workloads()) known = known || name == workload;
  if (!known) {
    return UsageError(
        absl::StrCat("unknown benchmark: ", workload,
                     DidYouMean(workload, Workloads(),
                                "give ops, attention, model, train, ring or collectives")));
  }
  const bool needs_model = workload == "model" || workload == "train";
  const bool takes_model = needs_model || workload == "ring";
  if (needs_model && !arguments.Has("MODEL")) {
    return UsageError(absl::StrCat("no model: bench ", workload, ": write bench ", workload,
                                   workload == "train" ? " preset:gpt2-124m" : " random:124m",
                                   ", or a model's path"));
  }
  if (!takes_model && arguments.Has("MODEL")) {
    return UsageError(absl::StrCat("too many arguments: bench ", workload, " takes no model: drop ",
                                   arguments.Text("MODEL")));
  }
  const int64_t ranks = ThisLauncherEnvironment().promised_size;
  if ((workload == "ring" || workload == "collectives") && ranks < 2) {
    return UsageError(absl::StrCat("one rank: bench ", workload,
                                   " needs two or more: write toroid launch -n 2 bench ",
                                   workload));
  }
  if ((workload == "ops" || workload == "attention") && ranks > 1) {
    return UsageError(
        absl::StrCat("several ranks: bench ", workload, " is of one rank: run it without launch"));
  }
  return absl::OkStatus();
}

// What a workload runs on: a GPU where it can and there is one, or as --device says.
absl::StatusOr<Device> DeviceOf(const Arguments& arguments) {
  const std::string workload = arguments.Text("WORKLOAD");
  const Device asked = DeviceNamed(arguments.Text("--device"));
  const bool able = workload == "attention" || workload == "model";
  const bool alone = ThisLauncherEnvironment().promised_size == 1;
  const bool f64 = arguments.Text("--compute") == "f64";
  if (asked == Device::kAuto) {
    return able && alone && !f64 && CudaDevices() > 0 ? Device::kCuda : Device::kCpu;
  }
  if (asked == Device::kCpu) return asked;
  if (!able) TOROID_RETURN_IF_ERROR(CheckDeviceOfOthers(arguments, "bench " + workload));
  if (!alone) return UsageError("--device cuda with bench on several ranks: not in this version");
  if (f64) return UsageError("--device cuda with --compute f64: GPUs compute in f32 and bf16");
  if (CudaDevices() > 0) return asked;
  return absl::FailedPreconditionError(
      "--device cuda: this toroid sees no GPU: toroid doctor --device cuda says why");
}

// On a GPU the bounds of bench model are the device's, in the arithmetic of `compute`.
absl::Status UseBoundsOfGpu(Compute compute, BenchRun& run) {
  CudaOptions options;
  options.product = compute == Compute::kBF16 ? DType::kBF16 : DType::kF32;
  TOROID_ASSIGN_OR_RETURN(const std::unique_ptr<Backend> ops, NewCudaBackend(options));
  const Stream s = ops->NewStream(/*communication=*/false);
  TOROID_ASSIGN_OR_RETURN(const DeviceBounds bounds, MeasureDevice(*ops, s, run.samples()));
  run.UseBounds(bounds.product, bounds.copy);
  return absl::OkStatus();
}

absl::Status RunWorkload(const Arguments& arguments, Device device,
                         std::unique_ptr<Communicator> world, BenchRun& run) {
  const std::string workload = arguments.Text("WORKLOAD");
  if (workload == "ops") return BenchOps(run);
  if (workload == "attention") {
    return device == Device::kCuda ? BenchAttentionOnGpu(run, /*device=*/0) : BenchAttention(run);
  }
  if (workload == "collectives") return BenchCollectives(run, *world);
  const bool trains = workload == "train";
  TOROID_ASSIGN_OR_RETURN(LoadRequest load,
                          LoadOptions(arguments, trains ? "zigzag" : "striped:16"));
  load.threads = run.threads();
  load.device = device;
  if (device == Device::kCuda) TOROID_RETURN_IF_ERROR(UseBoundsOfGpu(load.compute, run));
  TOROID_ASSIGN_OR_RETURN(const std::string mesh, MeshText(arguments));
  TOROID_ASSIGN_OR_RETURN(load.mesh, ParseMesh(mesh, world->size(), trains ? "data" : "ring"));
  TOROID_ASSIGN_OR_RETURN(const std::vector<int64_t> lengths, Lengths(arguments, workload));
  if (trains) {
    const std::string remat = arguments.Text("--remat");
    return BenchTrain(run, std::move(world), load, lengths,
                      remat == "none"    ? Remat::kNone
                      : remat == "block" ? Remat::kBlock
                                         : Remat::kAttentionOutput);
  }
  if (workload == "model") {
    return BenchModel(run, std::move(world), load, lengths, arguments.Count("--batch"));
  }
  if (load.mesh.ring != world->size()) {
    return UsageError(absl::StrCat("mesh without a ring of all: ", ToString(load.mesh),
                                   ": bench ring takes all ranks on the ring: drop --mesh"));
  }
  return BenchRing(run, std::move(world), load, lengths.back());
}

absl::Status RunBench(const Arguments& arguments) {
  TOROID_RETURN_IF_ERROR(CheckWorkload(arguments));
  TOROID_ASSIGN_OR_RETURN(const Device device, DeviceOf(arguments));
  if (const std::string error = IsaError(); !error.empty()) return UsageError(error);
  const int64_t asked = arguments.Count("--threads"), samples = arguments.Count("--samples");
  if (asked > 4096) return UsageError("bad value of --threads: give 0 to 4096");
  if (samples > 1000) return UsageError("bad value of --samples: give 0 to 1000");
  if (const int64_t batch = arguments.Count("--batch"); batch < 1 || batch > kMostAnswers) {
    return UsageError(absl::StrCat("bad value of --batch: ", batch, ": give 1 to ", kMostAnswers));
  }
  const bool cpu_time = arguments.Text("--clock") == "cpu";
  const std::string workload = arguments.Text("WORKLOAD");
  if (cpu_time && (asked != 1 || (workload != "ops" && workload != "attention"))) {
    return UsageError(
        "--clock cpu: CPU time is of one thread of ops or attention: add --threads 1");
  }
  if (cpu_time && device == Device::kCuda) {
    return UsageError("--clock cpu on a GPU: CPU time says nothing of it: add --device cpu");
  }
  UseBenchClock(cpu_time ? BenchClock::kCpu : BenchClock::kWall);
  EndWithLauncher();
  int argc = 0;
  char** argv = nullptr;
  TOROID_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> world, NewWorld(&argc, &argv));
  const int rank = world->rank(), ranks = world->size();
  const int64_t threads = asked > 0 ? asked : ThreadsPerRank(AffinityCores(), HostsOf(*world));
  const bool talks = rank == 0 && !arguments.Flag("--quiet") &&
                     (StderrIsTerminal() || arguments.Flag("--verbose"));
  const int64_t usual = arguments.Has("MODEL") ? 3 : 7;
  BenchRun run(int(threads), int(samples > 0 ? samples : usual), arguments.Text("--only"),
               [talks](const std::string& name) {
                 if (talks) Talk(name);
               });
  TOROID_RETURN_IF_ERROR(RunWorkload(arguments, device, std::move(world), run));
  if (rank != 0) return absl::OkStatus();
  if (run.rows().empty()) {
    return UsageError(absl::StrCat("no such case: --only ", arguments.Text("--only"),
                                   ": run without it to see the cases"));
  }
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(BenchJson(arguments.Text("WORKLOAD"), ranks, run), "\n"));
  } else {
    WriteStdout(Table(BenchCells(run.rows()), ColourStdout()));
  }
  return absl::OkStatus();
}

const OptionTable kBenchOptions = {
    "benchmark",
    {
        {"--only", ValueKind::kText, "TEXT", "", "ops, attention, collectives: cases with this"},
        {"--clock", ValueKind::kChoice, "wall|cpu", "wall",
         "ops, attention: cpu counts this process's time alone, for busy machines"},
        {"--samples", ValueKind::kCount, "N", "0", "of each median; 0: 7, of a model 3"},
        {"--tokens", ValueKind::kText, "N", "",
         "model, train (repeat for more) and ring: length of the text", false, true},
        {"--batch", ValueKind::kCount, "N", "1", "model: sequences that are decoded together"},
        {"--remat", ValueKind::kChoice, "none|attention_output|block", "none",
         "train: what is computed again in backward"},
    }};

}  // namespace

const Verb kBenchVerb = {
    .name = "bench",
    .summary =
        "time ops, attention, a model, its training, the ring or collectives beside their bounds",
    .positionals =
        {{"WORKLOAD", true, "ops, attention, model, train, ring or collectives"},
         {"MODEL", false,
          "model, train, ring: a directory, a GGUF file, random:NAME; train: preset:NAME"}},
    .tables = {&kBenchOptions, &kModelOptions, &kMeshOptions, &kOutputOptions, &kDetailOptions},
    .examples =
        "toroid bench ops --only matvec\n"
        "toroid bench attention --device cuda --only \"own bf16 h32 g8 k128\"\n"
        "toroid bench model random:124m --threads 2 -o json\n"
        "toroid bench train preset:gpt2-124m --tokens 4096 --remat block\n"
        "toroid launch -n 2 bench ring random:124m --tokens 4000",
    .run = RunBench,
    .details =
        "Each case is verified, warmed up and timed; the time is a median. Bounds are measured in\n"
        "the same run: float32 multiply-adds, bytes read, bytes copied; on a GPU (attention, and "
        "a\n"
        "model on one rank) a product of matrices and bytes copied. Idle machines only.",
};

}  // namespace toroid
