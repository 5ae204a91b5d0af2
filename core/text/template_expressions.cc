#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/unicode.h"

namespace toroid {
namespace {

constexpr int kMaxDepth = 600;
constexpr int64_t kMaxRange = 100000;  // as jinja2's sandbox

bool IsGlobal(std::string_view name) {
  return name == "range" || name == "namespace" || name == "dict" || name == "raise_exception" ||
         name == "strftime_now";
}

int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

}  // namespace

const TemplateValue* TemplateInterpreter::Arguments::Get(size_t position,
                                                         std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [given, value] : named) {
    if (given == name) return &value;
  }
  return nullptr;
}

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

TemplateValue TemplateInterpreter::Binary(const Node& node) {
  const Value a = Evaluate(*node.children[0]);
  const Value b = Evaluate(*node.children[1]);
  if (!ok()) return Value();
  for (const Value* v : {&a, &b}) {
    if (v->Is(Value::Kind::kUndefined)) {
      return Fail(absl::StrCat(v->undefined_name(), " is undefined in '", node.text, "'"));
    }
  }
  if (node.text == "+") return Add(a, b);
  if (node.text == "*") return Multiply(a, b);
  if (node.text == "%" && a.Is(Value::Kind::kString)) {
    return Fail("formatting with % is not implemented");
  }
  return Arithmetic(node.text, a, b);
}

TemplateValue TemplateInterpreter::Add(const Value& a, const Value& b) {
  if (a.Is(Value::Kind::kString) && b.Is(Value::Kind::kString)) {
    return MakeString(a.string() + b.string());
  }
  if (a.IsSequence() && a.kind() == b.kind()) {
    Value::List list = a.list();
    list.insert(list.end(), b.list().begin(), b.list().end());
    return a.Is(Value::Kind::kList) ? MakeList(std::move(list)) : MakeTuple(std::move(list));
  }
  return Arithmetic("+", a, b);
}

TemplateValue TemplateInterpreter::Multiply(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) return Arithmetic("*", a, b);
  const Value& what = a.IsNumber() ? b : a;
  const Value& times = a.IsNumber() ? a : b;
  if (times.Is(Value::Kind::kFloat) || !times.IsNumber()) return Arithmetic("*", a, b);
  const auto count = static_cast<size_t>(std::max<int64_t>(times.integer(), 0));
  if (what.Is(Value::Kind::kString)) {
    const size_t size = what.string().size();
    if (size > 0 && count > limits_.output_bytes / size) return Fail("a text is too long");
    if (!Spend(1, size * count)) return Value();
    std::string text;
    text.reserve(size * count);
    for (size_t i = 0; i < count && size > 0; ++i) text += what.string();
    return Value::String(std::move(text));
  }
  if (!what.IsSequence()) return Arithmetic("*", a, b);
  Value::List list;
  for (size_t i = 0; i < count && !what.list().empty(); ++i) {
    if (!Spend(static_cast<int64_t>(what.list().size()), what.list().size() * sizeof(Value))) {
      return Value();
    }
    list.insert(list.end(), what.list().begin(), what.list().end());
  }
  return what.Is(Value::Kind::kList) ? MakeList(std::move(list)) : MakeTuple(std::move(list));
}

TemplateValue TemplateInterpreter::Arithmetic(std::string_view op, const Value& a, const Value& b) {
  if (!ok()) return Value();
  if (!a.IsNumber() || !b.IsNumber()) {
    return Fail(absl::StrCat("'", absl::string_view(op.data(), op.size()), "' between a ",
                             std::string(a.TypeName()), " and a ", std::string(b.TypeName())));
  }
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && b.number() == 0) return Fail("division by zero");
  if (!a.Is(Value::Kind::kFloat) && !b.Is(Value::Kind::kFloat) && op != "/") {
    return IntegerArithmetic(op, a.integer(), b.integer());
  }
  const double x = a.number(), y = b.number();
  if (op == "+") return Value::Float(x + y);
  if (op == "-") return Value::Float(x - y);
  if (op == "*") return Value::Float(x * y);
  if (op == "/") return Value::Float(x / y);
  if (op == "//") return Value::Float(std::floor(x / y));
  if (op == "%") {
    double rest = std::fmod(x, y);
    if (rest != 0 && (rest < 0) != (y < 0)) rest += y;
    return Value::Float(rest);
  }
  if (x < 0 && y != std::floor(y)) return Fail("a complex number");
  return Value::Float(std::pow(x, y));
}

TemplateValue TemplateInterpreter::IntegerArithmetic(std::string_view op, int64_t a, int64_t b) {
  int64_t result = 0;
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(a, b, &result);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(a, b, &result);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(a, b, &result);
  } else if (op == "**") {
    if (b < 0) {
      if (a == 0) return Fail("division by zero");
      return Value::Float(std::pow(static_cast<double>(a), static_cast<double>(b)));
    }
    result = 1;
    if (a == 0 || a == 1 || a == -1) {
      result = b == 0 ? 1 : (a == -1 && b % 2 == 0 ? 1 : a);
    } else {
      for (int64_t i = 0; i < b && !overflow; ++i) {
        overflow = __builtin_mul_overflow(result, a, &result);
      }
    }
  } else if (a == INT64_MIN && b == -1) {
    overflow = op == "//";
  } else if (op == "//") {
    result = FloorDivide(a, b);
  } else {
    result = a - b * FloorDivide(a, b);
  }
  return overflow ? Fail("an integer beyond 64 bits") : Value::Int(result);
}

TemplateValue TemplateInterpreter::Concat(const Node& node) {
  std::string text;
  for (const Node* operand : node.children) {
    const Value value = Evaluate(*operand);
    if (!ok()) return Value();
    text += Str(value);
    if (text.size() > limits_.output_bytes) return Fail("a text is too long");
  }
  return MakeString(std::move(text));
}

TemplateValue TemplateInterpreter::Comparison(const Node& node) {
  Value left = Evaluate(*node.children[0]);
  for (size_t i = 0; i < node.names.size(); ++i) {
    Value right = Evaluate(*node.children[i + 1]);
    if (!ok()) return Value();
    if (!CompareOnce(node.names[i], left, right)) return Value::Bool(false);
    left = std::move(right);
  }
  return Value::Bool(true);
}

bool TemplateInterpreter::CompareOnce(const std::string& op, const Value& a, const Value& b) {
  if (op == "==") return Equal(a, b);
  if (op == "!=") return !Equal(a, b);
  if (op == "in") return Contains(b, a);
  if (op == "not in") return !Contains(b, a);
  const int order = Compare(a, b);
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

bool TemplateInterpreter::Contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Value::Kind::kUndefined:
      return false;
    case Value::Kind::kString:
      if (!item.Is(Value::Kind::kString)) {
        Fail(absl::StrCat("a ", std::string(item.TypeName()), " cannot be in a string"));
        return false;
      }
      Spend(1 + static_cast<int64_t>(container.string().size() / 16));
      return container.string().find(item.string()) != std::string::npos;
    case Value::Kind::kList:
    case Value::Kind::kTuple:
      return std::any_of(container.list().begin(), container.list().end(),
                         [&](const Value& v) { return ok() && Equal(v, item); });
    case Value::Kind::kDict:
      return container.dict().Find(item) != nullptr;
    default:
      Fail(absl::StrCat("nothing can be in a ", std::string(container.TypeName())));
      return false;
  }
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

TemplateInterpreter::Arguments TemplateInterpreter::EvaluateArguments(const Node& node,
                                                                      size_t first) {
  Arguments arguments;
  for (size_t i = first; i < node.children.size() && ok(); ++i) {
    Value value = Evaluate(*node.children[i]);
    const std::string& name = node.names[i - first];
    if (name.empty()) {
      arguments.positional.push_back(std::move(value));
    } else {
      arguments.named.emplace_back(name, std::move(value));
    }
  }
  return arguments;
}

TemplateValue TemplateInterpreter::Call(const Node& node) {
  const Value callee = Evaluate(*node.children[0]);
  const Arguments arguments = EvaluateArguments(node, 1);
  if (!ok()) return Value();
  line_ = node.line;
  return CallValue(callee, arguments);
}

TemplateValue TemplateInterpreter::CallValue(const Value& callee, const Arguments& arguments) {
  if (callee.Is(Value::Kind::kUndefined)) {
    return Fail(absl::StrCat(callee.undefined_name(), " is undefined: it cannot be called"));
  }
  if (!callee.Is(Value::Kind::kCallable)) {
    return Fail(absl::StrCat("a ", std::string(callee.TypeName()), " cannot be called"));
  }
  const Value::Callable& callable = callee.callable();
  if (callable.macro >= 0) {
    return CallMacro(*tree_.macros[static_cast<size_t>(callable.macro)], arguments);
  }
  if (callable.self == nullptr) return CallGlobal(callable.name, arguments);
  if (callable.name == "loop.cycle" || callable.name == "loop.changed") {
    return CallLoop(callable.name, *callable.self, arguments);
  }
  return CallMethod(callable.name, *callable.self, arguments);
}

TemplateValue TemplateInterpreter::CallGlobal(const std::string& name, const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  if (name == "range") return Range(arguments);
  if (name == "raise_exception") {
    return Fail(first == nullptr ? "raise_exception" : Str(*first));
  }
  if (name == "strftime_now") {
    if (first == nullptr || !first->Is(Value::Kind::kString)) {
      return Fail("strftime_now wants a format");
    }
    return MakeString(FormatTime(first->string()));
  }
  Value::Dict fields;
  if (first != nullptr) {
    if (!first->Is(Value::Kind::kDict)) return Fail(absl::StrCat(name, "() of what is no dict"));
    fields = first->dict();
  }
  for (const auto& [key, value] : arguments.named) fields.Set(key, value);
  Value dict = MakeDict(std::move(fields));  // checks the depth
  if (name == "dict" || !ok()) return dict;
  Value space = Value::MakeNamespace();
  space.mutable_namespace() = dict.dict();
  return space;
}

TemplateValue TemplateInterpreter::Range(const Arguments& arguments) {
  int64_t bounds[3] = {0, 0, 1};
  const size_t count = arguments.positional.size();
  if (count < 1 || count > 3) return Fail("range() takes 1 to 3 integers");
  for (size_t i = 0; i < count; ++i) {
    const Value& value = arguments.positional[i];
    if (!value.Is(Value::Kind::kInt) && !value.Is(Value::Kind::kBool)) {
      return Fail("range() takes integers");
    }
    bounds[count == 1 ? 1 : i] = value.integer();
  }
  const auto [start, stop, step] = bounds;
  if (step == 0) return Fail("range() with step 0");
  Value::List list;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (list.size() >= kMaxRange || !Spend(1, sizeof(Value))) return Fail("range() is too long");
    list.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeList(std::move(list));
}

TemplateValue TemplateInterpreter::CallLoop(const std::string& name, const Value& self,
                                            const Arguments& arguments) {
  if (name == "loop.cycle") {
    if (arguments.positional.empty()) return Fail("loop.cycle() without values");
    const auto count = static_cast<int64_t>(arguments.positional.size());
    return arguments.positional[static_cast<size_t>(self.integer() % count)];
  }
  const Value now = MakeTuple(arguments.positional);
  if (!ok()) return Value();
  const Value* last = self.dict().Find("last");
  const bool changed = last == nullptr || !Equal(*last, now);
  self.mutable_namespace().Set("last", now);
  return Value::Bool(changed);
}

}  // namespace toroid
