// nsn-run: looks at a runtime file, runs, times and verifies its sub-networks, without LibTorch and
// Python.

#include <nsn/runtime/session.h>
#include <nsn/version.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "npy.h"
#include "text.h"

namespace {

using nsn::run::printable;
using nsn::runtime::Model;
using nsn::runtime::Session;
using nsn::runtime::SessionOptions;
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
    "Options: --batch N (bench; 1), --threads N (run, verify, bench; 1), --tolerance X (verify;\n"
    "1e-5); --help, --version\n";

/// Wrong usage.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// What a command takes.
struct Command {
  /// The last of the words may be left out where it stands in brackets.
  std::vector<std::string> words, options;
};

const std::map<std::string, Command> kCommands = {
    {"describe", {{"FILE"}, {}}},
    {"run", {{"FILE", "SUBNETWORK", "INPUT", "OUTPUT"}, {"--threads"}}},
    {"verify", {{"FILE", "SUBNETWORK", "INPUT", "EXPECTED"}, {"--threads", "--tolerance"}}},
    {"bench", {{"FILE", "[SUBNETWORK]"}, {"--batch", "--threads"}}}};

bool takes(const Command& command, const std::string& option) {
  return std::count(command.options.begin(), command.options.end(), option) > 0;
}

std::string joined(const std::vector<std::string>& words, const char* between) {
  std::string result;
  for (const std::string& each : words) result += (result.empty() ? "" : between) + each;
  return result;
}

/// What stands behind nsn-run.
struct Arguments {
  std::vector<std::string> words;
  std::map<std::string, std::string> options;

  /// A count, at most as large as a session's may be; 1 where it is not said.
  int64_t count(const std::string& option, int64_t most) const {
    const auto found = options.find(option);
    if (found == options.end()) return 1;
    const std::string& text = found->second;
    int64_t result = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
    if (error != std::errc() || end != text.data() + text.size() || result < 1 || result > most) {
      throw UsageError(option + " must be a whole number from 1 to " + std::to_string(most) +
                       ", but is '" + text + "'");
    }
    return result;
  }
  int threads() const { return static_cast<int>(count("--threads", SessionOptions::kMostThreads)); }
  int64_t batch() const { return count("--batch", SessionOptions::kMostBatch); }

  double tolerance() const {
    const auto found = options.find("--tolerance");
    if (found == options.end()) return 1e-5;
    char* end = nullptr;
    const double result = std::strtod(found->second.c_str(), &end);
    // Written so that no number is refused too.
    if (found->second.empty() || *end != '\0' || !(result > 0 && result < 1e9)) {
      throw UsageError("--tolerance must be a number above 0 and below 1e9, but is '" +
                       found->second + "'");
    }
    return result;
  }
};

Arguments arguments_of(int count, char** given) {
  Arguments result;
  for (int i = 1; i < count; ++i) {
    const std::string word = given[i];
    if (word == "-h" || word == "--help" || word == "--version") {
      result.words = {word};
      return result;
    }
    if (word.rfind("--", 0) != 0) {
      result.words.push_back(word);
      continue;
    }
    // The number stands behind a sign or is the next word.
    const size_t sign = word.find('=');
    const std::string option = word.substr(0, sign);
    const bool is_known = std::any_of(kCommands.begin(), kCommands.end(),
                                      [&](const auto& each) { return takes(each.second, option); });
    if (!is_known) throw UsageError("there is no option " + option);
    if (sign == std::string::npos && i + 1 == count) throw UsageError(option + " needs a number");
    const std::string number = sign == std::string::npos ? given[++i] : word.substr(sign + 1);
    const bool is_first = result.options.emplace(option, number).second;
    if (!is_first) throw UsageError(option + " is given twice");
  }
  return result;
}

/// Refuses what a command does not take.
void check(const Arguments& arguments) {
  const auto& words = arguments.words;
  if (words.empty()) throw UsageError("a command is missing");
  const auto found = kCommands.find(words[0]);
  if (found == kCommands.end()) throw UsageError("there is no command " + words[0]);
  const Command& command = found->second;
  const size_t most = command.words.size(), least = most - (command.words.back()[0] == '[');
  const std::vector<std::string> own(words.begin() + 1, words.end());
  if (own.size() < least || own.size() > most) {
    throw UsageError("'" + words[0] + "' takes " + joined(command.words, " ") + ", but is given " +
                     (own.empty() ? "nothing" : "'" + joined(own, "' '") + "'"));
  }
  for (const auto& [option, text] : arguments.options) {
    if (takes(command, option)) continue;
    throw UsageError("'" + words[0] + "' takes " +
                     (command.options.empty() ? "no options" : joined(command.options, " and ")) +
                     ", but is given " + option);
  }
}

int64_t elements(const std::vector<int64_t>& shape) {
  int64_t result = 1;
  for (const int64_t extent : shape) result *= extent;
  return result;
}

std::vector<int64_t> with_samples(int64_t samples, const std::vector<int64_t>& shape) {
  std::vector<int64_t> result{samples};
  result.insert(result.end(), shape.begin(), shape.end());
  return result;
}

std::string text_of(const std::vector<int64_t>& shape) {
  std::string result;
  for (const int64_t extent : shape) {
    result += (result.empty() ? "" : ", ") + std::to_string(extent);
  }
  return "(" + result + ")";
}

/// The shape of a batch of any size.
std::string batches_of(const std::vector<int64_t>& shape) {
  std::string result = "(B";
  for (const int64_t extent : shape) result += ", " + std::to_string(extent);
  return result + ")";
}

void describe(const Model& model) {
  size_t width = 12;
  for (const auto& each : model.subnetworks()) {
    width = std::max(width, printable(each.name).size());
  }
  std::printf("%-*s  %-18s %-18s %14s %14s %14s\n", static_cast<int>(width), "sub-network", "input",
              "output", "needs of file", "reads of that", "FLOPs");
  for (size_t i = 0; i < model.subnetworks().size(); ++i) {
    const auto& own = model.subnetworks()[i];
    std::printf("%-*s  %-18s %-18s %14lld %14lld %14.0f%s\n", static_cast<int>(width),
                printable(own.name).c_str(),
                (batches_of(own.input) + (own.takes_numbers ? " int64" : "")).c_str(),
                batches_of(own.output).c_str(), static_cast<long long>(own.file_bytes),
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

[[noreturn]] void refuse_cut(const std::string& path, const std::string& what, int64_t needed) {
  throw std::runtime_error(
      "'" + path + "' ends after " + std::to_string(std::filesystem::file_size(path)) +
      " bytes, but " + what + " needs its first " + std::to_string(needed) + ". Append the rest.");
}

/// The place of a sub-network that is there.
size_t place_of(const Model& model, const std::string& path, const std::string& name) {
  const size_t place = model.index_of(name);
  if (!model.has(place)) {
    refuse_cut(path, "sub-network '" + name + "'", model.subnetworks()[place].file_bytes);
  }
  return place;
}

/// All that are there.
std::vector<size_t> places_of(const Model& model, const std::string& path) {
  std::vector<size_t> result;
  int64_t least = INT64_MAX;
  for (size_t i = 0; i < model.subnetworks().size(); ++i) {
    if (model.has(i)) result.push_back(i);
    least = std::min(least, model.subnetworks()[i].file_bytes);
  }
  if (model.subnetworks().empty()) {
    throw std::runtime_error("'" + path + "' has no sub-networks. Give another file.");
  }
  if (result.empty()) refuse_cut(path, "its smallest sub-network", least);
  return result;
}

/// Takes what runs of so many samples need.
template <typename Take>
auto with_memory_for(int64_t samples, const Take& take) {
  const auto refuse = [&] {
    return std::runtime_error("there is no memory for runs of " + std::to_string(samples) +
                              " samples. Give fewer.");
  };
  try {
    return take();
  } catch (const std::bad_alloc&) {
    throw refuse();
  } catch (const std::length_error&) {
    throw refuse();
  }
}

std::vector<float> outputs_for(const Model::Subnetwork& own, int64_t samples) {
  return std::vector<float>(static_cast<size_t>(samples * elements(own.output)));
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
    throw std::runtime_error(
        "'" + path + "' must hold samples of " + batches_of(own.input) + " " +
        (own.takes_numbers ? "int64" : "float32") + ", " + std::to_string(a_sample) +
        " bytes each, but holds " + std::to_string(x.bytes.size()) + " bytes" +
        (!x.is_npy ? std::string()
                   : " of shape " + text_of(x.shape) + (x.is_integral ? " int64" : " float32")) +
        ". Convert it.");
  }
  const auto samples = static_cast<int64_t>(x.bytes.size() / a_sample);
  auto [y, session] = with_memory_for(samples, [&] {
    return std::pair(outputs_for(own, samples), Session(model, {samples, threads, {}}));
  });
  const Status status = run(session, model, place, x.bytes.data(), y.data(), samples);
  if (status != Status::kOk) throw std::runtime_error("'" + path + "': " + message(status));
  return {std::move(y), samples};
}

int verify(const Model& model, size_t place, const std::string& input, const std::string& expected,
           const Arguments& arguments) {
  const double tolerance = arguments.tolerance();
  const auto [y, samples] = outputs_of(model, place, input, arguments.threads());
  const nsn::run::Array is = nsn::run::read_array(expected);
  const std::vector<int64_t> shape = with_samples(samples, model.subnetworks()[place].output);
  if (is.is_integral || is.bytes.size() != y.size() * sizeof(float) ||
      (is.is_npy && is.shape != shape)) {
    throw std::runtime_error(
        "'" + expected + "' must hold outputs of shape " + text_of(shape) + " and float32, but " +
        (is.is_npy ? "is of shape " + text_of(is.shape) + (is.is_integral ? " and int64" : "")
                   : "holds " + std::to_string(is.bytes.size()) + " bytes") +
        ". Give what was recorded for this input.");
  }
  double most = 0, difference = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    float number = 0;
    std::memcpy(&number, is.bytes.data() + i * sizeof number, sizeof number);
    // Infinities, and what is no number on both sides, too.
    if (number == y[i] || (std::isnan(number) && std::isnan(y[i]))) continue;
    const double off = std::abs(static_cast<double>(number) - y[i]);
    difference = std::isnan(off) ? INFINITY : std::max(difference, off);
  }
  for (size_t i = 0; i < y.size(); ++i) {
    if (std::isfinite(y[i])) most = std::max(most, std::abs(static_cast<double>(y[i])));
  }
  const bool agrees = std::isfinite(difference) && difference <= tolerance * most;
  std::printf("%lld samples: largest difference %.3g, of the largest output %.3g: %s\n",
              static_cast<long long>(samples), difference, most, agrees ? "agrees" : "DIFFERS");
  return agrees ? 0 : 3;
}

void bench(const Model& model, const std::vector<size_t>& places, const Arguments& arguments) {
  using Clock = std::chrono::steady_clock;
  const int64_t batch = arguments.batch();
  Session session =
      with_memory_for(batch, [&] { return Session(model, {batch, arguments.threads(), {}}); });
  for (const size_t place : places) {
    const auto& own = model.subnetworks()[place];
    const auto size = static_cast<size_t>(batch * elements(own.input));
    std::vector<int64_t> numbers;
    std::vector<float> x, y;
    with_memory_for(batch, [&] {
      if (own.takes_numbers) numbers.resize(size);
      if (!own.takes_numbers) x.assign(size, 0.5F);
      y = outputs_for(own, batch);
    });
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
    std::printf("%-12s batch %lld: median %.2f us, least %.2f us, %zu runs\n",
                printable(own.name).c_str(), static_cast<long long>(batch), times[times.size() / 2],
                times.front(), times.size());
  }
}

int command(const Arguments& arguments) {
  const auto& words = arguments.words;
  const std::string asked = words.empty() ? "" : words[0];
  if (asked == "-h" || asked == "--help" || asked == "help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (asked == "--version") {
    std::puts("nsn-run " NSN_VERSION);
    return 0;
  }
  check(arguments);
  const std::string& file = words[1];
  const Model model = Model::open(file);
  if (asked == "describe") {
    describe(model);
    return 0;
  }
  if (asked == "bench") {
    bench(model,
          words.size() == 2 ? places_of(model, file)
                            : std::vector<size_t>{place_of(model, file, words[2])},
          arguments);
    return 0;
  }
  const size_t place = place_of(model, file, words[2]);
  if (asked == "verify") return verify(model, place, words[3], words[4], arguments);
  const auto [y, samples] = outputs_of(model, place, words[3], arguments.threads());
  nsn::run::write_array(words[4], with_samples(samples, model.subnetworks()[place].output), y);
  return 0;
}

}  // namespace

int main(int count, char** given) {
  try {
    const int result = command(arguments_of(count, given));
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      throw std::runtime_error(
          "what was to be said cannot be written to the standard output. Check where it goes.");
    }
    return result;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "nsn-run: %s.\n\n%s", printable(error.what()).c_str(), kUsage);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nsn-run: %s\n", printable(error.what()).c_str());
  }
  return 2;
}
