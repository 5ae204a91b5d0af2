// toroid tokenize: text in, token ids out; no ranks, no weights.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/io/model_source.h"
#include "core/status_macros.h"
#include "core/text/tokenizer.h"
#include "launcher/json_output.h"
#include "launcher/options.h"
#include "launcher/terminal.h"
#include "launcher/text_argument.h"
#include "launcher/verbs.h"

namespace toroid {
namespace {

absl::Status RunTokenize(const Arguments& arguments) {
  TOROID_ASSIGN_OR_RETURN(const ModelSource source, OpenModel(arguments.Text("MODEL")));
  TOROID_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::FromSource(source.tokenizer));
  const std::string path = arguments.Text("--file");
  TOROID_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path.empty() ? "-" : path));
  EncodeOptions options;
  options.add_special = false;
  options.parse_special = !arguments.Flag("--no-special");
  TokenizeResult result;
  TOROID_ASSIGN_OR_RETURN(result.ids, tokenizer->Encode(text, options));
  const bool pieces = arguments.Flag("--pieces");
  if (pieces) {
    for (const int32_t id : result.ids) result.pieces.emplace_back(tokenizer->Piece(id));
  }
  if (JsonOption(arguments)) {
    WriteStdout(absl::StrCat(TokenizeJson(result, pieces), "\n"));
  } else if (pieces) {
    std::string lines;
    for (size_t i = 0; i < result.ids.size(); ++i) {
      absl::StrAppend(&lines, result.ids[i], "\t", result.pieces[i], "\n");
    }
    WriteStdout(lines);
  } else {
    WriteStdout(absl::StrCat(absl::StrJoin(result.ids, ","), "\n"));
  }
  if (!arguments.Flag("--quiet") && StderrIsTerminal()) {
    Talk(absl::StrCat(result.ids.size(), " tokens"));
  }
  return absl::OkStatus();
}

const OptionTable kTokenizeOptions = {
    "text",
    {
        {"--file", ValueKind::kText, "F", "", "file that holds the text; default: standard input"},
        {"--no-special", ValueKind::kFlag, "", "", "special tokens in the text are plain text"},
        {"--pieces", ValueKind::kFlag, "", "", "each token as the vocabulary spells it"},
        {"--model", ValueKind::kText, "MODEL", "", "the same as the argument MODEL"},
    }};

}  // namespace

const Verb kTokenizeVerb = {
    .name = "tokenize",
    .summary = "text to token ids, with a model's tokenizer",
    .positionals = {{"MODEL", true, "a model directory, a GGUF file, a checkpoint or random:NAME"}},
    .tables = {&kTokenizeOptions, &kOutputOptions},
    .examples =
        "echo Hello | toroid tokenize /models/smollm2 --pieces\n"
        "toroid tokenize /models/smollm2 --file book.txt > ids.txt; "
        "toroid score /models/smollm2 --prompt-ids @ids.txt",
    .run = RunTokenize,
    .details =
        "Nothing is added to the text: generate and score add the model's begin-of-text token.",
};

}  // namespace toroid
