// Each verb of a communicator over all ranks, at sizes from 1 KiB to 16 MiB.
//
// Rates are the bytes that a rank must send by the best algorithm (n ranks, M bytes of the whole
// result: all_gather and reduce_scatter (n - 1) / n M, all_reduce twice that, all_to_all (n - 1) /
// n M, broadcast and send_recv M) over the time of the slowest rank: "bus" rates, which do not
// depend on n. On one host the bound is memcpy of M bytes by all ranks at once; between hosts none
// is known.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/status_macros.h"
#include "launcher/bench.h"
#include "parallel/launcher_environment.h"

namespace toroid {
namespace {

constexpr int64_t kSizes[] = {1 << 10, 16 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20};
constexpr double kSampleSeconds = 0.005;

class Collectives {
 public:
  Collectives(BenchRun& run, Communicator& world)
      : run_(run),
        world_(world),
        ops_(NewCpuBackend(DType::kF32, 1)),
        s_(ops_->NewStream(/*communication=*/false)),
        n_(world.size()),
        one_host_(HostsOf(world).local_size == world.size()) {}

  absl::Status Run() {
    for (const int64_t wanted : kSizes) {
      each_ = std::max<int64_t>(1, wanted / 4 / n_);
      count_ = each_ * n_;
      in_.assign(count_, 0);
      out_.assign(count_, 0);
      const double bytes = 4.0 * double(count_), share = double(n_ - 1) / double(n_);
      bound_ = one_host_ ? -1 : 0;  // not measured yet; none
      TOROID_RETURN_IF_ERROR(Verb("all_reduce", 2 * share * bytes,
                                  [this] { world_.AllReduce(s_, Partial(Whole(out_))); }));
      TOROID_RETURN_IF_ERROR(Verb("reduce_scatter", share * bytes, [this] {
        world_.ReduceScatter(s_, Partial(Whole(in_)), Part(out_));
      }));
      TOROID_RETURN_IF_ERROR(Verb("all_gather", share * bytes,
                                  [this] { world_.AllGather(s_, Part(in_), Whole(out_)); }));
      TOROID_RETURN_IF_ERROR(
          Verb("broadcast", bytes, [this] { world_.Broadcast(s_, Whole(out_), 0); }));
      TOROID_RETURN_IF_ERROR(Verb("send_recv", bytes, [this] {
        world_.SendRecv(s_, Whole(in_), Next(), Whole(out_), Previous());
      }));
      TOROID_RETURN_IF_ERROR(Verb("all_to_all", share * bytes, [this] {
        world_.AllToAll(s_, Whole(in_).Reshape({n_ * each_}), Whole(out_));
      }));
    }
    return absl::OkStatus();
  }

 private:
  int Next() const { return int((world_.rank() + 1) % n_); }
  int Previous() const { return int((world_.rank() + n_ - 1) % n_); }
  Tensor Whole(std::vector<float>& x) const { return Tensor(DType::kF32, {count_}, x.data()); }
  Tensor Part(std::vector<float>& x) const { return Tensor(DType::kF32, {each_}, x.data()); }
  // What rank r puts at i: small whole numbers, so that sums are exact. Any two ranks differ in
  // every block.
  static float Value(int64_t rank, int64_t i) { return float(rank * 7 + i % 1009); }

  // What rank `me` must find at i of the output; outputs are poisoned before.
  float Expected(const std::string& verb, int64_t i) const {
    const int64_t me = world_.rank();
    if (verb == "all_reduce" || verb == "reduce_scatter") {
      const int64_t at = verb == "all_reduce" ? i : me * each_ + i;
      float sum = 0;
      for (int64_t r = 0; r < n_; ++r) sum += Value(r, at);
      return sum;
    }
    if (verb == "all_gather") return Value(i / each_, i % each_);
    if (verb == "broadcast") return Value(0, i);
    if (verb == "send_recv") return Value(Previous(), i);
    return Value(i / each_, me * each_ + i % each_);
  }

  double Largest(double value) {
    world_.AllReduce(s_, Partial(Tensor(DType::kF64, {1}, &value)), ReduceOp::kMax);
    return value;
  }

  absl::Status Verb(const std::string& verb, double bus_bytes, const std::function<void()>& call) {
    const std::string name = absl::StrCat(verb, " ", 4 * count_, " B x", n_);
    if (!run_.Wants(name)) return absl::OkStatus();
    run_.Begin(name);
    if (bound_ < 0) bound_ = CopyRate();
    const bool in_place = verb == "all_reduce" || (verb == "broadcast" && world_.rank() == 0);
    std::fill(out_.begin(), out_.end(), std::nanf(""));
    for (int64_t i = 0; i < count_; ++i) {
      (in_place ? out_ : in_)[i] = Value(world_.rank(), i);
    }
    call();
    TOROID_RETURN_IF_ERROR(world_.Health());
    bool right = true;
    const int64_t made = verb == "reduce_scatter" ? each_ : count_;
    for (int64_t i = 0; i < made; ++i) right = right && out_[i] == Expected(verb, i);
    if (Largest(right ? 0 : 1) != 0) {
      return absl::InternalError(absl::StrCat("wrong result: ", name));
    }
    const double seconds = Time(call);
    TOROID_RETURN_IF_ERROR(world_.Health());
    BenchRow row = BytesRow(name, bus_bytes, seconds, bound_);
    row.size = 4.0 * double(count_);
    if (world_.rank() == 0) run_.Add(row);
    return absl::OkStatus();
  }

  // Median seconds of one call on the slowest rank; all ranks make the same number of calls.
  double Time(const std::function<void()>& call) {
    // Sums of sums would leave the numbers: AllReduce goes on in place, its time is the same.
    std::fill(out_.begin(), out_.end(), 0.0f);
    world_.Barrier(s_);
    double begin = BenchSeconds();
    call();
    const double once = Largest(BenchSeconds() - begin);
    const int64_t calls = std::clamp<int64_t>(int64_t(kSampleSeconds / once), 1, 1000);
    std::vector<double> samples;
    for (int i = 0; i < run_.samples(); ++i) {
      world_.Barrier(s_);
      begin = BenchSeconds();
      for (int64_t j = 0; j < calls; ++j) call();
      samples.push_back((BenchSeconds() - begin) / double(calls));
    }
    return Largest(Median(std::move(samples)));
  }

  double CopyRate() {
    world_.Barrier(s_);
    const double seconds = MedianSeconds(run_.samples(), [this] {
      std::memcpy(out_.data(), in_.data(), 4 * count_);
      asm volatile("" : : "r"(out_.data()) : "memory");  // each copy is made
    });
    return 4e-9 * double(count_) / Largest(seconds);
  }

  BenchRun& run_;
  Communicator& world_;
  const std::unique_ptr<Backend> ops_;
  const Stream s_;
  const int64_t n_;
  const bool one_host_;
  int64_t each_ = 0, count_ = 0;  // elements of a rank's part and of the whole
  double bound_ = 0;
  std::vector<float> in_, out_;
};

}  // namespace

absl::Status BenchCollectives(BenchRun& run, Communicator& world) {
  return Collectives(run, world).Run();
}

}  // namespace toroid
