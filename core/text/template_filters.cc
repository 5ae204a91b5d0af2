// Jinja's filters and tests.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

constexpr std::string_view kFilters[] = {
    "abs",     "capitalize", "count",  "d",      "default",    "dictsort", "e",          "escape",
    "first",   "float",      "indent", "int",    "items",      "join",     "last",       "length",
    "list",    "lower",      "map",    "max",    "min",        "reject",   "rejectattr", "replace",
    "reverse", "round",      "safe",   "select", "selectattr", "sort",     "string",     "sum",
    "title",   "tojson",     "trim",   "unique", "upper",      "wordcount"};
constexpr std::string_view kTests[] = {
    "boolean", "callable", "defined",  "divisibleby", "eq",          "equalto",
    "even",    "false",    "float",    "ge",          "greaterthan", "gt",
    "in",      "integer",  "iterable", "le",          "lessthan",    "lower",
    "lt",      "mapping",  "ne",       "none",        "number",      "odd",
    "sameas",  "sequence", "string",   "true",        "undefined",   "upper",
    "==",      "!=",       "<",        "<=",          ">",           ">="};

template <size_t n>
bool IsIn(const std::string_view (&names)[n], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

bool GivenTrue(const TemplateValue* value) { return value != nullptr && value->Truth(); }

std::string Escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&#34;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += c;
    }
  }
  return out;
}

// int(text) and float(text) of Python, for plain decimal text.
bool ParseInt(std::string_view text, int base, int64_t* out) {
  text = template_text::Strip(text, nullptr, template_text::kBoth);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *out, base);
  return !text.empty() && result.ec == std::errc() && result.ptr == text.data() + text.size();
}
bool ParseFloat(std::string_view text, double* out) {
  text = template_text::Strip(text, nullptr, template_text::kBoth);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *out);
  return !text.empty() && result.ec == std::errc() && result.ptr == text.data() + text.size();
}

}  // namespace

bool IsTemplateFilter(std::string_view name) { return IsIn(kFilters, name); }
bool IsTemplateTest(std::string_view name) { return IsIn(kTests, name); }

TemplateValue TemplateInterpreter::Filter(const Node& node) {
  const Value input = Evaluate(*node.children[0]);
  const Arguments arguments = EvaluateArguments(node, 1);
  if (!ok()) return Value();
  line_ = node.line;
  return ApplyFilter(node.text, input, arguments);
}

TemplateValue TemplateInterpreter::ApplyFilter(const std::string& name, const Value& input,
                                               const Arguments& arguments) {
  if (input.Is(Kind::kString) && !Spend(1 + static_cast<int64_t>(input.string().size() / 16))) {
    return Value();
  }
  if (name == "trim") {
    const Value* characters = arguments.Get(0, "chars");
    const bool given = characters != nullptr && characters->Is(Kind::kString);
    return MakeString(std::string(template_text::Strip(
        Str(input), given ? &characters->string() : nullptr, template_text::kBoth)));
  }
  if (name == "upper") return MakeString(template_text::Upper(Str(input)));
  if (name == "lower") return MakeString(template_text::Lower(Str(input)));
  if (name == "title") return MakeString(template_text::Title(Str(input), true));
  if (name == "capitalize") return MakeString(template_text::Capitalize(Str(input)));
  if (name == "string") return MakeString(Str(input));
  if (name == "safe") return input;
  if (name == "e" || name == "escape") return MakeString(Escape(Str(input)));
  if (name == "tojson") return ToJson(input, arguments);
  if (name == "indent") return Indent(input, arguments);
  if (name == "replace") return Replace(Str(input), arguments);
  if (name == "default" || name == "d") {
    const Value* otherwise = arguments.Get(0, "default_value");
    const bool missing =
        input.Is(Kind::kUndefined) || (GivenTrue(arguments.Get(1, "boolean")) && !input.Truth());
    if (!missing) return input;
    return otherwise == nullptr ? MakeString("") : *otherwise;
  }
  if (name == "map") return Map(input, arguments);
  if (name == "select" || name == "reject" || name == "selectattr" || name == "rejectattr") {
    return Select(input, arguments, name.size() > 6, name[0] == 's');
  }
  if (name == "sort") return Sort(input, arguments);
  if (name == "int" || name == "float" || name == "abs" || name == "round") {
    return NumberFilter(name, input, arguments);
  }
  if (name == "length" || name == "count") return Length(input);
  if (name == "items") {
    if (input.Is(Kind::kUndefined)) return MakeList({});
    if (!input.Is(Kind::kDict)) return Fail("'items' of what is no dict");
    return DictMethod("items", input, {});
  }
  if (name == "wordcount") {
    const Value words = Split(Str(input), {}, false);
    return ok() ? Length(words) : Value();
  }
  return ListFilter(name, input, arguments);
}

TemplateValue TemplateInterpreter::Length(const Value& input) {
  switch (input.kind()) {
    case Kind::kUndefined:
      return Value::Int(0);
    case Kind::kString:
      return Value::Int(static_cast<int64_t>(template_text::CountCharacters(input.string())));
    case Kind::kList:
    case Kind::kTuple:
      return Value::Int(static_cast<int64_t>(input.list().size()));
    case Kind::kDict:
      return Value::Int(static_cast<int64_t>(input.dict().items.size()));
    default:
      return Fail(absl::StrCat("a ", std::string(input.TypeName()), " has no length"));
  }
}

TemplateValue TemplateInterpreter::NumberFilter(const std::string& name, const Value& input,
                                                const Arguments& arguments) {
  if (name == "abs") {
    if (!input.IsNumber()) return Fail("'abs' of what is no number");
    if (input.Is(Kind::kFloat)) return Value::Float(std::abs(input.number()));
    return input.integer() < 0 ? Arithmetic("-", Value::Int(0), input)
                               : Value::Int(input.integer());
  }
  if (name == "round") {
    if (!input.IsNumber()) return Fail("'round' of what is no number");
    const Value* precision = arguments.Get(0, "precision");
    const Value* method = arguments.Get(1, "method");
    const std::string how = method == nullptr ? "common" : Str(*method);
    const double digits = precision != nullptr && precision->IsNumber() ? precision->number() : 0;
    if (how == "common" && !input.Is(Kind::kFloat) && digits >= 0) {
      return Value::Int(input.integer());
    }
    const double scale = std::pow(10.0, std::clamp(digits, -300.0, 300.0));
    const double scaled = input.number() * scale;
    if (how == "ceil") return Value::Float(std::ceil(scaled) / scale);
    if (how == "floor") return Value::Float(std::floor(scaled) / scale);
    // Python rounds the exact decimal value: printf does the same.
    char buffer[400];
    if (digits < 0 || digits > 30) return Value::Float(std::nearbyint(scaled) / scale);
    std::snprintf(buffer, sizeof(buffer), "%.*f", static_cast<int>(digits), input.number());
    return Value::Float(std::atof(buffer));
  }
  const Value* given = arguments.Get(0, "default");
  double number = 0;
  if (name == "float") {
    if (input.IsNumber()) return Value::Float(input.number());
    if (input.Is(Kind::kString) && ParseFloat(input.string(), &number)) {
      return Value::Float(number);
    }
    return given == nullptr ? Value::Float(0) : *given;
  }
  const Value* base = arguments.Get(1, "base");
  int64_t integer = 0;
  const int64_t radix = base != nullptr && base->Is(Kind::kInt) ? base->integer() : 10;
  if (radix < 2 || radix > 36) return Fail("'int' in a base that is not 2 to 36");
  if (input.Is(Kind::kString)) {
    if (ParseInt(input.string(), static_cast<int>(radix), &integer)) return Value::Int(integer);
    if (!ParseFloat(input.string(), &number)) number = std::nan("");
  } else if (input.Is(Kind::kFloat)) {
    number = input.number();
  } else if (input.IsNumber()) {
    return Value::Int(input.integer());
  } else {
    number = std::nan("");
  }
  if (std::abs(number) < 9e18) return Value::Int(static_cast<int64_t>(number));
  return given == nullptr ? Value::Int(0) : *given;
}

TemplateValue TemplateInterpreter::ListFilter(const std::string& name, const Value& input,
                                              const Arguments& arguments) {
  if (name == "reverse" && input.Is(Kind::kString)) {
    auto characters = template_text::Characters(input.string());
    std::string out;
    for (auto c = characters.rbegin(); c != characters.rend(); ++c) out += *c;
    return MakeString(std::move(out));
  }
  if (name == "dictsort" && !input.Is(Kind::kDict)) return Fail("'dictsort' of what is no dict");
  const Value* attribute = arguments.Get(name == "join" || name == "unique" ? 1 : 0, "attribute");
  Value::List items = Iterate(name == "dictsort" ? DictMethod("items", input, {}) : input);
  if (!ok()) return Value();
  if (name == "list") return MakeList(std::move(items));
  if (name == "first" || name == "last") {
    if (items.empty()) return Value::Undefined(absl::StrCat("the ", name, " item of nothing"));
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") {
    std::reverse(items.begin(), items.end());
    return MakeList(std::move(items));
  }
  if (name == "dictsort") return SortItems(std::move(items), Value::Int(0), false, false);
  if (attribute != nullptr && name != "unique") {
    for (Value& item : items) item = ByPath(item, *attribute);
  }
  if (name == "join") {
    const Value* separator = arguments.Get(0, "d");
    const std::string between = separator == nullptr ? "" : Str(*separator);
    std::string out;
    for (size_t i = 0; i < items.size() && ok(); ++i) {
      if (i > 0) out += between;
      out += Str(items[i]);
      if (out.size() > limits_.output_bytes) return Fail("a text is too long");
    }
    return MakeString(std::move(out));
  }
  if (name == "sum") {
    const Value* start = arguments.Get(1, "start");
    Value sum = start == nullptr ? Value::Int(0) : *start;
    for (const Value& item : items) sum = Add(sum, item);
    return sum;
  }
  if (name == "min" || name == "max") {
    if (items.empty()) return Value::Undefined(absl::StrCat("the ", name, " of nothing"));
    const int sign = name == "min" ? 1 : -1;
    const Value* best = &items[0];
    for (const Value& item : items) {
      if (sign * CompareFolded(item, *best) < 0) best = &item;
    }
    return *best;
  }
  Value::List unique;  // "unique": the first of equals, strings without regard to case
  for (const Value& item : items) {
    const bool seen = std::any_of(unique.begin(), unique.end(), [&](const Value& v) {
      return v.kind() == item.kind() && v.Is(Kind::kString)
                 ? template_text::Lower(v.string()) == template_text::Lower(item.string())
                 : Equal(v, item);
    });
    if (!Spend(1 + static_cast<int64_t>(unique.size()))) return Value();
    if (!seen) unique.push_back(item);
  }
  return MakeList(std::move(unique));
}

// "a.b.0" of a value, as the attribute arguments of filters name it.
TemplateValue TemplateInterpreter::ByPath(const Value& value, const Value& path) {
  if (!path.Is(Kind::kString)) return Item(value, path);
  Value now = value;
  const std::string& text = path.string();
  for (size_t begin = 0; begin <= text.size() && ok();) {
    const size_t end = std::min(text.find('.', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    int64_t index = 0;
    const bool is_index = !part.empty() && std::all_of(part.begin(), part.end(), [](char c) {
      return c >= '0' && c <= '9';
    }) && ParseInt(part, 10, &index);
    now = Item(now, is_index ? Value::Int(index) : Value::String(part));
    begin = end + 1;
  }
  return now;
}

TemplateValue TemplateInterpreter::Map(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Get(SIZE_MAX, "attribute");
  const Value* otherwise = arguments.Get(SIZE_MAX, "default");
  const Value* filter = arguments.Get(0, "");
  if (attribute == nullptr &&
      (filter == nullptr || !filter->Is(Kind::kString) || !IsTemplateFilter(filter->string()))) {
    return Fail("'map' wants an attribute or the name of a filter");
  }
  Arguments rest;
  if (attribute == nullptr) {
    rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    rest.named = arguments.named;
  }
  Value::List list;
  if (++depth_ > 500) Fail("nested too deeply");
  for (const Value& item : Iterate(input)) {
    if (!Spend(1)) break;
    Value mapped =
        attribute != nullptr ? ByPath(item, *attribute) : ApplyFilter(filter->string(), item, rest);
    if (attribute != nullptr && otherwise != nullptr && mapped.Is(Kind::kUndefined)) {
      mapped = *otherwise;
    }
    list.push_back(std::move(mapped));
  }
  --depth_;
  return MakeList(std::move(list));
}

TemplateValue TemplateInterpreter::Select(const Value& input, const Arguments& arguments,
                                          bool by_attribute, bool keep) {
  const size_t test_at = by_attribute ? 1 : 0;
  if (arguments.positional.size() < test_at) return Fail("'selectattr' wants an attribute");
  const bool has_test = arguments.positional.size() > test_at;
  std::string test;
  Arguments rest;
  if (has_test) {
    test = Str(arguments.positional[test_at]);
    if (!IsTemplateTest(test)) return Fail(absl::StrCat("the test '", test, "' is not known"));
    rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(test_at) + 1,
                           arguments.positional.end());
  }
  Value::List list;
  for (const Value& item : Iterate(input)) {
    if (!Spend(1)) break;
    const Value value = by_attribute ? ByPath(item, arguments.positional[0]) : item;
    const bool passed = has_test ? ApplyTest(test, value, rest) : value.Truth();
    if (passed == keep) list.push_back(item);
  }
  return MakeList(std::move(list));
}

// Order of sort, min and max: strings without regard to case.
int TemplateInterpreter::CompareFolded(const Value& a, const Value& b) {
  if (!a.Is(Kind::kString) || !b.Is(Kind::kString)) return Compare(a, b);
  Spend(1 + static_cast<int64_t>((a.string().size() + b.string().size()) / 16));
  const int order = template_text::Lower(a.string()).compare(template_text::Lower(b.string()));
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

TemplateValue TemplateInterpreter::Sort(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Get(2, "attribute");
  return SortItems(Iterate(input), attribute == nullptr ? Value::None() : *attribute,
                   GivenTrue(arguments.Get(0, "reverse")),
                   GivenTrue(arguments.Get(1, "case_sensitive")));
}

TemplateValue TemplateInterpreter::SortItems(Value::List items, const Value& attribute,
                                             bool reverse, bool case_sensitive) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value key = attribute.Is(Kind::kNone) ? item : ByPath(item, attribute);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  // Values without an order make the comparison useless, so they are found before the sort.
  for (size_t i = 1; i < keyed.size() && ok(); ++i) Compare(keyed[0].first, keyed[i].first);
  const bool sequences = !keyed.empty() && keyed[0].first.IsSequence();
  if (ok() && sequences && keyed.size() > 1) return Fail("sorting lists is not implemented");
  if (!ok()) return Value();
  std::vector<size_t> order(keyed.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (!Spend(static_cast<int64_t>(order.size()) * 32)) return Value();
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
    const Value& a = keyed[reverse ? y : x].first;
    const Value& b = keyed[reverse ? x : y].first;
    int result = 0;
    TemplateBudget unlimited{INT64_MAX, INT64_MAX};
    if (!case_sensitive && a.Is(Kind::kString) && b.Is(Kind::kString)) {
      return template_text::Lower(a.string()) < template_text::Lower(b.string());
    }
    TemplateCompare(a, b, &unlimited, &result);
    return result < 0;
  });
  Value::List sorted;
  for (size_t i : order) sorted.push_back(std::move(keyed[i].second));
  return MakeList(std::move(sorted));
}

TemplateValue TemplateInterpreter::ToJson(const Value& input, const Arguments& arguments) {
  // transformers' tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
  const Value* ascii = arguments.Get(0, "ensure_ascii");
  const Value* indent = arguments.Get(1, "indent");
  if (GivenTrue(ascii) || GivenTrue(arguments.Get(2, "separators"))) {
    return Fail("'tojson' with ensure_ascii or separators is not implemented");
  }
  int64_t width = -1;
  if (indent != nullptr && indent->IsNumber())
    width = std::clamp<int64_t>(indent->integer(), 0, 64);
  std::string out;
  if (!TemplateJson(input, static_cast<int>(width), GivenTrue(arguments.Get(3, "sort_keys")),
                    &budget_, &out)) {
    return Fail("'tojson' of what has no JSON");
  }
  return MakeString(std::move(out));
}

TemplateValue TemplateInterpreter::Indent(const Value& input, const Arguments& arguments) {
  const Value* width = arguments.Get(0, "width");
  const bool first = GivenTrue(arguments.Get(1, "first"));
  const bool blank = GivenTrue(arguments.Get(2, "blank"));
  std::string by(4, ' ');
  if (width != nullptr && width->Is(Kind::kString)) by = width->string();
  if (width != nullptr && width->Is(Kind::kInt)) {
    by.assign(static_cast<size_t>(std::clamp<int64_t>(width->integer(), 0, 1024)), ' ');
  }
  const std::string text = Str(input);
  std::string out;
  bool first_line = true;
  for (size_t begin = 0; begin <= text.size() && ok();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (!first_line) out += '\n';
    const bool empty = end == begin;
    if (first_line ? first : blank || !empty) out += by;
    if (!Spend(1, by.size())) return Value();
    out.append(text, begin, end - begin);
    if (out.size() > limits_.output_bytes) return Fail("a text is too long");
    first_line = false;
    begin = end + 1;
  }
  return MakeString(std::move(out));
}

bool TemplateInterpreter::Test(const Node& node) {
  const Value input = Evaluate(*node.children[0]);
  const Arguments arguments = EvaluateArguments(node, 1);
  line_ = node.line;
  return ok() && ApplyTest(node.text, input, arguments);
}

bool TemplateInterpreter::ApplyTest(const std::string& name, const Value& input,
                                    const Arguments& arguments) {
  if (name == "defined") return !input.Is(Kind::kUndefined);
  if (name == "undefined") return input.Is(Kind::kUndefined);
  if (name == "none") return input.Is(Kind::kNone);
  if (name == "string") return input.Is(Kind::kString);
  if (name == "mapping") return input.Is(Kind::kDict);
  if (name == "iterable" || name == "sequence") {
    return input.IsSequence() || input.Is(Kind::kString) || input.Is(Kind::kDict) ||
           input.Is(Kind::kUndefined);
  }
  if (name == "number") return input.IsNumber();
  if (name == "integer") return input.Is(Kind::kInt);
  if (name == "float") return input.Is(Kind::kFloat);
  if (name == "boolean") return input.Is(Kind::kBool);
  if (name == "true") return input.Is(Kind::kBool) && input.boolean();
  if (name == "false") return input.Is(Kind::kBool) && !input.boolean();
  if (name == "callable") return input.Is(Kind::kCallable);
  if (name == "lower") return CallMethod("islower", MakeString(Str(input)), {}).Truth();
  if (name == "upper") return CallMethod("isupper", MakeString(Str(input)), {}).Truth();
  if (name == "odd" || name == "even") {
    const Value rest = Arithmetic("%", input, Value::Int(2));
    return ok() && (rest.number() == 1) == (name == "odd");
  }
  const Value* other = arguments.Get(0, "");
  if (other == nullptr) {
    Fail(absl::StrCat("the test '", name, "' wants a value"));
    return false;
  }
  if (name == "divisibleby") {
    const Value rest = Arithmetic("%", input, *other);
    return ok() && rest.number() == 0;
  }
  if (name == "in") return Contains(*other, input);
  if (name == "sameas") return input.kind() == other->kind() && Equal(input, *other);
  if (name == "eq" || name == "equalto" || name == "==") return Equal(input, *other);
  if (name == "ne" || name == "!=") return !Equal(input, *other);
  const int order = Compare(input, *other);
  if (name == "lt" || name == "lessthan" || name == "<") return order < 0;
  if (name == "le" || name == "<=") return order <= 0;
  if (name == "gt" || name == "greaterthan" || name == ">") return order > 0;
  return order >= 0;
}

std::string TemplateInterpreter::FormatTime(const std::string& format) {
  std::tm time = {};
  time.tm_year = now_.year - 1900;
  time.tm_mon = now_.month - 1;
  time.tm_mday = now_.day;
  time.tm_hour = now_.hour;
  time.tm_min = now_.minute;
  time.tm_sec = now_.second;
  // Days of the week and the year, by the count of days since 1970 (proleptic Gregorian).
  const int64_t y = now_.year - (now_.month <= 2);
  const int64_t era = (y >= 0 ? y : y - 399) / 400;
  const int64_t of_era = y - era * 400;
  const int64_t day = (153 * (now_.month + (now_.month > 2 ? -3 : 9)) + 2) / 5 + now_.day - 1;
  const int64_t days = era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + day - 719468;
  time.tm_wday = static_cast<int>(((days + 4) % 7 + 7) % 7);
  const bool leap = (now_.year % 4 == 0 && now_.year % 100 != 0) || now_.year % 400 == 0;
  time.tm_yday = static_cast<int>(now_.month <= 2 ? day - 306 : day + 59 + leap);
  if (format.empty() || format.size() > 256) return "";
  char buffer[4096];
  const size_t length = std::strftime(buffer, sizeof(buffer), format.c_str(), &time);
  return std::string(buffer, length);
}

}  // namespace toroid
