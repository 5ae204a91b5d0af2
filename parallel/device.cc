#include "parallel/device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/cuda_peak.h"
#include "core/status_macros.h"
#include "kernels/fma_rate.h"
#include "kernels/thread_pool.h"
#include "parallel/device_communicator.h"
#include "parallel/host_exchange.h"
#include "parallel/ipc_link.h"
#include "parallel/launcher_environment.h"
#include "parallel/nccl_communicator.h"
#include "parallel/staged_communicator.h"

namespace toroid {
namespace {

DType ProductOf(Compute compute) { return compute == Compute::kBF16 ? DType::kBF16 : DType::kF32; }

// A rank's GPU: the one whose number is the rank's place on its host, round robin.
struct Place {
  int32_t devices = 0;  // that the rank's process sees
  int32_t device = -1;
  std::array<char, 16> uuid = {};
};

std::vector<Place> PlacesOf(Communicator& world, const WorldHosts& hosts) {
  Place own;
  own.devices = CudaDevices();
  if (own.devices > 0) {
    own.device = hosts.local_rank % own.devices;
    own.uuid = CudaDeviceUuid(own.device);
  }
  return GatherHost(world, own);
}

// The lowest rank without a GPU; -1: none.
int WithoutGpu(const std::vector<Place>& places) {
  for (size_t r = 0; r < places.size(); ++r) {
    if (places[r].device < 0) return int(r);
  }
  return -1;
}

// The lowest two ranks of one GPU; (-1, -1): none.
std::pair<int, int> Sharing(const std::vector<Place>& places) {
  for (size_t b = 1; b < places.size(); ++b) {
    for (size_t a = 0; a < b; ++a) {
      if (places[a].device >= 0 && places[a].uuid == places[b].uuid) return {int(a), int(b)};
    }
  }
  return {-1, -1};
}

bool EachHasOne(const std::vector<Place>& places) {
  return WithoutGpu(places) < 0 && Sharing(places).second < 0;
}

// OK where these ranks may compute on these GPUs.
absl::Status CheckPlaces(const std::vector<Place>& places, const WorldHosts& hosts,
                         bool share_gpus) {
  const int without = WithoutGpu(places);
  if (without >= 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("--device cuda: rank ", without, " on host ", hosts.names[size_t(without)],
                     " sees no GPU (CUDA_VISIBLE_DEVICES, or no driver): use --device cpu"));
  }
  const auto [first, second] = Sharing(places);
  if (second >= 0 && !share_gpus) {
    const Place& place = places[size_t(second)];
    return absl::FailedPreconditionError(
        absl::StrCat("--device cuda: ranks ", first, " and ", second, " would share GPU ",
                     place.device, " of host ", hosts.names[size_t(second)], ", where a rank sees ",
                     place.devices, place.devices == 1 ? " GPU" : " GPUs",
                     ": start no more ranks there than it has GPUs, or say --allow-gpu-sharing"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Communicator>> OnDevice(std::unique_ptr<Communicator> host,
                                                       Backend& ops, int device, bool shared) {
  const auto everyone = [](int) { return 0; };
  absl::StatusOr<std::unique_ptr<Communicator>> collectives =
      shared ? NewStagedCommunicator(host->Split(everyone), ops)
             : NewNcclCommunicator(*host, device);
  TOROID_RETURN_IF_ERROR(ShareStatus(*host, collectives.status()));
  auto link = NewIpcLink(host->Split(everyone), device);
  TOROID_RETURN_IF_ERROR(ShareStatus(*host, link.status()));
  return NewDeviceWorld(std::move(host), *std::move(collectives), *std::move(link));
}

}  // namespace

bool OnGpus(Communicator& world, Device device, Compute compute) {
  if (device == Device::kCpu || compute == Compute::kF64) return false;
  if (device == Device::kCuda) return true;
  return EachHasOne(PlacesOf(world, HostsOf(world)));
}

absl::StatusOr<RankDevice> NewRankDevice(std::unique_ptr<Communicator> world,
                                         const DeviceWish& wish, std::atomic<int64_t>* ticks) {
  const bool f64 = wish.compute == Compute::kF64;
  if (wish.device == Device::kCuda && f64) {
    return absl::InvalidArgumentError(
        "--device cuda with --compute f64: use --device cpu, or --compute f32 or bf16");
  }
  if (wish.device != Device::kCpu && !f64) {
    const WorldHosts hosts = HostsOf(*world);
    const std::vector<Place> places = PlacesOf(*world, hosts);
    if (!world->Health().ok()) return world->Health();
    const bool each = EachHasOne(places);
    if (wish.device == Device::kCuda || each) {
      TOROID_RETURN_IF_ERROR(CheckPlaces(places, hosts, wish.share_gpus));
      CudaOptions options;
      options.device = places[size_t(world->rank())].device;
      options.product = ProductOf(wish.compute);
      options.measures = wish.measures;
      absl::StatusOr<std::unique_ptr<Backend>> ops = NewCudaBackend(options);
      TOROID_RETURN_IF_ERROR(ShareStatus(*world, ops.status()));
      if (world->size() > 1) {
        TOROID_ASSIGN_OR_RETURN(world, OnDevice(std::move(world), **ops, options.device, !each));
      }
      return RankDevice{*std::move(ops), std::move(world)};
    }
  }
  return RankDevice{
      NewCpuBackend(f64 ? DType::kF64 : DType::kF32, std::max(1, wish.threads), ticks),
      std::move(world)};
}

double PeakFlops(Communicator& world, const DeviceWish& wish) {
  constexpr double kSeconds = 0.02;
  struct Card {
    double flops = 0;
    std::array<char, 16> gpu = {};
  } own;
  if (OnGpus(world, wish.device, wish.compute)) {
    const Place place = PlacesOf(world, HostsOf(world))[size_t(world.rank())];
    own.gpu = place.uuid;
    own.flops = CudaPeakFlops(place.device, ProductOf(wish.compute));
  } else {
    ThreadPool pool(std::max(1, wish.threads));
    const auto seconds = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    };
    GatherHost(world, own);  // so that all begin at once
    own.flops = BestFmaRate(pool, kSeconds, seconds) / (wish.compute == Compute::kF64 ? 2 : 1);
  }
  const std::vector<Card> cards = GatherHost(world, own);
  double sum = 0;
  for (size_t r = 0; r < cards.size(); ++r) {
    if (cards[r].flops <= 0) return 0;
    const auto same = [&](const Card& other) {
      return other.gpu != Card{}.gpu && other.gpu == cards[r].gpu;
    };
    if (std::none_of(cards.begin(), cards.begin() + int64_t(r), same)) sum += cards[r].flops;
  }
  return sum;
}

}  // namespace toroid
