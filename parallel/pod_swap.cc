#include "parallel/pod_swap.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "core/random.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"

namespace toroid {
namespace {

constexpr uint64_t kView = 1;  // who takes part does not change

std::string ToPayload(const std::vector<double>& numbers) {
  std::string payload(numbers.size() * sizeof(double), '\0');
  std::memcpy(payload.data(), numbers.data(), payload.size());
  return payload;
}

absl::Status FromPayload(const PodMessage& message, std::vector<double>& numbers) {
  if (message.payload.size() != numbers.size() * sizeof(double)) {
    return absl::InvalidArgumentError(absl::StrCat("pod ", message.from.pod, " sent ",
                                                   message.payload.size(), " bytes for ",
                                                   numbers.size(), " numbers"));
  }
  std::memcpy(numbers.data(), message.payload.data(), message.payload.size());
  return absl::OkStatus();
}

}  // namespace

PodSwap::PodSwap(PodLink& link, const Options& options, ParamStore& store)
    : options_(options),
      store_(store),
      pod_(link.identity().self.pod),
      encode_pool_(1),
      merge_pool_(options.threads) {}

absl::StatusOr<std::unique_ptr<PodSwap>> PodSwap::Create(PodLink& link, int64_t pods,
                                                         const ModelConfig& config, int64_t layers,
                                                         ParamStore& store, const Options& options,
                                                         const PodMail::Watch& watch) {
  std::unique_ptr<PodSwap> swap(new PodSwap(link, options, store));
  TOROID_CHECK(swap->pod_ >= 0 && swap->pod_ < pods);
  TOROID_CHECK_EQ(link.identity().self.rank, store.mesh().rank());
  swap->meshes_.resize(size_t(pods));
  PodMail& mail =
      *(swap->mail_ = std::make_unique<PodMail>(link, kView, watch, [](const PodMail::Key&) {}));
  const MeshShape& mesh = store.mesh().shape();
  const std::vector<double> hello = {double(mesh.data), double(mesh.ring), double(mesh.tensor),
                                     double(store.ops().dtype())};
  TOROID_ASSIGN_OR_RETURN(const auto cards,
                          swap->SwapCards(kHello, PodMail::kBeginning, hello, "its mesh"));
  for (int64_t q = 0; q < pods; ++q) {
    const std::vector<double>& card = cards[size_t(q)];
    const MeshShape shape = {int64_t(card[0]), int64_t(card[1]), int64_t(card[2])};
    absl::Status fits;
    for (const int64_t axis : {shape.data, shape.ring, shape.tensor}) {
      if (axis < 1 || axis > 1 << 20) fits = absl::InvalidArgumentError("its mesh is none");
    }
    if (card[3] != hello[3]) {
      fits = absl::FailedPreconditionError(
          "it computes in another type: give all pods the same --compute");
    }
    if (!fits.ok()) {
      return absl::Status(fits.code(), absl::StrCat("pod ", q, ": ", fits.message()));
    }
    swap->meshes_[size_t(q)] = shape;
  }
  swap->LayOut(config, layers);
  mail.Changed();
  return swap;
}

void PodSwap::LayOut(const ModelConfig& config, int64_t layers) {
  const MeshShape& own = store_.mesh().shape();
  const int64_t rank = store_.mesh().rank();
  coder_ = std::make_unique<const ExchangeCoder>(config, layers, own, rank);
  for (int64_t q = 0; q < pods(); ++q) {
    layouts_.push_back(q == pod_ ? nullptr
                                 : std::make_unique<const ExchangeLayout>(config, layers, own, rank,
                                                                          meshes_[size_t(q)]));
  }
}

// --- values --------------------------------------------------------------------------------------

// What is encoded is value + residual, and the residual what of it is lost.
template <typename T>
PodSwap::Own PodSwap::Encode(int64_t step, int64_t group, double weight, T* values, T* residual) {
  const int64_t n = coder_->size(group);
  const CodecRounding rounding = {options_.spec.stochastic,
                                  options_.seed + uint64_t(pod_) * 0x9e3779b97f4a7c15u, step};
  for (int64_t i = 0; residual != nullptr && i < n; ++i) values[i] += residual[i];
  Own own = {weight, coder_->Encode(encode_pool_, group, values, options_.spec.codec, rounding)};
  if (residual == nullptr) return own;
  Decode(encode_pool_, own.coded, residual);
  for (int64_t i = 0; i < n; ++i) residual[i] = values[i] - residual[i];
  return own;
}

void PodSwap::PostParts(int64_t step, int64_t group, const Own& own) {
  for (int64_t q = 0; q < pods(); ++q) {
    if (q == pod_) continue;
    for (const ExchangePart& part : layouts_[size_t(q)]->sends(group)) {
      PodMessage message;
      message.kind = kPart;
      message.step = step;
      message.fragment = int32_t(group);
      message.codec = int32_t(options_.spec.codec);
      message.weight = own.weight;
      if (own.weight > 0) message.payload = PackPart(part, own.coded);
      mail_->Post({q, part.rank}, std::move(message));
    }
  }
}

void PodSwap::Offer(int64_t step, int64_t group, double weight, void* values, void* residual) {
  Own own;
  if (weight > 0) {
    own = store_.ops().dtype() == DType::kF64
              ? Encode(step, group, weight, static_cast<double*>(values),
                       static_cast<double*>(residual))
              : Encode(step, group, weight, static_cast<float*>(values),
                       static_cast<float*>(residual));
  }
  PostParts(step, group, own);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    own_[{step, group}] = std::move(own);
  }
  mail_->Changed();
}

int64_t PodSwap::Missing(int64_t step, int64_t group) const {
  for (int64_t q = 0; q < pods(); ++q) {
    if (q == pod_) continue;
    for (const ExchangePart& part : layouts_[size_t(q)]->receives(group)) {
      if (!mail_->Has(PartKey(step, group, q, part.rank))) return q;
    }
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  return own_.count({step, group}) > 0 ? -1 : pod_;
}

template <typename T>
absl::StatusOr<double> PodSwap::MergeAs(int64_t step, int64_t group, T* out) {
  const int64_t n = coder_->size(group);
  Own own;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = own_.find({step, group});
    TOROID_CHECK(found != own_.end());
    own = std::move(found->second);
    own_.erase(found);
  }
  std::vector<double> sum(size_t(n), 0.0);
  double weights = 0;
  for (int64_t q = 0; q < pods(); ++q) {
    double weight = own.weight;
    if (q == pod_) {
      if (weight > 0) Decode(merge_pool_, own.coded, out);
    } else {
      std::fill_n(out, n, T(0));  // pads
      for (const ExchangePart& part : layouts_[size_t(q)]->receives(group)) {
        const PodMessage message = mail_->Take(PartKey(step, group, q, part.rank));
        weight = message.weight;
        if (!(weight > 0)) continue;
        absl::Status unpacked;
        if (message.codec != int32_t(options_.spec.codec)) {
          unpacked = absl::InvalidArgumentError(absl::StrCat("codec ", message.codec));
        } else {
          unpacked = UnpackPart(merge_pool_, part, options_.spec.codec, message.payload, out);
        }
        if (!unpacked.ok()) {
          return absl::Status(unpacked.code(), absl::StrCat("from rank ", part.rank, " of pod ", q,
                                                            ": ", unpacked.message()));
        }
      }
      if (layouts_[size_t(q)]->receives(group).empty()) weight = 0;  // this rank has pads alone
    }
    if (!(weight > 0)) continue;
    weights += weight;
    for (int64_t i = 0; i < n; ++i) sum[size_t(i)] += weight * double(out[i]);
  }
  for (int64_t i = 0; i < n; ++i) out[i] = weights > 0 ? T(sum[size_t(i)] / weights) : T(0);
  return weights;
}

absl::StatusOr<double> PodSwap::Merge(int64_t step, int64_t group, void* out) {
  if (store_.ops().dtype() == DType::kF64) return MergeAs(step, group, static_cast<double*>(out));
  return MergeAs(step, group, static_cast<float*>(out));
}

int64_t PodSwap::OfferBytes(int64_t group) const {
  int64_t bytes = 0;
  for (const auto& layout : layouts_) {
    if (layout == nullptr) continue;
    for (const ExchangePart& part : layout->sends(group)) {
      bytes += PayloadBytes(part, /*sent=*/true, options_.spec.codec);
    }
  }
  return bytes;
}

// --- cards ---------------------------------------------------------------------------------------

void PodSwap::SendCard(Kind kind, int64_t step, const std::vector<double>& numbers) {
  if (store_.mesh().rank() != 0) return;
  for (int64_t q = 0; q < pods(); ++q) {
    if (q == pod_) continue;
    PodMessage message;
    message.kind = kind;
    message.step = step;
    message.payload = ToPayload(numbers);
    mail_->Post({q, 0}, std::move(message));
  }
}

int64_t PodSwap::MissingCard(Kind kind, int64_t step) const {
  for (int64_t q = 0; store_.mesh().rank() == 0 && q < pods(); ++q) {
    if (q != pod_ && !mail_->Has({kind, step, 0, {q, 0}})) return q;
  }
  return -1;
}

absl::StatusOr<std::vector<std::vector<double>>> PodSwap::TakeCards(
    Kind kind, int64_t step, const std::vector<double>& own) {
  std::vector<std::vector<double>> cards(size_t(pods()), own);
  absl::Status status;
  for (int64_t q = 0; store_.mesh().rank() == 0 && q < pods(); ++q) {
    if (q == pod_) continue;
    status.Update(FromPayload(mail_->Take({kind, step, 0, {q, 0}}), cards[size_t(q)]));
  }
  TOROID_RETURN_IF_ERROR(ShareStatus(world(), status));
  for (std::vector<double>& card : cards) BroadcastHost(world(), card);
  TOROID_RETURN_IF_ERROR(world().Health());
  return cards;
}

absl::StatusOr<std::vector<std::vector<double>>> PodSwap::SwapCards(Kind kind, int64_t step,
                                                                    const std::vector<double>& own,
                                                                    absl::string_view what) {
  SendCard(kind, step, own);
  TOROID_RETURN_IF_ERROR(mail_->Await(world(), what, [&] { return MissingCard(kind, step); }));
  return TakeCards(kind, step, own);
}

absl::Status PodSwap::TakeOfFirstPod(Kind kind, int64_t step, std::vector<double>& own,
                                     absl::string_view what) {
  if (pod_ == 0) {
    SendCard(kind, step, own);
    return mail_->status();
  }
  const PodMail::Key key = {kind, step, 0, {0, 0}};
  const bool first = store_.mesh().rank() == 0;
  TOROID_RETURN_IF_ERROR(mail_->Await(
      world(), what, [&] { return !first || mail_->Has(key) ? int64_t{-1} : int64_t{0}; }));
  absl::Status status;
  if (first) status = FromPayload(mail_->Take(key), own);
  TOROID_RETURN_IF_ERROR(ShareStatus(world(), status));
  BroadcastHost(world(), own);
  return world().Health();
}

}  // namespace toroid
