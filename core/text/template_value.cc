#include "core/text/template_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/text/unicode.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;
constexpr int kMaxJsonDepth = 64;

// Equal keys have equal texts: True == 1 == 1.0 as in Python.
std::string DictKey(const TemplateValue& key) {
  TemplateBudget budget{1000, 1 << 20};
  if (key.Is(Kind::kString)) return "s" + key.string();
  if (key.IsNumber() && key.number() == std::floor(key.number()) && std::abs(key.number()) < 9e15) {
    return "i" + std::to_string(static_cast<int64_t>(key.number()));
  }
  return "r" + TemplateRepr(key, &budget);
}

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

TemplateValue FromTree(const nlohmann::ordered_json& json) {
  if (json.is_null()) return TemplateValue::None();
  if (json.is_boolean()) return TemplateValue::Bool(json.get<bool>());
  if (json.is_number_unsigned() && json.get<uint64_t>() > INT64_MAX) {
    return TemplateValue::Float(json.get<double>());
  }
  if (json.is_number_integer()) return TemplateValue::Int(json.get<int64_t>());
  if (json.is_number_float()) return TemplateValue::Float(json.get<double>());
  if (json.is_string()) return TemplateValue::String(json.get<std::string>());
  if (json.is_array()) {
    TemplateValue::List list;
    for (const auto& item : json) list.push_back(FromTree(item));
    return TemplateValue::MakeList(std::move(list));
  }
  TemplateValue::Dict dict;
  for (const auto& [key, value] : json.items()) dict.Set(key, FromTree(value));
  return TemplateValue::MakeDict(std::move(dict));
}

bool DictEqual(const TemplateValue::Dict& a, const TemplateValue::Dict& b, TemplateBudget* budget) {
  if (a.items.size() != b.items.size()) return false;
  return std::all_of(a.items.begin(), a.items.end(), [&](const auto& item) {
    const TemplateValue* other = b.Find(item.first);
    return other != nullptr && TemplateEqual(item.second, *other, budget);
  });
}

}  // namespace

void TemplateValue::Dict::Set(const TemplateValue& key, TemplateValue value) {
  const auto [entry, inserted] = index.try_emplace(DictKey(key), items.size());
  if (inserted) {
    items.emplace_back(key, std::move(value));
  } else {
    items[entry->second].second = std::move(value);
  }
}
void TemplateValue::Dict::Set(std::string_view key, TemplateValue value) {
  Set(String(std::string(key)), std::move(value));
}
const TemplateValue* TemplateValue::Dict::Find(const TemplateValue& key) const {
  const auto found = index.find(DictKey(key));
  return found == index.end() ? nullptr : &items[found->second].second;
}
const TemplateValue* TemplateValue::Dict::Find(std::string_view key) const {
  const auto found = index.find("s" + std::string(key));
  return found == index.end() ? nullptr : &items[found->second].second;
}

TemplateValue TemplateValue::Undefined(std::string name) {
  TemplateValue v;
  v.data_ = std::make_shared<const std::string>(std::move(name));
  return v;
}
TemplateValue TemplateValue::None() {
  TemplateValue v;
  v.kind_ = Kind::kNone;
  return v;
}
TemplateValue TemplateValue::Bool(bool b) {
  TemplateValue v;
  v.kind_ = Kind::kBool;
  v.int_ = b;
  return v;
}
TemplateValue TemplateValue::Int(int64_t i) {
  TemplateValue v;
  v.kind_ = Kind::kInt;
  v.int_ = i;
  return v;
}
TemplateValue TemplateValue::Float(double d) {
  TemplateValue v;
  v.kind_ = Kind::kFloat;
  v.float_ = d;
  return v;
}
TemplateValue TemplateValue::String(std::string s) {
  TemplateValue v;
  v.kind_ = Kind::kString;
  v.data_ = std::make_shared<const std::string>(std::move(s));
  return v;
}
TemplateValue TemplateValue::MakeList(List list) {
  TemplateValue v;
  v.kind_ = Kind::kList;
  for (const TemplateValue& item : list) v.depth_ = std::max(v.depth_, item.depth_);
  ++v.depth_;
  v.data_ = std::make_shared<const List>(std::move(list));
  return v;
}
TemplateValue TemplateValue::MakeTuple(List list) {
  TemplateValue v = MakeList(std::move(list));
  v.kind_ = Kind::kTuple;
  return v;
}
TemplateValue TemplateValue::MakeDict(Dict dict) {
  TemplateValue v;
  v.kind_ = Kind::kDict;
  for (const auto& item : dict.items) {
    v.depth_ = std::max({v.depth_, item.first.depth_, item.second.depth_});
  }
  ++v.depth_;
  v.data_ = std::make_shared<Dict>(std::move(dict));
  return v;
}
TemplateValue TemplateValue::MakeNamespace() {
  TemplateValue v;
  v.kind_ = Kind::kNamespace;
  v.depth_ = 1000;  // too deep to be put into anything, so no cycle comes about
  v.data_ = std::make_shared<Dict>();
  return v;
}
TemplateValue TemplateValue::MakeCallable(Callable callable) {
  TemplateValue v;
  v.kind_ = Kind::kCallable;
  if (callable.self != nullptr) v.depth_ = callable.self->depth_ + 1;
  v.data_ = std::make_shared<const Callable>(std::move(callable));
  return v;
}

absl::StatusOr<TemplateValue> TemplateValue::FromJson(std::string_view text) {
  using Json = nlohmann::ordered_json;
  const Json::parser_callback_t shallow = [](int depth, Json::parse_event_t, Json&) {
    return depth <= kMaxJsonDepth;
  };
  const Json json = Json::parse(text.begin(), text.end(), shallow, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError("not valid JSON");
  return FromTree(json);
}

const std::string& TemplateValue::undefined_name() const {
  static const std::string* unknown = new std::string("value");
  const auto* name = std::get_if<std::shared_ptr<const std::string>>(&data_);
  return kind_ == Kind::kUndefined && name != nullptr && *name != nullptr ? **name : *unknown;
}

bool TemplateValue::Truth() const {
  switch (kind_) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return int_ != 0;
    case Kind::kFloat:
      return float_ != 0;
    case Kind::kString:
      return !string().empty();
    case Kind::kList:
    case Kind::kTuple:
      return !list().empty();
    case Kind::kDict:
      return !dict().items.empty();
    case Kind::kNamespace:
    case Kind::kCallable:
      return true;
  }
  return false;
}

std::string_view TemplateValue::TypeName() const {
  constexpr std::string_view kNames[] = {"Undefined", "NoneType",  "bool",    "int",
                                         "float",     "str",       "list",    "tuple",
                                         "dict",      "Namespace", "function"};
  return kNames[static_cast<size_t>(kind_)];
}

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

bool TemplateEqual(const TemplateValue& a, const TemplateValue& b, TemplateBudget* budget) {
  if (!budget->Step()) return false;
  if (a.IsNumber() && b.IsNumber()) {
    if (a.Is(Kind::kFloat) || b.Is(Kind::kFloat)) return a.number() == b.number();
    return a.integer() == b.integer();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      budget->Step(static_cast<int64_t>(a.string().size() / 64));
      return a.string() == b.string();
    case Kind::kList:
    case Kind::kTuple:
      if (a.list().size() != b.list().size()) return false;
      for (size_t i = 0; i < a.list().size(); ++i) {
        if (!TemplateEqual(a.list()[i], b.list()[i], budget)) return false;
      }
      return true;
    case Kind::kDict:
      return DictEqual(a.dict(), b.dict(), budget);
    case Kind::kNamespace:
      return &a.dict() == &b.dict();
    default:
      return &a.callable() == &b.callable();
  }
}

bool TemplateCompare(const TemplateValue& a, const TemplateValue& b, TemplateBudget* budget,
                     int* order) {
  *order = 0;
  if (!budget->Step()) return true;
  const auto compare = [&](const auto& x, const auto& y) {
    *order = x < y ? -1 : y < x ? 1 : 0;
    return true;
  };
  if (a.IsNumber() && b.IsNumber()) {
    if (a.Is(Kind::kFloat) || b.Is(Kind::kFloat)) return compare(a.number(), b.number());
    return compare(a.integer(), b.integer());
  }
  // Bytes of UTF-8 order as code points do.
  if (a.Is(Kind::kString) && b.Is(Kind::kString)) return compare(a.string(), b.string());
  if (!a.IsSequence() || a.kind() != b.kind()) return false;
  for (size_t i = 0; i < std::min(a.list().size(), b.list().size()); ++i) {
    if (TemplateEqual(a.list()[i], b.list()[i], budget)) continue;
    return TemplateCompare(a.list()[i], b.list()[i], budget, order);
  }
  return compare(a.list().size(), b.list().size());
}

}  // namespace toroid
