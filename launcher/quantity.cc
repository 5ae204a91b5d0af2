#include "launcher/quantity.h"

#include <cmath>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace toroid {
namespace {

constexpr double kLargestExact = 9007199254740992.0;  // 2^53

// Splits "25.6k" into 25.6 and "k". False if it does not begin with a number. The number is
// digits with at most one point: no sign, no exponent, no hex.
bool SplitNumber(absl::string_view text, double* number, bool* fraction, absl::string_view* rest) {
  size_t n = 0, digits = 0;
  *fraction = false;
  while (n < text.size() && (absl::ascii_isdigit(text[n]) || (text[n] == '.' && !*fraction))) {
    if (text[n] == '.') {
      *fraction = true;
    } else {
      ++digits;
    }
    ++n;
  }
  if (digits == 0 || n > 30 || !absl::SimpleAtod(text.substr(0, n), number)) return false;
  *rest = text.substr(n);
  return true;
}

// The exponent of k, m, g, t; 0 otherwise.
int Power(char letter) {
  switch (absl::ascii_tolower(letter)) {
    case 'k':
      return 1;
    case 'm':
      return 2;
    case 'g':
      return 3;
    case 't':
      return 4;
    default:
      return 0;
  }
}

absl::Status NotUnderstood(absl::string_view what, absl::string_view text,
                           absl::string_view forms) {
  return absl::InvalidArgumentError(absl::StrCat("not a ", what, ": '", text, "': write ", forms));
}

absl::StatusOr<int64_t> Whole(double value, absl::string_view what, absl::string_view text) {
  const double rounded = std::nearbyint(value);
  if (value > kLargestExact || std::abs(value - rounded) > 1e-6) {
    return absl::InvalidArgumentError(
        absl::StrCat("not a whole number below 2^53: '", text, "': give a smaller ", what));
  }
  return static_cast<int64_t>(rounded);
}

}  // namespace

absl::StatusOr<int64_t> ParseCount(absl::string_view text) {
  constexpr char kForms[] = "a number like 4096, 32k, 25.6k or 1M";
  double number;
  bool fraction;
  absl::string_view rest;
  if (!SplitNumber(text, &number, &fraction, &rest)) return NotUnderstood("number", text, kForms);
  double unit = fraction ? 1000 : 1024;
  if (rest.size() == 2 && rest[1] == 'i') {
    unit = 1024;
    rest.remove_suffix(1);
  }
  if (rest.size() > 1 || (rest.size() == 1 && Power(rest[0]) == 0)) {
    return NotUnderstood("number", text, kForms);
  }
  return Whole(rest.empty() ? number : number * std::pow(unit, Power(rest[0])), "number", text);
}

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  constexpr char kForms[] = "bytes like 512, 64k, 1.5GiB or 2GB";
  double number;
  bool fraction;
  absl::string_view rest;
  if (!SplitNumber(text, &number, &fraction, &rest)) {
    return NotUnderstood("number of bytes", text, kForms);
  }
  const std::string suffix = absl::AsciiStrToLower(rest);
  double scale = 1;
  if (!suffix.empty() && suffix != "b") {
    const int power = Power(suffix[0]);
    const std::string unit = suffix.substr(1);
    if (power == 0 || (unit != "" && unit != "b" && unit != "i" && unit != "ib")) {
      return NotUnderstood("number of bytes", text, kForms);
    }
    scale = std::pow(unit == "b" ? 1000.0 : 1024.0, power);
  }
  return Whole(number * scale, "size", text);
}

absl::StatusOr<double> ParseSeconds(absl::string_view text) {
  constexpr char kForms[] = "a time like 500ms, 60s, 2.5m, 1h30m or 0";
  double total = 0;
  absl::string_view rest = text;
  do {
    double number;
    bool fraction;
    if (!SplitNumber(rest, &number, &fraction, &rest)) return NotUnderstood("time", text, kForms);
    size_t n = 0;
    while (n < rest.size() && absl::ascii_isalpha(rest[n])) ++n;
    const absl::string_view unit = rest.substr(0, n);
    rest = rest.substr(n);
    if (unit == "ms") {
      total += number * 1e-3;
    } else if (unit == "s" || unit.empty()) {
      total += number;
    } else if (unit == "m" || unit == "min") {
      total += number * 60;
    } else if (unit == "h") {
      total += number * 3600;
    } else if (unit == "d") {
      total += number * 86400;
    } else {
      return NotUnderstood("time", text, kForms);
    }
  } while (!rest.empty());
  return total;
}

absl::StatusOr<double> ParseReal(absl::string_view text) {
  double value;
  if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) {
    return NotUnderstood("number", text, "a number like 0.7 or 1e-4");
  }
  return value;
}

absl::StatusOr<int64_t> ParseInteger(absl::string_view text) {
  int64_t value;
  if (!absl::SimpleAtoi(text, &value)) {
    return NotUnderstood("whole number", text, "digits, as in 42");
  }
  return value;
}

absl::StatusOr<uint64_t> ParseSeed(absl::string_view text) {
  uint64_t value;
  if (!absl::SimpleAtoi(text, &value)) {
    return NotUnderstood("seed", text, "a whole number from 0 to 2^64 - 1");
  }
  return value;
}

std::string FormatBytes(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 5) bytes /= 1024, ++unit;
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
}

std::string FormatCount(double count) {
  static constexpr const char* kUnits[] = {"", " k", " M", " G", " T"};
  int unit = 0;
  while (count >= 10000 && unit < 4) count /= 1000, ++unit;
  return absl::StrFormat(unit == 0 && count == std::floor(count) ? "%.0f%s" : "%.1f%s", count,
                         kUnits[unit]);
}

std::string FormatSeconds(double seconds) {
  if (seconds < 9.95) return absl::StrFormat("%.1fs", seconds);
  const int64_t whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return absl::StrFormat("%ds", whole);
  if (whole < 3600) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  return absl::StrFormat("%dh%02dm", whole / 3600, whole / 60 % 60);
}

}  // namespace toroid
