// The communicator of ranks that compute on GPUs: a verb on a stream of the host goes to the host
// communicator, one on a stream of a device to the device communicator, both of the same ranks.
// SendRecv on a device goes by the link for those ranks that it reaches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/communicator.h"

namespace toroid {

// Messages between neighbours without the device communicator (ipc_link.h). Ranks are the world's.
struct DeviceLink {
  // Alike at both ends; null: reaches nobody.
  std::function<bool(int rank)> reaches;
  // As Communicator::SendRecv on a stream of the device; a side of zero bytes names nobody.
  std::function<void(Stream s, const void* send, int64_t send_bytes, int to, void* recv,
                     int64_t recv_bytes, int from)>
      exchange;
  int64_t bytes = 0;  // of the device's memory that it holds
};

// REQUIRES: both have the same rank and size, that of the world.
std::unique_ptr<Communicator> NewDeviceWorld(std::unique_ptr<Communicator> host,
                                             std::unique_ptr<Communicator> device, DeviceLink link);

}  // namespace toroid
