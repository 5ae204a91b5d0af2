// Arithmetic, comparison and concatenation, by Python's rules.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"

namespace toroid {
namespace {

int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

}  // namespace

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

}  // namespace toroid
