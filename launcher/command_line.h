// The command line as data: tables of options, verbs that share them, and what the user gave.
//
// A flag beats the environment (TOROID_NAME for --name, where the table says so), that beats the
// table's default. Values are checked when they are parsed, so the getters of Arguments cannot
// fail: asking for an option that is not in the verb's tables is our own mistake (CHECK).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace toroid {

enum class ValueKind {
  kFlag,     // no value
  kText,     // anything
  kCount,    // whole number >= 0 with suffix: 32k
  kInteger,  // whole number, may be negative
  kSeed,     // 0 .. 2^64 - 1
  kReal,
  kBytes,    // 8GiB
  kSeconds,  // 500ms
  kChoice,   // one of `value`, a|b|c
};

struct Option {
  const char* names;  // "--mesh" or "-o,--format": the last long name is the option's own
  ValueKind kind = ValueKind::kText;
  const char* value = "";  // how --help calls the value; kChoice: the choices
  const char* fallback = "";
  const char* help = "";
  bool environment = false;  // TOROID_MAX_TOKENS for --max-tokens is read
  bool repeated = false;     // may be given several times (Texts); otherwise the last one counts
};

struct OptionTable {
  const char* title;  // of the group in --help
  std::vector<Option> options;
};

struct Positional {
  const char* name;  // "MODEL"
  bool required = true;
  const char* help = "";
};

enum class Origin { kDefault, kEnvironment, kFlag };

class Arguments {
 public:
  bool Has(absl::string_view option) const;  // given by flag or environment
  Origin OriginOf(absl::string_view option) const;
  bool Flag(absl::string_view option) const;
  std::string Text(absl::string_view option) const;
  std::vector<std::string> Texts(absl::string_view option) const;
  int64_t Count(absl::string_view option) const;  // kCount, kBytes, kInteger; 0 without a default
  uint64_t Seed(absl::string_view option) const;
  double Real(absl::string_view option) const;  // kReal, kSeconds
  // Words that belong to no option, after the positionals (launch: the verb and its arguments).
  const std::vector<std::string>& rest() const { return rest_; }

 private:
  friend class CommandParser;
  struct Value {
    const Option* option = nullptr;  // null: a positional
    Origin origin = Origin::kDefault;
    std::vector<std::string> texts;
  };
  const Value& Find(absl::string_view name) const;
  std::map<std::string, Value> values_;
  std::vector<std::string> rest_;
};

struct Verb {
  const char* name;  // "generate", "job submit"
  const char* summary;
  std::vector<Positional> positionals;
  std::vector<const OptionTable*> tables;
  const char* examples = "";
  absl::Status (*run)(const Arguments&) = nullptr;
  bool hidden = false;            // not in `toroid --help`
  bool takes_rest = false;        // everything from the first word that is no option is rest()
  const char* rest = "VERB ...";  // how --help calls it
  const char* details = "";       // a paragraph for --help
};

// words: what follows the verb on the command line. Errors are usage errors (exit 2) that name the
// word, and the nearest option.
absl::StatusOr<Arguments> ParseArguments(const Verb& verb, const std::vector<std::string>& words);

// True if --help or -h stands among the words that are the verb's own.
bool AsksForHelp(const Verb& verb, const std::vector<std::string>& words);

// The text of `toroid VERB --help`.
std::string HelpText(const Verb& verb);

// "--max-tokens" -> "TOROID_MAX_TOKENS".
std::string EnvironmentName(absl::string_view option);

}  // namespace toroid
