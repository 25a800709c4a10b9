// Tuning of the shipped model, on the CPU.
#include "lib/tune/tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>

#include "kernels/common/parallel.h"
#include "lib/core/error.h"
#include "lib/prefill/prefill_backend.h"
#include "lib/testing/files.h"
#include "lib/tune/tune_journal.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::data_folder;
using testing_support::message_of;
using testing_support::read_file;
using testing_support::TempFolder;
using testing_support::write_file;

TuneOptions options_in(const TempFolder& folder, const std::string& target) {
  TuneOptions options{.model = data_folder() / "tiny-llama",
                      .tokens = {data_folder() / "tokens/war_and_peace.safetensors"},
                      .seqlens = {384},
                      .methods = {R"({"name": "s2o_plus", "tau": [0.1, 0.01]})",
                                  R"({"name": "streaming_llm", "sink": 16, "window": 64})"},
                      .objective = "density",
                      .logit_positions = 64,
                      .device = {.kind = DeviceKind::kCpu},
                      .out = folder / "tuned.json"};
  parse_tune_target(target, "--target", options);
  return options;
}

TEST(tune, a_target_of_loss_is_met_by_less_work) {
  const TempFolder folder;
  const TunedFile file = tune(options_in(folder, "loss=0.02"));
  const nlohmann::ordered_json& measured = file.lengths.at(0).measured;
  EXPECT_LE(measured["kl_from_dense"].get<double>(), 0.02);
  EXPECT_GT(measured["kl_from_dense"].get<double>(), 0.0);
  EXPECT_LT(measured["pair_density"].get<double>(), 0.95);
  EXPECT_EQ(measured["reached_by"][measured["by"]]["cost"], measured["pair_density"]);
  // The file says the same.
  const TunedFile read = read_tuned_file(folder / "tuned.json");
  EXPECT_EQ(read.lengths.at(0).layers, file.lengths.at(0).layers);
  EXPECT_EQ(read.context["effects"].size(), 4u);
}

TEST(tune, a_tighter_target_costs_more) {
  const TempFolder folder;
  const auto density = [&](const std::string& target) {
    return tune(options_in(folder, target)).lengths.at(0).measured["pair_density"].get<double>();
  };
  EXPECT_LT(density("relative_l2=0.2"), density("relative_l2=0.02"));
  EXPECT_LT(density("mass=0.9"), density("mass=0.999"));
}

TEST(tune, an_interrupted_run_goes_on_where_it_was) {
  const TempFolder folder;
  TuneOptions options = options_in(folder, "loss=0.02");
  std::size_t steps = 0;
  options.progress = [&](std::size_t, std::size_t, const std::string&) {
    if (++steps == 3) g_cancel_requested = true;
  };
  EXPECT_THROW(tune(options), InterruptedError);
  g_cancel_requested = false;
  const std::string before = read_file(folder / "tuned.json.measured.jsonl");
  EXPECT_THAT(before, HasSubstr("effect"));
  options.progress = {};
  options.resume = true;
  const TunedFile resumed = tune(options);
  // Times that were measured again would differ.
  const std::string after = read_file(folder / "tuned.json.measured.jsonl");
  EXPECT_GT(after.size(), before.size());
  EXPECT_TRUE(after.starts_with(before));
  options.resume = false;
  EXPECT_EQ(tune(options).lengths.at(0).layers, resumed.lengths.at(0).layers);
}

TEST(tune, a_journal_of_other_options_is_refused) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "measured.jsonl";
  TuneJournal(path, {{"offset", 0}}, 2, false).add_effect(384, 3, 0.5);
  EXPECT_EQ(TuneJournal(path, {{"offset", 0}}, 2, true).effect(384, 3), 0.5);
  EXPECT_EQ(TuneJournal(path, {{"offset", 0}}, 2, true).effect(512, 3), std::nullopt);
  EXPECT_THAT(message_of<ConfigError>([&] {
                TuneJournal(path, {{"offset", 1}}, 2, true);
              }),
              HasSubstr("of another model, text, machine or version; run without --resume: offset: "
                        "found 0, expected 1"));
}

TEST(tune, a_journal_that_is_broken_says_where_and_stays_as_it_is) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "measured.jsonl";
  const nlohmann::ordered_json header = {{"offset", 0}};
  TuneJournal(path, header, 2, false).add_probes(384, 0, 0, "dense", {{}, {}});
  const std::string good = read_file(path);
  const auto message = [&](const std::string& line) {
    write_file(path, good + line + "\n");
    const std::string text = message_of<InputError>([&] { TuneJournal(path, header, 2, true); });
    EXPECT_EQ(read_file(path), good + line + "\n");
    return text;
  };
  EXPECT_THAT(message("{"), HasSubstr("line 3: "));
  EXPECT_THAT(message("3"), HasSubstr("line 3: "));
  EXPECT_THAT(message(R"({"layer": 1e300, "effect": 1})"), HasSubstr("line 3: layer"));
  EXPECT_THAT(message(R"({"seqlen": 384, "layer": 1, "effect": null})"),
              HasSubstr("line 3: effect"));
  const auto heads = [](const std::string& text) {
    return R"({"seqlen": 384, "text": 0, "layer": 1, "setting": "dense", "heads": )" + text + "}";
  };
  EXPECT_THAT(message(heads("[[1,1,1,1,1,1,1]]")), HasSubstr("2 heads"));
  EXPECT_THAT(message(heads("[[1,1],[1,1]]")), HasSubstr("lists of 7 numbers"));
  const std::string one = "[1,1,1,1,1,1,1]";
  EXPECT_THAT(message(heads("[" + one + ",[1,1,1,-1,1,1,1]]")), HasSubstr("in [0, 1e+100]"));
  EXPECT_THAT(message(heads("[" + one + ",[1,1,1,1e300,1,1,1]]")), HasSubstr("in [0, 1e+100]"));
  EXPECT_THAT(message(R"({"seqlen": 384, "layer": 1, "effect": 1e308})"), HasSubstr("effect"));
  EXPECT_THAT(message(R"({"seqlen": 384, "layer": 1, "effect": -1})"), HasSubstr("effect"));
  // What a crash cut off is measured again.
  write_file(path, good + R"({"layer": 1, "eff)");
  EXPECT_NE(TuneJournal(path, header, 2, true).probes(384, 0, 0, "dense"), nullptr);
  EXPECT_EQ(read_file(path), good);
  // What cannot be written as a number is not taken; what was there is not lost.
  TuneJournal again(path, header, 2, false);
  EXPECT_EQ(read_file(path.string() + ".previous"), good);
  EXPECT_THAT(message_of<Error>([&] {
                again.add_probes(384, 0, 7, "dense", {{}, {.error = std::nan("")}});
              }),
              HasSubstr("layer 7, head 1"));
  EXPECT_EQ(again.probes(384, 0, 7, "dense"), nullptr);
}

TEST(tune, a_journal_belongs_to_one_run) {
  const TempFolder folder;
  const std::filesystem::path path = folder / "measured.jsonl";
  const nlohmann::ordered_json header = {{"offset", 0}};
  {
    TuneJournal first(path, header, 2, false);
    for (const bool resume : {false, true}) {
      EXPECT_THAT(message_of<ConfigError>([&] { TuneJournal(path, header, 2, resume); }),
                  HasSubstr("another run is writing into it"));
    }
    first.add_effect(384, 3, 0.5);
  }
  // Runs that measure nothing do not take the place of one that did.
  for (int i = 0; i < 2; ++i) TuneJournal(path, header, 2, false);
  EXPECT_THAT(read_file(path.string() + ".previous"), HasSubstr("effect"));
  std::filesystem::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_THAT(message_of<ConfigError>([&] { TuneJournal(path, header, 2, true); }),
              HasSubstr("cannot be written"));
}

TEST(tune, what_was_measured_serves_other_targets_and_coarser_choices) {
  const TempFolder folder;
  TuneOptions options = options_in(folder, "mass=0.95");
  options.by = "head";
  const auto density = [&] {
    return tune(options).lengths.at(0).measured["pair_density"].get<double>();
  };
  const double by_head = density();
  options.resume = true;
  options.by = "layer";
  const double by_layer = density();
  options.by = "model";
  const TunedFile whole = tune(options);
  EXPECT_LE(by_head, by_layer);
  EXPECT_LE(by_layer, whole.lengths.at(0).measured["pair_density"].get<double>());
  EXPECT_EQ(whole.lengths.at(0).measured["heads"].size(), 1u);
}

TEST(tune, lengths_are_added_to_a_file_of_the_same_weights) {
  const TempFolder folder;
  TuneOptions options = options_in(folder, "relative_l2=0.05");
  const TunedFile first = tune(options);
  options.seqlens = {192};
  options.methods = {R"({"name": "s2o_plus", "tau": 0.03})"};
  options.extend = true;
  const TunedFile both = tune(options);
  ASSERT_EQ(both.lengths.size(), 2u);
  EXPECT_EQ(both.lengths[0].seqlen, 192);
  const auto name = [](const TunedFile& file, std::size_t length) {
    return file.settings[static_cast<std::size_t>(file.lengths[length].layers[1][0])];
  };
  EXPECT_EQ(name(both, 1), name(first, 0));
  EXPECT_EQ(both.lengths[1].measured["context"]["texts"], first.context["texts"]);
  EXPECT_NE(both.context["texts"], first.context["texts"]);
  EXPECT_FALSE(both.lengths[0].measured.contains("context"));
  parse_tune_target("relative_l2=0.06", "--target", options);
  EXPECT_THAT(message_of<ConfigError>([&] { tune(options); }), HasSubstr("for the target"));
  // The weights are known by their hash, the shape by what the file says.
  TunedFile other = both;
  other.model.num_layers = 1;
  for (TunedLength& length : other.lengths) length.layers.resize(1);
  write_tuned_file(options.out, other);
  EXPECT_THAT(message_of<ConfigError>([&] { tune(options); }),
              HasSubstr("for 1 layers of 8 query and 2 KV heads of 128"));
}

TEST(tune, a_target_that_dense_alone_meets_says_what_is_missed) {
  const TempFolder folder;
  TuneOptions options = options_in(folder, "mass=0.9999");
  options.methods = {R"({"name": "streaming_llm", "sink": 0, "window": 16})"};
  options.by = "model";
  ::testing::internal::CaptureStderr();
  const TunedFile file = tune(options);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("mass=0.9999 at 384 tokens: nothing meets it at less cost than dense"));
  EXPECT_EQ(file.lengths.at(0).measured["heads"].size(), 1u);
}

TEST(tune, a_length_that_is_named_twice_is_tuned_once) {
  const TempFolder folder;
  TuneOptions options = options_in(folder, "relative_l2=0.05");
  options.seqlens = {192, 128, 192};
  options.by = "model";
  tune(options);
  EXPECT_EQ(read_tuned_file(options.out).lengths.size(), 2u);
}

TEST(tune, what_cannot_be_tuned_says_why) {
  const TempFolder folder;
  const auto message = [&](const auto& change) {
    TuneOptions options = options_in(folder, "loss=0.02");
    change(options);
    return message_of<Error>([&] { tune(options); });
  };
  EXPECT_THAT(message([](TuneOptions& o) { o.methods = {"oracle_block"}; }),
              HasSubstr("oracle_block cannot be tuned"));
  EXPECT_THAT(message([](TuneOptions& o) { o.methods = {"s2oplus"}; }),
              HasSubstr("--method s2oplus: unknown method 's2oplus', did you mean 's2o_plus'"));
  // Before anything is measured.
  EXPECT_THAT(message([&](TuneOptions& o) { o.out = folder.path(); }), HasSubstr("is a folder"));
  EXPECT_THAT(message([](TuneOptions& o) { o.seqlens = {1 << 20}; }),
              HasSubstr("+ seqlen 1048576"));
  EXPECT_THAT(message([](TuneOptions& o) {
                parse_tune_target("mass=0.9", "--target", o);
                o.methods = {R"({"name": "s2o_plus", "compensation": "blocks"})"};
              }),
              HasSubstr("compensation: found \"blocks\", expected none"));
  TuneOptions options;
  EXPECT_THAT(message_of<ConfigError>([&] { parse_tune_target("los=1", "--target", options); }),
              HasSubstr("expected loss=NATS (above 0, at most 100)"));
  EXPECT_THAT(message_of<ConfigError>([&] { parse_tune_target("mass=2", "--target", options); }),
              HasSubstr("found 'mass=2'"));
}

}  // namespace
}  // namespace s2o
