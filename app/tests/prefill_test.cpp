// `s2o prefill` from the outside: results, streams, resume, refusals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/tests/run_s2o.h"
#include "lib/report/results_file.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::AppTest;
using testing_support::data_folder;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

Json tiny_config() {
  Json config = Json::parse(R"({
    "device": "cpu",
    "prompts": [{"tokens": "words.txt", "seqlen": [200, 300]}],
    "methods": [{"name": "dense"}, {"name": "s2o", "segment_size": 128, "tau": [0.0, 0.3]}]})");
  config["model"] = (data_folder() / "tiny-llama").string();
  return config;
}

class PrefillTest : public AppTest {
 protected:
  void SetUp() override {
    std::string ids;
    for (int i = 0; i < 400; ++i) ids += std::to_string((i * 37 + i * i) % 4096) + " ";
    write_file(folder_ / "words.txt", ids);
    write_config("tiny.json", tiny_config());
  }
  Outcome prefill(std::vector<std::string> more) const {
    more.insert(more.begin(), {"prefill", "-c", "tiny.json", "--out", "out"});
    return run(more);
  }
  Json results(const std::string& out = "out") const {
    return Json::parse(read_file(folder_ / out / "results.json"));
  }
  // A run that has to fail before anything is written.
  void expect_refusal(const Outcome& outcome, int exit_code, const std::string& message) const {
    EXPECT_EQ(outcome.exit_code, exit_code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(message));
    EXPECT_EQ(outcome.out, "");
    EXPECT_FALSE(exists("out/results.json"));
    EXPECT_FALSE(exists("out/rows.partial.jsonl"));
  }
};

TEST_F(PrefillTest, rows_have_times_densities_losses_and_divergence) {
  const Outcome outcome = prefill({"-q"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, HasSubstr("words, 300 tokens (tiny-llama; attention_ref)"));
  const Json document = results();
  ASSERT_EQ(document["rows"].size(), 6u);
  for (const Json& row : document["rows"]) {
    EXPECT_TRUE(row["error"].is_null());
    EXPECT_GT(row["time_to_first_token_ms"].get<double>(), 0.0);
    EXPECT_TRUE(row["time_to_first_token_p10_ms"].is_null());
    EXPECT_TRUE(row["retrieval_accuracy"].is_null());
    EXPECT_EQ(row["logit_rows"], row["seqlen"]) << "all of a short prompt";
    EXPECT_EQ(row["loss_by_position"].size(), 1u);
    const double tau = row["params"].value("tau", 0.0);
    if (tau > 0.0) continue;
    // Dense, and S2O that never stops.
    EXPECT_NEAR(row["held_out_loss"].get<double>(), row["dense_loss"].get<double>(), 1e-4);
    EXPECT_LT(row["kl_from_dense"].get<double>(), 1e-5);
    EXPECT_EQ(row["compute_density"], 1.0);
  }
  EXPECT_LT(document["rows"][5]["compute_density"], 1.0);
  const ResultTable stored = read_results(folder_ / "out/results.h5");
  EXPECT_EQ(stored.rows[5].prefill.per_layer.at("compute_density").size(), 4u);
}

TEST_F(PrefillTest, memory_is_told_in_advance_on_stderr) {
  EXPECT_THAT(prefill({}).err, HasSubstr("memory for 300 tokens on cpu:"));
}

TEST_F(PrefillTest, dense_that_is_not_listed_is_the_reference_all_the_same) {
  prefill({"-q", "--set", R"(methods=[{"name": "streaming_llm", "sink": 0, "window": 64}])"});
  const Json document = results();
  ASSERT_EQ(document["rows"].size(), 2u);
  EXPECT_EQ(document["rows"][0]["method"], "streaming_llm");
  EXPECT_GT(document["rows"][0]["kl_from_dense"], 0.0);
  EXPECT_GT(document["rows"][0]["speedup_vs_dense"], 0.0);
}

TEST_F(PrefillTest, resume_goes_on_where_a_run_ended) {
  const Outcome interrupted = prefill({"--stop-after-rows", "2"});
  EXPECT_EQ(interrupted.exit_code, 130);
  EXPECT_EQ(results()["rows"].size(), 2u);
  const Json first = results()["rows"];
  const Outcome resumed = prefill({"--resume", "-v"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, HasSubstr("2 of 6 rows are there"));
  const Json document = results();
  ASSERT_EQ(document["rows"].size(), 6u);
  EXPECT_EQ(document["rows"][1], first[1]);
  EXPECT_FALSE(exists("out/rows.partial.jsonl"));
  const Outcome complete = prefill({"--resume", "-v"});
  EXPECT_THAT(complete.err, HasSubstr("all 6 rows are there"));
  EXPECT_THAT(complete.err, Not(HasSubstr("memory for")));
  const Outcome other = prefill({"--resume", "--set", "dense_layers=[0]"});
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.err, HasSubstr("they differ in: dense_layers"));
}

TEST_F(PrefillTest, prompts_with_answers_are_scored_by_cell) {
  std::string lines;
  for (int sample = 0; sample < 3; ++sample) {
    Json ids = Json::array();
    for (int i = 0; i < 64; ++i) ids.push_back((i * 7 + sample) % 4096);
    lines += Json({{"task", "needle"},
                   {"sample", sample},
                   {"input_ids", ids},
                   {"answer_start", 60},
                   {"answer_length", 4}})
                 .dump() +
             "\n";
  }
  write_file(folder_ / "tasks.jsonl", lines);
  const Outcome outcome = prefill({"--set", R"(prompts=[{"prompts": "tasks.jsonl"}])"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("Teacher-forced retrieval"));
  EXPECT_THAT(outcome.out, HasSubstr("needle"));
  const Json row = results()["rows"][0];
  EXPECT_EQ(row["answer_tokens"], 4.0);
  EXPECT_TRUE(row["held_out_loss"].is_null());
  const Outcome table = run({"table", "out", "--table", "retrieval", "--format", "csv"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("exact_low"));
  EXPECT_EQ(run({"table", "out", "--table", "end_to_end"}).exit_code, 0);
  EXPECT_THAT(run({"list", "tables"}).out, HasSubstr("end_to_end"));
}

TEST_F(PrefillTest, a_replay_has_times_only) {
  const std::string replay =
      R"(replay={"source": "synthetic", "seqlen": 300, "num_q_heads": 4, "num_kv_heads": 1})";
  const Outcome outcome = prefill({"--set", replay, "--set", R"(model={"shape": "tiny-llama"})"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("Latency composition"));
  const Json row = results()["rows"][2];
  EXPECT_EQ(row["qkv"], "replay of synthetic/mixed");
  EXPECT_EQ(row["model"], "tiny-llama (seeded weights)");
  EXPECT_TRUE(row["held_out_loss"].is_null());
  EXPECT_TRUE(row["kl_from_dense"].is_null());
  EXPECT_GT(row["time_to_first_token_ms"], 0.0);
}

TEST_F(PrefillTest, bad_configs_and_inputs_are_refused_with_their_place) {
  expect_refusal(prefill({"--set", "modle=x"}), 2, "unknown key 'modle', did you mean 'model'?");
  expect_refusal(prefill({"--set", "methods.s2o.tua=1"}), 2, "did you mean 'tau'?");
  expect_refusal(prefill({"--set", "prompts.0.seqlen=500"}), 3,
                 "words.txt: 400 token ids, expected at least offset 0 + seqlen 500");
  expect_refusal(prefill({"--set", "model=nowhere"}), 3, "nowhere: no such folder");
  expect_refusal(prefill({"--device", "cuda", "--kernel", "ref"}), 2, "kernel ref runs on cpu");
  write_file(folder_ / "words.txt", "1 2 5000");
  expect_refusal(prefill({"--set", "prompts.0.seqlen=3"}), 3,
                 "words.txt: token id 5000 at index 2, expected an id in [0, 4096)");
  write_file(folder_ / "tasks.jsonl",
             "{\"input_ids\": [1, 2], \"answer_start\": 2, "
             "\"answer_length\": 1}\n");
  expect_refusal(prefill({"--set", R"(prompts=[{"prompts": "tasks.jsonl"}])"}), 3,
                 "tasks.jsonl: line 1: answer: 1 tokens from 2 on");
}

TEST_F(PrefillTest, a_model_is_split_over_gpus_only) {
  expect_refusal(prefill({"--parallel", "2"}), 4, "parallel 2: a model is split over GPUs only");
  expect_refusal(prefill({"--parallel", "2", "--device", "cuda:99"}), 4, "device cuda:99");
  expect_refusal(prefill({"--parallel", "0"}), 2, "expected an integer between 1 and 64");
  expect_refusal(prefill({"--set", "parallel=65"}), 2, "parallel");
}

TEST_F(PrefillTest, bad_models_are_refused_with_their_place) {
  const auto source = data_folder() / "fixtures/models/llama_tied";
  const auto copy = [&](const std::function<void(Json&)>& edit) {
    std::filesystem::remove_all(folder_ / "model");
    std::filesystem::copy(source, folder_ / "model");
    Json config = Json::parse(read_file(folder_ / "model/config.json"));
    edit(config);
    write_file(folder_ / "model/config.json", config.dump());
  };
  const std::vector<std::string> with = {"--set", "model=model"};
  copy([](Json& config) { config["architectures"] = {"MambaForCausalLM"}; });
  expect_refusal(prefill(with), 4, "MambaForCausalLM");
  copy([](Json& config) { config["quantization_config"] = {{"bits", 4}}; });
  expect_refusal(prefill(with), 4, "quantised weights");
  copy([](Json& config) { config["intermediate_size"] = 45; });
  expect_refusal(prefill(with), 3, "expected [45, 32] (from config.json)");
  copy([](Json& config) { config["num_hidden_layers"] = 4; });
  expect_refusal(prefill(with), 3, "model.layers.3.");
}

TEST_F(PrefillTest, a_setting_that_can_never_run_is_refused) {
  expect_refusal(prefill({"--set", "methods.s2o.segment_size=100"}), 2,
                 "methods.s2o.segment_size: found 100, expected a multiple of block_m 128");
}

TEST_F(PrefillTest, a_replay_whose_heads_do_not_fit_is_refused) {
  const std::string replay =
      R"(replay={"source": "synthetic", "seqlen": 300, "num_q_heads": 4, "num_kv_heads": 2})";
  // Two query heads per KV head where the model has four.
  expect_refusal(prefill({"--set", replay, "--set", R"(model={"shape": "tiny-llama"})"}), 4,
                 "2 query heads per KV head, expected 128 and 4");
}

TEST_F(PrefillTest, a_prompt_beyond_the_memory_says_how_much_is_missing) {
  const Outcome outcome = prefill({"--set", R"(model={"shape": "tiny-llama"})", "--set",
                                   R"(prompts=[{"random": true, "seqlen": 50000000}])"});
  EXPECT_EQ(outcome.exit_code, 4) << outcome.err;
  const std::string message = "are free; the longest prompt that fits has";
  EXPECT_THAT(outcome.err, HasSubstr(message));
  for (const Json& row : results()["rows"]) {
    EXPECT_THAT(row["error"].get<std::string>(), HasSubstr(message));
  }
}

}  // namespace
}  // namespace s2o
