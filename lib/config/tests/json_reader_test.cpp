#include "lib/config/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "lib/core/error.h"
#include "lib/core/strict_json.h"
#include "lib/testing/files.h"

namespace s2o {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing_support::message_of;

TEST(json_reader, unknown_key_names_place_and_nearest_key) {
  const auto value = parse_strict_json(R"({"treshold": 1})");
  EXPECT_EQ(message_of<ConfigError>([&] {
              JsonReader(value, "runs.json: methods.s2o", {"tau", "threshold"});
            }),
            "runs.json: methods.s2o.treshold: unknown key, did you mean 'threshold'?; known keys: "
            "tau, threshold");
}

TEST(json_reader, root_path_has_no_dot) {
  const auto value = parse_strict_json(R"({"a": "text"})");
  const JsonReader reader(value, "runs.json: ", {"a", "b"});
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_int("a"); }),
            "runs.json: a: found \"text\" (string), expected an integer");
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_int("b"); }), "runs.json: key 'b' is missing");
}

TEST(json_reader, no_object_is_refused) {
  const auto value = parse_strict_json("[1]");
  EXPECT_EQ(message_of<ConfigError>([&] { JsonReader(value, "runs.json: ", {}); }),
            "runs.json: found [1] (array), expected an object");
}

TEST(json_reader, absent_key_gives_fallback) {
  const auto value = parse_strict_json("{}");
  const JsonReader reader(value, "x", {"a"});
  EXPECT_EQ(reader.get_int("a", 7), 7);
  EXPECT_EQ(reader.get_string("a", "y"), "y");
  EXPECT_TRUE(reader.get_bool("a", true));
  EXPECT_EQ(reader.get_real("a", 0.5), 0.5);
  EXPECT_TRUE(reader.get_ints("a", false).empty());
  EXPECT_THROW(reader.get_ints("a", true), ConfigError);
}

TEST(json_reader, integer_accepts_exponent_and_refuses_the_rest) {
  const auto value = parse_strict_json(
      R"({"ok": 1e3, "part": 1.5, "huge": 18446744073709551615, "bool": true, "minus": -1})");
  const JsonReader reader(value, "x", {"ok", "part", "huge", "bool", "minus"});
  EXPECT_EQ(reader.get_int("ok"), 1000);
  EXPECT_THAT(message_of<ConfigError>([&] { reader.get_int("part"); }), HasSubstr("found 1.5"));
  EXPECT_THAT(message_of<ConfigError>([&] { reader.get_int("huge"); }), HasSubstr("below 2^63"));
  EXPECT_THAT(message_of<ConfigError>([&] { reader.get_int("bool"); }),
              HasSubstr("true (boolean)"));
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_int("minus", {}, 0); }),
            "x.minus: found -1 (number), expected an integer >= 0");
}

TEST(json_reader, sweep_is_one_value_or_a_list_without_repeats) {
  const auto value =
      parse_strict_json(R"({"one": 3, "many": [1, 2], "none": [], "twice": [4, 4]})");
  const JsonReader reader(value, "x", {"one", "many", "none", "twice"});
  EXPECT_THAT(reader.get_ints("one", true), ElementsAre(3));
  EXPECT_THAT(reader.get_ints("many", true), ElementsAre(1, 2));
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_ints("none", true); }),
            "x.none: empty list, expected at least one value");
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_ints("twice", true); }),
            "x.twice[1]: 4 occurs twice in the list");
  EXPECT_EQ(message_of<ConfigError>([&] { reader.get_ints("many", true, 0, 1); }),
            "x.many[1]: found 2 (number), expected an integer between 0 and 1");
}

TEST(json_reader, choice_suggests_the_nearest) {
  const auto value = parse_strict_json(R"({"layout": "token_mayor"})");
  const JsonReader reader(value, "x", {"layout"});
  EXPECT_THAT(message_of<ConfigError>([&] {
                reader.get_choice("layout", {"head_major", "token_major"});
              }),
              HasSubstr("did you mean 'token_major'?"));
}

TEST(strict_json, duplicate_key_deep_nesting_and_syntax_are_refused) {
  EXPECT_THROW(parse_strict_json(R"({"a": 1, "a": 2})"), JsonTextError);
  EXPECT_THROW(parse_strict_json(R"({"b": {"a": 1, "a": 2}})"), JsonTextError);
  EXPECT_NO_THROW(parse_strict_json(R"({"b": {"a": 1}, "c": {"a": 2}})"));
  EXPECT_THROW(parse_strict_json(std::string(100000, '[')), JsonTextError);
  EXPECT_THROW(parse_strict_json("1e999"), JsonTextError);
  EXPECT_THROW(parse_strict_json(""), JsonTextError);
  EXPECT_THAT(message_of<JsonTextError>([] { parse_strict_json("{\n  \"a\" 1}"); }),
              HasSubstr("line 2, column 7"));
}

TEST(strict_json, both_kinds_of_document_are_the_same) {
  const char* text =
      R"({"b": [1, -2, 2.5, true, null, "x", {}, [[]]], "a": {"c": {"d": 1}}, "": 0})";
  EXPECT_EQ(parse_strict_json(text), nlohmann::ordered_json::parse(text));
  EXPECT_EQ(parse_strict_json(text).dump(), nlohmann::ordered_json::parse(text).dump());
  EXPECT_EQ(parse_strict_json_sorted(text), nlohmann::json::parse(text));
  EXPECT_EQ(parse_strict_json("3"), 3);
}

TEST(strict_json, long_lists_and_objects_take_linear_time) {
  std::string list = "[", object = "{";
  for (int i = 0; i < 200'000; ++i) {
    list += i == 0 ? "{}" : ",{}";
    object += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":{}";
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_strict_json(list + "]").size(), 200'000u);
  EXPECT_EQ(parse_strict_json(object + "}").size(), 200'000u);
  // Quadratic, it took minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

TEST(strict_json, missing_file_and_folder_are_config_errors) {
  EXPECT_EQ(message_of<ConfigError>([] { read_json_file("no/such.json"); }),
            "no/such.json: no such file");
  EXPECT_THAT(
      message_of<ConfigError>([] { read_json_file(std::filesystem::temp_directory_path()); }),
      HasSubstr("is a folder, expected a file"));
}

}  // namespace
}  // namespace s2o
