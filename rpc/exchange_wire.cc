#include "rpc/exchange_wire.h"

#include <string>
#include <vector>

namespace toroid::exchange {

Launch LaunchOf(const wire::ExchangeIdentity& identity) {
  return {identity.epoch(), identity.incarnation(), true};
}

PodIdentity FromProto(const wire::ExchangeIdentity& in) {
  return {in.job(),
          {in.pod(), in.rank()},
          in.epoch(),
          std::vector<std::string>(in.terms().begin(), in.terms().end())};
}

void ToProto(const PodFrame& frame, wire::StreamFrame& out) {
  out.clear_hello();
  out.set_number(frame.number);
  out.set_message(frame.message);
  out.set_offset(frame.offset);
  out.set_size(frame.size);
  out.set_data(frame.data.data(), frame.data.size());
  out.set_crc32c(FrameChecksum(frame));
  out.set_view(frame.words.view);
  out.set_kind(frame.words.kind);
  out.set_step(frame.words.step);
  out.set_fragment(frame.words.fragment);
  out.set_codec(frame.words.codec);
  out.set_weight(frame.words.weight);
}

PodFrame FromProto(const wire::StreamFrame& in) {
  PodFrame frame;
  frame.number = in.number();
  frame.message = in.message();
  frame.offset = in.offset();
  frame.size = in.size();
  frame.data = in.data();
  frame.words.view = in.view();
  frame.words.kind = in.kind();
  frame.words.step = in.step();
  frame.words.fragment = in.fragment();
  frame.words.codec = in.codec();
  frame.words.weight = in.weight();
  return frame;
}

}  // namespace toroid::exchange
