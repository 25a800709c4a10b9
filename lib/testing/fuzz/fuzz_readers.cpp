// Every reader of files and texts on damaged input: it has to succeed or to say what is wrong.
//
//   fuzz_readers READER [--seconds N] [--seed N] FILE_OR_FOLDER...
//   fuzz_readers --all SOURCE_TREE [--seconds N] [--seed N]     every reader on its files there
//   fuzz_readers --list SOURCE_TREE                             which files those are
//
// Without --seconds each file of the corpus is read once as it is, and once cut off at its middle;
// with it, damaged copies follow for that long. Meant for a build with sanitizers (preset asan); an
// input that ends the process stays in the folder that is named at the start. The preset fuzz
// (clang) builds the same readers for libFuzzer, which finds its way by coverage:
//   fuzz_readers_libfuzzer READER [libFuzzer's options] FOLDER...
//   fuzz_readers_libfuzzer --list SOURCE_TREE
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "lib/config/prefill_config.h"
#include "lib/config/run_config.h"
#include "lib/core/error.h"
#include "lib/core/log.h"
#include "lib/core/random.h"
#include "lib/core/regular_file.h"
#include "lib/core/strict_json.h"
#include "lib/input/formats/format.h"
#include "lib/model/model_config.h"
#include "lib/model/tokens.h"
#include "lib/prefill/prompts.h"
#include "lib/report/journal.h"
#include "lib/report/results_file.h"
#include "lib/report/results_json.h"
#include "lib/tune/tune_journal.h"

namespace s2o {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// A file in memory where the system has such a folder; it holds the input that is being read.
class Scratch {
 public:
  Scratch() {
    std::error_code ignored;
    std::string name = fs::exists("/dev/shm", ignored) ? "/dev/shm" : "/tmp";
    name += "/s2o_fuzz_XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    folder_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  fs::path write(const std::string& name, const std::string& bytes) const {
    const fs::path path = folder_ / name;
    std::FILE* file = std::fopen(path.c_str(), "wb");
    if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() ||
        std::fclose(file) != 0) {
      std::abort();
    }
    return path;
  }
  const fs::path& folder() const { return folder_; }

 private:
  fs::path folder_;
};

// Touches every byte, so that a sanitizer sees what lies outside.
void read_tensors(const fs::path& path) {
  unsigned sum = 0;
  const auto file = open_tensor_file(path);
  constexpr std::size_t kMaxTensors = 8;  // an input is one execution, whatever it claims to hold
  for (std::size_t i = 0; i < std::min(kMaxTensors, file->tensors().size()); ++i) {
    const HostTensor tensor = file->read(file->tensors()[i].name);
    for (std::size_t b = 0; b < tensor.info.num_bytes; ++b) {
      sum += std::to_integer<unsigned>(tensor.data.get()[b]);
    }
  }
  [[maybe_unused]] static volatile unsigned sink;
  sink = sum;
}

struct Reader {
  const char* name;
  // Files of the source tree that it reads: beside data/fixtures/fuzz/<name>/, those of a folder
  // with names that begin and end so.
  const char* folder;
  const char* prefix;
  const char* extension;
  std::function<void(const Scratch&, const std::string&)> read;
};

const std::vector<Reader>& all_readers() {
  const auto tensor_file = [](const char* name) {
    return [name](const Scratch& scratch, const std::string& bytes) {
      read_tensors(scratch.write(name, bytes));
    };
  };
  constexpr int kVocabSize = 256;
  constexpr const char* kFormats = "data/fixtures/formats";
  constexpr const char* kNone = "";
  static const std::vector<Reader> kReaders = {
      {"safetensors", kFormats, "", ".safetensors", tensor_file("x.safetensors")},
      {"index", kNone, "", "", tensor_file("x.safetensors.index.json")},
      {"npy", kFormats, "", ".npy", tensor_file("x.npy")},
      {"npz", kFormats, "", ".npz", tensor_file("x.npz")},
      {"hdf5", kFormats, "", ".h5", tensor_file("x.h5")},
      {"config", "configs", "s", ".json",
       [](const Scratch&, const std::string& text) {
         parse_run_config(parse_strict_json(text), "x.json");
       }},
      {"prefill_config", "configs", "prefill_q", ".json",
       [](const Scratch&, const std::string& text) {
         parse_prefill_config(parse_strict_json(text), "x.json");
       }},
      {"set", kNone, "", "",
       [](const Scratch&, const std::string& text) {
         nlohmann::ordered_json document = nlohmann::ordered_json::parse(
             R"({"inputs": [{"source": "synthetic"}], "methods": [{"name": "s2o"}]})");
         apply_set(document, text);
       }},
      {"model_config", "data/fixtures/models/qwen3", "config", ".json",
       [](const Scratch& scratch, const std::string& text) {
         scratch.write("config.json", text);
         read_model_config(scratch.folder());
       }},
      {"tokens", kNone, "", "",
       [](const Scratch& scratch, const std::string& text) {
         read_token_file(scratch.write("x.txt", text));
       }},
      {"prompts", kNone, "", "",
       [](const Scratch& scratch, const std::string& text) {
         read_prompt_file(scratch.write("x.jsonl", text), kVocabSize, "x");
       }},
      {"journal", kNone, "", "",
       [](const Scratch&, const std::string& text) { parse_journal(text, "x.jsonl"); }},
      {"tune_journal", kNone, "", "",
       [](const Scratch& scratch, const std::string& text) {
         TuneJournal(scratch.write("x.jsonl", text), nlohmann::ordered_json::object(),
                     /*num_q_heads=*/2, /*resume=*/true);
       }},
      {"results", kNone, "", "",
       [](const Scratch&, const std::string& text) { results_from_json(text, "x.json"); }},
      {"results_hdf5", kNone, "", "",
       [](const Scratch& scratch, const std::string& bytes) {
         read_results_hdf5(scratch.write("results.h5", bytes));
       }},
  };
  return kReaders;
}

const Reader& find_reader(const std::string& name) {
  for (const Reader& reader : all_readers()) {
    if (reader.name == name) return reader;
  }
  std::string known;
  for (const Reader& reader : all_readers()) known += std::string(" ") + reader.name;
  std::fprintf(stderr, "no reader '%s'; readers:%s\n", name.c_str(), known.c_str());
  std::exit(2);
}

// Our own errors are the answer to damage; any other exception is a fault and ends the process.
void run_once(const Reader& reader, const Scratch& scratch, const std::string& bytes) {
  try {
    reader.read(scratch, bytes);
  } catch (const Error&) {
  }
}

// Integers at which arithmetic on lengths and offsets breaks.
constexpr std::array<std::uint64_t, 10> kEdges = {0,
                                                  1,
                                                  0x7f,
                                                  0xff,
                                                  0xffff,
                                                  0x7fffffff,
                                                  0xffffffff,
                                                  0x100000000,
                                                  0x7fffffffffffffff,
                                                  0xffffffffffffffff};
// What the texts are made of.
constexpr std::array<const char*, 24> kWords = {"null",
                                                "true",
                                                "-1",
                                                "0",
                                                "1e999",
                                                "1e308",
                                                "9223372036854775808",
                                                "{",
                                                "}",
                                                "[",
                                                "]",
                                                ",",
                                                ":",
                                                "\"",
                                                "\\u",
                                                "\n",
                                                "\xff",
                                                "\\u0000",
                                                "0.1",
                                                "[]",
                                                "{}",
                                                "\"\"",
                                                "-0.0",
                                                "18446744073709551616"};

class Damage {
 public:
  Damage(const std::vector<std::string>& corpus, std::uint64_t seed)
      : corpus_(corpus), random_(seed, /*stream=*/0) {}

  std::string next() {
    std::string bytes = corpus_[below(corpus_.size())];
    for (std::size_t edits = 1 + below(4); edits > 0; --edits) edit(bytes);
    return bytes;
  }

 private:
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>(random_.below(draw_++, static_cast<std::int64_t>(n)));
  }
  void edit(std::string& bytes) {
    if (bytes.empty()) {
      bytes = kWords[below(kWords.size())];
      return;
    }
    const std::size_t at = below(bytes.size());
    const std::size_t length = 1 + below(std::min<std::size_t>(64, bytes.size() - at));
    switch (below(10)) {
      case 0:
        bytes.resize(at);
        break;
      case 1:
        bytes.erase(at, length);
        break;
      case 2:
        bytes.insert(below(bytes.size()), bytes.substr(at, length));
        break;
      case 3: {
        const std::string& other = corpus_[below(corpus_.size())];
        if (other.empty()) break;
        const std::size_t from = below(other.size());
        bytes.replace(at, length, other, from, 1 + below(256));
        break;
      }
      case 4:
      case 5: {
        const std::uint64_t edge = kEdges[below(kEdges.size())];
        const std::size_t width = std::size_t{1} << below(4);
        std::memcpy(bytes.data() + at, &edge, std::min(width, bytes.size() - at));
        break;
      }
      case 6:
      case 7:
        bytes.replace(at, below(2) == 0 ? length : 0, kWords[below(kWords.size())]);
        break;
      case 8:
        bytes[at] = static_cast<char>(below(256));
        break;
      default:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
    }
  }

  const std::vector<std::string>& corpus_;
  CounterRandom random_;
  std::uint64_t draw_ = 0;
};

std::vector<fs::path> files_of(const Reader& reader, const fs::path& source_tree) {
  std::vector<fs::path> files;
  const fs::path own = source_tree / "data/fixtures/fuzz" / reader.name;
  if (fs::is_directory(own)) files.push_back(own);
  if (*reader.folder == '\0') return files;
  for (const auto& entry : fs::directory_iterator(source_tree / reader.folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(reader.prefix) && name.ends_with(reader.extension)) {
      files.push_back(entry.path());
    }
  }
  return files;
}

// A line for every reader: its name, and its files.
void list_readers(const fs::path& source_tree) {
  for (const Reader& reader : all_readers()) {
    std::printf("%s", reader.name);
    for (const fs::path& file : files_of(reader, source_tree)) std::printf(" %s", file.c_str());
    std::printf("\n");
  }
}

std::vector<std::string> read_corpus(const std::vector<fs::path>& paths) {
  std::vector<fs::path> files;
  for (const fs::path& path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (const auto& entry : fs::directory_iterator(path)) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> corpus;
  for (const fs::path& file : files) corpus.push_back(read_whole_file(file));
  return corpus;
}

void fuzz(const Reader& reader, const std::vector<std::string>& corpus, double seconds,
          std::uint64_t seed) {
  const Scratch scratch;
  if (corpus.empty()) {
    std::fprintf(stderr, "%s: the corpus is empty\n", reader.name);
    std::exit(1);
  }
  std::fprintf(stderr, "%s: inputs pass through %s\n", reader.name, scratch.folder().c_str());
  std::uint64_t executions = 0;
  const auto begin = Clock::now();
  const auto run = [&](const std::string& bytes) {
    // For readers of texts, which never see a file.
    if (seconds > 0) scratch.write("input", bytes);
    run_once(reader, scratch, bytes);
    ++executions;
  };
  for (const std::string& bytes : corpus) {
    run(bytes);
    run(bytes.substr(0, bytes.size() / 2));
  }
  Damage damage(corpus, seed);
  while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds) run(damage.next());
  std::printf("%-16s %12llu executions, %.1f s\n", reader.name,
              static_cast<unsigned long long>(executions),
              std::chrono::duration<double>(Clock::now() - begin).count());
  std::fflush(stdout);
}

}  // namespace
}  // namespace s2o

#ifdef S2O_LIBFUZZER

static const s2o::Reader* g_reader = nullptr;

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  s2o::set_log_level(s2o::LogLevel::kQuiet);
  const std::string word = *argc > 1 ? (*argv)[1] : "";
  if (word == "--list" && *argc > 2) {
    s2o::list_readers((*argv)[2]);
    std::exit(0);
  }
  g_reader = &s2o::find_reader(word);
  // libFuzzer gets the rest.
  for (int i = 1; i + 1 <= *argc; ++i) (*argv)[i] = (*argv)[i + 1];
  --*argc;
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const s2o::Scratch scratch;
  s2o::run_once(*g_reader, scratch, {reinterpret_cast<const char*>(data), size});
  return 0;
}

#else

int main(int argc, char** argv) {
  s2o::set_log_level(s2o::LogLevel::kQuiet);
  std::string reader;
  double seconds = 0;
  std::uint64_t seed =
      static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count());
  std::vector<std::filesystem::path> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool has_value = i + 1 < argc;
    if (word == "--seconds" && has_value) {
      seconds = std::atof(argv[++i]);
    } else if (word == "--seed" && has_value) {
      seed = std::strtoull(argv[++i], nullptr, 10);
    } else if (reader.empty()) {
      reader = word;
    } else {
      paths.emplace_back(word);
    }
  }
  if (paths.empty()) {
    std::fputs(
        "usage: fuzz_readers READER [--seconds N] [--seed N] FILE_OR_FOLDER...\n"
        "       fuzz_readers --all [--seconds N] [--seed N] SOURCE_TREE\n",
        stderr);
    return 2;
  }
  if (reader == "--list") {
    s2o::list_readers(paths[0]);
    return 0;
  }
  if (reader != "--all") {
    s2o::fuzz(s2o::find_reader(reader), s2o::read_corpus(paths), seconds, seed);
    return 0;
  }
  for (const s2o::Reader& one : s2o::all_readers()) {
    s2o::fuzz(one, s2o::read_corpus(s2o::files_of(one, paths[0])), seconds, seed);
  }
}

#endif
