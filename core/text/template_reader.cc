#include "core/text/template_reader.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"

namespace toroid {
namespace {

constexpr int kMaxDepth = 200;  // of the tree

using Node = TemplateNode;
using Token = TemplateToken;

}  // namespace

const Token& TemplateReader::Ahead() const {
  return tokens_[std::min(at_ + 1, tokens_.size() - 1)];
}

void TemplateReader::Advance() {
  if (at_ + 1 < tokens_.size()) ++at_;
}

const Node* TemplateReader::Stop(absl::StatusCode code, std::string what) {
  if (status_.ok()) {
    status_ = absl::Status(code, absl::StrCat("template line ", Now().line, ": ", what));
  }
  at_ = tokens_.size() - 1;
  return Finish(New(Node::kConstant));
}

const Node* TemplateReader::Fail(std::string what) {
  return Stop(absl::StatusCode::kInvalidArgument, std::move(what));
}

const Node* TemplateReader::Refuse(std::string what) {
  return Stop(absl::StatusCode::kUnimplemented,
              absl::StrCat(what, " is not in the subset of Jinja that toroid renders"));
}

bool TemplateReader::IsOperator(const char* text) const {
  return Now().kind == Token::kOperator && Now().text == text;
}

bool TemplateReader::IsName(const char* text) const {
  return Now().kind == Token::kName && Now().text == text;
}

bool TemplateReader::Take(const char* op) {
  if (!IsOperator(op)) return false;
  Advance();
  return true;
}

bool TemplateReader::TakeName(const char* name) {
  if (!IsName(name)) return false;
  Advance();
  return true;
}

void TemplateReader::Expect(const char* op) {
  if (!Take(op)) Fail(absl::StrCat("expected '", op, "' ", Found()));
}

std::string TemplateReader::Found() const {
  if (Now().kind == Token::kEnd) return "before the end of the template";
  if (Now().kind == Token::kBlockEnd) return "before %}";
  if (Now().kind == Token::kPrintEnd) return "before }}";
  return absl::StrCat("before '", Now().text.substr(0, 40), "'");
}

std::string TemplateReader::ExpectName() {
  if (Now().kind != Token::kName) {
    Fail(absl::StrCat("expected a name ", Found()));
    return "";
  }
  std::string name = Now().text;
  Advance();
  return name;
}

void TemplateReader::EndOfBlock() {
  if (Now().kind != Token::kBlockEnd) {
    Fail(absl::StrCat("expected the end of the block ", Found()));
    return;
  }
  Advance();
}

Node* TemplateReader::New(Node::Type type, std::string text) {
  tree_.arena.push_back(std::make_unique<Node>());
  Node* node = tree_.arena.back().get();
  node->type = type;
  node->line = Now().line;
  node->text = std::move(text);
  return node;
}

const Node* TemplateReader::Finish(Node* node) {
  for (const Node* child : node->children) {
    node->depth = std::max(node->depth, child->depth + 1);
  }
  for (const Body& body : node->bodies) {
    for (const Node* statement : body) node->depth = std::max(node->depth, statement->depth + 1);
  }
  if (node->depth > kMaxDepth && ok()) Fail("nested too deeply");
  return node;
}

const Node* TemplateReader::Make(Node::Type type, Body children, std::string text) {
  Node* node = New(type, std::move(text));
  node->children = std::move(children);
  return Finish(node);
}

const Node* TemplateReader::Constant(TemplateValue value) {
  Node* node = New(Node::kConstant);
  node->constant = std::move(value);
  return node;
}

}  // namespace toroid
