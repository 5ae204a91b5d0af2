// Calls: arguments, and the globals that templates have.
#include <ctime>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"

namespace toroid {
namespace {

constexpr int64_t kMaxRange = 100000;  // as jinja2's sandbox

}  // namespace

const TemplateValue* TemplateInterpreter::Arguments::Get(size_t position,
                                                         std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [given, value] : named) {
    if (given == name) return &value;
  }
  return nullptr;
}

bool TemplateInterpreter::Arguments::IsTrue(size_t position, std::string_view name) const {
  const Value* value = Get(position, name);
  return value != nullptr && value->Truth();
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
