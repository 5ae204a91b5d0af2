// Jinja's filters, but for those of lists.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/template_text.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

constexpr std::string_view kFilters[] = {
    "abs",     "capitalize", "count",  "d",      "default",    "dictsort", "e",          "escape",
    "first",   "float",      "indent", "int",    "items",      "join",     "last",       "length",
    "list",    "lower",      "map",    "max",    "min",        "reject",   "rejectattr", "replace",
    "reverse", "round",      "safe",   "select", "selectattr", "sort",     "string",     "sum",
    "title",   "tojson",     "trim",   "unique", "upper",      "wordcount"};

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

bool IsTemplateFilter(std::string_view name) { return std::ranges::count(kFilters, name) > 0; }

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
        input.Is(Kind::kUndefined) || (arguments.IsTrue(1, "boolean") && !input.Truth());
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

TemplateValue TemplateInterpreter::ToJson(const Value& input, const Arguments& arguments) {
  // transformers' tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)
  const Value* indent = arguments.Get(1, "indent");
  if (arguments.IsTrue(0, "ensure_ascii") || arguments.IsTrue(2, "separators")) {
    return Fail("'tojson' with ensure_ascii or separators is not implemented");
  }
  int64_t width = -1;
  if (indent != nullptr && indent->IsNumber())
    width = std::clamp<int64_t>(indent->integer(), 0, 64);
  std::string out;
  if (!TemplateJson(input, static_cast<int>(width), arguments.IsTrue(3, "sort_keys"), &budget_,
                    &out)) {
    return Fail("'tojson' of what has no JSON");
  }
  return MakeString(std::move(out));
}

TemplateValue TemplateInterpreter::Indent(const Value& input, const Arguments& arguments) {
  const Value* width = arguments.Get(0, "width");
  const bool first = arguments.IsTrue(1, "first");
  const bool blank = arguments.IsTrue(2, "blank");
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

}  // namespace toroid
