// The methods of str, dict and list that templates call, as Python defines them.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/template_text.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

constexpr std::string_view kStringMethods[] = {
    "strip",        "lstrip",       "rstrip",  "split",   "rsplit",    "splitlines",
    "startswith",   "endswith",     "replace", "upper",   "lower",     "title",
    "capitalize",   "find",         "rfind",   "count",   "join",      "isdigit",
    "isalpha",      "isalnum",      "isspace", "isupper", "islower",   "zfill",
    "removeprefix", "removesuffix", "index",   "format",  "partition", "rpartition",
    "swapcase",     "encode",       "center",  "ljust",   "rjust"};
constexpr std::string_view kDictMethods[] = {"items", "keys",   "values", "get",     "copy",
                                             "pop",   "update", "clear",  "popitem", "setdefault"};
constexpr std::string_view kListMethods[] = {"index",   "count", "append", "extend",
                                             "insert",  "pop",   "remove", "sort",
                                             "reverse", "clear", "copy"};

bool StartsWith(std::string_view text, std::string_view with) {
  return text.substr(0, with.size()) == with;
}
bool EndsWith(std::string_view text, std::string_view with) {
  return text.size() >= with.size() && text.substr(text.size() - with.size()) == with;
}

// startswith and endswith take a string or a tuple of them.
template <typename Match>
bool AnyMatch(const TemplateValue& what, Match match) {
  if (what.Is(Kind::kString)) return match(what.string());
  return what.Is(Kind::kTuple) &&
         std::any_of(what.list().begin(), what.list().end(), [&](const TemplateValue& v) {
           return v.Is(Kind::kString) && match(v.string());
         });
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = NextCharacter(text, &at);
    if (!(c >= 0x0A && c <= 0x0D) && !(c >= 0x1C && c <= 0x1E) && c != 0x85 && c != 0x2028 &&
        c != 0x2029) {
      continue;
    }
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

// isdigit and its kin: not empty, and each character is one.
template <typename Property>
bool All(std::string_view text, Property property) {
  for (size_t at = 0; at < text.size();) {
    if (!property(NextCharacter(text, &at))) return false;
  }
  return !text.empty();
}

// isupper, islower: no character of the other case and at least one of this.
bool AllCase(std::string_view text, bool upper) {
  bool any = false;
  for (size_t at = 0; at < text.size();) {
    const char32_t c = NextCharacter(text, &at);
    if (!template_text::IsCased(c)) continue;
    if (template_text::IsUpper(c) != upper) return false;
    any = true;
  }
  return any;
}

std::string ZeroFill(const std::string& text, size_t width) {
  const size_t length = template_text::CountCharacters(text);
  if (length >= width) return text;
  const size_t sign = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  return text.substr(0, sign) + std::string(width - length, '0') + text.substr(sign);
}

}  // namespace

bool TemplateInterpreter::HasMethod(const Value& object, std::string_view name) const {
  if (object.Is(Kind::kString)) return std::ranges::count(kStringMethods, name) > 0;
  if (object.Is(Kind::kDict)) return std::ranges::count(kDictMethods, name) > 0;
  if (object.Is(Kind::kList)) return std::ranges::count(kListMethods, name) > 0;
  return object.Is(Kind::kTuple) && (name == "index" || name == "count");
}

TemplateValue TemplateInterpreter::CallMethod(const std::string& name, const Value& self,
                                              const Arguments& arguments) {
  if (self.Is(Kind::kString)) {
    if (!Spend(1 + static_cast<int64_t>(self.string().size() / 16))) return Value();
    return StringMethod(name, self.string(), arguments);
  }
  if (self.Is(Kind::kDict)) return DictMethod(name, self, arguments);
  const Value* what = arguments.Get(0, "");
  if (name == "copy" && what == nullptr) return self;
  if ((name != "index" && name != "count") || what == nullptr) {
    return Fail(absl::StrCat("list.", name, "() would change a value, which a template may not"));
  }
  int64_t count = 0;
  for (size_t i = 0; i < self.list().size() && ok(); ++i) {
    if (!Equal(self.list()[i], *what)) continue;
    if (name == "index") return Value::Int(static_cast<int64_t>(i));
    ++count;
  }
  return name == "count" ? Value::Int(count) : Fail("list.index(): no such item");
}

TemplateValue TemplateInterpreter::DictMethod(const std::string& name, const Value& self,
                                              const Arguments& arguments) {
  if (name == "get") {
    const Value* key = arguments.Get(0, "");
    if (key == nullptr) return Fail("dict.get() without a key");
    if (const Value* value = self.dict().Find(*key)) return *value;
    const Value* otherwise = arguments.Get(1, "default");
    return otherwise == nullptr ? Value::None() : *otherwise;
  }
  if (name == "copy") return self;
  Value::List list;
  if (name == "keys") return MakeList(Iterate(self));
  if (name != "items" && name != "values") {
    return Fail(absl::StrCat("dict.", name, "() would change a value, which a template may not"));
  }
  for (const auto& [key, value] : self.dict().items) {
    list.push_back(name == "items" ? MakeTuple({key, value}) : value);
    if (!ok()) return Value();
  }
  return MakeList(std::move(list));
}

TemplateValue TemplateInterpreter::Split(const std::string& self, const Arguments& arguments,
                                         bool from_right) {
  const Value* separator = arguments.Get(0, "sep");
  const Value* limit = arguments.Get(1, "maxsplit");
  int64_t left = limit != nullptr && limit->IsNumber() ? limit->integer() : -1;
  if (left < 0) left = INT64_MAX;
  const bool by_space = separator == nullptr || separator->Is(Kind::kNone);
  if (!by_space && !separator->Is(Kind::kString)) return Fail("split() by what is no string");
  if (!by_space && separator->string().empty()) return Fail("split() by an empty string");
  std::vector<std::string_view> parts;
  std::string_view rest = self;
  const auto space = by_space ? std::string_view() : std::string_view(separator->string());
  const auto side = from_right ? template_text::kRight : template_text::kLeft;
  while (true) {
    if (by_space) {
      rest = template_text::Strip(rest, nullptr, side);
      if (rest.empty()) break;
    }
    size_t begin = std::string_view::npos, end = 0;  // of the separator
    if (left > 0 && !by_space) {
      begin = from_right ? rest.rfind(space) : rest.find(space);
      end = begin + space.size();
    } else if (left > 0) {
      for (size_t at = from_right ? rest.size() : 0; from_right ? at > 0 : at < rest.size();) {
        size_t start = at;
        const char32_t c =
            from_right ? PreviousCharacter(rest, at, &start) : NextCharacter(rest, &at);
        if (template_text::IsSpace(c)) {
          begin = start;
          end = from_right ? at : at;
          break;
        }
        if (from_right) at = start;
      }
    }
    if (begin == std::string_view::npos) {
      parts.push_back(
          by_space ? template_text::Strip(rest, nullptr,
                                          from_right ? template_text::kLeft : template_text::kRight)
                   : rest);
      // With a limit the last part keeps its inner white space and, from the left, its end.
      if (by_space && left == 0) parts.back() = rest;
      break;
    }
    parts.push_back(from_right ? rest.substr(end) : rest.substr(0, begin));
    rest = from_right ? rest.substr(0, begin) : rest.substr(end);
    --left;
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  Value::List list;
  for (std::string_view part : parts) {
    if (!Spend(1, sizeof(Value) + 64)) return Value();
    list.push_back(MakeString(std::string(part)));
  }
  return MakeList(std::move(list));
}

TemplateValue TemplateInterpreter::Replace(const std::string& self, const Arguments& arguments) {
  const Value* from = arguments.Get(0, "old");
  const Value* to = arguments.Get(1, "new");
  const Value* limit = arguments.Get(2, "count");
  if (from == nullptr || to == nullptr) return Fail("replace() takes two strings");
  const std::string old_text = Str(*from), new_text = Str(*to);
  int64_t left = limit != nullptr && limit->IsNumber() ? limit->integer() : -1;
  if (left < 0) left = INT64_MAX;
  std::string out;
  size_t done = 0;
  while (left-- > 0 && ok()) {
    size_t at = done;
    if (!old_text.empty()) {
      at = self.find(old_text, done);
      if (at == std::string::npos) break;
    }
    out.append(self, done, at - done).append(new_text);
    if (out.size() > limits_.output_bytes) return Fail("a text is too long");
    if (!Spend(1, new_text.size())) return Value();
    done = at + old_text.size();
    if (!old_text.empty()) continue;
    if (done >= self.size()) return MakeString(std::move(out));
    const size_t length = Utf8Length(self[done]);  // between all characters
    out.append(self, done, length);
    done += length;
  }
  out.append(self, std::min(done, self.size()), std::string::npos);
  return MakeString(std::move(out));
}

TemplateValue TemplateInterpreter::StringMethod(const std::string& name, const std::string& self,
                                                const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  const auto text = [&]() -> const std::string* {
    return first != nullptr && first->Is(Kind::kString) ? &first->string() : nullptr;
  };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto side = name[0] == 's'   ? template_text::kBoth
                      : name[0] == 'l' ? template_text::kLeft
                                       : template_text::kRight;
    return MakeString(std::string(template_text::Strip(self, text(), side)));
  }
  if (name == "split" || name == "rsplit") return Split(self, arguments, name[0] == 'r');
  if (name == "replace") return Replace(self, arguments);
  if (name == "upper") return MakeString(template_text::Upper(self));
  if (name == "lower") return MakeString(template_text::Lower(self));
  if (name == "title") return MakeString(template_text::Title(self, false));
  if (name == "capitalize") return MakeString(template_text::Capitalize(self));
  if (name == "isdigit") return Value::Bool(All(self, IsNumeric));
  if (name == "isalpha") return Value::Bool(All(self, template_text::IsLetter));
  if (name == "isalnum") {
    return Value::Bool(
        All(self, [](char32_t c) { return template_text::IsLetter(c) || IsNumeric(c); }));
  }
  if (name == "isspace") return Value::Bool(All(self, template_text::IsSpace));
  if (name == "isupper" || name == "islower") return Value::Bool(AllCase(self, name[2] == 'u'));
  if (name == "splitlines") {
    Value::List list;
    for (std::string_view line : SplitLines(self, first != nullptr && first->Truth())) {
      if (!Spend(1, sizeof(Value) + 64)) return Value();
      list.push_back(MakeString(std::string(line)));
    }
    return MakeList(std::move(list));
  }
  if (first == nullptr) return Fail(absl::StrCat("str.", name, "() without its argument"));
  if (name == "startswith") {
    return Value::Bool(AnyMatch(*first, [&](const auto& s) { return StartsWith(self, s); }));
  }
  if (name == "endswith") {
    return Value::Bool(AnyMatch(*first, [&](const auto& s) { return EndsWith(self, s); }));
  }
  if (name == "zfill" && first->Is(Kind::kInt)) {
    if (first->integer() > 4096) return Fail("a text is too long");
    return MakeString(ZeroFill(self, static_cast<size_t>(std::max<int64_t>(first->integer(), 0))));
  }
  if (name == "join") {
    std::string out;
    bool separate = false;
    for (const Value& item : Iterate(*first)) {
      if (!item.Is(Kind::kString)) return Fail("str.join() of what is no string");
      if (std::exchange(separate, true)) out += self;
      out += item.string();
      if (out.size() > limits_.output_bytes) return Fail("a text is too long");
    }
    return MakeString(std::move(out));
  }
  if (text() == nullptr) return Fail(absl::StrCat("str.", name, "() of what is no string"));
  if (name == "removeprefix") {
    return MakeString(StartsWith(self, *text()) ? self.substr(text()->size()) : self);
  }
  if (name == "removesuffix") {
    return MakeString(EndsWith(self, *text()) ? self.substr(0, self.size() - text()->size())
                                              : self);
  }
  if (name == "find" || name == "rfind" || name == "index") {
    const size_t at = name == "rfind" ? self.rfind(*text()) : self.find(*text());
    if (at == std::string::npos) {
      return name == "index" ? Fail("str.index(): no such text") : Value::Int(-1);
    }
    return Value::Int(
        static_cast<int64_t>(template_text::CountCharacters(std::string_view(self).substr(0, at))));
  }
  if (name == "count" && !text()->empty()) {
    int64_t count = 0;
    for (size_t at = self.find(*text()); at != std::string::npos;
         at = self.find(*text(), at + text()->size())) {
      ++count;
    }
    return Value::Int(count);
  }
  return Fail(absl::StrCat("str.", name, "() is not implemented"));
}

}  // namespace toroid
