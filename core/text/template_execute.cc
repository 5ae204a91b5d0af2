// Statements, macros and the run as a whole.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "core/text/template_interpreter.h"

namespace toroid {
namespace {

constexpr size_t kMaxTemplateBytes = 256 << 10;
constexpr int kMaxValueDepth = 100;  // of lists in lists

}  // namespace

absl::StatusOr<Template> Template::Parse(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a template of ", source.size(), " bytes is longer than ", kMaxTemplateBytes));
  }
  TOROID_ASSIGN_OR_RETURN(TemplateTree tree, ParseTemplate(source));
  return Template(std::make_shared<const TemplateTree>(std::move(tree)));
}

absl::StatusOr<std::string> Template::Render(const TemplateValue::Dict& variables,
                                             const TemplateTime& now,
                                             const TemplateLimits& limits) const {
  return TemplateInterpreter(*tree_, variables, now, limits).Run();
}

TemplateInterpreter::TemplateInterpreter(const TemplateTree& tree, const Value::Dict& variables,
                                         const TemplateTime& now, const TemplateLimits& limits)
    : tree_(tree),
      variables_(variables),
      now_(now),
      limits_(limits),
      budget_{limits.steps, limits.bytes} {}

absl::StatusOr<std::string> TemplateInterpreter::Run() {
  std::string out;
  out_ = &out;
  frames_.emplace_back();
  Execute(tree_.body);
  if (!ok()) return status_;
  return out;
}

TemplateValue TemplateInterpreter::Fail(std::string what) {
  if (ok()) {
    status_ = absl::InvalidArgumentError(absl::StrCat("template line ", line_, ": ", what));
  }
  return Value();
}

bool TemplateInterpreter::Spend(int64_t steps, size_t bytes) {
  budget_.Step(steps);
  budget_.Bytes(bytes);
  if (budget_.exhausted() && ok()) {
    status_ = absl::ResourceExhaustedError(
        absl::StrCat("template line ", line_, ": more work or memory than a template may use"));
  }
  return ok();
}

TemplateValue TemplateInterpreter::MakeString(std::string text) {
  if (text.size() > limits_.output_bytes) return Fail("a text is too long");
  Spend(1, text.size());
  return Value::String(std::move(text));
}
TemplateValue TemplateInterpreter::MakeList(Value::List list) {
  Spend(static_cast<int64_t>(list.size()), list.size() * sizeof(Value));
  Value value = Value::MakeList(std::move(list));
  return value.depth() > kMaxValueDepth ? Fail("a value is nested too deeply") : value;
}
TemplateValue TemplateInterpreter::MakeTuple(Value::List list) {
  Spend(static_cast<int64_t>(list.size()), list.size() * sizeof(Value));
  Value value = Value::MakeTuple(std::move(list));
  return value.depth() > kMaxValueDepth ? Fail("a value is nested too deeply") : value;
}
TemplateValue TemplateInterpreter::MakeDict(Value::Dict dict) {
  Spend(static_cast<int64_t>(dict.items.size()), dict.items.size() * 4 * sizeof(Value));
  Value value = Value::MakeDict(std::move(dict));
  return value.depth() > kMaxValueDepth ? Fail("a value is nested too deeply") : value;
}

std::string TemplateInterpreter::Str(const Value& value) {
  std::string text = TemplateStr(value, &budget_);
  Spend(1);
  return text;
}
bool TemplateInterpreter::Equal(const Value& a, const Value& b) {
  const bool equal = TemplateEqual(a, b, &budget_);
  Spend(1);
  return equal;
}
int TemplateInterpreter::Compare(const Value& a, const Value& b) {
  int order = 0;
  if (!TemplateCompare(a, b, &budget_, &order)) {
    Fail(absl::StrCat("no order between a ", std::string(a.TypeName()), " and a ",
                      std::string(b.TypeName())));
  }
  Spend(1);
  return order;
}

void TemplateInterpreter::Emit(std::string_view text) {
  if (!Spend(1, text.size())) return;
  if (out_->size() + text.size() > limits_.output_bytes) {
    status_ = absl::ResourceExhaustedError(absl::StrCat("template line ", line_, ": more than ",
                                                        limits_.output_bytes, " bytes of output"));
    return;
  }
  out_->append(text);
}

TemplateInterpreter::Flow TemplateInterpreter::Execute(const Body& body) {
  if (++depth_ > kMaxDepth) Fail("nested too deeply");
  Flow flow = Flow::kNext;
  for (const Node* node : body) {
    if (!ok()) break;
    flow = ExecuteOne(*node);
    if (flow != Flow::kNext) break;
  }
  --depth_;
  return flow;
}

TemplateInterpreter::Flow TemplateInterpreter::ExecuteOne(const Node& node) {
  line_ = node.line;
  if (!Spend(1)) return Flow::kNext;
  switch (node.type) {
    case Node::kText:
      Emit(node.text);
      break;
    case Node::kPrint: {
      const Value value = Evaluate(*node.children[0]);
      if (ok()) Emit(Str(value));
      break;
    }
    case Node::kIf:
      return If(node);
    case Node::kFor:
      return For(node);
    case Node::kSet:
    case Node::kSetBlock:
      SetStatement(node);
      break;
    case Node::kMacro: {
      Value::Callable callable;
      callable.name = "macro " + node.text;
      callable.macro = node.number;
      frames_.back()[node.text] = Value::MakeCallable(std::move(callable));
      break;
    }
    case Node::kWith:
      return With(node);
    case Node::kFilterBlock: {
      Flow flow = Flow::kNext;
      frames_.emplace_back();
      frames_.back()[""] = MakeString(Capture(node.bodies[0], &flow));
      const Value value = Evaluate(*node.children[0]);
      frames_.pop_back();
      if (ok()) Emit(Str(value));
      return flow;
    }
    case Node::kScope:
      return Execute(node.bodies[0]);
    case Node::kBreak:
      return Flow::kBreak;
    case Node::kContinue:
      return Flow::kContinue;
    default:
      Fail("an expression in place of a statement");
  }
  return Flow::kNext;
}

TemplateInterpreter::Flow TemplateInterpreter::If(const Node& node) {
  for (size_t i = 0; i < node.children.size(); ++i) {
    const bool truth = Evaluate(*node.children[i]).Truth();
    if (!ok()) return Flow::kNext;
    if (truth) return Execute(node.bodies[i]);
  }
  if (node.bodies.size() > node.children.size()) return Execute(node.bodies.back());
  return Flow::kNext;
}

// Runs `body` into a text of its own.
std::string TemplateInterpreter::Capture(const Body& body, Flow* flow) {
  std::string text;
  std::string* outer = std::exchange(out_, &text);
  *flow = Execute(body);
  out_ = outer;
  return text;
}

TemplateInterpreter::Flow TemplateInterpreter::For(const Node& node) {
  Value::List items = Iterate(Evaluate(*node.children[1]));
  if (node.children.size() > 2) {  // for x in y if ...: the loop sees only what passes
    Value::List passed;
    for (Value& item : items) {
      if (!Spend(1)) return Flow::kNext;
      frames_.emplace_back();
      Assign(*node.children[0], item);
      const bool truth = Evaluate(*node.children[2]).Truth();
      frames_.pop_back();
      if (truth) passed.push_back(std::move(item));
    }
    items = std::move(passed);
  }
  if (!ok()) return Flow::kNext;
  if (items.empty()) return Execute(node.bodies[1]);
  return RunLoop(node, items);
}

TemplateInterpreter::Flow TemplateInterpreter::RunLoop(const Node& node, const Value::List& items) {
  const auto count = static_cast<int64_t>(items.size());
  const Value changed = Value::MakeNamespace();  // what loop.changed saw last
  for (int64_t i = 0; i < count; ++i) {
    if (!Spend(16)) return Flow::kNext;
    Value loop = Value::MakeNamespace();
    Value::Dict& fields = loop.mutable_namespace();
    fields.Set("index", Value::Int(i + 1));
    fields.Set("index0", Value::Int(i));
    fields.Set("revindex", Value::Int(count - i));
    fields.Set("revindex0", Value::Int(count - i - 1));
    fields.Set("first", Value::Bool(i == 0));
    fields.Set("last", Value::Bool(i + 1 == count));
    fields.Set("length", Value::Int(count));
    fields.Set("depth", Value::Int(1));  // counts recursive loops, which we do not have
    fields.Set("depth0", Value::Int(0));
    fields.Set("previtem", i > 0 ? items[i - 1] : Value::Undefined("there is no previous item"));
    fields.Set("nextitem",
               i + 1 < count ? items[i + 1] : Value::Undefined("there is no next item"));
    for (const char* name : {"cycle", "changed"}) {
      Value::Callable callable;
      callable.name = absl::StrCat("loop.", name);
      callable.self = std::make_shared<Value>(name[1] == 'y' ? Value::Int(i) : changed);
      fields.Set(name, Value::MakeCallable(std::move(callable)));
    }
    frames_.emplace_back();
    frames_.back()["loop"] = std::move(loop);
    Assign(*node.children[0], items[i]);
    const Flow flow = Execute(node.bodies[0]);
    frames_.pop_back();
    if (!ok() || flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

void TemplateInterpreter::SetStatement(const Node& node) {
  if (node.type == Node::kSet) {
    Assign(*node.children[0], Evaluate(*node.children[1]));
    return;
  }
  Flow flow = Flow::kNext;
  frames_.emplace_back();
  Value value = MakeString(Capture(node.bodies[0], &flow));
  if (node.children.size() > 1) {
    frames_.back()[""] = value;
    value = Evaluate(*node.children[1]);
  }
  frames_.pop_back();
  Assign(*node.children[0], std::move(value));
}

void TemplateInterpreter::Assign(const Node& target, Value value) {
  if (!ok()) return;
  if (target.type == Node::kName) {
    frames_.back()[target.text] = std::move(value);
  } else if (target.type == Node::kAttribute) {
    const Value object = Evaluate(*target.children[0]);
    if (!object.Is(Value::Kind::kNamespace)) {
      Fail("{% set a.b = ... %} on what is no namespace");
      return;
    }
    if (value.depth() > kMaxValueDepth) {  // a namespace: no cycles
      Fail("a namespace inside a namespace is not implemented");
      return;
    }
    object.mutable_namespace().Set(target.text, std::move(value));
  } else {
    const Value::List items = Iterate(value);
    if (items.size() != target.children.size()) {
      Fail(absl::StrCat("cannot unpack ", items.size(), " values into ", target.children.size(),
                        " names"));
      return;
    }
    for (size_t i = 0; i < items.size(); ++i) Assign(*target.children[i], items[i]);
  }
}

TemplateInterpreter::Flow TemplateInterpreter::With(const Node& node) {
  Frame frame;  // the values are those outside of the block
  for (size_t i = 0; i + 1 < node.children.size(); i += 2) {
    frame[node.children[i]->text] = Evaluate(*node.children[i + 1]);
  }
  frames_.push_back(std::move(frame));
  const Flow flow = Execute(node.bodies[0]);
  frames_.pop_back();
  return flow;
}

TemplateValue TemplateInterpreter::CallMacro(const Node& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.names.size()) {
    return Fail(absl::StrCat("macro '", macro.text, "' takes not more than ", macro.names.size(),
                             " arguments"));
  }
  for (const auto& [name, value] : arguments.named) {
    if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end()) {
      return Fail(absl::StrCat("macro '", macro.text, "' takes no argument '", name, "'"));
    }
  }
  const size_t outer_base = std::exchange(base_, frames_.size());
  const int line = line_;
  frames_.emplace_back();
  const size_t without_default = macro.names.size() - macro.children.size();
  for (size_t i = 0; i < macro.names.size() && ok(); ++i) {
    const Value* given = arguments.Get(i, macro.names[i]);
    Value value = Value::Undefined(absl::StrCat("parameter '", macro.names[i], "'"));
    if (given != nullptr) {
      value = *given;
    } else if (i >= without_default) {
      value = Evaluate(*macro.children[i - without_default]);
    }
    frames_.back()[macro.names[i]] = std::move(value);
  }
  Flow flow = Flow::kNext;
  std::string text = Capture(macro.bodies[0], &flow);
  frames_.pop_back();
  base_ = outer_base;
  line_ = line;
  return MakeString(std::move(text));
}

}  // namespace toroid
