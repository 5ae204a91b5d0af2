// Attention on one GPU: one sequence, causal, forward and backward, by each kernel in turn. A
// call of the forward begins with a fresh carry, one of the backward with sums of zero and delta:
// all of it is timed, as it is paid in a model. The bound is a product of matrices in the same
// arithmetic, measured beside it.
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/arena.h"
#include "core/cuda_devices.h"
#include "core/status_macros.h"
#include "launcher/bench_attention_case.h"
#include "launcher/bench_cuda.h"

namespace toroid {
namespace {

// What of a result a kernel may lose against float64, given its operands.
struct Tolerance {
  double forward, backward;
};
constexpr Tolerance kBf16 = {1e-2, 2e-2}, kF32 = {1e-5, 1e-4};

struct Kernel {
  const char* name;
  std::unique_ptr<Backend> ops;
  Stream s;
  DeviceBounds bounds;
  bool deterministic = false;  // differs from the one before in the backward on tensor cores
  DType type() const { return ops->activation(); }
  const Tolerance& tolerance() const { return type() == DType::kBF16 ? kBf16 : kF32; }
};

std::vector<uint16_t> Narrowed(const float* x, int64_t count) {
  std::vector<uint16_t> narrow(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) narrow[size_t(i)] = ToBf16(x[i]);
  return narrow;
}

// A case's arrays on the device of one kernel.
class OnDevice {
 public:
  OnDevice(Kernel& kernel, AttentionInputs& inputs)
      : ops_(*kernel.ops),
        type_(kernel.type()),
        inputs_(inputs),
        s_(kernel.s),
        arena_(ops_, "benchmark"),
        mark_(arena_) {}

  absl::Status Prepare(bool backward) {
    const AttentionArgs<float>& a = inputs_.args();
    const AttentionShape& shape = inputs_.shape();
    const int64_t t = a.q_count, rows = t * shape.heads, q = rows * shape.head_dim;
    const int64_t kv = a.k_count * shape.kv_heads * shape.head_dim;
    const int64_t gradients = RowBytes(type_, q) + 4 * (rows + q + 2 * kv);
    TOROID_RETURN_IF_ERROR(arena_.Reserve(RowBytes(type_, q) + 4 * (q + rows + t + shape.heads) +
                                          4 * kv + (backward ? gradients : 0) + 4096));
    q_ = arena_.New("q", type_, {t, shape.heads, shape.head_dim});
    o_ = arena_.New("o", DType::kF32, {t, shape.heads, shape.head_dim});
    lse_ = arena_.New("lse", DType::kF32, {t, shape.heads});
    kv_.k = arena_.New("k", DType::kBF16, {a.k_count, shape.kv_heads, shape.head_dim});
    kv_.v = arena_.New("v", DType::kBF16, {a.k_count, shape.kv_heads, shape.head_dim});
    positions_ = kv_.positions = arena_.New("positions", DType::kI32, {t});
    kv_index_ = arena_.New("kv_index", DType::kI32, {shape.heads});
    if (backward) {
      d_o_ = arena_.New("do", type_, {t, shape.heads, shape.head_dim});
      delta_ = arena_.New("delta", DType::kF32, {t, shape.heads});
      dq_ = arena_.New("dq", DType::kF32, {t, shape.heads, shape.head_dim});
      dk_ = arena_.New("dk", DType::kF32, {a.k_count, shape.kv_heads, shape.head_dim});
      dv_ = arena_.New("dv", DType::kF32, {a.k_count, shape.kv_heads, shape.head_dim});
    }
    Upload(a.q, q_);
    ops_.Upload(s_, a.k, kv_.k);
    ops_.Upload(s_, a.v, kv_.v);
    ops_.Upload(s_, a.q_positions, positions_);
    ops_.Upload(s_, a.kv_index, kv_index_);
    ops_.Fill(s_, o_, std::numeric_limits<double>::quiet_NaN());
    spec_.scale = a.scale;
    tile_ = {0, t, 0, a.k_count};
    return absl::OkStatus();
  }

  void Attend() {
    ops_.Fill(s_, o_, 0);
    ops_.Fill(s_, lse_, -std::numeric_limits<double>::infinity());
    ops_.AttendTile(s_, q_, positions_, kv_, kv_index_, spec_, tile_, o_, lse_);
  }
  void FetchOutputs() {
    ops_.Download(s_, o_, inputs_.o().data());
    ops_.Download(s_, lse_, inputs_.lse().data());
  }

  // REQUIRES: Attend.
  void Backward() {
    ops_.AttentionDelta(s_, o_, d_o_, delta_);
    for (const Tensor& sum : {dq_, dk_, dv_}) ops_.Fill(s_, sum, 0);
    ops_.AttendTileBackward(s_, q_, positions_, kv_, kv_index_, spec_, tile_, d_o_, lse_, delta_,
                            dq_, dk_, dv_);
  }
  void UploadGradient(const AttentionGradients& gradients) { Upload(gradients.d_o().data(), d_o_); }
  void FetchGradients(AttentionGradients& gradients) {
    ops_.Download(s_, dq_, gradients.dq().data());
    ops_.Download(s_, dk_, gradients.dk().data());
    ops_.Download(s_, dv_, gradients.dv().data());
  }

  double Seconds(int samples, const std::function<void()>& call) {
    return MedianSecondsOnDevice(samples, ops_, s_, call);
  }

 private:
  void Upload(const float* x, const Tensor& out) {
    if (out.dtype == DType::kBF16) {
      ops_.Upload(s_, Narrowed(x, out.size()).data(), out);
    } else {
      ops_.Upload(s_, x, out);
    }
  }

  Backend& ops_;
  const DType type_;
  AttentionInputs& inputs_;
  const Stream s_;
  Arena arena_;
  const Arena::Mark mark_;
  Tensor q_, o_, lse_, positions_, kv_index_, d_o_, delta_, dq_, dk_, dv_;
  KvView kv_;
  AttentionSpec spec_;
  Tile tile_;
};

absl::Status OneShape(BenchRun& run, Kernel& kernel, const AttentionShape& shape,
                      const std::string& forward, const std::string& backward,
                      AttentionInputs& inputs) {
  const int64_t tokens = inputs.args().q_count;
  const double flops = 2.0 * double(tokens) * double(tokens) * double(shape.heads * shape.head_dim);
  run.Begin(forward);
  OnDevice device(kernel, inputs);
  TOROID_RETURN_IF_ERROR(device.Prepare(run.Wants(backward)));
  device.Attend();
  device.FetchOutputs();
  if (run.Wants(forward) && !kernel.deterministic) {
    const AttentionInputs::Compared compared = inputs.Compare();
    TOROID_RETURN_IF_ERROR(compared.o.CheckError(forward, kernel.tolerance().forward));
    TOROID_RETURN_IF_ERROR(compared.lse.CheckError(forward, kernel.tolerance().forward));
    const double seconds = device.Seconds(run.samples(), [&] { device.Attend(); });
    BenchRow row = FlopsRow(forward, flops, seconds, kernel.bounds.product);
    row.error = compared.o.error();
    run.Add(row);
  }
  if (!run.Wants(backward)) return absl::OkStatus();
  run.Begin(backward);
  AttentionGradients gradients(inputs);
  device.UploadGradient(gradients);
  device.Backward();
  device.FetchGradients(gradients);
  const AttentionGradients::Compared compared = gradients.Compare();
  for (const Comparison* part : {&compared.dq, &compared.dk, &compared.dv}) {
    TOROID_RETURN_IF_ERROR(part->CheckError(backward, kernel.tolerance().backward));
  }
  const double seconds = device.Seconds(run.samples(), [&] { device.Backward(); });
  BenchRow row = FlopsRow(backward, 2.5 * flops, seconds, kernel.bounds.product);
  row.error = std::max({compared.dq.error(), compared.dk.error(), compared.dv.error()});
  run.Add(row);
  return absl::OkStatus();
}

absl::StatusOr<Kernel> NewKernel(const char* name, const CudaOptions& options, int samples) {
  Kernel kernel;
  kernel.name = name;
  TOROID_ASSIGN_OR_RETURN(kernel.ops, NewCudaBackend(options));
  kernel.s = kernel.ops->NewStream(/*communication=*/false);
  TOROID_ASSIGN_OR_RETURN(kernel.bounds, MeasureDevice(*kernel.ops, kernel.s, samples));
  return kernel;
}

}  // namespace

absl::Status BenchAttentionOnGpu(BenchRun& run, int device) {
  const AttentionShape wide = {32, 8, 128}, mqa = {16, 1, 256}, narrow = {32, 8, 64};
  const CudaInstallation cuda = DescribeCuda();
  TOROID_CHECK_LT(size_t(device), cuda.devices.size());
  const bool hopper = cuda.devices[size_t(device)].major == 9;
  std::vector<Kernel> kernels;
  const auto add = [&](const char* name, DType product, bool deterministic) -> absl::Status {
    CudaOptions options;
    options.device = device, options.product = product, options.measures = !deterministic;
    TOROID_ASSIGN_OR_RETURN(Kernel kernel, NewKernel(name, options, run.samples()));
    kernel.deterministic = hopper && deterministic;
    kernels.push_back(std::move(kernel));
    return absl::OkStatus();
  };
  if (hopper) {
    TOROID_RETURN_IF_ERROR(add("own bf16", DType::kBF16, false));
    TOROID_RETURN_IF_ERROR(add("deterministic bf16", DType::kBF16, true));
  }
  TOROID_RETURN_IF_ERROR(add("plain f32", DType::kF32, false));
  for (const AttentionShape& shape : {wide, mqa, narrow}) {
    for (const int64_t tokens : {4096, 16384}) {
      std::unique_ptr<AttentionInputs> inputs;
      for (Kernel& kernel : kernels) {
        const std::string what =
            absl::StrCat(" ", kernel.name, " ", ShapeText(shape), " s", tokens);
        const std::string forward = "causal" + what, backward = "backward" + what;
        if (!run.Wants(forward) && !run.Wants(backward)) continue;
        if (kernel.deterministic && !run.Wants(backward)) continue;
        if (!inputs) {
          inputs = std::make_unique<AttentionInputs>(shape, DType::kBF16, tokens, tokens, 1);
        }
        TOROID_RETURN_IF_ERROR(OneShape(run, kernel, shape, forward, backward, *inputs));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace toroid
