#include "core/text/template_value.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

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
