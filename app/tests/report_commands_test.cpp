// What makes tables and pictures of results: `s2o match`, `s2o table`, `s2o heatmap`, plot.py.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "app/tests/run_s2o.h"
#include "lib/report/image.h"

namespace s2o {
namespace {

using ::testing::HasSubstr;
using testing_support::AppTest;
using testing_support::Outcome;
using testing_support::read_file;
using testing_support::small_config;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

class ReportCommands : public AppTest {
 protected:
  // A folder "run" with the results of curves that overlap.
  void evaluate() {
    Json config = small_config();
    config["methods"] = Json::parse(R"([
      {"name": "dense"},
      {"name": "streaming_llm", "sink": 16, "window": [32, 64, 128, 256]},
      {"name": "s2o", "segment_size": 128, "tau": [0.001, 0.1, 0.3, 0.9]}])");
    config["inputs"][0]["seqlen"] = 1024;
    write_config("curves.json", config);
    ASSERT_EQ(run({"eval", "-c", "curves.json", "--out", "run"}).exit_code, 0);
  }
  int plot(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.path().string() + "' && /usr/bin/python3 " +
                                S2O_SOURCE_DIR + "/scripts/plot.py " + arguments + " 2>plot.err";
    return WEXITSTATUS(std::system(command.c_str()));
  }
};

TEST_F(ReportCommands, match_compares_with_the_reference) {
  evaluate();
  const Outcome text = run({"match", "run", "--sparsity", "0.3,0.5"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.err, "");
  EXPECT_THAT(text.out, HasSubstr("MSE at equal sparsity, relative to s2o"));
  EXPECT_THAT(text.out, HasSubstr("Compute density at equal MSE"));
  const Json json =
      Json::parse(run({"match", "run", "--sparsity", "0.3,0.5", "--format", "json"}).out);
  bool found = false;
  for (const Json& row : json["tables"][0]["rows"]) {
    if (row["method"] != "s2o" || row["ratio"].is_null()) continue;
    EXPECT_DOUBLE_EQ(row["ratio"].get<double>(), 1.0);
    EXPECT_EQ(row["total_units"], 4) << "the heads of the one layer";
    found = true;
  }
  EXPECT_TRUE(found);
}

TEST_F(ReportCommands, two_calls_print_the_same_bytes) {
  evaluate();
  EXPECT_EQ(run({"match", "run"}).out, run({"match", "run/results.h5"}).out);
}

TEST_F(ReportCommands, json_results_have_layers_only) {
  evaluate();
  EXPECT_EQ(run({"match", "run/results.json"}).exit_code, 0);
  const Outcome heads = run({"match", "run/results.json", "--unit", "head"});
  EXPECT_EQ(heads.exit_code, 2);
  EXPECT_THAT(heads.err, HasSubstr("results.h5"));
}

TEST_F(ReportCommands, every_table_has_every_format) {
  evaluate();
  for (const char* table :
       {"frontier", "matched_sparsity", "matched_mse", "matched_error", "per_head", "latency"}) {
    for (const char* format : {"text", "markdown", "csv", "latex", "json"}) {
      const Outcome outcome = run({"table", "run", "--table", table, "--format", format});
      EXPECT_EQ(outcome.exit_code, 0) << table << " " << format << "\n" << outcome.err;
      EXPECT_NE(outcome.out, "");
    }
  }
}

TEST_F(ReportCommands, latency_table_joins_files_of_peers) {
  evaluate();
  const auto peer_file = [this](const std::string& file, const std::string& peer) {
    write_file(folder_ / file, R"({"context": {}, "rows": [{"seqlen": 1024, "head_dim": 32,
      "num_q_heads": 4, "num_kv_heads": 2, "dtype": "bf16", "ms": 1e6, "peer": ")" +
                                   peer + "\"}]}");
  };
  peer_file("a.json", "one");
  peer_file("b.json", "two");
  const Outcome outcome = run({"table", "run", "--table", "latency", "--peers", "a.json", "--peers",
                               "b.json", "--errors", "1e-9", "--format", "json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const Json tables = Json::parse(outcome.out)["tables"];
  EXPECT_TRUE(tables[0]["rows"][0].contains("speedup_vs_one"));
  EXPECT_TRUE(tables[0]["rows"][0].contains("speedup_vs_two"));
  ASSERT_EQ(tables[1]["name"], "matched_error");
  EXPECT_EQ(tables[1]["rows"][0]["units"], 0) << "no setting errs so little";
}

TEST_F(ReportCommands, wrong_arguments_exit_2_and_missing_files_3) {
  evaluate();
  struct Case {
    std::vector<std::string> arguments;
    int exit_code;
    const char* message;
  };
  for (const Case& c :
       {Case{{"table", "run", "--table", "frontire"}, 2, "did you mean 'frontier'"},
        Case{{"table", "run", "--table", "frontier", "--format", "cvs"}, 2, "did you mean 'csv'"},
        Case{{"table", "run", "--table", "latency", "--errors", "0"}, 2, "--errors 0"},
        Case{{"table", "run", "--table", "latency", "--peers", "absent.json"}, 2, "absent.json"},
        Case{{"match", "run", "--reference", "s3o"}, 2, "'streaming_llm"},
        Case{{"match", "run", "--sparsity", "1.5"}, 2, "--sparsity 1.5"},
        Case{{"match", "run", "--errors", "-1"}, 2, "--errors -1"},
        Case{{"match", "run", "--on", "loss"}, 2, "held_out_loss"},
        Case{{"match", "run", "--on", "held_out_loss"}, 2, "s2o prefill"},
        Case{{"match", "run", "--unit", "row"}, 2, "--unit row"},
        Case{{"match", "run", "--knob", "s2o"}, 2, "METHOD=PARAM"},
        Case{{"match", "run", "--resamples", "0"}, 2, "--resamples"}, Case{{"match"}, 2, "results"},
        Case{{"match", "absent"}, 3, "absent"},
        Case{{"heatmap", "--config", "curves.json", "--out", "x.jpg"}, 2, ".png"},
        Case{{"heatmap", "--config", "curves.json", "--out", "x.png", "--head", "9"}, 2, "4 query"},
        Case{{"heatmap", "--config", "curves.json", "--out", "x.png", "--layer", "9"},
             2,
             "--layer 9"},
        Case{{"heatmap", "--config", "curves.json", "--out", "absent/x.png"}, 2, "absent/x.png"}}) {
    const Outcome outcome = run(c.arguments);
    EXPECT_EQ(outcome.exit_code, c.exit_code) << c.message << "\n" << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(c.message));
    EXPECT_EQ(outcome.out, "") << c.message;
  }
}

TEST_F(ReportCommands, heatmap_writes_a_picture_and_nothing_to_stdout) {
  const Outcome outcome = run({"heatmap", "--config", "small.json", "--set", "inputs.0.seqlen=512",
                               "--head", "3", "--pixels", "64", "--out", "picture.png"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  const Image image = Image::read_png(folder_ / "picture.png");
  EXPECT_GT(image.width(), 4 * 64);
}

TEST_F(ReportCommands, plot_draws_result_files_and_tables) {
  if (std::system("/usr/bin/python3 -c 'import matplotlib' 2>/dev/null") != 0) {
    GTEST_SKIP() << "python3-matplotlib is not here";
  }
  evaluate();
  write_file(folder_ / "table.json",
             run({"table", "run", "--table", "matched_sparsity", "--format", "json"}).out);
  EXPECT_EQ(plot("frontier run --out f"), 0) << read_file(folder_ / "plot.err");
  EXPECT_EQ(plot("matched_sparsity table.json --out m"), 0) << read_file(folder_ / "plot.err");
  write_file(folder_ / "latency.json",
             run({"table", "run", "--table", "latency", "--format", "json"}).out);
  EXPECT_EQ(plot("matched_error latency.json --out t"), 0) << read_file(folder_ / "plot.err");
  for (const char* name : {"f.pdf", "f.png", "m.png", "t.png"}) EXPECT_TRUE(exists(name)) << name;
  EXPECT_EQ(plot("matched_mse table.json --out x"), 2);
  EXPECT_THAT(read_file(folder_ / "plot.err"), HasSubstr("no table 'matched_mse'"));
  EXPECT_EQ(plot("frontier absent.json --out x"), 2);
  EXPECT_THAT(read_file(folder_ / "plot.err"), HasSubstr("absent.json: No such file"));
}

}  // namespace
}  // namespace s2o
