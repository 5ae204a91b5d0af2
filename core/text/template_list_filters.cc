// Jinja's filters of lists.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_interpreter.h"
#include "core/text/template_text.h"

namespace toroid {
namespace {

using Kind = TemplateValue::Kind;

}  // namespace

TemplateValue TemplateInterpreter::ListFilter(const std::string& name, const Value& input,
                                              const Arguments& arguments) {
  if (name == "reverse" && input.Is(Kind::kString)) {
    auto characters = template_text::Characters(input.string());
    std::string out;
    for (auto c = characters.rbegin(); c != characters.rend(); ++c) out += *c;
    return MakeString(std::move(out));
  }
  if (name == "dictsort" && !input.Is(Kind::kDict)) return Fail("'dictsort' of what is no dict");
  const Value* attribute = arguments.Get(name == "join" || name == "unique" ? 1 : 0, "attribute");
  Value::List items = Iterate(name == "dictsort" ? DictMethod("items", input, {}) : input);
  if (!ok()) return Value();
  if (name == "list") return MakeList(std::move(items));
  if (name == "first" || name == "last") {
    if (items.empty()) return Value::Undefined(absl::StrCat("the ", name, " item of nothing"));
    return name == "first" ? items.front() : items.back();
  }
  if (name == "reverse") return MakeList(Value::List(items.rbegin(), items.rend()));
  if (name == "dictsort") return SortItems(std::move(items), Value::Int(0), false, false);
  if (attribute != nullptr && name != "unique") {
    for (Value& item : items) item = ByPath(item, *attribute);
  }
  if (name == "join") {
    const Value* separator = arguments.Get(0, "d");
    const std::string between = separator == nullptr ? "" : Str(*separator);
    std::string out;
    for (size_t i = 0; i < items.size() && ok(); ++i) {
      if (i > 0) out += between;
      out += Str(items[i]);
      if (out.size() > limits_.output_bytes) return Fail("a text is too long");
    }
    return MakeString(std::move(out));
  }
  if (name == "sum") {
    const Value* start = arguments.Get(1, "start");
    Value sum = start == nullptr ? Value::Int(0) : *start;
    for (const Value& item : items) sum = Add(sum, item);
    return sum;
  }
  if (name == "min" || name == "max") {
    if (items.empty()) return Value::Undefined(absl::StrCat("the ", name, " of nothing"));
    const int sign = name == "min" ? 1 : -1;
    const Value* best = &items[0];
    for (const Value& item : items) {
      if (sign * CompareFolded(item, *best) < 0) best = &item;
    }
    return *best;
  }
  Value::List unique;  // "unique": the first of equals, strings without regard to case
  for (const Value& item : items) {
    const bool seen = std::any_of(unique.begin(), unique.end(), [&](const Value& v) {
      return v.kind() == item.kind() && v.Is(Kind::kString)
                 ? template_text::Lower(v.string()) == template_text::Lower(item.string())
                 : Equal(v, item);
    });
    if (!Spend(1 + static_cast<int64_t>(unique.size()))) return Value();
    if (!seen) unique.push_back(item);
  }
  return MakeList(std::move(unique));
}

TemplateValue TemplateInterpreter::Map(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Get(SIZE_MAX, "attribute");
  const Value* otherwise = arguments.Get(SIZE_MAX, "default");
  const Value* filter = arguments.Get(0, "");
  if (attribute == nullptr &&
      (filter == nullptr || !filter->Is(Kind::kString) || !IsTemplateFilter(filter->string()))) {
    return Fail("'map' wants an attribute or the name of a filter");
  }
  Arguments rest;
  if (attribute == nullptr) {
    rest.positional.assign(arguments.positional.begin() + 1, arguments.positional.end());
    rest.named = arguments.named;
  }
  Value::List list;
  if (++depth_ > 500) Fail("nested too deeply");
  for (const Value& item : Iterate(input)) {
    if (!Spend(1)) break;
    Value mapped =
        attribute != nullptr ? ByPath(item, *attribute) : ApplyFilter(filter->string(), item, rest);
    if (attribute != nullptr && otherwise != nullptr && mapped.Is(Kind::kUndefined)) {
      mapped = *otherwise;
    }
    list.push_back(std::move(mapped));
  }
  --depth_;
  return MakeList(std::move(list));
}

TemplateValue TemplateInterpreter::Select(const Value& input, const Arguments& arguments,
                                          bool by_attribute, bool keep) {
  const size_t test_at = by_attribute ? 1 : 0;
  if (arguments.positional.size() < test_at) return Fail("'selectattr' wants an attribute");
  const bool has_test = arguments.positional.size() > test_at;
  std::string test;
  Arguments rest;
  if (has_test) {
    test = Str(arguments.positional[test_at]);
    if (!IsTemplateTest(test)) return Fail(absl::StrCat("the test '", test, "' is not known"));
    rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(test_at) + 1,
                           arguments.positional.end());
  }
  Value::List list;
  for (const Value& item : Iterate(input)) {
    if (!Spend(1)) break;
    const Value value = by_attribute ? ByPath(item, arguments.positional[0]) : item;
    const bool passed = has_test ? ApplyTest(test, value, rest) : value.Truth();
    if (passed == keep) list.push_back(item);
  }
  return MakeList(std::move(list));
}

// Order of sort, min and max: strings without regard to case.
int TemplateInterpreter::CompareFolded(const Value& a, const Value& b) {
  if (!a.Is(Kind::kString) || !b.Is(Kind::kString)) return Compare(a, b);
  Spend(1 + static_cast<int64_t>((a.string().size() + b.string().size()) / 16));
  const int order = template_text::Lower(a.string()).compare(template_text::Lower(b.string()));
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

TemplateValue TemplateInterpreter::Sort(const Value& input, const Arguments& arguments) {
  const Value* attribute = arguments.Get(2, "attribute");
  return SortItems(Iterate(input), attribute == nullptr ? Value::None() : *attribute,
                   arguments.IsTrue(0, "reverse"), arguments.IsTrue(1, "case_sensitive"));
}

TemplateValue TemplateInterpreter::SortItems(Value::List items, const Value& attribute,
                                             bool reverse, bool case_sensitive) {
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : items) {
    Value key = attribute.Is(Kind::kNone) ? item : ByPath(item, attribute);
    keyed.emplace_back(std::move(key), std::move(item));
  }
  // Values without an order make the comparison useless, so they are found before the sort.
  for (size_t i = 1; i < keyed.size() && ok(); ++i) Compare(keyed[0].first, keyed[i].first);
  const bool sequences = !keyed.empty() && keyed[0].first.IsSequence();
  if (ok() && sequences && keyed.size() > 1) return Fail("sorting lists is not implemented");
  if (!ok()) return Value();
  std::vector<size_t> order(keyed.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (!Spend(static_cast<int64_t>(order.size()) * 32)) return Value();
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
    const Value& a = keyed[reverse ? y : x].first;
    const Value& b = keyed[reverse ? x : y].first;
    int result = 0;
    TemplateBudget unlimited{INT64_MAX, INT64_MAX};
    if (!case_sensitive && a.Is(Kind::kString) && b.Is(Kind::kString)) {
      return template_text::Lower(a.string()) < template_text::Lower(b.string());
    }
    TemplateCompare(a, b, &unlimited, &result);
    return result < 0;
  });
  Value::List sorted;
  for (size_t i : order) sorted.push_back(std::move(keyed[i].second));
  return MakeList(std::move(sorted));
}

}  // namespace toroid
