// Identities and frames between pods as messages of proto/toroid/internal/v1/exchange.proto.
// Included by exchange_*.cc only.
#pragma once

#include <cstdint>

#include "parallel/pod_link.h"
#include "rpc/pod_stream.h"
#include "toroid/internal/v1/exchange.pb.h"

namespace toroid::exchange {

namespace wire = internal::v1;

// A launch of a rank, as its epoch and its process tell.
struct Launch {
  uint64_t epoch = 0, incarnation = 0;
  bool known = false;
  bool operator==(const Launch&) const = default;
};

Launch LaunchOf(const wire::ExchangeIdentity& identity);
PodIdentity FromProto(const wire::ExchangeIdentity& in);
// `out` was a frame before: its bytes are written over, not made anew.
void ToProto(const PodFrame& frame, wire::StreamFrame& out);
// `data` is a view of `in`.
PodFrame FromProto(const wire::StreamFrame& in);

}  // namespace toroid::exchange
