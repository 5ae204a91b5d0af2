// Control methods: a small message in, one answer out, at once. A message beyond kMaxControlBytes
// is refused before anything looks at it. Included by *_service.cc only.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "rpc/grpc_status.h"

namespace toroid {

// body: () -> grpc::Status, having filled the response.
template <typename Request, typename Body>
grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const Request& request,
                                 const Body& body) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status size = CheckSize(request, kMaxControlBytes);
  reactor->Finish(size.ok() ? body() : ToGrpc(size));
  return reactor;
}

}  // namespace toroid
