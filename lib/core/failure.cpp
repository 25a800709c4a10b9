#include "lib/core/failure.h"

#include <filesystem>
#include <new>
#include <string>

#include "lib/core/error.h"

namespace s2o {
namespace {

using Json = nlohmann::ordered_json;

Json described(const char* type, const std::string& text) {
  return {{"type", type}, {"text", text}};
}

}  // namespace

Json failure_to_json(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const ConfigError& error) {
    return described("config", error.what());
  } catch (const InputError& error) {
    return described("input", error.what());
  } catch (const std::filesystem::filesystem_error& error) {
    return described("input", error.what());
  } catch (const UnsupportedError& error) {
    return described("unsupported", error.what());
  } catch (const std::bad_alloc&) {
    return described("unsupported", "out of memory");
  } catch (const CudaError& error) {
    return described("cuda", error.what());
  } catch (const InterruptedError& error) {
    return described("interrupted", error.what());
  } catch (const std::exception& error) {
    return described("error", error.what());
  } catch (...) {
    return described("error", "unknown failure");
  }
}

std::exception_ptr failure_from_json(const Json& json, const std::string& prefix) {
  const std::string type = json.value("type", "error");
  const std::string text = prefix + json.value("text", "unknown failure");
  if (type == "config") return std::make_exception_ptr(ConfigError(text));
  if (type == "input") return std::make_exception_ptr(InputError(text));
  if (type == "unsupported") return std::make_exception_ptr(UnsupportedError(text));
  if (type == "cuda") return std::make_exception_ptr(CudaError(text));
  if (type == "interrupted") return std::make_exception_ptr(InterruptedError());
  return std::make_exception_ptr(Error(text));
}

}  // namespace s2o
