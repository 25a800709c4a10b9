// `s2o capture`: Q, K and V of a model's prefill in a tensor file.
#include <memory>

#include "app/commands.h"
#include "app/progress.h"
#include "lib/core/log.h"
#include "lib/core/text.h"
#include "lib/prefill/capture.h"

namespace s2o {
namespace {

struct CaptureFlags {
  CaptureOptions options;
  std::vector<std::string> layers;
  std::string dtype = std::string(storage_dtype_name(CaptureOptions{}.dtype));
  std::string device = "auto";
};

int run_capture(const CaptureFlags& flags) {
  handle_interrupts();
  CaptureOptions options = flags.options;
  options.dtype = parse_storage_dtype(flags.dtype, "--dtype");
  options.device = parse_device(flags.device, "--device");
  for (const std::string& layer : flags.layers) {
    options.layers.push_back(parse_captured_layer(layer, "--layers"));
  }
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
  log_info("{}: layers {}, seqlen {}, {} rows of logits, {}", options.out.string(), join(layers),
           summary.seqlen, options.logit_rows, bytes_text(static_cast<double>(summary.file_bytes)));
  return kExitDone;
}

}  // namespace

void add_capture_command(CLI::App& app, int& exit_code) {
  auto flags = std::make_shared<CaptureFlags>();
  CaptureOptions& options = flags->options;
  CLI::App* command = add_command(
      app, "capture", "Run a model's prefill and write Q, K and V of its layers to a file",
      "s2o capture --model models/smollm2 --tokens data/tokens/smollm2_book.safetensors \\\n"
      "      --seqlen 8192 --layers 0,11:2 --out dump.safetensors");
  command->add_option("--model", options.model, "Hugging Face model directory")->required();
  command->add_option("--tokens", options.tokens, "Token file")->required();
  command->add_option("--seqlen", options.seqlen, "Tokens [all from the offset on]")
      ->check(integer_in<std::int64_t>(1));
  command->add_option("--offset", options.offset, "First token of the file that is used")
      ->check(integer_in<std::int64_t>(0))
      ->capture_default_str();
  command
      ->add_option("--layers", flags->layers,
                   "Comma-separated; 3:1 is one KV head of layer 3 and its query heads [all]")
      ->delimiter(',');
  command
      ->add_option("--logits", options.logit_rows,
                   "Write the logits of so many last positions too; without --layers, only those")
      ->check(integer_in<std::int64_t>(0));
  command->add_option("--dtype", flags->dtype, "fp32, bf16 or fp16")->capture_default_str();
  command->add_option("--device", flags->device, "auto, cpu, cuda or cuda:N")
      ->capture_default_str();
  command->add_option("--cublas", options.cublas_folder,
                      "Folder of cuBLAS, or of NVIDIA's pip packages, where the system has none");
  command->add_flag("--allow-nonfinite", options.allow_nonfinite,
                    "Go on when Q, K or V hold NaN or infinity");
  command->add_option("-o,--out", options.out, "A .safetensors or .h5 file")->required();
  command->callback([flags, &exit_code] { exit_code = run_capture(*flags); });
}

}  // namespace s2o
