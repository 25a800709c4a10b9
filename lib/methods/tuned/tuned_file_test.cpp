#include "lib/methods/tuned/tuned_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

TunedSetting setting(const std::string& name, const nlohmann::ordered_json& params = {}) {
  const Method& method = find_method(name);
  nlohmann::ordered_json entry = params.is_null() ? nlohmann::ordered_json::object() : params;
  entry["name"] = name;
  return {&method, std::make_shared<const ParamSet>(expand_settings(method, entry, "test")[0])};
}

// Two layers of four query heads.
TunedFile sample() {
  return {.model = {.name = "m",
                    .id = "0123456789abcdef",
                    .num_layers = 2,
                    .num_q_heads = 4,
                    .num_kv_heads = 2,
                    .head_dim = 64},
          .context = {{"git_commit", "abc"}},
          .target = {{"loss", 0.01}},
          .objective = "time",
          .settings = {setting("dense"), setting("s2o_plus", {{"tau", 0.1}}),
                       setting("s2o_plus", {{"tau", 0.01}}), setting("s2o_plus", {{"tau", 0.001}}),
                       setting("streaming_llm")},
          .lengths = {{.seqlen = 1024, .layers = {{0, 1, 1, 4}, {1, 1, 1, 1}}},
                      {.seqlen = 4096, .layers = {{0, 3, 4, 4}, {2, 2, 2, 2}}}}};
}

TEST(tuned_file, what_is_written_is_read) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "tuned.json";
  const TunedFile file = sample();
  write_tuned_file(path, file);
  const TunedFile read = read_tuned_file(path);
  EXPECT_EQ(read.model, file.model);
  EXPECT_EQ(read.target, file.target);
  EXPECT_EQ(read.settings, file.settings);
  ASSERT_EQ(read.lengths.size(), 2u);
  EXPECT_EQ(read.lengths[1].layers, file.lengths[1].layers);
}

TEST(tuned_file, a_run_keeps_what_it_began_with) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "tuned.json";
  TunedFile file = sample();
  write_tuned_file(path, file);
  const std::shared_ptr<const TunedFile> first = load_tuned_file(path);
  file.lengths.pop_back();
  write_tuned_file(path, file);
  std::filesystem::last_write_time(
      path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
  EXPECT_EQ(load_tuned_file(path), first);
  std::filesystem::remove(path);
  EXPECT_EQ(load_tuned_file(path), first);
  EXPECT_EQ(find_method("tuned").row_params(
                *setting("tuned", {{"path", path.string()}}).params)["file_id"],
            first->hash);
  write_tuned_file(path, file);
  renew_tuned_file(path);
  const std::shared_ptr<const TunedFile> second = load_tuned_file(path);
  EXPECT_EQ(second->lengths.size(), 1u);
  EXPECT_NE(second->hash, first->hash);
}

TEST(tuned_file, lengths_between_interpolate_the_knob_and_keep_the_nearer_method) {
  const TunedFile file = sample();
  EXPECT_THAT(file.heads_at(1024, 0), ElementsAre(0, 1, 1, 4));
  EXPECT_THAT(file.heads_at(2048, 0), ElementsAre(0, 2, 4, 4));
  EXPECT_THAT(file.heads_at(1500, 0), ElementsAre(0, 2, 1, 4));
  EXPECT_THAT(file.heads_at(4000, 1), ElementsAre(2, 2, 2, 2));
  EXPECT_FALSE(file.covers(512));
  EXPECT_THAT(file.heads_at(512, 0), ElementsAre(0, 1, 1, 4));
  EXPECT_THAT(file.heads_at(100000, 0), ElementsAre(0, 3, 4, 4));
}

TEST(tuned_file, lengths_between_keep_to_one_sweep) {
  TunedFile file = sample();
  // Number 2, between 1 and 3, differs from both in more than the knob.
  file.settings[2] = setting("s2o_plus", {{"tau", 0.01}, {"compensation", "blocks"}});
  EXPECT_THAT(file.heads_at(2000, 0), ElementsAre(0, 1, 1, 4));
  // From 1 to 2 more than the knob changes: the nearer length counts.
  file.lengths[1].layers[0] = {2, 2, 2, 2};
  EXPECT_THAT(file.heads_at(1100, 0), ElementsAre(0, 1, 1, 4));
  EXPECT_THAT(file.heads_at(4000, 0), ElementsAre(2, 2, 2, 2));
}

TEST(tuned_file, weights_of_shards_are_known_whatever_the_config_says) {
  const TempFolder folder;
  write_file(folder / "model.safetensors.index.json",
             R"({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}})");
  write_file(folder / "one.safetensors", "1");
  write_file(folder / "two.safetensors", "2");
  write_file(folder / "config.json", "{}");
  const std::string id = weights_id(folder.path());
  write_file(folder / "config.json", R"({"rope_scaling": null})");
  EXPECT_EQ(weights_id(folder.path()), id);
  write_file(folder / "two.safetensors", "3");
  EXPECT_NE(weights_id(folder.path()), id);
  write_file(folder / "model.safetensors.index.json", R"({"weight_map": {"a": 1}})");
  EXPECT_THAT(message_of<InputError>([&] { weights_id(folder.path()); }),
              HasSubstr("no index of shards"));
}

TEST(tuned_file, equal_neighbours_run_together_inside_a_kv_head_or_as_whole_ones) {
  const std::vector<TunedSetting> settings = sample().settings;
  const auto ranges = [&](const std::vector<int>& heads) {
    std::vector<std::pair<int, int>> found;
    for (const HeadSetting& one : group_heads(settings, heads, 2)) {
      found.emplace_back(one.q_heads.first, one.q_heads.count);
    }
    return found;
  };
  using Ranges = std::vector<std::pair<int, int>>;
  EXPECT_EQ(ranges({1, 1, 1, 1}), (Ranges{{0, 4}}));
  EXPECT_EQ(ranges({0, 0, 4, 4}), (Ranges{{0, 2}, {2, 2}}));
  EXPECT_EQ(ranges({0, 1, 1, 1}), (Ranges{{0, 1}, {1, 1}, {2, 2}}));
  EXPECT_EQ(ranges({1, 0, 0, 1}), (Ranges{{0, 1}, {1, 1}, {2, 1}, {3, 1}}));
}

TEST(tuned_file, neighbours_that_differ_in_what_heads_may_run_together) {
  const std::vector<TunedSetting> settings = sample().settings;
  const std::vector<HeadSetting> groups = group_heads(settings, {1, 2, 3, 3, 4, 4}, 2);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].q_heads, (HeadRange{0, 4}));
  ASSERT_EQ(groups[0].head_params.size(), 4u);
  const std::vector<double> taus = {0.1, 0.01, 0.001, 0.001};
  for (int head = 0; head < 4; ++head) {
    EXPECT_EQ(groups[0].params_of(head).get_real("tau"), taus[static_cast<std::size_t>(head)]);
  }
  EXPECT_TRUE(groups[1].head_params.empty());
  EXPECT_TRUE(group_heads(settings, {2, 2, 2, 2}, 2)[0].head_params.empty());
  EXPECT_THAT(kinds_of({settings[1], setting("s2o_plus", {{"tau", 0.01}, {"reach_per_tau", 16.0}}),
                        setting("s2o_plus", {{"tau", 0.1}, {"local_window", 256}}),
                        setting("s2o", {{"tau", 0.1}}), settings[2]}),
              ElementsAre(0, 0, 2, 3, 0));
  EXPECT_THAT(kinds_of({setting("xattention", {{"threshold", 0.9}}),
                        setting("xattention", {{"threshold", 0.8}})}),
              ElementsAre(0, 1));
}

TEST(tuned_file, a_file_that_is_broken_says_where) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "tuned.json";
  write_tuned_file(path, sample());
  const std::string good = read_file(path);
  const auto message = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    write_file(path, text);
    return message_of<InputError>([&] { read_tuned_file(path); });
  };
  EXPECT_THAT(message("[0,3,4,4]", "[0,3,4]"),
              HasSubstr("lengths[1].layers[0]: found 3 entries, expected a list of 4 query heads"));
  EXPECT_THAT(message("[0,3,4,4]", "[0,3,4,5]"), HasSubstr("numbers of settings in [0, 5)"));
  EXPECT_THAT(message("\"schema_version\": 1", "\"schema_version\": 2"),
              HasSubstr("schema_version"));
  EXPECT_THAT(message("streaming_llm", "streamingllm"),
              HasSubstr("settings[4]: unknown method 'streamingllm', did you mean"));
  EXPECT_THAT(message("{\"name\":\"dense\"}", "{\"name\":\"oracle_block\"}"),
              HasSubstr("settings[0]: oracle_block cannot be tuned"));
  EXPECT_THAT(message("\"tau\"", "\"tua\""), HasSubstr("of commit \"abc\", this program of"));
  EXPECT_THAT(message("4096", "1024"), HasSubstr("lengths[1].seqlen: found 1024 after 1024"));
  EXPECT_THAT(message("s2o tuned settings", "other"), HasSubstr("kind"));
  EXPECT_THAT(message("{\"loss\":0.01}", "{\"loss\":\"0.01\"}"), HasSubstr("target.loss"));
  EXPECT_THAT(message("{\"loss\":0.01}", "[0.01]"), HasSubstr("target"));
  EXPECT_THAT(message("{\"loss\":0.01}", "{}"), HasSubstr("target: found {}"));
  EXPECT_THAT(message("\"git_commit\"", "\"effects\":[1],\"git_commit\""),
              HasSubstr("context.effects: found 1 entries, expected a list of 2 layers"));
  EXPECT_THAT(message("\"git_commit\"", "\"effects\":[1,-1],\"git_commit\""),
              HasSubstr("context.effects: found -1"));
  EXPECT_THAT(message("\"git_commit\"", "\"effects\":[1,1e300],\"git_commit\""),
              HasSubstr("context.effects: found 1e+300"));
  std::string many = "{\"name\":\"dense\"}";
  for (int i = 0; i < 4096; ++i) many += ",{\"name\":\"dense\"}";
  EXPECT_THAT(message("{\"name\":\"dense\"}", many),
              HasSubstr("settings: found 4101 entries, expected at most 4096"));
  EXPECT_THAT(message("\"measured\": {}", "\"measured\": 3"), HasSubstr("lengths[0].measured"));
}

TEST(tuned_file, a_method_that_other_heads_are_not_for_says_so) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "tuned.json";
  write_tuned_file(path, sample());
  const Method& tuned = find_method("tuned");
  const std::vector<ParamSet> params =
      expand_settings(tuned, {{"name", "tuned"}, {"path", path.string()}}, "methods[0]");
  const Problem problem = {.seqlen = 1024, .num_q_heads = 4, .num_kv_heads = 2, .head_dim = 64};
  const std::vector<HeadSetting> heads = tuned.head_settings(params[0], 0, problem);
  ASSERT_EQ(heads.size(), 4u);
  EXPECT_EQ(heads[1].method->info().name, "s2o_plus");
  const auto warnings = [&](std::int64_t seqlen) {
    Problem of_length = problem;
    of_length.seqlen = seqlen;
    ::testing::internal::CaptureStderr();
    tuned.head_settings(params[0], 0, of_length);
    tuned.head_settings(params[0], 1, of_length);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(warnings(2048), "");
  EXPECT_THAT(warnings(512), HasSubstr("tuned for 1024 to 4096 tokens; 512 tokens take"));
  EXPECT_EQ(warnings(512), "");  // once
  Problem other = problem;
  other.num_q_heads = 8;
  EXPECT_THAT(message_of<ConfigError>([&] { tuned.head_settings(params[0], 0, other); }),
              HasSubstr("found layer 0 of 8 query and 2 KV heads"));
  EXPECT_THAT(message_of<ConfigError>([&] { tuned.head_settings(params[0], 2, problem); }),
              HasSubstr("2 layers"));
  EXPECT_THAT(message_of<ConfigError>([&] {
                expand_settings(tuned, {{"name", "tuned"}}, "methods[0]");
              }),
              HasSubstr("methods[0].path: not set"));
}

}  // namespace
}  // namespace s2o
