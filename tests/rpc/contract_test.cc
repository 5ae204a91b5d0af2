// What must not drift: the promised messages, the walls between folders, job specs as text.
#include <gmock/gmock.h>
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "rpc/client.h"
#include "rpc/convert.h"
#include "rpc/error_info.h"
#include "rpc/grpc_status.h"
#include "rpc/scheduler.h"
#include "tests/support/source_path.h"

namespace toroid {
namespace {

using google::protobuf::DescriptorPool;
using google::protobuf::DescriptorProto;
using google::protobuf::EnumDescriptorProto;
using google::protobuf::FileDescriptorSet;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

void CompareEnum(const EnumDescriptorProto& promised, const std::string& scope,
                 const DescriptorPool& pool, std::vector<std::string>& breaks) {
  const std::string name = absl::StrCat(scope, ".", promised.name());
  const auto* now = pool.FindEnumTypeByName(name);
  if (now == nullptr) return breaks.push_back(name + " is gone");
  for (const auto& value : promised.value()) {
    const auto* found = now->FindValueByName(value.name());
    if (found == nullptr || found->number() != value.number()) {
      breaks.push_back(name + "." + value.name());
    }
  }
}

void CompareMessage(const DescriptorProto& promised, const std::string& scope,
                    const DescriptorPool& pool, std::vector<std::string>& breaks) {
  const std::string name = absl::StrCat(scope, ".", promised.name());
  const auto* now = pool.FindMessageTypeByName(name);
  if (now == nullptr) return breaks.push_back(name + " is gone");
  for (const auto& field : promised.field()) {
    const auto* found = now->FindFieldByNumber(field.number());
    google::protobuf::FieldDescriptorProto copy;
    if (found != nullptr) found->CopyTo(&copy);
    if (found == nullptr || copy.name() != field.name() || copy.type() != field.type() ||
        copy.label() != field.label() || copy.type_name() != field.type_name()) {
      breaks.push_back(absl::StrCat(name, ".", field.name(), " = ", field.number()));
    }
  }
  for (const auto& nested : promised.nested_type()) CompareMessage(nested, name, pool, breaks);
  for (const auto& nested : promised.enum_type()) CompareEnum(nested, name, pool, breaks);
}

// What of `promised` the compiled messages no longer keep.
std::vector<std::string> Breaks(const FileDescriptorSet& promised) {
  (void)v1::Job::descriptor();
  (void)v1::GenerateRequest::descriptor();
  const DescriptorPool& pool = *DescriptorPool::generated_pool();
  std::vector<std::string> breaks;
  for (const auto& file : promised.file()) {
    for (const auto& message : file.message_type()) {
      CompareMessage(message, file.package(), pool, breaks);
    }
    for (const auto& type : file.enum_type()) CompareEnum(type, file.package(), pool, breaks);
    for (const auto& service : file.service()) {
      const auto* now = pool.FindServiceByName(absl::StrCat(file.package(), ".", service.name()));
      for (const auto& method : service.method()) {
        const auto* found = now == nullptr ? nullptr : now->FindMethodByName(method.name());
        google::protobuf::MethodDescriptorProto copy;
        if (found != nullptr) found->CopyTo(&copy);
        if (found == nullptr || copy.input_type() != method.input_type() ||
            copy.output_type() != method.output_type() ||
            copy.server_streaming() != method.server_streaming() ||
            copy.client_streaming() != method.client_streaming()) {
          breaks.push_back(absl::StrCat(service.name(), ".", method.name()));
        }
      }
    }
  }
  return breaks;
}

TEST(Contract, PromisedMessagesAreKept) {
  FileDescriptorSet promised;
  ASSERT_TRUE(promised.ParseFromString(ReadFile(SourcePath("tests/golden/v1.binpb"))));
  ASSERT_GE(promised.file_size(), 3);
  EXPECT_THAT(Breaks(promised), ::testing::IsEmpty());
  // Negative controls: a field that we do not have, one of another type, one of another number.
  for (auto& file : *promised.mutable_file()) {
    if (file.name() != "toroid/v1/job.proto") continue;
    auto* field = file.mutable_message_type(0)->add_field();
    field->set_name("gone");
    field->set_number(999);
    file.mutable_message_type(1)->mutable_field(0)->set_type(
        google::protobuf::FieldDescriptorProto::TYPE_FIXED64);
    file.mutable_message_type(2)->mutable_field(0)->set_number(77);
  }
  EXPECT_EQ(Breaks(promised).size(), 3u);
}

TEST(Contract, LogicKnowsNoGrpc) {
  int seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath("rpc"))) {
    const std::string name = entry.path().filename().string();
    const std::string stem = name.substr(0, name.find('.'));
    const bool header = absl::EndsWith(name, ".h");
    static const std::set<std::string> kLogic = {"controller",
                                                 "controller_jobs",
                                                 "controller_pods",
                                                 "controller_pools",
                                                 "controller_recovery",
                                                 "controller_worlds",
                                                 "controller_state",
                                                 "control",
                                                 "scheduler",
                                                 "job_store",
                                                 "failure_detector",
                                                 "log_store",
                                                 "agent",
                                                 "mpirun_line",
                                                 "job",
                                                 "error_info",
                                                 "roots",
                                                 "prompt",
                                                 "prepared_program",
                                                 "world_exit",
                                                 "world_process",
                                                 "launch_file",
                                                 "tls",
                                                 "tls_probe",
                                                 "pki",
                                                 "rank_record",
                                                 "agent_process"};
    static const std::set<std::string> kForLaunchers = {"client", "server", "worker_process"};
    if (kLogic.count(stem) == 0 && !(header && kForLaunchers.count(stem) > 0)) continue;
    ++seen;
    const std::string text = ReadFile(entry.path().string());
    for (const char* forbidden : {"#include <grpc", "#include <google", ".pb.h", "rpc/convert.h",
                                  "rpc/grpc_", "rpc/dialled_stream.h"}) {
      EXPECT_FALSE(absl::StrContains(text, forbidden)) << name << " includes " << forbidden;
    }
  }
  EXPECT_GE(seen, 30);
  EXPECT_TRUE(absl::StrContains(ReadFile(SourcePath("rpc/server.cc")),
                                "#include <grpc"));  // negative control
}

TEST(JobText, TextJsonAndSettings) {
  const std::string text = R"(name: "book" seed: 5 mesh { ring: 2 } model { path: "m" }
                              generate { prompt { text: "hi" } max_tokens: 3 } max_restarts: 2)";
  auto spec = ParseJobSpec(text, {"generate.max_tokens=7", "name=other", "active_deadline=2h"});
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->name, "other");
  EXPECT_EQ(std::get<GenerateTask>(spec->task).request.max_tokens, 7);
  EXPECT_EQ(std::get<GenerateTask>(spec->task).request.sampling.seed, 5u);
  EXPECT_EQ(spec->active_deadline, absl::Hours(2));
  EXPECT_EQ(spec->placement.mesh.ring, 2);
  EXPECT_TRUE(ParseJobSpec(R"({"model":{"path":"m"},"score":{"text":{"file":"f"}}})", {}).ok());
  EXPECT_THAT(ParseJobSpec("modle { }", {}).status().ToString(), HasSubstr("did you mean model"));
  EXPECT_THAT(ParseJobSpec(text, {"generate.max_token=7"}).status().ToString(),
              HasSubstr("did you mean max_tokens"));
  EXPECT_THAT(ParseJobSpec(text, {"generate.max_tokens=x"}).status().ToString(),
              HasSubstr("unreadable value"));
  EXPECT_THAT(ParseJobSpec("name: \"a\"\nseed: \"b\"", {}).status().ToString(),
              HasSubstr("line 2"));
  EXPECT_FALSE(ParseJobSpec("model { path: \"m\" }", {}).ok());  // no task
  EXPECT_EQ(ParseJobSpec(text, {"on_pool=crew"})->placement.on_pool, "crew");
  const auto pool = ParseJobSpec("pool {} mesh { ring: 2 } pod: \"a\"", {});
  ASSERT_TRUE(pool.ok()) << pool.status();
  EXPECT_EQ(JobSpecText(*ParseJobSpec(JobSpecText(*pool), {})), JobSpecText(*pool));
  EXPECT_EQ(pool->placement.mesh.ring, 2);
  for (const char* wrong :
       {"model { path: \"m\" }", "on_pool: \"other\"", "output { dir: \"d\" }"}) {
    EXPECT_FALSE(ParseJobSpec(absl::StrCat("pool {} ", wrong), {}).ok()) << wrong;
  }
  EXPECT_THAT(ParseJobSpec(text, {"generate.n=0"}).status().ToString(), HasSubstr("n is 0"));
  EXPECT_THAT(ParseJobSpec(text, {"generate.n=1025"}).status().ToString(),
              HasSubstr("at most 1024 answers"));
  EXPECT_THAT(JobSpecSchema(), HasSubstr("max_tokens: int64  # default 256\n"));
  EXPECT_THAT(JobSpecSchema(), HasSubstr("  page_tokens: int64  # default 16\n"));
  EXPECT_THAT(JobSpecSchema(), HasSubstr("  path: string\n"));  // has to be said
  EXPECT_THAT(JobSpecSchema(), HasSubstr("more_prompts {  # repeated\n"));
}

TEST(Convert, SpecsSurviveTheRoundTrip) {
  const auto spec = ParseJobSpec(
      R"(name: "n" compute: FP64 mesh { ring: -1 tensor: 2 } pod: "a" output { dir: "r/o" }
         model { path: "m" layout: "zigzag" context: 99 page_tokens: 64 threads: 3 seed: 4 }
         generate { prompt { text: "p" chat: true system: "s" no_special: true } stop: "x" n: 3 batch: 7
         more_prompts { ids { ids: [4, 5] } } more_prompts { file: "f" }
         sampling { temperature: 0.5 top_k: 3 seed: 9 } logprobs: true prompt_logprobs: 2 }
         max_restarts: 1 active_deadline: "90s" priority: -2)",
      {});
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto again = FromProto(ToProto(*spec));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(ToProto(*again).SerializeAsString(), ToProto(*spec).SerializeAsString());
  EXPECT_TRUE(again->placement.load == spec->placement.load);
  EXPECT_EQ(again->placement.mesh.ring, MeshWish::kRest);
  const GenerateTask& task = std::get<GenerateTask>(again->task);
  EXPECT_EQ(task.request.n, 3);
  EXPECT_EQ(task.request.batch, 7);
  ASSERT_EQ(task.more_prompts.size(), 2u);
  EXPECT_EQ(task.more_prompts[0].ids, (std::vector<int32_t>{4, 5}));
  EXPECT_EQ(task.more_prompts[1].file, "f");
}

TEST(Convert, StatusesKeepTheirInfo) {
  const absl::Status status =
      MakeError(absl::StatusCode::kNotFound, "gone", {"WHY", {{"k", "v"}}, {{"f", "d"}}});
  EXPECT_EQ(GetErrorInfo(FromGrpc(ToGrpc(status))), GetErrorInfo(status));
  EXPECT_EQ(FromGrpc(ToGrpc(status)).message(), "gone");
  const absl::Status longer(absl::StatusCode::kInternal, std::string(100000, 'x'));
  EXPECT_LT(ToGrpc(longer).error_details().size(), 8000u);
}

TEST(Convert, MendsWhatIsNotUtf8) {
  EXPECT_EQ(MendUtf8("a\xc3\xa9\xf0\x9f\x98\x80"), "a\xc3\xa9\xf0\x9f\x98\x80");
  EXPECT_EQ(MendUtf8("a\xff"), "a\xef\xbf\xbd");
  EXPECT_EQ(MendUtf8("\xc3"), "\xef\xbf\xbd");
  EXPECT_NE(MendUtf8("\xed\xa0\x80"), "\xed\xa0\x80");  // a surrogate
  EXPECT_NE(MendUtf8("\xc0\x80"), "\xc0\x80");          // overlong
}

TEST(Mesh, WishesAreResolved) {
  EXPECT_EQ(*ResolveMesh(*ParseMeshWish(""), 4), (MeshShape{1, 4, 1}));
  EXPECT_EQ(*ResolveMesh(*ParseMeshWish("ring=2"), 4), (MeshShape{1, 2, 1}));
  EXPECT_EQ(*ResolveMesh(*ParseMeshWish("ring=*,tensor=2"), 4), (MeshShape{1, 2, 2}));
  EXPECT_THAT(ResolveMesh(*ParseMeshWish("ring=8"), 4).status().ToString(),
              HasSubstr("mesh needs 8, pod has 4"));
  EXPECT_FALSE(ResolveMesh(*ParseMeshWish("ring=*,tensor=3"), 4).ok());
  EXPECT_FALSE(ResolveMesh(*ParseMeshWish("ring=*,tensor=*"), 4).ok());
  EXPECT_FALSE(ResolveMesh({int64_t{1} << 40, int64_t{1} << 40, 1}, 4).ok());
  for (const char* bad : {"rung=2", "ring", "ring=0", "ring=2,ring=2", "ring=-3"}) {
    EXPECT_FALSE(ParseMeshWish(bad).ok()) << bad;
  }
}

TEST(Scheduler, PrefersFreeThenEndingThenLongestIdle) {
  using State = PodView::State;
  using Action = Assignment::Action;
  const absl::Time t = absl::FromUnixSeconds(1000);
  std::vector<PodView> pods = {{"busy", 8, State::kBusy, t},
                               {"young", 4, State::kIdleKept, t + absl::Seconds(9)},
                               {"old", 4, State::kIdleKept, t},
                               {"big", 8, State::kFree, t},
                               {"fit", 4, State::kFree, t}};
  const auto item = [](uint64_t key, int64_t ranks, int64_t priority) {
    return Waiting{key, {0, ranks, 0}, "", priority, key};
  };
  auto out = Schedule(pods, {item(1, 4, 0), item(2, 8, 0), item(3, 2, 0), item(4, 2, 0)});
  ASSERT_EQ(out.size(), 4u);
  EXPECT_EQ(out[0].pod, "fit");
  EXPECT_EQ(out[1].pod, "big");
  EXPECT_EQ(out[2].pod, "old");
  EXPECT_EQ(out[2].action, Action::kEvict);
  EXPECT_EQ(out[3].pod, "young");
  out = Schedule(pods, {item(1, 8, 0), item(2, 8, 1)});
  ASSERT_EQ(out.size(), 1u);  // one pod of 8, and the higher priority has it
  EXPECT_EQ(out[0].key, 2u);
  EXPECT_TRUE(Schedule(pods, {item(1, 16, 0)}).empty());
}

TEST(Scheduler, AJobOnSeveralPodsTakesAllOrWaits) {
  using State = PodView::State;
  using Action = Assignment::Action;
  const absl::Time t = absl::FromUnixSeconds(1000);
  std::vector<PodView> pods = {{"a", 2, State::kFree, t}, {"b", 2, State::kBusy, t}};
  const Waiting two{1, {0, 2, 0}, "", 0, 1, 2}, one{2, {0, 2, 0}, "", 0, 2, 1};
  auto out = Schedule(pods, {two, one});
  ASSERT_EQ(out.size(), 1u);  // it was there first: the free pod is kept for it
  EXPECT_EQ(out[0].key, 1u);
  EXPECT_EQ(out[0].action, Action::kWait);
  pods[1].state = State::kClosed;  // no second pod will come: nothing is kept
  out = Schedule(pods, {two, one});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].key, 2u);
  EXPECT_EQ(out[0].action, Action::kStart);
  pods[1].state = State::kIdleKept;
  out = Schedule(pods, {two});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].action, Action::kWait);
  EXPECT_EQ(out[1].action, Action::kEvict);
  pods[1].state = State::kFree;
  out = Schedule(pods, {two, one});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].action, Action::kStart);
  EXPECT_EQ(out[1].action, Action::kStart);
  EXPECT_NE(out[0].pod, out[1].pod);
}

TEST(Scheduler, AJobThatMayBeginWithFewerPods) {
  using State = PodView::State;
  using Action = Assignment::Action;
  const absl::Time t = absl::FromUnixSeconds(1000);
  std::vector<PodView> pods = {
      {"a", 2, State::kFree, t}, {"b", 2, State::kIdleKept, t}, {"c", 2, State::kClosed, t}};
  Waiting three{1, {0, 2, 0}, "", 0, 1, 3};
  EXPECT_TRUE(Schedule(pods, {three}).empty());  // control
  three.least = 1;
  auto out = Schedule(pods, {three});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].pod, "a");
  EXPECT_EQ(out[0].action, Action::kStart);
  EXPECT_EQ(out[1].pod, "b");  // it will be free for the next of them
  EXPECT_EQ(out[1].action, Action::kEvict);
  three.least = 2;
  out = Schedule(pods, {three});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].action, Action::kWait);
  EXPECT_EQ(out[1].action, Action::kEvict);
  three.least = 1;
  three.pod_meshes = {{"b", {1, 1, 1}}};
  out = Schedule(pods, {three});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[1].pod, "a");
  EXPECT_EQ(out[1].action, Action::kWait);  // for the one that is named
}

TEST(Scheduler, WhereAJobMustBeItWaits) {
  using State = PodView::State;
  using Action = Assignment::Action;
  const absl::Time t = absl::FromUnixSeconds(1000);
  std::vector<PodView> pods = {
      {"a", 2, State::kIdleKept, t}, {"b", 2, State::kFree, t}, {"c", 2, State::kFree, t}};
  Waiting one{1, {0, 2, 0}, "", 0, 1};
  EXPECT_EQ(Schedule(pods, {one})[0].pod, "b");  // control
  one.prefers = "a";
  auto out = Schedule(pods, {one});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].pod, "a");
  EXPECT_EQ(out[0].action, Action::kEvict);
  pods[0].state = State::kBusy;  // no more than preferred
  EXPECT_EQ(Schedule(pods, {one})[0].pod, "b");
  one.pod = "a";  // where its checkpoint lies
  EXPECT_TRUE(Schedule(pods, {one}).empty());

  Waiting two{2, {0, 2, 0}, "", 0, 2, 2};
  two.must = {"a"};
  out = Schedule(pods, {two});
  ASSERT_EQ(out.size(), 1u);  // one is kept for it, and no more
  EXPECT_EQ(out[0].action, Action::kWait);
  pods[0].state = State::kFree;
  out = Schedule(pods, {two});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].pod + out[1].pod, "ab");
  two.must = {"a", "b", "c"};  // more than it has: never
  EXPECT_TRUE(Schedule(pods, {two}).empty());
  pods[0].state = State::kClosed;
  two.must = {"a"};
  EXPECT_TRUE(Schedule(pods, {two}).empty());

  two.must = {};
  two.among = {"a", "c"};
  two.least = 1;
  out = Schedule(pods, {two});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].pod, "c");
  EXPECT_EQ(out[0].action, Action::kStart);
}

TEST(Scheduler, APodThatHasAMeshOfItsOwnTakesPart) {
  using State = PodView::State;
  using Action = Assignment::Action;
  const absl::Time t = absl::FromUnixSeconds(1000);
  std::vector<PodView> pods = {
      {"a", 1, State::kFree, t}, {"b", 2, State::kFree, t}, {"z", 4, State::kFree, t}};
  Waiting item{1, {1, 1, 1}, "", 0, 1, 2};
  auto out = Schedule(pods, {item});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].pod + out[1].pod, "ab");  // control: the tightest fit
  item.pod_meshes = {{"z", {1, 1, 4}}};
  out = Schedule(pods, {item});
  ASSERT_EQ(out.size(), 2u);
  EXPECT_EQ(out[0].pod + out[1].pod, "za");
  EXPECT_EQ(out[1].action, Action::kStart);
  pods[2].state = State::kBusy;  // it is waited for, by one that is kept
  out = Schedule(pods, {item});
  ASSERT_EQ(out.size(), 1u);
  EXPECT_EQ(out[0].pod, "a");
  EXPECT_EQ(out[0].action, Action::kWait);
  pods[2].slots = 3;  // its mesh is too large for it
  EXPECT_TRUE(Schedule(pods, {item}).empty());
}

}  // namespace
}  // namespace toroid
