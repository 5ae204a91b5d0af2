#include "launcher/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "parallel/launcher_environment.h"

namespace toroid {
namespace {

// Characters, not bytes: UTF-8 continuation bytes take no column.
size_t Columns(absl::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

bool IsNumber(absl::string_view cell) {
  return !cell.empty() && (absl::ascii_isdigit(cell[0]) ||
                           (cell.size() > 1 && cell[0] == '-' && absl::ascii_isdigit(cell[1])));
}

}  // namespace

bool UnderLauncher() { return ThisLauncherEnvironment().launcher != Launcher::kNone; }

bool StdoutIsTerminal() { return !UnderLauncher() && isatty(STDOUT_FILENO) == 1; }
bool StderrIsTerminal() { return !UnderLauncher() && isatty(STDERR_FILENO) == 1; }

bool ColourStdout() {
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  return StdoutIsTerminal() && (no_color == nullptr || *no_color == '\0') &&
         (term == nullptr || absl::string_view(term) != "dumb");
}

int TerminalWidth() {
  winsize size{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

std::string Table(const std::vector<std::vector<std::string>>& rows, bool colour) {
  std::vector<size_t> widths;
  std::vector<bool> right;
  for (size_t r = 0; r < rows.size(); ++r) {
    widths.resize(std::max(widths.size(), rows[r].size()));
    right.resize(widths.size(), false);
    for (size_t c = 0; c < rows[r].size(); ++c) {
      widths[c] = std::max(widths[c], Columns(rows[r][c]));
      if (r == 1) right[c] = IsNumber(rows[r][c]);
    }
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    std::string line;
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const std::string pad(widths[c] - Columns(rows[r][c]), ' ');
      absl::StrAppend(&line, c == 0 ? "" : "  ", right[c] ? pad : "", rows[r][c],
                      right[c] ? "" : pad);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, colour && r == 0 ? "\033[1m" : "", line,
                    colour && r == 0 ? "\033[0m" : "", "\n");
  }
  return text;
}

void WriteStdout(absl::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void Talk(absl::string_view line) {
  std::fprintf(stderr, "%.*s\n", static_cast<int>(line.size()), line.data());
}

void TalkLines(const std::vector<std::string>& lines) {
  for (const std::string& line : lines) Talk(line);
}

}  // namespace toroid
