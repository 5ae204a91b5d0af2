// Expressions to values: names, literals, attributes, items, slices.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/template_text.h"

namespace toroid {
namespace {

bool IsGlobal(std::string_view name) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         name == "strftime_now";
}

}  // namespace

TemplateValue TemplateInterpreter::Evaluate(const Node& node) {
  if (!Spend(1)) return Value();
  line_ = node.line;
  if (node.type == Node::kConstant) return node.constant;
  if (node.type == Node::kName) return Lookup(node.text);
  if (++depth_ > kMaxDepth) Fail("nested too deeply");
  Value value = ok() ? EvaluateInner(node) : Value();
  --depth_;
  return value;
}

TemplateValue TemplateInterpreter::EvaluateInner(const Node& node) {
  const auto operand = [&](size_t i) { return Evaluate(*node.children[i]); };
  switch (node.type) {
    case Node::kList:
    case Node::kTuple: {
      Value::List list;
      for (const Node* item : node.children) list.push_back(Evaluate(*item));
      return node.type == Node::kList ? MakeList(std::move(list)) : MakeTuple(std::move(list));
    }
    case Node::kDict:
      return DictLiteral(node);
    case Node::kNot:
      return Value::Bool(!operand(0).Truth());
    case Node::kNegate:
      return Arithmetic("-", Value::Int(0), operand(0));
    case Node::kPlus:
      return Arithmetic("+", Value::Int(0), operand(0));
    case Node::kBinary:
      return Binary(node);
    case Node::kConcat:
      return Concat(node);
    case Node::kAnd: {
      Value left = operand(0);
      return left.Truth() ? operand(1) : left;
    }
    case Node::kOr: {
      Value left = operand(0);
      return left.Truth() ? left : operand(1);
    }
    case Node::kCompare:
      return Comparison(node);
    case Node::kCondition:
      if (operand(0).Truth()) return operand(1);
      return node.children.size() > 2
                 ? operand(2)
                 : Value::Undefined("the inline if-expression without an else");
    case Node::kAttribute:
      return Attribute(operand(0), node.text);
    case Node::kItem: {
      const Value object = operand(0);
      return Item(object, operand(1));
    }
    case Node::kSlice:
      return Slice(node);
    case Node::kCall:
      return Call(node);
    case Node::kFilter:
      return Filter(node);
    case Node::kTest:
      return Value::Bool(Test(node));
    default:
      return Fail("a statement in place of an expression");
  }
}

TemplateValue TemplateInterpreter::Lookup(const std::string& name) {
  for (size_t i = frames_.size(); i-- > 0;) {
    if (i < base_ && i > 0) i = 0;
    const auto found = frames_[i].find(name);
    if (found != frames_[i].end()) return found->second;
  }
  if (const Value* given = variables_.Find(name)) return *given;
  if (IsGlobal(name)) {
    Value::Callable callable;
    callable.name = name;
    return Value::MakeCallable(std::move(callable));
  }
  return Value::Undefined(absl::StrCat("'", name, "'"));
}

TemplateValue TemplateInterpreter::DictLiteral(const Node& node) {
  Value::Dict dict;
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    const Value key = Evaluate(*node.children[i]);
    if (key.Is(Value::Kind::kList) || key.Is(Value::Kind::kDict)) {
      return Fail(absl::StrCat("a ", std::string(key.TypeName()), " cannot be a key"));
    }
    dict.Set(key, Evaluate(*node.children[i + 1]));
  }
  return MakeDict(std::move(dict));
}

TemplateValue TemplateInterpreter::Attribute(const Value& object, const std::string& name) {
  if (!ok()) return Value();
  if (object.Is(Value::Kind::kUndefined)) {
    return Fail(absl::StrCat(object.undefined_name(), " is undefined: it has no '", name, "'"));
  }
  if (HasMethod(object, name)) {
    Value::Callable callable;
    callable.name = name;
    callable.self = std::make_shared<const Value>(object);
    return Value::MakeCallable(std::move(callable));
  }
  if (object.Is(Value::Kind::kDict) || object.Is(Value::Kind::kNamespace)) {
    if (const Value* value = object.dict().Find(name)) return *value;
  }
  return Value::Undefined(
      absl::StrCat("'", std::string(object.TypeName()), " object' has no '", name, "', which"));
}

TemplateValue TemplateInterpreter::Item(const Value& object, const Value& key) {
  if (!ok()) return Value();
  if (object.Is(Value::Kind::kUndefined)) {
    return Fail(absl::StrCat(object.undefined_name(), " is undefined: it has no items"));
  }
  if (object.Is(Value::Kind::kDict)) {
    if (const Value* value = object.dict().Find(key)) return *value;
  }
  const bool integer = key.Is(Value::Kind::kInt) || key.Is(Value::Kind::kBool);
  if (integer && (object.IsSequence() || object.Is(Value::Kind::kString))) {
    int64_t index = key.integer();
    if (object.IsSequence()) {
      const auto size = static_cast<int64_t>(object.list().size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) return object.list()[static_cast<size_t>(index)];
    } else {
      Spend(1 + static_cast<int64_t>(object.string().size() / 16));
      const auto characters = template_text::Characters(object.string());
      const auto size = static_cast<int64_t>(characters.size());
      if (index < 0) index += size;
      if (index >= 0 && index < size) {
        return MakeString(std::string(characters[static_cast<size_t>(index)]));
      }
    }
  }
  if (key.Is(Value::Kind::kString)) return Attribute(object, key.string());
  return Value::Undefined(
      absl::StrCat("'", std::string(object.TypeName()), " object' has no such item, which"));
}

// Python's slices: start, stop and step may be missing or negative.
TemplateValue TemplateInterpreter::Slice(const Node& node) {
  const Value object = Evaluate(*node.children[0]);
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    bounds[i] = Evaluate(*node.children[i + 1]);
    const bool integer = bounds[i].Is(Value::Kind::kInt) || bounds[i].Is(Value::Kind::kBool);
    if (ok() && !integer && !bounds[i].Is(Value::Kind::kNone)) {
      return Fail("a slice by what is no integer");
    }
  }
  if (!ok()) return Value();
  if (object.Is(Value::Kind::kUndefined)) {
    return Fail(absl::StrCat(object.undefined_name(), " is undefined: it has no slices"));
  }
  const bool is_string = object.Is(Value::Kind::kString);
  if (!is_string && !object.IsSequence()) return Value::Undefined("a slice of this type");
  std::vector<std::string_view> characters;
  if (is_string) characters = template_text::Characters(object.string());
  const auto size = static_cast<int64_t>(is_string ? characters.size() : object.list().size());
  const int64_t step = bounds[2].Is(Value::Kind::kNone) ? 1 : bounds[2].integer();
  if (step == 0) return Fail("a slice with step 0");
  const int64_t low = step > 0 ? 0 : -1, high = step > 0 ? size : size - 1;
  const auto bound = [&](const Value& v, int64_t otherwise) {
    if (v.Is(Value::Kind::kNone)) return otherwise;
    int64_t i = v.integer();
    if (i < 0) i = i < -size ? -1 - size : i;
    return std::clamp(i < 0 ? i + size : i, low, high);
  };
  const int64_t start = bound(bounds[0], step > 0 ? low : high);
  const int64_t stop = bound(bounds[1], step > 0 ? high : low);
  if (!Spend(size / 8)) return Value();
  std::string text;
  Value::List list;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (is_string) {
      text += characters[static_cast<size_t>(i)];
    } else {
      list.push_back(object.list()[static_cast<size_t>(i)]);
    }
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (is_string) return MakeString(std::move(text));
  return object.Is(Value::Kind::kList) ? MakeList(std::move(list)) : MakeTuple(std::move(list));
}

TemplateValue::List TemplateInterpreter::Iterate(const Value& value) {
  Value::List items;
  if (!ok()) return items;
  switch (value.kind()) {
    case Value::Kind::kUndefined:
      return items;
    case Value::Kind::kList:
    case Value::Kind::kTuple:
      Spend(static_cast<int64_t>(value.list().size()), value.list().size() * sizeof(Value));
      if (ok()) items = value.list();
      return items;
    case Value::Kind::kDict:
      Spend(1, value.dict().items.size() * sizeof(Value));
      for (const auto& item : value.dict().items) items.push_back(item.first);
      return items;
    case Value::Kind::kString:
      for (std::string_view c : template_text::Characters(value.string())) {
        if (!Spend(1, sizeof(Value) + 64)) break;
        items.push_back(Value::String(std::string(c)));
      }
      return items;
    default:
      Fail(absl::StrCat("a ", std::string(value.TypeName()), " cannot be iterated"));
      return items;
  }
}

}  // namespace toroid
