// A share on its way: encoded and posted as elements become whole, and taken as it came.
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "parallel/exchange_rows.h"
#include "parallel/pod_swap.h"

namespace toroid {

// What is encoded is value + residual, and the residual what of it is lost.
template <typename T>
void PodSwap::Encode(int64_t step, int64_t group, const std::vector<Range>& elements, T* values,
                     T* residual, CodedRange& coded) {
  const CodecRounding rounding = {options_.spec.stochastic,
                                  options_.seed + uint64_t(pod_) * 0x9e3779b97f4a7c15u, step};
  for (const Range& range : elements) {
    const auto [begin, end] = range;
    for (int64_t i = begin; residual != nullptr && i < end; ++i) values[i] += residual[i];
    coder_->EncodeRange(encode_pool_, group, range, values, rounding, coded);
    if (residual == nullptr) continue;
    Decode(coded, begin, range.size(), residual + begin);
    for (int64_t i = begin; i < end; ++i) residual[i] = values[i] - residual[i];
  }
}

void PodSwap::Encode(int64_t step, int64_t group, const std::vector<Range>& elements, void* values,
                     void* residual, CodedRange& coded) {
  if (store_.ops().dtype() == DType::kF64) {
    Encode(step, group, elements, static_cast<double*>(values), static_cast<double*>(residual),
           coded);
  } else {
    Encode(step, group, elements, static_cast<float*>(values), static_cast<float*>(residual),
           coded);
  }
}

void PodSwap::PostParts(Kind kind, int64_t step, int64_t group, double weight,
                        const std::function<SharedBytes(const ExchangePart& part)>& pack) {
  for (int64_t q = 0; q < pods(); ++q) {
    if (q == pod_) continue;
    for (const ExchangePart& part : layouts_[size_t(q)]->sends(group)) {
      PodMessage message;
      message.kind = kind;
      message.step = step;
      message.fragment = int32_t(group);
      message.codec = int32_t(options_.spec.codec);
      message.weight = weight;
      if (weight > 0) message.payload = pack(part);
      mail_->Post({q, part.rank}, std::move(message));
    }
  }
}

void PodSwap::OfferRows(int64_t step, int64_t group, double weight, const StoredRows& rows,
                        void* values, void* residual) {
  TOROID_CHECK(weight > 0);
  Begun begun{{weight, coder_->NewRange(group, options_.spec.codec)}, rows};
  const CodedRange& coded = begun.own.coded;
  Encode(step, group, rows.Ranges(coded.size, true), values, residual, begun.own.coded);
  mail_->Hold(coded.bytes());
  PostParts(kRowsFirst, step, group, weight, [&](const ExchangePart& part) {
    return PackRows(part, coded, rows, /*first=*/true, packed_);
  });
  begun_[{step, group}] = std::move(begun);
}

void PodSwap::Offer(int64_t step, int64_t group, double weight, void* values, void* residual) {
  Own own;
  own.weight = weight;
  if (const auto begun = begun_.extract({step, group}); !begun.empty()) {
    own = std::move(begun.mapped().own);
    TOROID_CHECK_EQ(own.weight, weight);
    const StoredRows& rows = begun.mapped().rows;
    Encode(step, group, rows.Ranges(own.coded.size, false), values, residual, own.coded);
    PostParts(kRowsRest, step, group, weight, [&](const ExchangePart& part) {
      return PackRows(part, own.coded, rows, /*first=*/false, packed_);
    });
  } else {
    if (weight > 0) {
      own.coded = coder_->NewRange(group, options_.spec.codec);
      Encode(step, group, {{0, own.coded.size}}, values, residual, own.coded);
    }
    mail_->Hold(own.coded.bytes());
    PostParts(kPart, step, group, weight,
              [&](const ExchangePart& part) { return PackPart(part, own.coded, &packed_); });
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    own_[{step, group}] = std::move(own);
  }
  mail_->Changed();
}

bool PodSwap::HasPart(int64_t step, int64_t group, PodRank from) const {
  const auto has = [&](Kind kind) { return mail_->Has(PartKey(kind, step, group, from)); };
  return has(kPart) || (has(kRowsRest) && has(kRowsFirst));
}

bool PodSwap::LacksPart(int64_t step, int64_t group, int64_t pod) const {
  if (pod == pod_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return own_.count({step, group}) == 0;
  }
  for (const ExchangePart& part : layouts_[size_t(pod)]->receives(group)) {
    if (!HasPart(step, group, {pod, part.rank})) return true;
  }
  return false;
}

// What came of a part, as if it had come in one message. REQUIRES HasPart.
absl::StatusOr<PodMessage> PodSwap::TakePart(int64_t step, int64_t group, PodRank from,
                                             const ExchangePart& part) {
  const Codec codec = options_.spec.codec;
  const auto take = [&](Kind kind) { return mail_->Take(PartKey(kind, step, group, from)); };
  const bool whole = mail_->Has(PartKey(kPart, step, group, from));
  PodMessage message = take(whole ? kPart : kRowsRest);
  if (message.weight > 0 && message.codec != int32_t(codec)) {
    return absl::InvalidArgumentError(
        absl::StrCat("from rank ", from.rank, " of pod ", from.pod, ": codec ", message.codec));
  }
  if (whole) return message;
  const PodMessage rows = take(kRowsFirst);
  if (rows.epoch != message.epoch || rows.weight != message.weight || !SplitsByRows(codec)) {
    return absl::InvalidArgumentError(absl::StrCat("from rank ", from.rank, " of pod ", from.pod,
                                                   ": a share in two that do not go together"));
  }
  TOROID_ASSIGN_OR_RETURN(message.payload,
                          JoinRows(part, codec, rows.payload, message.payload, joined_));
  return message;
}

absl::StatusOr<std::vector<PodShare>> PodSwap::TakeShares(int64_t step, int64_t group) {
  std::vector<PodShare> shares;
  for (const int64_t q : taking_part_) {
    PodShare& share = shares.emplace_back();
    share.pod = q;
    if (q == pod_) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto found = own_.find({step, group});
        TOROID_CHECK(found != own_.end());
        share.weight = found->second.weight;
        share.own = std::move(found->second.coded);
        own_.erase(found);
      }
      mail_->Hold(-share.own.bytes());
      continue;
    }
    for (const ExchangePart& part : layouts_[size_t(q)]->receives(group)) {
      TOROID_ASSIGN_OR_RETURN(PodMessage message, TakePart(step, group, {q, part.rank}, part));
      share.weight = message.weight;
      share.parts.push_back(std::move(message.payload));
    }
  }
  return shares;
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

}  // namespace toroid
