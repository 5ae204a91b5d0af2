#include "rpc/prepared_program.h"

#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status_macros.h"
#include "rpc/prompt.h"
#include "rpc/roots.h"
#include "rpc/training_job.h"

namespace toroid {
namespace {

constexpr int64_t kMaxPromptFile = int64_t{256} << 20;

absl::StatusOr<std::string> ReadPromptFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat("file not readable: ", path));
  const std::streamoff size = file.tellg();
  if (size < 0 || size > kMaxPromptFile) {
    return absl::InvalidArgumentError(absl::StrCat("file is too large: ", path, ": ", size,
                                                   " bytes, the most is ", kMaxPromptFile));
  }
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  file.read(text.data(), size);
  if (!file) return absl::NotFoundError(absl::StrCat("file not readable: ", path));
  return text;
}

absl::Status ReadPrompt(PromptSpec& prompt, const std::vector<Root>& roots) {
  if (prompt.kind != PromptSpec::Kind::kFile) return absl::OkStatus();
  TOROID_ASSIGN_OR_RETURN(const std::string path, ResolvePath(prompt.file, roots));
  TOROID_ASSIGN_OR_RETURN(prompt.text, ReadPromptFile(path));
  prompt.kind = PromptSpec::Kind::kText;
  return absl::OkStatus();
}

absl::Status ResolveLoad(LoadRequest& load, const std::vector<Root>& roots) {
  TOROID_ASSIGN_OR_RETURN(load.model, ResolvePath(load.model, roots));
  if (!load.tokenizer.empty()) {
    TOROID_ASSIGN_OR_RETURN(load.tokenizer, ResolvePath(load.tokenizer, roots));
  }
  return absl::OkStatus();
}

absl::Status Files(PreparedProgram& prepared, const std::vector<Root>& roots) {
  WorldProgram& order = prepared.order;
  prepared.program.number = order.number;
  if (!order.output_dir.empty()) {
    TOROID_ASSIGN_OR_RETURN(prepared.output_dir, MakeOutputDirectory(order.output_dir, roots));
  }
  if (auto* load = std::get_if<LoadTask>(&order.task)) {
    prepared.program.kind = ProgramKind::kLoad;
    prepared.program.load = load->load;
    return ResolveLoad(prepared.program.load, roots);
  }
  if (const auto* train = std::get_if<TrainOrder>(&order.task)) {
    TOROID_ASSIGN_OR_RETURN(prepared.training, ResolveTraining(train->spec, roots));
    return absl::OkStatus();
  }
  if (order.pool.has_value() && !std::holds_alternative<ExitTask>(order.task)) {
    prepared.load = order.pool->load;
    TOROID_RETURN_IF_ERROR(ResolveLoad(*prepared.load, roots));
  }
  if (auto* generate = std::get_if<GenerateTask>(&order.task)) {
    TOROID_RETURN_IF_ERROR(ReadPrompt(generate->prompt, roots));
    for (PromptSpec& prompt : generate->more_prompts) {
      TOROID_RETURN_IF_ERROR(ReadPrompt(prompt, roots));
    }
  } else if (auto* score = std::get_if<ScoreTask>(&order.task)) {
    TOROID_RETURN_IF_ERROR(ReadPrompt(score->text, roots));
  } else if (auto* verify = std::get_if<VerifyTask>(&order.task)) {
    if (verify->text.has_value()) TOROID_RETURN_IF_ERROR(ReadPrompt(*verify->text, roots));
  }
  return absl::OkStatus();
}

absl::Status Ids(PreparedProgram& prepared, const LoadedModel& model) {
  Program& program = prepared.program;
  if (const auto* generate = std::get_if<GenerateTask>(&prepared.order.task)) {
    GenerateTask filled = *generate;
    TOROID_RETURN_IF_ERROR(SetPromptIds(filled, [&model](const PromptSpec& prompt) {
      return PromptIds(prompt, prompt.text, model);
    }));
    program.kind = ProgramKind::kGenerate;
    program.generate = std::move(filled.request);
  } else if (const auto* score = std::get_if<ScoreTask>(&prepared.order.task)) {
    LoadedModel reader = model;
    if (score->limit > 0) reader.context = 0;  // of a longer text the first tokens are wanted
    TOROID_ASSIGN_OR_RETURN(std::vector<int32_t> ids,
                            PromptIds(score->text, score->text.text, reader));
    if (score->limit > 0 && static_cast<int64_t>(ids.size()) > score->limit) {
      ids.resize(score->limit);
    }
    program.kind = ProgramKind::kScore;
    program.score = score->request;
    program.score.ids = std::move(ids);
  } else if (const auto* verify = std::get_if<VerifyTask>(&prepared.order.task)) {
    program.kind = ProgramKind::kVerify;
    program.verify = verify->request;
    TOROID_ASSIGN_OR_RETURN(
        program.verify.ids,
        VerifyIds(*verify, verify->text.has_value() ? verify->text->text : "", model));
  }
  return absl::OkStatus();
}

}  // namespace

void PrepareFiles(PreparedProgram& prepared, const std::vector<Root>& roots) {
  if (prepared.status.ok()) prepared.status = Files(prepared, roots);
}

void PrepareIds(PreparedProgram& prepared, const LoadedModel& model) {
  if (!prepared.status.ok() || std::exchange(prepared.has_ids, true)) return;
  prepared.status = Ids(prepared, model);
}

}  // namespace toroid
