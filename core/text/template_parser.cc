#include "core/text/template_parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/text/template_expression_parser.h"
#include "core/text/template_lexer.h"

namespace toroid {
namespace {

// The statements of a template, and the text between them.
class TemplateParser : private TemplateExpressionParser {
 public:
  explicit TemplateParser(std::vector<Token> tokens)
      : TemplateExpressionParser(std::move(tokens)) {}

  absl::StatusOr<TemplateTree> Parse() {
    tree_.body = Statements({});
    if (!status_.ok()) return status_;
    return std::move(tree_);
  }

 private:
  // Up to a block whose first name is one of `ends` (its {% and name not consumed), or to the end.
  Body Statements(std::initializer_list<const char*> ends) {
    Body body;
    if (++nesting_ > kMaxNesting) Fail("blocks are nested too deeply");
    while (Now().kind != Token::kEnd) {
      if (Now().kind == Token::kText) {
        body.push_back(Make(Node::kText, {}, Now().text));
        Advance();
      } else if (Now().kind == Token::kPrint) {
        Advance();
        const Node* value = Tuple(true);
        body.push_back(Make(Node::kPrint, {value}));
        if (Now().kind != Token::kPrintEnd) {
          Fail(absl::StrCat("expected }} ", Found()));
        } else {
          Advance();
        }
      } else {  // {%
        const Token& name = Ahead();
        if (name.kind == Token::kName &&
            std::any_of(ends.begin(), ends.end(),
                        [&](const char* end) { return name.text == end; })) {
          break;
        }
        Advance();
        Statement(&body);
      }
    }
    if (Now().kind == Token::kEnd && ends.size() > 0) {
      Fail(absl::StrCat("the block is not closed: expected {% ", *(ends.end() - 1), " %}"));
    }
    --nesting_;
    return body;
  }
  // The {% name that Statements stopped at.
  std::string End() {
    Advance();
    return ExpectName();
  }
  // {% name %}
  void CloseBlock() {
    End();
    EndOfBlock();
  }

  void Statement(Body* body) {
    const std::string name = ExpectName();
    if (!ok()) return;
    if (name == "if") return body->push_back(If());
    if (name == "for") return body->push_back(For());
    if (name == "set") return body->push_back(Set());
    if (name == "macro") return body->push_back(Macro());
    if (name == "with") return body->push_back(With());
    if (name == "filter") {
      Node* node = New(Node::kFilterBlock);
      node->children.push_back(FilterChain());
      EndOfBlock();
      node->bodies.push_back(Statements({"endfilter"}));
      CloseBlock();
      return body->push_back(Finish(node));
    }
    if (name == "generation") {  // transformers' mark of what the assistant wrote
      Node* node = New(Node::kScope);
      EndOfBlock();
      node->bodies.push_back(Statements({"endgeneration"}));
      CloseBlock();
      return body->push_back(Finish(node));
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) Fail(absl::StrCat("{% ", name, " %} outside of a loop"));
      body->push_back(Make(name == "break" ? Node::kBreak : Node::kContinue, {}));
      return EndOfBlock();
    }
    for (const char* known : {"block", "extends", "include", "import", "from", "call", "do",
                              "autoescape", "trans", "debug"}) {
      if (name == known) {
        Refuse(absl::StrCat("{% ", name, " %}"));
        return;
      }
    }
    Fail(absl::StrCat("unknown or misplaced block {% ", name, " %}"));
  }

  const Node* If() {
    Node* node = New(Node::kIf);
    node->children.push_back(Tuple(false));
    EndOfBlock();
    while (ok()) {
      node->bodies.push_back(Statements({"elif", "else", "endif"}));
      const std::string end = End();
      if (end == "elif") {
        node->children.push_back(Tuple(false));
        EndOfBlock();
        continue;
      }
      EndOfBlock();
      if (end == "else") {
        node->bodies.push_back(Statements({"endif"}));
        CloseBlock();
      }
      break;
    }
    return Finish(node);
  }

  const Node* For() {
    Node* node = New(Node::kFor);
    node->children.push_back(Target(/*with_namespace=*/false));
    if (!TakeName("in")) Fail(absl::StrCat("expected 'in' ", Found()));
    node->children.push_back(Tuple(false));
    if (TakeName("if")) node->children.push_back(Expression());
    if (IsName("recursive")) Refuse("a recursive loop");
    EndOfBlock();
    ++loops_;
    node->bodies.push_back(Statements({"else", "endfor"}));
    --loops_;
    const std::string end = End();
    EndOfBlock();
    node->bodies.emplace_back();
    if (end == "else") {
      node->bodies.back() = Statements({"endfor"});
      CloseBlock();
    }
    return Finish(node);
  }

  // A name, several names, or ns.name.
  const Node* Target(bool with_namespace) {
    const bool parenthesis = !with_namespace && Take("(");
    Body names;
    do {
      if (names.size() > 0 && (Now().kind != Token::kName || IsName("in"))) break;
      const std::string name = ExpectName();
      const Node* target = Make(Node::kName, {}, name);
      if (with_namespace && Take(".")) target = Make(Node::kAttribute, {target}, ExpectName());
      names.push_back(target);
    } while (ok() && Take(","));
    if (parenthesis) Expect(")");
    const bool comma = tokens_[at_ - 1].text == "," && tokens_[at_ - 1].kind == Token::kOperator;
    return names.size() == 1 && !comma ? names[0] : Make(Node::kTuple, std::move(names));
  }

  const Node* Set() {
    Node* node = New(Node::kSet);
    node->children.push_back(Target(/*with_namespace=*/true));
    if (Take("=")) {
      node->children.push_back(Tuple(true));
      EndOfBlock();
      return Finish(node);
    }
    node->type = Node::kSetBlock;
    if (IsOperator("|")) node->children.push_back(Filters(Make(Node::kName, {}, "")));
    EndOfBlock();
    node->bodies.push_back(Statements({"endset"}));
    CloseBlock();
    return Finish(node);
  }

  const Node* Macro() {
    Node* node = New(Node::kMacro, ExpectName());
    Expect("(");
    while (ok() && !IsOperator(")")) {
      if (!node->names.empty()) Expect(",");
      if (IsOperator(")")) break;
      node->names.push_back(ExpectName());
      if (Take("=")) {
        node->children.push_back(Expression());
      } else if (!node->children.empty()) {
        Fail("a parameter without a default follows one with a default");
      }
    }
    Expect(")");
    EndOfBlock();
    const int loops = std::exchange(loops_, 0);
    node->bodies.push_back(Statements({"endmacro"}));
    loops_ = loops;
    CloseBlock();
    node->number = static_cast<int>(tree_.macros.size());
    tree_.macros.push_back(node);
    return Finish(node);
  }

  const Node* With() {
    Node* node = New(Node::kWith);
    while (ok() && Now().kind != Token::kBlockEnd) {
      if (!node->children.empty()) Expect(",");
      node->children.push_back(Make(Node::kName, {}, ExpectName()));
      Expect("=");
      node->children.push_back(Expression());
    }
    EndOfBlock();
    node->bodies.push_back(Statements({"endwith"}));
    CloseBlock();
    return Finish(node);
  }

  // name(arguments)|name ... of {% filter %}
  const Node* FilterChain() { return Filters(OneFilter(Make(Node::kName, {}, ""))); }

  int loops_ = 0;  // that enclose the current token
};

}  // namespace

absl::StatusOr<TemplateTree> ParseTemplate(std::string_view source) {
  auto tokens = LexTemplate(source);
  if (!tokens.ok()) return tokens.status();
  return TemplateParser(*std::move(tokens)).Parse();
}

}  // namespace toroid
