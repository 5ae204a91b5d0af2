#include "parallel/state_copy.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "parallel/host_exchange.h"
#include "parallel/param_hash.h"

namespace toroid {
namespace {

// That of the store's type, which loses nothing.
Codec Exact(const ParamStore& store) {
  return store.ops().dtype() == DType::kF64 ? Codec::kFp64 : Codec::kFp32;
}

// A share travels in pieces of so many bytes; of so many at most.
constexpr int64_t kPiece = 256 << 20;
constexpr int64_t kMostPieces = 1 << 12;

int64_t Pieces(int64_t bytes) { return std::max<int64_t>(1, (bytes + kPiece - 1) / kPiece); }

int64_t Largest(const ParamStore& store) {
  int64_t most = 0;
  for (int64_t g = 0; g < store.groups().count(); ++g) {
    most = std::max(most, store.Stored(ParamStore::Kind::kWeights, g).bytes());
  }
  return most;
}

// Every group of every kind; host memory comes behind what the store has. number: of the message.
template <typename Visit>
void ForEach(const ParamStore& store, const CopiedState& state, Visit visit) {
  const int64_t groups = store.groups().count(), width = RowBytes(store.ops().dtype(), 1);
  int32_t number = 0;
  for (size_t k = 0; k < state.kinds.size() + state.host.size(); ++k) {
    for (int64_t g = 0; g < groups; ++g, ++number) {
      char* host = k < state.kinds.size() ? nullptr
                                          : static_cast<char*>(state.host[k - state.kinds.size()]) +
                                                store.groups().StoredBegin(g) * width;
      visit(number, g, host == nullptr ? store.Stored(state.kinds[k], g) : Tensor(), host);
    }
  }
}

CodedRange Encoded(const ExchangeCoder& coder, ThreadPool& pool, int64_t group, DType dtype,
                   const char* values, Codec codec, const BytePool& memory) {
  return dtype == DType::kF64 ? coder.Encode(pool, group, reinterpret_cast<const double*>(values),
                                             codec, {}, &memory)
                              : coder.Encode(pool, group, reinterpret_cast<const float*>(values),
                                             codec, {}, &memory);
}

absl::Status Unpacked(ThreadPool& pool, const ExchangePart& part, DType dtype, Codec codec,
                      absl::string_view payload, char* values) {
  return dtype == DType::kF64
             ? UnpackPart(pool, part, codec, payload, reinterpret_cast<double*>(values))
             : UnpackPart(pool, part, codec, payload, reinterpret_cast<float*>(values));
}

}  // namespace

void GiveState(PodSwap& swap, int64_t to, int64_t steps, const CopiedState& state,
               const std::string& text) {
  ParamStore& store = swap.store();
  const Codec codec = Exact(store);
  ThreadPool pool(swap.threads());
  std::vector<char> reading(size_t(Largest(store)));
  const BytePool memory;
  if (store.mesh().rank() == 0) {
    PodMessage message;
    message.kind = PodSwap::kStateText;
    message.step = steps;
    message.payload = text;
    swap.mail().PostAside({to, 0}, std::move(message));
  }
  ForEach(store, state, [&](int32_t number, int64_t g, const Tensor& stored, char* host) {
    if (host == nullptr) store.ops().Download(store.stream(), stored, reading.data());
    const CodedRange coded = Encoded(swap.coder(), pool, g, store.ops().dtype(),
                                     host == nullptr ? reading.data() : host, codec, memory);
    for (const ExchangePart& part : swap.layout(to).sends(g)) {
      const SharedBytes payload = PackPart(part, coded);
      for (int64_t piece = 0; piece < Pieces(int64_t(payload.size())); ++piece) {
        PodMessage message;
        message.kind = PodSwap::kState;
        message.step = steps;
        message.fragment = int32_t(number * kMostPieces + piece);
        message.codec = int32_t(codec);
        message.payload = payload.Part(size_t(piece * kPiece), size_t(kPiece));
        swap.mail().PostAside({to, part.rank}, std::move(message));
      }
    }
  });
}

absl::StatusOr<std::string> TakeState(PodSwap& swap, const CopiedState& state) {
  ParamStore& store = swap.store();
  PodMail& mail = swap.mail();
  const int64_t giver = swap.giver(), steps = swap.joined_at();
  const bool first = store.mesh().rank() == 0;
  const PodMail::Key text_key = {PodSwap::kStateText, steps, 0, {giver, 0}};
  const Codec codec = Exact(store);
  const auto for_pieces = [&](int32_t number, const ExchangePart& part, auto visit) {
    const int64_t pieces = Pieces(PayloadBytes(part, /*sent=*/false, codec));
    for (int64_t piece = 0; piece < pieces; ++piece) {
      visit(PodMail::Key{
          PodSwap::kState, steps, int32_t(number * kMostPieces + piece), {giver, part.rank}});
    }
  };
  const auto lacks = [&] {
    bool lacking = first && !mail.Has(text_key);
    ForEach(store, state, [&](int32_t number, int64_t g, const Tensor&, char*) {
      for (const ExchangePart& part : swap.layout(giver).receives(g)) {
        for_pieces(number, part,
                   [&](const PodMail::Key& key) { lacking = lacking || !mail.Has(key); });
      }
    });
    return lacking ? giver : int64_t{-1};
  };
  const std::string what = absl::StrCat("its state after step ", steps);
  for (;;) {
    if (!mail.view().Has(giver)) {
      return absl::UnavailableError(
          absl::StrCat("pod ", giver, " is lost, which gave this pod its state"));
    }
    const absl::Status here = mail.Await(swap.world(), what, lacks);
    if (here.ok()) break;
    if (!PodMail::IsNewerView(here)) return here;
  }
  ThreadPool pool(swap.threads());
  std::vector<char> values(size_t(Largest(store)));
  absl::Status status;
  ForEach(store, state, [&](int32_t number, int64_t g, const Tensor& stored, char* host) {
    char* const into = host == nullptr ? values.data() : host;
    std::fill_n(into, store.Stored(ParamStore::Kind::kWeights, g).bytes(), '\0');  // pads
    for (const ExchangePart& part : swap.layout(giver).receives(g)) {
      std::string payload;
      for_pieces(number, part, [&](const PodMail::Key& key) {
        absl::StrAppend(&payload, absl::string_view(mail.Take(key).payload));
      });
      status.Update(Unpacked(pool, part, store.ops().dtype(), codec, payload, into));
    }
    if (host == nullptr) store.ops().Upload(store.stream(), into, stored);
  });
  store.Forget();
  const SharedBytes told = first ? mail.Take(text_key).payload : SharedBytes();
  const std::string text = std::string(absl::string_view(told));
  TOROID_RETURN_IF_ERROR(ShareStatus(swap.world(), status));
  return BroadcastText(swap.world(), text);
}

uint64_t StateHash(const ParamStore& store, const CopiedState& state) {
  constexpr uint64_t kFactor = 0xd6e8feb86659fd93u;  // odd: what changes one of them changes it
  uint64_t hash = 0;
  for (const ParamStore::Kind kind : state.kinds) {
    hash = hash * kFactor + ParamHash(store, nullptr, kind);
  }
  for (const void* const host : state.host) hash = hash * kFactor + ParamHash(store, host);
  return hash;
}

int64_t GivenBytes(const ParamStore& store, int64_t kinds) {
  return kinds * store.groups().stored_size() * RowBytes(store.ops().dtype(), 1);
}

}  // namespace toroid
