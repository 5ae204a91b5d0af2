#include "launcher/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/check.h"
#include "core/status_macros.h"
#include "launcher/exit_code.h"
#include "launcher/quantity.h"
#include "launcher/suggest.h"

namespace toroid {
namespace {

// The option's own name is the last of "-o,--format".
std::string OwnName(const Option& option) {
  const std::vector<std::string> names = absl::StrSplit(option.names, ',');
  return names.back();
}

// Parallel sizes have the short names that vLLM users type, which are two letters behind one dash.
std::string SpellOut(const std::string& word) {
  static constexpr const char* kShort[][2] = {{"-tp", "--tensor-parallel-size"},
                                              {"-cp", "--context-parallel-size"},
                                              {"-dp", "--data-parallel-size"}};
  for (const auto& [from, to] : kShort) {
    if (word == from) return to;
    if (absl::StartsWith(word, absl::StrCat(from, "="))) return absl::StrCat(to, word.substr(3));
  }
  return word;
}

absl::Status CheckValue(const Option& option, const std::string& text) {
  switch (option.kind) {
    case ValueKind::kFlag:
    case ValueKind::kText:
      return absl::OkStatus();
    case ValueKind::kCount:
      return ParseCount(text).status();
    case ValueKind::kInteger:
      return ParseInteger(text).status();
    case ValueKind::kSeed:
      return ParseSeed(text).status();
    case ValueKind::kReal:
      return ParseReal(text).status();
    case ValueKind::kBytes:
      return ParseBytes(text).status();
    case ValueKind::kSeconds:
      return ParseSeconds(text).status();
    case ValueKind::kChoice: {
      const std::vector<std::string> choices = absl::StrSplit(option.value, '|');
      if (std::find(choices.begin(), choices.end(), text) != choices.end()) return absl::OkStatus();
      const std::string nearest = Nearest(text, choices);
      return absl::InvalidArgumentError(
          absl::StrCat("not a choice: '", text,
                       "': ", nearest.empty() ? "" : absl::StrCat("did you mean ", nearest, "? "),
                       "give one of ", option.value));
    }
  }
  return absl::OkStatus();
}

// "bad value: --mesh (or TOROID_MESH): ..."
absl::Status BadValue(absl::string_view name, const absl::Status& why) {
  return UsageError(absl::StrCat("bad value of ", name, ": ", why.message()));
}

// "1", "true", "yes", "on" or their opposites.
absl::StatusOr<bool> ParseSwitch(const std::string& text) {
  bool value;
  const std::string lower = absl::AsciiStrToLower(text);
  if (lower == "on") return true;
  if (lower == "off" || lower.empty()) return false;
  if (absl::SimpleAtob(lower, &value)) return value;
  return absl::InvalidArgumentError(absl::StrCat("not a switch: '", text, "': write 1 or 0"));
}

// Whether the word behind `word` is its value.
bool TakesNext(const Verb& verb, const std::string& word) {
  for (const OptionTable* table : verb.tables) {
    for (const Option& option : table->options) {
      const std::vector<std::string> names = absl::StrSplit(option.names, ',');
      if (option.kind != ValueKind::kFlag &&
          std::find(names.begin(), names.end(), word) != names.end()) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace

// Fills an Arguments from the verb's tables, the words and the environment.
class CommandParser {
 public:
  explicit CommandParser(const Verb& verb) : verb_(verb) {
    for (const Positional& p : verb.positionals) result_.values_[p.name] = {};
    for (const OptionTable* table : verb.tables) {
      for (const Option& option : table->options) {
        const std::string name = OwnName(option);
        TOROID_CHECK_MSG(result_.values_.count(name) == 0, name);
        result_.values_[name].option = &option;
        for (absl::string_view n : absl::StrSplit(option.names, ',')) known_.emplace_back(n);
      }
    }
    known_.push_back("--help");
  }

  absl::StatusOr<Arguments> Parse(const std::vector<std::string>& words) {
    TOROID_RETURN_IF_ERROR(ReadWords(words));
    TOROID_RETURN_IF_ERROR(TakePositionals());
    for (auto& [name, value] : result_.values_) {
      if (value.option != nullptr) TOROID_RETURN_IF_ERROR(Complete(name, value));
    }
    return std::move(result_);
  }

 private:
  // CLI11 splits words into options and the rest; what it throws becomes a usage error here.
  absl::Status ReadWords(const std::vector<std::string>& words) {
    CLI::App app;
    app.set_help_flag();
    app.allow_extras();
    if (verb_.takes_rest) app.prefix_command();
    std::map<std::string, CLI::Option*> added;
    for (const auto& [name, value] : result_.values_) {
      if (value.option == nullptr) continue;
      if (value.option->kind == ValueKind::kFlag) {
        added[name] = app.add_flag(value.option->names);
      } else {
        // Raw results: CLI11's own conversion would read "[a,b]" as a list.
        added[name] = app.add_option(value.option->names,
                                     CLI::callback_t([](const CLI::results_t&) { return true; }));
        added[name]->type_size(1)->allow_extra_args(false)->take_all();
      }
    }
    std::vector<std::string> reversed;
    for (const std::string& word : words) {
      // CLI11 takes the word behind `--prompt=` for its value.
      const bool empty_value =
          !verb_.takes_rest && absl::StartsWith(word, "--") && word.find('=') == word.size() - 1;
      reversed.push_back(SpellOut(empty_value ? word.substr(0, word.size() - 1) : word));
      if (empty_value) reversed.emplace_back();
    }
    std::reverse(reversed.begin(), reversed.end());
    try {
      app.parse(reversed);
    } catch (const CLI::ArgumentMismatch& error) {
      const std::string flag =
          std::string(error.what()).substr(0, std::string(error.what()).find(':'));
      return UsageError(absl::StrCat("missing value: ", flag, ": give one, as toroid ", verb_.name,
                                     " --help shows"));
    } catch (const CLI::ParseError& error) {
      return UsageError(absl::StrCat("cannot read the command line: ", error.what(),
                                     ": see toroid ", verb_.name, " --help"));
    }
    for (const auto& [name, option] : added) {
      Arguments::Value& value = result_.values_[name];
      if (option->count() == 0) continue;
      value.origin = Origin::kFlag;
      value.texts = value.option->kind == ValueKind::kFlag ? std::vector<std::string>{"1"}
                                                           : option->results();
    }
    result_.rest_ = app.remaining();
    return absl::OkStatus();
  }

  absl::Status TakePositionals() {
    std::vector<std::string>& rest = result_.rest_;
    if (!verb_.takes_rest || (!rest.empty() && absl::StartsWith(rest[0], "-"))) {
      for (const std::string& word : rest) {
        if (word == "--") break;
        if (word.size() > 1 && word[0] == '-' && !absl::ascii_isdigit(word[1])) {
          const std::string flag = word.substr(0, word.find('='));
          return UsageError(absl::StrCat(
              "unknown flag: ", flag,
              DidYouMean(flag, known_, absl::StrCat("see toroid ", verb_.name, " --help"))));
        }
      }
    }
    const auto marker = std::find(rest.begin(), rest.end(), "--");
    if (!verb_.takes_rest && marker != rest.end()) rest.erase(marker);
    size_t taken = 0;
    for (const Positional& positional : verb_.positionals) {
      Arguments::Value& value = result_.values_[positional.name];
      // MODEL may also be given as --model.
      const auto as_flag =
          result_.values_.find(absl::StrCat("--", absl::AsciiStrToLower(positional.name)));
      if (as_flag != result_.values_.end() && as_flag->second.origin == Origin::kFlag) {
        value.texts = as_flag->second.texts;
      } else if (taken < rest.size()) {
        value.texts = {rest[taken++]};
      } else if (positional.required) {
        return UsageError(absl::StrCat("missing argument: ", positional.name, ": toroid ",
                                       verb_.name, " needs ", positional.help));
      } else {
        continue;
      }
      value.origin = Origin::kFlag;
    }
    rest.erase(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(taken));
    if (!verb_.takes_rest && !rest.empty()) {
      return UsageError(absl::StrCat("too many arguments: '", rest[0], "': quote texts that hold ",
                                     "blanks, or see toroid ", verb_.name, " --help"));
    }
    return absl::OkStatus();
  }

  // Environment and default where there was no flag; checks what came from where.
  absl::Status Complete(const std::string& name, Arguments::Value& value) {
    const Option& option = *value.option;
    std::string source = name;
    if (value.origin == Origin::kDefault && option.environment) {
      const std::string variable = EnvironmentName(name);
      const char* text = std::getenv(variable.c_str());
      if (text != nullptr && *text != '\0') {
        value.origin = Origin::kEnvironment;
        value.texts = {text};
        source = variable;
        if (option.kind == ValueKind::kFlag) {
          const auto on = ParseSwitch(text);
          if (!on.ok()) return BadValue(source, on.status());
          if (!*on) value.texts.clear();
        }
      }
    }
    if (value.origin == Origin::kDefault && *option.fallback != '\0') {
      value.texts = {option.fallback};
    }
    if (!option.repeated && value.texts.size() > 1) value.texts = {value.texts.back()};
    for (const std::string& text : value.texts) {
      const absl::Status status = CheckValue(option, text);
      if (!status.ok()) return BadValue(source, status);
    }
    return absl::OkStatus();
  }

  const Verb& verb_;
  std::vector<std::string> known_;  // every spelling of every option
  Arguments result_;
};

const Arguments::Value& Arguments::Find(absl::string_view name) const {
  const auto found = values_.find(std::string(name));
  TOROID_CHECK_MSG(found != values_.end(), std::string(name));
  return found->second;
}

bool Arguments::Has(absl::string_view option) const {
  return Find(option).origin != Origin::kDefault;
}
Origin Arguments::OriginOf(absl::string_view option) const { return Find(option).origin; }
bool Arguments::Flag(absl::string_view option) const { return !Find(option).texts.empty(); }
std::string Arguments::Text(absl::string_view option) const {
  const Value& value = Find(option);
  return value.texts.empty() ? "" : value.texts.back();
}
std::vector<std::string> Arguments::Texts(absl::string_view option) const {
  return Find(option).texts;
}

int64_t Arguments::Count(absl::string_view option) const {
  const Value& value = Find(option);
  if (value.texts.empty()) return 0;
  TOROID_CHECK(value.option != nullptr);
  switch (value.option->kind) {
    case ValueKind::kCount:
      return ParseCount(value.texts.back()).value();
    case ValueKind::kBytes:
      return ParseBytes(value.texts.back()).value();
    default:
      return ParseInteger(value.texts.back()).value();
  }
}

uint64_t Arguments::Seed(absl::string_view option) const {
  const Value& value = Find(option);
  return value.texts.empty() ? 0 : ParseSeed(value.texts.back()).value();
}

double Arguments::Real(absl::string_view option) const {
  const Value& value = Find(option);
  if (value.texts.empty()) return 0;
  TOROID_CHECK(value.option != nullptr);
  return value.option->kind == ValueKind::kSeconds ? ParseSeconds(value.texts.back()).value()
                                                   : ParseReal(value.texts.back()).value();
}

absl::StatusOr<Arguments> ParseArguments(const Verb& verb, const std::vector<std::string>& words) {
  return CommandParser(verb).Parse(words);
}

bool AsksForHelp(const Verb& verb, const std::vector<std::string>& words) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--help" || words[i] == "-h") return true;
    if (words[i] == "--") return false;
    // What follows the first word of the rest is asked of the rest.
    if (verb.takes_rest && !absl::StartsWith(words[i], "-")) return false;
    if (TakesNext(verb, words[i])) ++i;
  }
  return false;
}

std::string EnvironmentName(absl::string_view option) {
  std::string name =
      absl::StrCat("TOROID_", absl::AsciiStrToUpper(absl::StripPrefix(option, "--")));
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

std::string HelpText(const Verb& verb) {
  std::string text =
      absl::StrCat("toroid ", verb.name, ": ", verb.summary, "\n\nusage: toroid ", verb.name);
  for (const Positional& p : verb.positionals) {
    absl::StrAppend(&text,
                    p.required ? absl::StrCat(" ", p.name) : absl::StrCat(" [", p.name, "]"));
  }
  absl::StrAppend(&text, verb.tables.empty() ? "" : " [options]",
                  verb.takes_rest ? absl::StrCat(" ", verb.rest) : "", "\n");
  if (*verb.details != '\0') absl::StrAppend(&text, "\n", verb.details, "\n");
  if (*verb.examples != '\0') {
    absl::StrAppend(&text, "\nexamples:\n");
    for (absl::string_view line : absl::StrSplit(verb.examples, '\n')) {
      absl::StrAppend(&text, "  ", line, "\n");
    }
  }
  const auto row = [&](const std::string& left, const std::string& right) {
    absl::StrAppend(&text, "  ", left, left.size() < 34 ? std::string(34 - left.size(), ' ') : "  ",
                    right, "\n");
  };
  if (!verb.positionals.empty()) absl::StrAppend(&text, "\narguments:\n");
  for (const Positional& p : verb.positionals) row(p.name, p.help);
  for (const OptionTable* table : verb.tables) {
    absl::StrAppend(&text, "\n", table->title, ":\n");
    for (const Option& option : table->options) {
      const std::vector<std::string> names = absl::StrSplit(option.names, ',');
      std::string right = option.help;
      if (*option.fallback != '\0') absl::StrAppend(&right, " [", option.fallback, "]");
      row(absl::StrCat(absl::StrJoin(names, ", "), *option.value ? " " : "", option.value), right);
    }
  }
  return text;
}

}  // namespace toroid
