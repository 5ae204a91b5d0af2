// toroid version: what was built and what it runs on.
#include "core/version.h"

#include <gnu/libc-version.h>

#include <string_view>

#include "absl/strings/str_cat.h"
#include "kernels/isa.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/terminal.h"
#include "launcher/verbs.h"

#ifndef TOROID_VERSION
#error "the build defines TOROID_VERSION"
#endif

namespace toroid {
namespace {

static_assert(std::string_view(TOROID_VERSION) == kVersion, "core/version.h, CMakeLists.txt");

absl::Status RunVersion(const Arguments& arguments) {
  const JsonRow facts = {{"version", TOROID_VERSION},
                         {"build", TOROID_BUILD_TYPE},
                         {"isa", IsaName(CurrentIsa())},
                         {"mpi", TOROID_MPI_VERSION},
                         {"compiler", absl::StrCat("g++ ", __VERSION__)},
                         {"libc", absl::StrCat("glibc ", gnu_get_libc_version())}};
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(FactsJson(facts), "\n"));
    return absl::OkStatus();
  }
  std::string text = absl::StrCat("toroid ", TOROID_VERSION, "\n");
  for (size_t i = 1; i < facts.size(); ++i) {
    absl::StrAppend(&text, "  ", facts[i].name, std::string(10 - facts[i].name.size(), ' '),
                    facts[i].text, "\n");
  }
  WriteStdout(text);
  return absl::OkStatus();
}

}  // namespace

const Verb kVersionVerb = {
    .name = "version",
    .summary = "version, build, processor and libraries",
    .positionals = {},
    .tables = {&kOutputOptions},
    .examples = "toroid version\ntoroid version -o json",
    .run = RunVersion,
};

}  // namespace toroid
