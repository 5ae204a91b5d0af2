// str(x), repr(x) and json.dumps(x), as Python prints them.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "core/text/template_value.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

// repr of a float: the shortest digits that read back, exponent form as Python chooses it.
std::string FloatRepr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto scientific =
      std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::scientific);
  const std::string text(buffer, scientific.ptr);
  const int exponent = std::atoi(text.c_str() + text.find('e') + 1);
  if (exponent < -4 || exponent >= 16) return text;
  const auto fixed = std::to_chars(buffer, buffer + sizeof(buffer), d, std::chars_format::fixed);
  std::string out(buffer, fixed.ptr);
  if (out.find('.') == std::string::npos) out += ".0";
  return out;
}

void AppendHex(unsigned value, int digits, std::string* out) {
  for (int i = digits - 1; i >= 0; --i) out->push_back("0123456789abcdef"[(value >> (4 * i)) & 15]);
}

std::string StringRepr(std::string_view text) {
  const bool single = text.find('\'') != std::string_view::npos;
  const bool both = single && text.find('"') != std::string_view::npos;
  const char quote = single && !both ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const char32_t c = NextCharacter(text, &at);
    if (c == '\\' || c == static_cast<unsigned char>(quote)) {
      out.push_back('\\');
      out.push_back(static_cast<char>(c));
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD) {
      out += "\\x";
      AppendHex(c, 2, &out);
    } else if (c != 0x20 && c < 0x10000 && (IsWhiteSpace(c) || c == 0xFEFF || c == 0x200B)) {
      out += "\\u";
      AppendHex(c, 4, &out);
    } else {
      out.append(text.substr(begin, at - begin));
    }
  }
  out.push_back(quote);
  return out;
}

void AppendRepr(const TemplateValue& v, TemplateBudget* budget, std::string* out);

void AppendItems(const TemplateValue::Dict& dict, TemplateBudget* budget, std::string* out) {
  out->push_back('{');
  bool first = true;
  for (const auto& [key, value] : dict.items) {
    if (budget->exhausted()) return;
    if (!first) *out += ", ";
    first = false;
    AppendRepr(key, budget, out);
    *out += ": ";
    AppendRepr(value, budget, out);
  }
  out->push_back('}');
}

void AppendRepr(const TemplateValue& v, TemplateBudget* budget, std::string* out) {
  const size_t before = out->size();
  if (!budget->Step()) return;
  switch (v.kind()) {
    case Kind::kUndefined:
      *out += "Undefined";
      break;
    case Kind::kNone:
      *out += "None";
      break;
    case Kind::kBool:
      *out += v.boolean() ? "True" : "False";
      break;
    case Kind::kInt:
      *out += std::to_string(v.integer());
      break;
    case Kind::kFloat:
      *out += FloatRepr(v.number());
      break;
    case Kind::kString:
      *out += StringRepr(v.string());
      break;
    case Kind::kList:
    case Kind::kTuple: {
      const bool tuple = v.Is(Kind::kTuple);
      *out += tuple ? "(" : "[";
      for (size_t i = 0; i < v.list().size() && !budget->exhausted(); ++i) {
        if (i > 0) *out += ", ";
        AppendRepr(v.list()[i], budget, out);
      }
      if (tuple && v.list().size() == 1) *out += ",";
      *out += tuple ? ")" : "]";
      return;
    }
    case Kind::kDict:
      AppendItems(v.dict(), budget, out);
      return;
    case Kind::kNamespace:
      *out += "<Namespace ";
      AppendItems(v.dict(), budget, out);
      *out += ">";
      return;
    case Kind::kCallable:
      *out += "<" + v.callable().name + ">";
      break;
  }
  budget->Bytes(out->size() - before);
}

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\b':
        *out += "\\b";
        break;
      case '\f':
        *out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          *out += "\\u";
          AppendHex(static_cast<unsigned char>(c), 4, out);
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

std::string JsonNumber(const TemplateValue& v) {
  if (!v.Is(Kind::kFloat)) return std::to_string(v.integer());
  if (std::isnan(v.number())) return "NaN";
  if (std::isinf(v.number())) return v.number() < 0 ? "-Infinity" : "Infinity";
  return FloatRepr(v.number());
}

class JsonWriter {
 public:
  JsonWriter(int indent, bool sort_keys, TemplateBudget* budget, std::string* out)
      : indent_(indent), sort_keys_(sort_keys), budget_(budget), out_(out) {}

  bool Write(const TemplateValue& v, int level) {
    const size_t before = out_->size();
    if (!budget_->Step()) return true;
    switch (v.kind()) {
      case Kind::kNone:
        *out_ += "null";
        break;
      case Kind::kBool:
        *out_ += v.boolean() ? "true" : "false";
        break;
      case Kind::kInt:
      case Kind::kFloat:
        *out_ += JsonNumber(v);
        break;
      case Kind::kString:
        AppendJsonString(v.string(), out_);
        break;
      case Kind::kList:
      case Kind::kTuple:
        return WriteList(v.list(), level);
      case Kind::kDict:
        return WriteDict(v.dict(), level);
      default:
        return false;
    }
    budget_->Bytes(out_->size() - before);
    return true;
  }

 private:
  void Break(int level) {
    if (indent_ < 0) return;
    out_->push_back('\n');
    out_->append(static_cast<size_t>(indent_) * level, ' ');
    budget_->Bytes(1 + static_cast<size_t>(indent_) * level);
  }
  void Next(bool first, int level) {
    if (!first) *out_ += indent_ < 0 ? ", " : ",";
    Break(level);
  }
  bool WriteList(const TemplateValue::List& list, int level) {
    out_->push_back('[');
    for (size_t i = 0; i < list.size() && !budget_->exhausted(); ++i) {
      Next(i == 0, level + 1);
      if (!Write(list[i], level + 1)) return false;
    }
    if (!list.empty()) Break(level);
    out_->push_back(']');
    return true;
  }
  bool WriteDict(const TemplateValue::Dict& dict, int level) {
    std::vector<std::pair<std::string, const TemplateValue*>> items;
    for (const auto& [key, value] : dict.items) {
      if (key.Is(Kind::kString)) {
        items.emplace_back(key.string(), &value);
      } else if (key.Is(Kind::kNone)) {
        items.emplace_back("null", &value);
      } else if (key.Is(Kind::kBool)) {
        items.emplace_back(key.boolean() ? "true" : "false", &value);
      } else if (key.IsNumber()) {
        items.emplace_back(JsonNumber(key), &value);
      } else {
        return false;
      }
    }
    if (sort_keys_) {
      std::stable_sort(items.begin(), items.end(),
                       [](const auto& a, const auto& b) { return a.first < b.first; });
    }
    out_->push_back('{');
    bool first = true;
    for (const auto& [key, value] : items) {
      if (budget_->exhausted()) break;
      Next(first, level + 1);
      first = false;
      AppendJsonString(key, out_);
      budget_->Bytes(key.size());
      *out_ += ": ";
      if (!Write(*value, level + 1)) return false;
    }
    if (!items.empty()) Break(level);
    out_->push_back('}');
    return true;
  }

  int indent_;
  bool sort_keys_;
  TemplateBudget* budget_;
  std::string* out_;
};

}  // namespace

std::string TemplateStr(const TemplateValue& value, TemplateBudget* budget) {
  if (value.Is(Kind::kUndefined)) return "";
  if (value.Is(Kind::kString)) {
    budget->Bytes(value.string().size());
    return value.string();
  }
  return TemplateRepr(value, budget);
}

std::string TemplateRepr(const TemplateValue& value, TemplateBudget* budget) {
  std::string out;
  AppendRepr(value, budget, &out);
  return out;
}

bool TemplateJson(const TemplateValue& value, int indent, bool sort_keys, TemplateBudget* budget,
                  std::string* out) {
  return JsonWriter(indent, sort_keys, budget, out).Write(value, 0);
}

}  // namespace toroid
