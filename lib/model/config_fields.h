// Typed, checked access to the objects of a model's config.json.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace s2o {

// One object of config.json; `where` is "<file>: " or "<file>: rope_scaling.". Getters throw
// InputError "<where><key>: found ..., expected ..." and take null for absent, as transformers
// writes unset fields.
class ConfigFields {
 public:
  ConfigFields(const nlohmann::json& object, std::string where);

  const nlohmann::json& object() const { return object_; }
  const nlohmann::json* find(const char* key) const;  // null when absent or null
  std::string place(const char* key) const { return where_ + key; }

  [[noreturn]] void wrong(const char* key, const std::string& expected) const;
  // UnsupportedError: well-formed, but not implemented.
  [[noreturn]] void unsupported(const char* key, const std::string& found,
                                const std::string& supported) const;

  static constexpr std::int64_t kMaxSize = 1 << 24;  // products of two sizes stay within int64
  static constexpr std::int64_t kMaxTokens = 1ll << 40;
  std::int64_t positive(const char* key, std::optional<std::int64_t> fallback = {},
                        std::int64_t max = kMaxSize) const;
  // Finite and > `above`.
  float real(const char* key, std::optional<float> fallback, float above = 0.0f) const;
  bool flag(const char* key, bool fallback) const;
  std::string text(const char* key, std::optional<std::string> fallback) const;

 private:
  const nlohmann::json& object_;
  std::string where_;
};

}  // namespace s2o
