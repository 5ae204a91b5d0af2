// Scalars in TensorBoard's event file, for `tensorboard --logdir DIRECTORY`.
//
// The file is DIRECTORY/events.out.tfevents.SECONDS.HOST.PID.N, a list of records
//   u64 length, u32 masked CRC-32C of the length, the bytes of an Event, u32 masked CRC-32C of them
// (TFRecord), the first of which says "brain.Event:2". An Event is a protocol buffer with few
// fields, spelt here byte by byte: core knows no protobuf. A writer that starts anew makes another
// file of the same directory; the reader joins them, later files winning a step that both have.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

struct Scalar {
  absl::string_view tag;  // "loss/train": what stands before the slash groups the charts
  double value = 0;       // kept as float32, NaN and infinity too
};

class EventsWriter {
 public:
  // Makes the directory. `seconds` since 1970 name the file and date its first record. Errors of
  // all functions name the file.
  static absl::StatusOr<EventsWriter> Create(const std::string& directory, double seconds);

  // One event with all these scalars.
  absl::Status Add(double seconds, int64_t step, std::span<const Scalar> scalars);
  // Hands what was added to the system, where a reader sees it.
  absl::Status Flush();

  const std::string& path() const { return path_; }

 private:
  struct Closes {
    void operator()(FILE* file) const { std::fclose(file); }
  };
  EventsWriter(std::string path, FILE* file) : path_(std::move(path)), file_(file) {}
  absl::Status WriteRecord(const std::string& event);

  std::string path_;
  std::unique_ptr<FILE, Closes> file_;
};

}  // namespace toroid
