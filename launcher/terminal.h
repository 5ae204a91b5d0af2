// What the other end of stdout and stderr is, and tables for people.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace toroid {

// True if started by mpirun or srun. isatty is then not asked: a rank's stdout is a terminal even
// when mpirun's goes to a file, and its stderr never is.
bool UnderLauncher();

bool StdoutIsTerminal();
bool StderrIsTerminal();
// Colour on that stream: a terminal, NO_COLOR unset, TERM not "dumb".
bool ColourStdout();

// Columns of the terminal on stderr, 80 if unknown.
int TerminalWidth();

// Rows of equal length with aligned columns, two blanks between; the first row is the heading.
// Cells that begin with a digit or a sign are aligned right, as is their heading.
std::string Table(const std::vector<std::vector<std::string>>& rows, bool colour = false);

// Writes to stdout at once (tokens must be seen as they come). Errors (a closed pipe) are ignored:
// a later write or the signal tells.
void WriteStdout(absl::string_view text);
// One line of talk on stderr.
void Talk(absl::string_view line);
void TalkLines(const std::vector<std::string>& lines);

}  // namespace toroid
