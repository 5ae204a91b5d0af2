#include "rpc/log_store.h"

#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

// "rank o text\n" or "rank e text\n".
std::string Record(const LogLine& line) {
  std::string text = line.text;
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return absl::StrCat(line.rank, line.error ? " e " : " o ", text, "\n");
}

bool ParseRecord(absl::string_view record, LogLine& line) {
  const size_t space = record.find(' ');
  if (space == absl::string_view::npos || record.size() < space + 3) return false;
  if (!absl::SimpleAtoi(record.substr(0, space), &line.rank)) return false;
  line.error = record[space + 1] == 'e';
  line.text = std::string(record.substr(space + 3));
  return true;
}

int64_t SizeOf(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 ? info.st_size : 0;
}

}  // namespace

void LogStore::Append(const std::string& job, const std::vector<LogLine>& lines) {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t size = SizeOf(Path(job));
  if (size >= cap_) return;
  std::ofstream file(Path(job), std::ios::app | std::ios::binary);
  for (const LogLine& line : lines) {
    const std::string record = Record(line);
    size += static_cast<int64_t>(record.size());
    file << record;
    if (size >= cap_) {
      file << Record({0, -1, true, absl::StrCat("log ends here: it has reached ", cap_, " bytes")});
      return;
    }
  }
}

absl::StatusOr<std::vector<LogLine>> LogStore::Read(const std::string& job, uint64_t offset,
                                                    int64_t limit) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto size = static_cast<uint64_t>(SizeOf(Path(job)));
  std::vector<LogLine> out;
  if (offset == size) return out;
  std::ifstream file(Path(job), std::ios::binary);
  bool aligned = offset < size;
  if (aligned && offset > 0) {
    file.seekg(static_cast<std::streamoff>(offset) - 1);
    aligned = file.get() == '\n';
  }
  if (!aligned) {
    return absl::OutOfRangeError(absl::StrCat("from_offset ", offset,
                                              " is not the beginning of a "
                                              "line: the log has ",
                                              size, " bytes"));
  }
  const uint64_t begin = offset;
  std::string record;
  while (offset - begin < static_cast<uint64_t>(limit) && std::getline(file, record)) {
    if (file.eof()) break;  // a line still being written
    offset += record.size() + 1;
    LogLine line;
    line.next_offset = offset;
    if (ParseRecord(record, line)) out.push_back(std::move(line));
  }
  return out;
}

uint64_t LogStore::End(const std::string& job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<uint64_t>(SizeOf(Path(job)));
}

void LogStore::Delete(const std::string& job) {
  const std::lock_guard<std::mutex> lock(mutex_);
  (void)unlink(Path(job).c_str());
}

}  // namespace toroid
