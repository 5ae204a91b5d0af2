// The gRPC services of a controller: thin adapters that turn messages into calls of its logic.
// The controller outlives them.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "rpc/controller.h"

namespace toroid {

std::unique_ptr<grpc::Service> NewJobsService(Controller* controller, LogStore* logs);
std::unique_ptr<grpc::Service> NewPodsService(Controller* controller);
std::unique_ptr<grpc::Service> NewInferenceService(Controller* controller);
// lease: told to agents.
std::unique_ptr<grpc::Service> NewAgentsService(Controller* controller, absl::Duration lease);
std::unique_ptr<grpc::Service> NewWorkersService(Controller* controller);

}  // namespace toroid
