// nsn-run: looks at a runtime file, runs, times and verifies its sub-networks, without LibTorch and
// Python.

#include <nsn/runtime/session.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.h"

namespace {

using nsn::runtime::Model;
using nsn::runtime::Session;
using nsn::runtime::Status;

constexpr const char* kUsage =
    "Usage: nsn-run COMMAND FILE [ARGUMENTS]\n"
    "\n"
    "  describe FILE                            what is in it\n"
    "  run FILE SUBNETWORK INPUT OUTPUT         .npy, or raw float32 (int64 for numbers)\n"
    "  verify FILE SUBNETWORK INPUT EXPECTED    holds outputs against recorded ones;\n"
    "                                           ends with 3 where they differ by more than 1e-5\n"
    "                                           of the largest, or --tolerance\n"
    "  bench FILE [SUBNETWORK]                  median and least time of a run\n"
    "\n"
    "Options: --batch N (bench; 1), --threads N (1), --tolerance X (verify; 1e-5)\n";

/// Wrong usage.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Arguments {
  std::vector<std::string> words;
  std::map<std::string, double> options = {{"--batch", 1}, {"--threads", 1}, {"--tolerance", 1e-5}};
};

Arguments arguments_of(int count, char** given) {
  Arguments result;
  for (int i = 1; i < count; ++i) {
    const std::string word = given[i];
    if (word.rfind("--", 0) != 0) {
      result.words.push_back(word);
      continue;
    }
    const auto found = result.options.find(word);
    if (found == result.options.end() || i + 1 == count) {
      throw UsageError(found == result.options.end() ? "there is no option " + word
                                                     : word + " needs a number");
    }
    char* end = nullptr;
    found->second = std::strtod(given[++i], &end);
    // Written so that no number is refused too.
    if (end == given[i] || *end != '\0' || !(found->second > 0 && found->second < 1e9)) {
      throw UsageError(word + " must be a number above 0 and below 1e9, but is '" + given[i] + "'");
    }
  }
  return result;
}

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t result = 1;
  for (const int64_t extent : shape) result *= extent;
  return result;
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string result = "(B";
  for (const int64_t extent : shape) result += ", " + std::to_string(extent);
  return result + ")";
}

void describe(const Model& model) {
  size_t width = 12;
  for (const auto& each : model.subnetworks()) width = std::max(width, each.name.size());
  std::printf("%-*s  %-18s %-18s %14s %14s %14s\n", static_cast<int>(width), "sub-network", "input",
              "output", "needs of file", "reads of that", "FLOPs");
  for (size_t i = 0; i < model.subnetworks().size(); ++i) {
    const auto& own = model.subnetworks()[i];
    std::printf("%-*s  %-18s %-18s %14lld %14lld %14.0f%s\n", static_cast<int>(width),
                own.name.c_str(),
                (text_of(own.input) + (own.takes_numbers ? " int64" : "")).c_str(),
                text_of(own.output).c_str(), static_cast<long long>(own.file_bytes),
                static_cast<long long>(own.weight_bytes), own.flops,
                model.has(i) ? "" : "  (not there yet)");
  }
}

Status run(Session& session, const Model& model, size_t place, const void* input, float* output,
           int64_t samples) {
  return model.subnetworks()[place].takes_numbers
             ? session.run(place, static_cast<const int64_t*>(input), output, samples)
             : session.run(place, static_cast<const float*>(input), output, samples);
}

void check(Status status) {
  if (status != Status::kOk) throw std::runtime_error(message(status));
}

/// What a sub-network makes of a file's numbers, and how many samples these are.
std::pair<std::vector<float>, int64_t> outputs_of(const Model& model, size_t place,
                                                  const std::string& path, int threads) {
  const auto& own = model.subnetworks()[place];
  nsn::run::Array x = nsn::run::read_array(path);
  const auto a_sample = static_cast<size_t>(elements(own.input)) *
                        (own.takes_numbers ? sizeof(int64_t) : sizeof(float));
  const bool fits = !x.is_npy || (x.is_integral == own.takes_numbers && !x.shape.empty() &&
                                  std::equal(x.shape.begin() + 1, x.shape.end(), own.input.begin(),
                                             own.input.end()));
  if (!fits || x.bytes.empty() || x.bytes.size() % a_sample != 0) {
    throw std::runtime_error("'" + path + "' must hold samples of " + text_of(own.input) + " " +
                             (own.takes_numbers ? "int64" : "float32") + ", " +
                             std::to_string(a_sample) + " bytes each, but holds " +
                             std::to_string(x.bytes.size()) + " bytes" +
                             (fits ? "" : " of another shape or dtype"));
  }
  const auto samples = static_cast<int64_t>(x.bytes.size() / a_sample);
  std::vector<float> y(static_cast<size_t>(samples * elements(own.output)));
  Session session(model, {samples, threads, {}});
  check(run(session, model, place, x.bytes.data(), y.data(), samples));
  return {std::move(y), samples};
}

int verify(const Model& model, size_t place, const std::string& input, const std::string& expected,
           const Arguments& arguments) {
  const int threads = static_cast<int>(arguments.options.at("--threads"));
  const auto [y, samples] = outputs_of(model, place, input, threads);
  const nsn::run::Array is = nsn::run::read_array(expected);
  if (is.is_integral || is.bytes.size() != y.size() * sizeof(float)) {
    throw std::runtime_error("'" + expected + "' must hold " + std::to_string(y.size()) +
                             " numbers of float32, as the outputs do");
  }
  double most = 0, difference = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    float number = 0;
    std::memcpy(&number, is.bytes.data() + i * sizeof number, sizeof number);
    if (number == y[i]) continue;  // infinities too
    const double off = std::abs(static_cast<double>(number) - y[i]);
    difference = std::isnan(off) ? INFINITY : std::max(difference, off);
  }
  for (size_t i = 0; i < y.size(); ++i) {
    if (std::isfinite(y[i])) most = std::max(most, std::abs(static_cast<double>(y[i])));
  }
  const bool agrees =
      std::isfinite(difference) && difference <= arguments.options.at("--tolerance") * most;
  std::printf("%lld samples: largest difference %.3g, of the largest output %.3g: %s\n",
              static_cast<long long>(samples), difference, most, agrees ? "agrees" : "DIFFERS");
  return agrees ? 0 : 3;
}

void bench(const Model& model, const std::vector<size_t>& places, const Arguments& arguments) {
  using Clock = std::chrono::steady_clock;
  const auto batch = static_cast<int64_t>(arguments.options.at("--batch"));
  Session session(model, {batch, static_cast<int>(arguments.options.at("--threads")), {}});
  for (const size_t place : places) {
    const auto& own = model.subnetworks()[place];
    const std::vector<int64_t> numbers(static_cast<size_t>(batch * elements(own.input)), 0);
    const std::vector<float> x(numbers.size(), 0.5F);
    std::vector<float> y(static_cast<size_t>(batch * elements(own.output)));
    const void* input = own.takes_numbers ? static_cast<const void*>(numbers.data()) : x.data();
    std::vector<double> times;
    // Of a second, and at least a hundred.
    const auto end = Clock::now() + std::chrono::seconds(1);
    while (times.size() < 100 || Clock::now() < end) {
      const auto begin = Clock::now();
      check(run(session, model, place, input, y.data(), batch));
      times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
    }
    std::sort(times.begin(), times.end());
    std::printf("%-12s batch %lld: median %.2f us, least %.2f us, %zu runs\n", own.name.c_str(),
                static_cast<long long>(batch), times[times.size() / 2], times.front(),
                times.size());
  }
}

int command(const Arguments& arguments) {
  const auto& words = arguments.words;
  const std::map<std::string, std::pair<size_t, size_t>> commands = {
      {"describe", {2, 2}}, {"run", {5, 5}}, {"verify", {5, 5}}, {"bench", {2, 3}}};
  const auto found = words.empty() ? commands.end() : commands.find(words[0]);
  if (found == commands.end()) {
    throw UsageError(words.empty() ? "a command is missing" : "there is no command " + words[0]);
  }
  if (words.size() < found->second.first || words.size() > found->second.second) {
    throw UsageError("'" + words[0] + "' has other arguments");
  }
  const Model model = Model::open(words[1]);
  if (words[0] == "describe") {
    describe(model);
    return 0;
  }
  if (words[0] == "bench") {
    std::vector<size_t> places;
    for (size_t i = 0; i < model.subnetworks().size(); ++i) {
      if (words.size() == 2 && model.has(i)) places.push_back(i);
    }
    if (words.size() == 3) places.push_back(model.index_of(words[2]));
    bench(model, places, arguments);
    return 0;
  }
  const size_t place = model.index_of(words[2]);
  if (words[0] == "verify") return verify(model, place, words[3], words[4], arguments);
  const auto [y, samples] =
      outputs_of(model, place, words[3], static_cast<int>(arguments.options.at("--threads")));
  std::vector<int64_t> shape{samples};
  const auto& output = model.subnetworks()[place].output;
  shape.insert(shape.end(), output.begin(), output.end());
  nsn::run::write_array(words[4], shape, y);
  return 0;
}

}  // namespace

int main(int count, char** given) {
  try {
    return command(arguments_of(count, given));
  } catch (const UsageError& error) {
    std::fprintf(stderr, "nsn-run: %s.\n\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nsn-run: %s\n", error.what());
    return 2;
  }
}
