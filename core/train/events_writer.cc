#include "core/train/events_writer.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/io/crc32c.h"
#include "core/status_macros.h"

namespace toroid {
namespace {

template <typename T>
void AppendRaw(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

// Seven bits a byte, the lowest first.
void AppendVarint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out.push_back(char(value | 128));
  out.push_back(char(value));
}

enum class Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void AppendKey(std::string& out, int field, Wire wire) {
  AppendVarint(out, uint64_t(field) << 3 | uint64_t(wire));
}

void AppendBytes(std::string& out, int field, absl::string_view bytes) {
  AppendKey(out, field, Wire::kBytes);
  AppendVarint(out, bytes.size());
  out.append(bytes.data(), bytes.size());
}

// message Event { double wall_time = 1; int64 step = 2; string file_version = 3;
//                 Summary summary = 5; }
std::string EventAt(double seconds, int64_t step) {
  std::string event;
  AppendKey(event, 1, Wire::kFixed64);
  AppendRaw(event, seconds);
  AppendKey(event, 2, Wire::kVarint);
  AppendVarint(event, uint64_t(step));
  return event;
}

// message Summary { repeated Value value = 1; }
// message Value { string tag = 1; float simple_value = 2; }
std::string SummaryOf(std::span<const Scalar> scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    std::string value;
    AppendBytes(value, 1, scalar.tag);
    AppendKey(value, 2, Wire::kFixed32);
    AppendRaw(value, float(scalar.value));
    AppendBytes(summary, 1, value);
  }
  return summary;
}

// TFRecord's checksum: a CRC of data that hold CRCs is to be another number.
uint32_t Masked(const std::string& bytes) {
  const uint32_t crc = Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

absl::Status SystemError(const std::string& path, int error) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(error));
  return error == ENOSPC ? absl::ResourceExhaustedError(message) : absl::UnavailableError(message);
}

std::string HostName() {
  std::array<char, 256> name = {};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  return name.data();
}

}  // namespace

absl::StatusOr<EventsWriter> EventsWriter::Create(const std::string& directory, double seconds) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return absl::UnavailableError(absl::StrCat(directory, ": ", error.message()));
  const std::string stem = absl::StrCat(directory, "/events.out.tfevents.", int64_t(seconds), ".",
                                        HostName(), ".", ::getpid(), ".");
  for (int n = 0;; ++n) {
    const std::string path = absl::StrCat(stem, n);
    FILE* file = std::fopen(path.c_str(), "wbxe");
    if (file == nullptr && errno == EEXIST) continue;
    if (file == nullptr) return SystemError(path, errno);
    EventsWriter writer(path, file);
    std::string event = EventAt(seconds, 0);
    AppendBytes(event, 3, "brain.Event:2");
    TOROID_RETURN_IF_ERROR(writer.WriteRecord(event));
    TOROID_RETURN_IF_ERROR(writer.Flush());
    return writer;
  }
}

absl::Status EventsWriter::Add(double seconds, int64_t step, std::span<const Scalar> scalars) {
  std::string event = EventAt(seconds, step);
  AppendBytes(event, 5, SummaryOf(scalars));
  return WriteRecord(event);
}

absl::Status EventsWriter::Flush() {
  return std::fflush(file_.get()) == 0 ? absl::OkStatus() : SystemError(path_, errno);
}

absl::Status EventsWriter::WriteRecord(const std::string& event) {
  std::string length;
  AppendRaw(length, uint64_t(event.size()));
  std::string record = length;
  AppendRaw(record, Masked(length));
  record += event;
  AppendRaw(record, Masked(event));
  if (std::fwrite(record.data(), 1, record.size(), file_.get()) != record.size()) {
    return SystemError(path_, errno);
  }
  return absl::OkStatus();
}

}  // namespace toroid
