// `s2o capture`: Q, K and V of a model's prefill in a tensor file.
#include <memory>

#include "app/commands.h"
#include "app/progress.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/model/capture.h"

namespace s2o {
namespace {

int run_capture(CaptureOptions options, const std::string& dtype) {
  handle_interrupts();
  options.dtype = parse_storage_dtype(dtype, "--dtype");
  std::unique_ptr<ProgressBar> progress;
  options.progress = [&progress](int done, int total) {
    if (!progress) {
      progress = std::make_unique<ProgressBar>(
          total, stderr_is_terminal() && log_level() != LogLevel::kQuiet);
    }
    progress->advance_to(static_cast<std::size_t>(done));
    progress->show("prefill");
  };
  const CaptureSummary summary = capture(options);
  progress.reset();
  std::vector<std::string> layers;
  for (const int layer : summary.layers) layers.push_back(std::to_string(layer));
  const Problem& problem = summary.problem;
  log_info(
      "{}: layers {}, {} query heads, {} KV heads, seqlen {}, head_dim {}, {}; linear {:.0f} "
      "ms, attention {:.0f} ms",
      options.out.string(), join(layers), problem.num_q_heads, problem.num_kv_heads, problem.seqlen,
      problem.head_dim, bytes_text(static_cast<double>(summary.file_bytes)),
      summary.times.linear_ms, summary.times.attention_ms);
  return kExitDone;
}

}  // namespace

void add_capture_command(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CaptureOptions>();
  auto dtype = std::make_shared<std::string>(storage_dtype_name(options->dtype));
  CLI::App* command = add_command(
      app, "capture", "Run a model's prefill and write Q, K and V of its layers to a file",
      "s2o capture --model data/tiny-llama --tokens data/tokens/war_and_peace.safetensors\n"
      "      --seqlen 8192 --layers 0,3 --out dump.safetensors");
  command->add_option("--model", options->model, "Hugging Face model directory")->required();
  command->add_option("--tokens", options->tokens, "Token file")->required();
  command->add_option("--seqlen", options->seqlen, "Tokens [all from the offset on]")
      ->check(CLI::PositiveNumber);
  command->add_option("--offset", options->offset, "First token of the file that is used")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--layers", options->layers, "Comma-separated [all]")->delimiter(',');
  command->add_option("--dtype", *dtype, "fp32, bf16 or fp16")->capture_default_str();
  command->add_flag("--allow-nonfinite", options->allow_nonfinite,
                    "Go on when Q, K or V hold NaN or infinity");
  command->add_option("-o,--out", options->out, "A .safetensors or .h5 file")->required();
  command->callback([options, dtype, &exit_code] { exit_code = run_capture(*options, *dtype); });
}

}  // namespace s2o
