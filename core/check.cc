#include "core/check.h"

#include <cstdio>
#include <cstdlib>

namespace toroid {

void CheckFailed(const char* file, int line, const char* text, const std::string& detail) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s%s%s%s\n", file, line, text,
               detail.empty() ? "" : " (", detail.c_str(), detail.empty() ? "" : ")");
  std::fflush(stderr);
  std::abort();
}

}  // namespace toroid
