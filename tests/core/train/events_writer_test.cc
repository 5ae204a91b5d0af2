#include "core/train/events_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/io/crc32c.h"
#include "core/io/mapped_file.h"
#include "tests/support/model_files.h"

namespace toroid {
namespace {

using testing::HasSubstr;

template <typename T>
T At(const std::string& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

uint32_t Masked(const std::string& bytes) {
  const uint32_t crc = Crc32c({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// The events of a file, with every checksum right.
std::vector<std::string> EventsOf(const std::string& path) {
  const std::string bytes = *ReadTextFile(path, 1 << 20);
  std::vector<std::string> events;
  for (size_t at = 0; at < bytes.size();) {
    const uint64_t length = At<uint64_t>(bytes, at);
    EXPECT_EQ(At<uint32_t>(bytes, at + 8), Masked(bytes.substr(at, 8)));
    events.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(At<uint32_t>(bytes, at + 12 + length), Masked(events.back()));
    at += 16 + length;
  }
  return events;
}

// Where tests/checks/event_file.py asks for a file, to read it with TensorBoard's own reader.
TEST(EventsWriter, SpellsEventsAsProtocolBuffers) {
  const TemporaryDirectory temporary;
  const char* asked = std::getenv("TOROID_EVENTS_DIRECTORY");
  const std::string directory = asked != nullptr ? asked : temporary.path() + "/made";
  auto writer = EventsWriter::Create(directory, 1234.5);
  ASSERT_TRUE(writer.ok()) << writer.status();
  EXPECT_THAT(writer->path(), HasSubstr("/events.out.tfevents.1234."));
  const Scalar two[] = {{"loss", 2.5}, {"rate/lr", 1e-3}};
  ASSERT_TRUE(writer->Add(1235, 1, two).ok());
  const std::string long_tag(200, 't');
  const Scalar odd[] = {{"loss", NAN}, {long_tag, -INFINITY}};
  ASSERT_TRUE(writer->Add(1236, 300, odd).ok());
  ASSERT_TRUE(writer->Flush().ok());

  const auto events = EventsOf(writer->path());
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0],
            "\x09" + Raw(1234.5) + std::string("\x10\0", 2) + "\x1a\x0d" + "brain.Event:2");
  EXPECT_EQ(events[1], "\x09" + Raw(1235.0) + "\x10\x01" + "\x2a\x1d" +        //
                           "\x0a\x0b" + "\x0a\x04loss" + "\x15" + Raw(2.5f) +  //
                           "\x0a\x0e" + "\x0a\x07rate/lr" + "\x15" + Raw(1e-3f));
  EXPECT_EQ(events[2].substr(9, 3), "\x10\xac\x02");
  EXPECT_EQ(events[2].substr(events[2].size() - 208, 203), "\x0a\xc8\x01" + long_tag);
  EXPECT_EQ(At<float>(events[2], events[2].size() - 4), -INFINITY);
}

TEST(EventsWriter, NeverWritesIntoAnotherRunsFile) {
  const TemporaryDirectory directory;
  auto first = EventsWriter::Create(directory.path(), 7);
  auto second = EventsWriter::Create(directory.path(), 7);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->path(), second->path());
  EXPECT_EQ(EventsOf(first->path()).size(), 1u);
}

TEST(EventsWriter, ErrorsNameThePath) {
  const TemporaryDirectory directory;
  const std::string file = directory.Write("file", "");
  EXPECT_THAT(std::string(EventsWriter::Create(file, 7).status().message()), HasSubstr(file));
}

}  // namespace
}  // namespace toroid
