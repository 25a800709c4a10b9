#include "lib/prefill/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "lib/core/error.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::message_of;
using testing_support::TempFolder;
using testing_support::write_file;
using Json = nlohmann::ordered_json;

constexpr int kVocab = 100;

class PromptsTest : public ::testing::Test {
 protected:
  std::vector<Prompt> read(const std::string& text) const {
    write_file(folder_ / "tasks.jsonl", text);
    return read_prompt_file(folder_ / "tasks.jsonl", kVocab, "tasks");
  }
  std::string refusal(const std::string& text) const {
    return message_of<InputError>([&] { read(text); });
  }
  std::vector<Prompt> expand(const std::string& entries) const {
    PrefillConfig config{.prompts = Json::parse(entries), .file = "test.json"};
    config.base_folder = folder_.path();
    return expand_prompts(config, kVocab);
  }
  template <class Error>
  std::string expand_refusal(const std::string& entries) const {
    return message_of<Error>([&] { expand(entries); });
  }

  TempFolder folder_;
};

TEST_F(PromptsTest, file_gives_prompts_with_and_without_answer) {
  const std::vector<Prompt> prompts = read(
      "{\"task\": \"needle\", \"sample\": 7, \"length\": 4, \"input_ids\": [0, 5, 9, 99], "
      "\"answer_start\": 2, \"answer_length\": 2, \"meta\": {\"answer\": \"x\"}}\n"
      "\n"
      "{\"input_ids\": [3]}\n");
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].name, "tasks/needle/7");
  EXPECT_EQ(prompts[0].task, "needle");
  EXPECT_THAT(prompts[0].tokens, ElementsAre(0, 5, 9, 99));
  EXPECT_EQ(prompts[0].answer_start, 2);
  EXPECT_EQ(prompts[0].answer_length, 2);
  EXPECT_EQ(prompts[1].name, "tasks/prompt/1");
  EXPECT_EQ(prompts[1].answer_length, 0);
}

TEST_F(PromptsTest, refusals_name_file_line_and_what_is_wrong) {
  EXPECT_THAT(
      refusal("{\"input_ids\": [1]}\n{\"input_ids\": [1, 100]}\n"),
      HasSubstr("tasks.jsonl: line 2: input_ids: token id 100 at index 1, expected an id in "
                "[0, 100)"));
  EXPECT_THAT(refusal("{\"input_ids\": [-1]}\n"), HasSubstr("token id -1 at index 0"));
  EXPECT_THAT(refusal("{\"input_ids\": [1.5]}\n"), HasSubstr("token id 1.5"));
  EXPECT_THAT(refusal("{\"input_ids\": []}\n"), HasSubstr("expected a list of token ids"));
  EXPECT_THAT(refusal("{\"inputs_ids\": [1]}\n"), HasSubstr("did you mean 'input_ids'?"));
  EXPECT_THAT(refusal("{\"task\": \"x\"}\n"), HasSubstr("key 'input_ids' is missing"));
  EXPECT_THAT(refusal("{\"input_ids\": [1"), HasSubstr("line 1: line 1, column"));
  EXPECT_THAT(refusal("[1]\n"), HasSubstr("line 1: found [1] (array), expected an object"));
  EXPECT_THAT(refusal("\n"), HasSubstr("holds no prompt"));
  EXPECT_THAT(refusal("{\"input_ids\": [1, 2], \"length\": 3}\n"),
              HasSubstr("length: found 3, the line has 2 input_ids"));
  EXPECT_THAT(message_of<InputError>([&] { read_prompt_file(folder_ / "none.jsonl", kVocab, ""); }),
              HasSubstr("none.jsonl: no such file"));
}

TEST_F(PromptsTest, answers_have_to_lie_inside_their_prompt) {
  const auto with = [](const std::string& answer) {
    return "{\"input_ids\": [1, 2, 3], " + answer + "}\n";
  };
  EXPECT_NO_THROW(read(with("\"answer_start\": 1, \"answer_length\": 2")));
  EXPECT_THAT(
      refusal(with("\"answer_start\": 2, \"answer_length\": 2")),
      HasSubstr("answer: 2 tokens from 2 on, expected at least one, between 1 and the end of "
                "3 input_ids"));
  // No row predicts the first token of a prompt.
  EXPECT_THAT(refusal(with("\"answer_start\": 0, \"answer_length\": 1")), HasSubstr("from 0 on"));
  EXPECT_THAT(refusal(with("\"answer_start\": 1, \"answer_length\": 0")), HasSubstr("0 tokens"));
  EXPECT_THAT(refusal(with("\"answer_start\": 1, \"answer_length\": 9223372036854775807")),
              HasSubstr("answer:"));
  EXPECT_THAT(refusal(with("\"answer_start\": 1")), HasSubstr("key 'answer_length' is missing"));
}

TEST_F(PromptsTest, token_files_give_windows) {
  write_file(folder_ / "book.txt", "1 2 3 4 5 6 7 8");
  const std::vector<Prompt> prompts =
      expand(R"([{"tokens": "book.txt", "seqlen": [2, 3], "offset": [0, 4]}])");
  ASSERT_EQ(prompts.size(), 4u);
  EXPECT_EQ(prompts[0].name, "book");
  EXPECT_EQ(prompts[1].name, "book@4");
  EXPECT_THAT(prompts[3].tokens, ElementsAre(5, 6, 7));
  EXPECT_TRUE(prompts[3].wants_loss);
  EXPECT_FALSE(expand(R"([{"tokens": "book.txt", "seqlen": 2, "loss": false}])")[0].wants_loss);
  EXPECT_THAT(expand_refusal<InputError>(R"([{"tokens": "book.txt", "seqlen": 9}])"),
              HasSubstr("8 token ids, expected at least offset 0 + seqlen 9"));
  write_file(folder_ / "book.txt", "1 2 100");
  EXPECT_THAT(expand_refusal<InputError>(R"([{"tokens": "book.txt", "seqlen": 3}])"),
              HasSubstr("token id 100 at index 2"));
}

TEST_F(PromptsTest, prompt_files_are_filtered_by_task_length_and_count) {
  std::string text;
  for (const char* task : {"a", "b"}) {
    for (int sample = 0; sample < 3; ++sample) {
      for (const char* ids : {"[1, 2]", "[1, 2, 3]"}) {
        text += std::string("{\"task\": \"") + task + "\", \"sample\": " + std::to_string(sample) +
                ", \"input_ids\": " + ids + ", \"answer_start\": 1, \"answer_length\": 1}\n";
      }
    }
  }
  write_file(folder_ / "t.jsonl", text);
  EXPECT_EQ(expand(R"([{"prompts": "t.jsonl"}])").size(), 12u);
  const std::vector<Prompt> some =
      expand(R"([{"prompts": "t.jsonl", "tasks": "b", "seqlen": [3], "samples": 2}])");
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[1].name, "t/b/1");
  EXPECT_EQ(some[1].seqlen(), 3);
  EXPECT_THAT(expand_refusal<ConfigError>(R"([{"prompts": "t.jsonl", "tasks": "c"}])"),
              HasSubstr("the file has the tasks a, b"));
}

TEST_F(PromptsTest, random_tokens_depend_on_the_seed_alone) {
  const std::vector<Prompt> prompts = expand(R"([{"random": true, "seqlen": [5, 9]}])");
  ASSERT_EQ(prompts.size(), 2u);
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ(prompts[0].tokens[i], prompts[1].tokens[i]);
  EXPECT_FALSE(prompts[0].wants_loss);
}

TEST_F(PromptsTest, entries_that_mean_nothing_are_refused) {
  EXPECT_THAT(expand_refusal<ConfigError>(R"([{"seqlen": 5}])"),
              HasSubstr("prompts[0]: expected one of the keys 'tokens'"));
  EXPECT_THAT(expand_refusal<ConfigError>(R"([{"random": true, "seqlen": 5, "offset": 1}])"),
              HasSubstr("prompts[0].offset: unknown key"));
  EXPECT_THAT(expand_refusal<ConfigError>(R"([{"random": true, "seqlen": 5},
                                              {"random": true, "seqlen": [4, 5]}])"),
              HasSubstr("'random' with 5 tokens occurs twice"));
}

TEST(logit_rows, predict_the_answer_or_are_spread_over_the_prompt) {
  const Prompt answered{
      .tokens = std::vector<std::int32_t>(10), .answer_start = 4, .answer_length = 3};
  EXPECT_THAT(logit_rows(answered, 2), ElementsAre(3, 4, 5));
  const Prompt plain{.tokens = std::vector<std::int32_t>(10)};
  const Prompt longer{.tokens = std::vector<std::int32_t>(8192)};
  const std::vector<std::int64_t> rows = logit_rows(longer, 64);
  ASSERT_EQ(rows.size(), 64u);
  std::set<std::int64_t> places;
  for (std::int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(rows[static_cast<std::size_t>(i)] / 128, i);
    places.insert(rows[static_cast<std::size_t>(i)] % 128);
  }
  EXPECT_GT(places.size(), 32u);  // all over the tiles
  EXPECT_EQ(rows.back(), 8191);
  EXPECT_EQ(logit_rows(plain, 50).size(), 10u);
  EXPECT_TRUE(logit_rows(plain, 0).empty());
}

}  // namespace
}  // namespace s2o
