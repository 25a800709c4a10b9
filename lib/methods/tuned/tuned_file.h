// tuned.json, as `s2o tune` writes it: which setting every query head of every layer of a model
// runs, at the lengths that were measured. docs/tuning.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lib/methods/method.h"

namespace s2o {

// What a file is for. The id says which weights: settings of one model mean nothing to another.
struct TunedModel {
  std::string name;
  std::string id;  // 16 hexadecimal digits (lib/core/file_identity.h)
  int num_layers = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;

  bool operator==(const TunedModel&) const = default;
};

struct TunedSetting {
  const Method* method = nullptr;
  std::shared_ptr<const ParamSet> params;

  // The method and its parameters, some left out; equal for settings that differ in those alone.
  std::string text(const std::vector<std::string>& left_out = {}) const;
  bool operator==(const TunedSetting& other) const {
    return method == other.method && text() == other.text();
  }
};

struct TunedLength {
  std::int64_t seqlen = 0;
  std::vector<std::vector<int>> layers;  // [num_layers][num_q_heads], numbers of settings
  // What the settings reached, for readers.
  nlohmann::ordered_json measured = nlohmann::ordered_json::object();
};

struct TunedFile {
  TunedModel model;
  nlohmann::ordered_json context;  // version, commit, device, text: for readers;
                                   // of a target of loss also "effects", [num_layers]
  nlohmann::ordered_json target;   // {"loss": 0.01}
  std::string objective;           // "time" or "density"
  std::vector<TunedSetting> settings;
  std::vector<TunedLength> lengths;  // ascending
  std::string hash = "";             // of the file that this was read from (FileIdentity::hash)

  // Settings of the heads of a layer at any length, [num_q_heads]. Between two measured lengths
  // settings that differ in nothing but their knob are interpolated over the logarithms of both,
  // and the nearest such setting of the file taken; other heads take that of the nearer length.
  // Outside, those of the nearest length.
  std::vector<int> heads_at(std::int64_t seqlen, int layer) const;
  bool covers(std::int64_t seqlen) const {
    return seqlen >= lengths.front().seqlen && seqlen <= lengths.back().seqlen;
  }
};

// TunedModel::id of the weights in a model folder; its config may say another context length.
std::string weights_id(const std::filesystem::path& model_folder);

// InputError naming the place for anything but a whole file of this version.
TunedFile read_tuned_file(const std::filesystem::path& path);
// The same, read once: a run keeps what it began with, whoever replaces the file meanwhile.
std::shared_ptr<const TunedFile> load_tuned_file(const std::filesystem::path& path);
// Where a process begins another run: a file that has changed since is read again.
void renew_tuned_file(const std::filesystem::path& path);
void write_tuned_file(const std::filesystem::path& path, const TunedFile& file);

// A number for each setting, the same for those that heads can be planned together with: they are
// equal, or differ in no more than what the method takes by head.
std::vector<int> kinds_of(const std::vector<TunedSetting>& settings);

// Runs of neighbouring heads that can be planned together, as few as head_slice() allows.
std::vector<HeadSetting> group_heads(const std::vector<TunedSetting>& settings,
                                     const std::vector<int>& heads, int group_size);

}  // namespace s2o
