// Answers of a world as messages, and back.
#include "rpc/convert.h"
#include "rpc/convert_lists.h"

namespace toroid {
namespace {

v1::Report ToProto(const RunReport& report) {
  v1::Report out;
  *out.mutable_mesh() = ToProto(report.mesh);
  v1::Timing& timing = *out.mutable_timing();
  timing.set_load_s(report.timing.load_s);
  timing.set_prefill_s(report.timing.prefill_s);
  timing.set_decode_s(report.timing.decode_s);
  timing.set_prefill_tokens_per_s(report.timing.prefill_tokens_per_s);
  timing.set_decode_tokens_per_s(report.timing.decode_tokens_per_s);
  v1::Memory& memory = *out.mutable_memory();
  CopyAll(report.memory.peak, memory.mutable_peak());
  CopyAll(report.memory.predicted, memory.mutable_predicted());
  CopyAll(report.memory.weights, memory.mutable_weights());
  CopyAll(report.memory.kv, memory.mutable_kv());
  CopyAll(report.memory.scratch, memory.mutable_scratch());
  CopyAll(report.memory.block_scratch, memory.mutable_block_scratch());
  CopyAll(report.memory.resident, memory.mutable_resident());
  for (const AxisReport& axis : report.comm) {
    v1::AxisTraffic& traffic = *out.add_comm();
    traffic.set_axis(axis.axis);
    CopyAll(axis.bytes_sent, traffic.mutable_bytes_sent());
    CopyAll(axis.prefill_bytes_sent, traffic.mutable_prefill_bytes_sent());
    CopyAll(axis.calls, traffic.mutable_calls());
  }
  return out;
}

RunReport FromProto(const v1::Report& report) {
  RunReport out;
  out.mesh = MeshFromProto(report.mesh());
  const v1::Timing& timing = report.timing();
  out.timing = {timing.load_s(), timing.prefill_s(), timing.decode_s(),
                timing.prefill_tokens_per_s(), timing.decode_tokens_per_s()};
  const v1::Memory& memory = report.memory();
  out.memory.peak = ToVector<int64_t>(memory.peak());
  out.memory.predicted = ToVector<int64_t>(memory.predicted());
  out.memory.weights = ToVector<int64_t>(memory.weights());
  out.memory.kv = ToVector<int64_t>(memory.kv());
  out.memory.scratch = ToVector<int64_t>(memory.scratch());
  out.memory.block_scratch = ToVector<int64_t>(memory.block_scratch());
  out.memory.resident = ToVector<int64_t>(memory.resident());
  for (const v1::AxisTraffic& traffic : report.comm()) {
    out.comm.push_back({traffic.axis(), ToVector<int64_t>(traffic.bytes_sent()),
                        ToVector<int64_t>(traffic.prefill_bytes_sent()),
                        ToVector<int64_t>(traffic.calls())});
  }
  return out;
}

v1::TensorError ToProto(const TensorError& error) {
  v1::TensorError out;
  out.set_tensor(error.tensor);
  out.set_layer(error.layer);
  out.set_error(error.error);
  out.set_bound(error.bound);
  return out;
}

TensorError FromProto(const v1::TensorError& error) {
  return {error.tensor(), error.layer(), error.error(), error.bound()};
}

}  // namespace

// Accepts what UTF-8 is by RFC 3629: no surrogates, no overlong forms, nothing above U+10FFFF.
std::string MendUtf8(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) {
      return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u;
    };
    const unsigned first = byte(0);
    const size_t length = first < 0x80                     ? 1
                          : first >= 0xc2 && first <= 0xdf ? 2
                          : first >= 0xe0 && first <= 0xef ? 3
                          : first >= 0xf0 && first <= 0xf4 ? 4
                                                           : 0;
    bool good = length > 0;
    for (size_t k = 1; k < length; ++k) good &= (byte(k) & 0xc0) == 0x80;
    if (first == 0xe0) good &= byte(1) >= 0xa0;
    if (first == 0xed) good &= byte(1) <= 0x9f;
    if (first == 0xf0) good &= byte(1) >= 0x90;
    if (first == 0xf4) good &= byte(1) <= 0x8f;
    if (good) {
      out.append(text, i, length);
      i += length;
    } else {
      out += "\xef\xbf\xbd";
      ++i;
    }
  }
  return out;
}

v1::ModelInfo ToProto(const ModelStatus& model) {
  v1::ModelInfo out;
  out.set_name(MendUtf8(model.name));
  out.set_context(model.context);
  out.set_vocab(model.vocab);
  *out.mutable_mesh() = ToProto(model.mesh);
  out.set_pod(model.pod);
  out.set_has_chat_template(model.has_chat_template);
  return out;
}

ModelStatus FromProto(const v1::ModelInfo& model) {
  return {model.name(), model.context(),          model.vocab(), MeshFromProto(model.mesh()),
          model.pod(),  model.has_chat_template()};
}

v1::Progress ToProto(const TaskProgress& progress) {
  v1::Progress out;
  out.set_phase(progress.phase);
  out.set_done(progress.done);
  out.set_total(progress.total);
  if (progress.loss.has_value()) out.set_loss(*progress.loss);
  out.set_tokens_per_s(progress.tokens_per_s);
  if (progress.exchange.has_value()) {
    const ExchangeProgress& exchange = *progress.exchange;
    v1::ExchangeProgress& told = *out.mutable_exchange();
    told.set_taking_part(exchange.taking_part);
    told.set_staleness(exchange.staleness);
    told.set_bytes_sent(exchange.bytes_sent);
    told.set_wait_share(exchange.wait_share);
    told.set_hash_step(exchange.hash_step);
    told.set_hash(exchange.hash);
    told.set_dropped(exchange.dropped);
    told.set_hurried(exchange.hurried);
    told.set_reconnects(exchange.reconnects);
  }
  return out;
}

TaskProgress FromProto(const v1::Progress& in) {
  TaskProgress out;
  out.phase = in.phase();
  out.done = in.done();
  out.total = in.total();
  if (in.has_loss()) out.loss = in.loss();
  out.tokens_per_s = in.tokens_per_s();
  if (in.has_exchange()) {
    const v1::ExchangeProgress& told = in.exchange();
    out.exchange = ExchangeProgress{told.taking_part(), told.staleness(), told.bytes_sent(),
                                    told.wait_share(),  told.hash_step(), told.hash(),
                                    told.dropped(),     told.hurried(),   told.reconnects()};
  }
  return out;
}

v1::Token ToProto(const TokenEvent& token) {
  v1::Token out;
  out.set_id(token.id);
  out.set_text(MendUtf8(token.text));
  out.set_log_p(token.log_p);
  out.set_prompt_index(token.prompt_index);
  out.set_index(token.index);
  out.set_last(token.last);
  return out;
}

TokenEvent FromProto(const v1::Token& token) {
  return {token.id(),           token.text(),  token.log_p(),
          token.prompt_index(), token.index(), token.last()};
}

v1::GenerateResult ToProto(const GenerateResult& result) {
  v1::GenerateResult out;
  out.set_prompt_tokens(result.prompt_tokens);
  CopyAll(result.ids, out.mutable_ids());
  out.set_text(MendUtf8(result.text));
  out.set_finish(result.finish == FinishReason::kStop     ? v1::GenerateResult::STOP
                 : result.finish == FinishReason::kLength ? v1::GenerateResult::LENGTH
                                                          : v1::GenerateResult::CANCELLED);
  CopyAll(result.logprobs, out.mutable_logprobs());
  for (const auto& [position, log_p] : result.prompt_logprobs) {
    v1::PositionLogprob& item = *out.add_prompt_logprobs();
    item.set_position(position);
    item.set_log_p(log_p);
  }
  out.set_min_margin(result.min_margin);
  *out.mutable_report() = ToProto(result.report);
  out.set_prompt_index(result.prompt_index);
  out.set_index(result.index);
  out.set_batch(result.batch);
  for (const GenerateResult& answer : result.more) *out.add_more() = ToProto(answer);
  return out;
}

GenerateResult FromProto(const v1::GenerateResult& in) {
  GenerateResult out;
  out.prompt_tokens = in.prompt_tokens();
  out.ids = ToVector<int32_t>(in.ids());
  out.text = in.text();
  out.finish = in.finish() == v1::GenerateResult::STOP     ? FinishReason::kStop
               : in.finish() == v1::GenerateResult::LENGTH ? FinishReason::kLength
                                                           : FinishReason::kCancelled;
  out.logprobs = ToVector<double>(in.logprobs());
  for (const v1::PositionLogprob& item : in.prompt_logprobs()) {
    out.prompt_logprobs.emplace_back(item.position(), item.log_p());
  }
  out.min_margin = in.min_margin();
  out.report = FromProto(in.report());
  out.prompt_index = in.prompt_index();
  out.index = in.index();
  out.batch = in.batch();
  for (const v1::GenerateResult& answer : in.more()) {
    out.more.push_back(FromProto(answer));
    out.more.back().more.clear();  // a message nests as deep as its sender likes
  }
  return out;
}

v1::ScoreResult ToProto(const ScoreResult& result) {
  v1::ScoreResult out;
  out.set_tokens(result.tokens);
  out.set_mean_nll(result.mean_nll);
  out.set_perplexity(result.perplexity);
  CopyAll(result.logprobs, out.mutable_logprobs());
  out.set_last_logsumexp(result.last_logsumexp);
  for (const auto& [id, logit] : result.last_top) {
    v1::TokenLogit& item = *out.add_last_top();
    item.set_id(id);
    item.set_logit(logit);
  }
  *out.mutable_report() = ToProto(result.report);
  return out;
}

ScoreResult FromProto(const v1::ScoreResult& in) {
  ScoreResult out;
  out.tokens = in.tokens();
  out.mean_nll = in.mean_nll();
  out.perplexity = in.perplexity();
  out.logprobs = ToVector<double>(in.logprobs());
  out.last_logsumexp = in.last_logsumexp();
  for (const v1::TokenLogit& item : in.last_top())
    out.last_top.emplace_back(item.id(), item.logit());
  out.report = FromProto(in.report());
  return out;
}

v1::VerifyResult ToProto(const VerifyResult& result) {
  v1::VerifyResult out;
  out.set_pass(result.pass);
  *out.mutable_worst() = ToProto(result.worst);
  for (const TensorError& tensor : result.tensors) *out.add_tensors() = ToProto(tensor);
  *out.mutable_report() = ToProto(result.report);
  return out;
}

VerifyResult FromProto(const v1::VerifyResult& in) {
  VerifyResult out;
  out.pass = in.pass();
  out.worst = FromProto(in.worst());
  for (const v1::TensorError& tensor : in.tensors()) out.tensors.push_back(FromProto(tensor));
  out.report = FromProto(in.report());
  return out;
}

v1::TokenizeResponse ToProto(const TokenizeResult& result) {
  v1::TokenizeResponse out;
  CopyAll(result.ids, out.mutable_ids());
  for (const std::string& piece : result.pieces) out.add_pieces(piece);
  return out;
}

TokenizeResult FromProto(const v1::TokenizeResponse& result) {
  return {ToVector<int32_t>(result.ids()), ToVector<std::string>(result.pieces())};
}

}  // namespace toroid
