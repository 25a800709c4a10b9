// `s2o tune`: settings by layer and head that meet a budget of error at the least time.
#include <fmt/format.h>

#include <memory>

#include "app/commands.h"
#include "app/progress.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/tune/tune.h"

namespace s2o {
namespace {

struct TuneFlags {
  TuneOptions options;
  std::vector<std::string> methods;
  std::string target;
  std::string device = "auto";
};

// A list of names and JSON objects: commas inside an object part nothing.
std::vector<std::string> split_methods(const std::vector<std::string>& texts) {
  std::vector<std::string> methods;
  for (const std::string& text : texts) {
    methods.emplace_back();
    int depth = 0;
    bool is_quoted = false;
    bool is_escaped = false;
    for (const char c : text) {
      if (c == ',' && depth == 0 && !is_quoted) {
        methods.emplace_back();
        continue;
      }
      if (c == ' ' && methods.back().empty()) continue;
      methods.back() += c;
      if (c == '"' && !is_escaped) is_quoted = !is_quoted;
      is_escaped = c == '\\' && !is_escaped;
      if (is_quoted) continue;
      if (c == '{' || c == '[') ++depth;
      if (c == '}' || c == ']') --depth;
    }
  }
  return methods;
}

// What a file of --extend holds may be another program's: 0 for what is no number.
double number_at(const nlohmann::ordered_json& object, const std::string& key) {
  const bool is_there = object.is_object() && object.contains(key) && object[key].is_number();
  return is_there ? object[key].get<double>() : 0.0;
}

std::string summary(const TunedFile& file) {
  std::string text = fmt::format("{:>8} {:>10} {:>10} {:>8} {:>10} {:>10} {:>8}  heads\n", "seqlen",
                                 "kl", "loss over", "density", "planning", "attention", "of dense");
  for (const TunedLength& length : file.lengths) {
    const nlohmann::ordered_json& measured = length.measured;
    std::vector<std::string> heads;
    if (measured.contains("heads")) {
      for (const auto& item : measured["heads"].items()) {
        heads.push_back(fmt::format("{} {}", number_at(measured["heads"], item.key()), item.key()));
      }
    }
    const double planning = number_at(measured, "planning_ms");
    const double attention = number_at(measured, "attention_ms");
    text += fmt::format(
        "{:>8} {:>10.3g} {:>+10.3g} {:>8.4f} {:>7.2f} ms {:>7.2f} ms {:>8.3f}  {}\n", length.seqlen,
        number_at(measured, "kl_from_dense"), number_at(measured, "loss_over_dense"),
        number_at(measured, "pair_density"), planning, attention,
        (planning + attention) / number_at(measured, "dense_attention_ms"), join(heads));
  }
  // What single heads, single layers and one setting for all are worth.
  const bool by_time = file.objective == "time";
  for (const TunedLength& length : file.lengths) {
    if (!length.measured.contains("reached_by")) continue;
    for (const auto& [by, found] : length.measured["reached_by"].items()) {
      text += fmt::format("{:>8} settings by {}: {:.4g} {}, KL {:.3g}\n", length.seqlen, by,
                          number_at(found, "cost"), by_time ? "ms" : "of the pairs",
                          number_at(found, "kl_from_dense"));
    }
  }
  return text;
}

int run_tune(const TuneFlags& flags) {
  handle_interrupts();
  TuneOptions options = flags.options;
  options.device = parse_device(flags.device, "--device");
  options.kernel = parse_kernel(options.kernel, "--kernel");
  options.methods = split_methods(flags.methods);
  parse_tune_target(flags.target, "--target", options);
  std::unique_ptr<ProgressBar> progress;
  options.progress = [&progress](std::size_t done, std::size_t total, const std::string& what) {
    if (!progress) {
      progress = std::make_unique<ProgressBar>(
          total, stderr_is_terminal() && log_level() != LogLevel::kQuiet);
    }
    progress->advance_to(done);
    progress->show(what);
  };
  const TunedFile file = tune(options);
  progress.reset();
  print_result(summary(file));
  return kExitDone;
}

}  // namespace

void add_tune_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<TuneFlags>();
  TuneOptions& options = flags->options;
  CLI::App* command = add_command(
      app, "tune", "Choose settings by layer and head that meet a budget at the least time",
      "s2o tune --model models/smollm2 --tokens data/tokens/smollm2_book.safetensors \\\n"
      "      --seqlen 8192 --method s2o_plus,streaming_llm --target loss=0.01 --out tuned.json\n"
      "The file is a method of configs: {\"name\": \"tuned\", \"path\": \"tuned.json\"}.");
  command->add_option("--model", options.model, "Hugging Face model directory")->required();
  command->add_option("--tokens", options.tokens, "Token files: the text to tune on")->required();
  command->add_option("--offset", options.offset, "First token of each file that is used")
      ->check(integer_in<std::int64_t>(0))
      ->capture_default_str();
  command->add_option("--seqlen", options.seqlens, "Lengths, comma-separated")
      ->delimiter(',')
      ->check(integer_in<std::int64_t>(2))
      ->required();
  command
      ->add_option("--method", flags->methods,
                   "Methods that heads may take, comma-separated, each over the sweep of its knob; "
                   "or an entry of a config, {\"name\": ..., ...}. Dense always may")
      ->required();
  command
      ->add_option("--target", flags->target,
                   "loss=NATS (KL from dense), relative_l2=SHARE (of layers' outputs) or "
                   "mass=SHARE (of the softmax that is visited)")
      ->required();
  command->add_option("--objective", options.objective, "What costs: time, or density of pairs")
      ->capture_default_str();
  command
      ->add_option(
          "--by", options.by,
          "Of what each takes a setting: head, layer, model, or best: the fastest of these")
      ->capture_default_str();
  command
      ->add_option("--logit-positions", options.logit_positions,
                   "Rows of each text whose logits are compared with dense")
      ->check(integer_in(1, 4096))
      ->capture_default_str();
  command->add_option("--device", flags->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--kernel", options.kernel,
                      "auto, or an attention kernel of `s2o list kernels`");
  command->add_option("--cublas", options.cublas_folder,
                      "Folder of cuBLAS, or of NVIDIA's pip packages, where the system has none");
  command->add_flag("--resume", options.resume,
                    "Take what earlier runs with this --out have measured");
  command->add_flag("--extend", options.extend,
                    "Keep the other lengths of --out, and the effects of layers it has measured");
  command->add_option("-o,--out", options.out, "The file to write")->required();
  command->callback([flags, &exit_code] { exit_code = run_tune(*flags); });
}

}  // namespace s2o
