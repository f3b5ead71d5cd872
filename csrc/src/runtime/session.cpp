#include "nsn/runtime/session.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/level.h"
#include "runtime/model.h"
#include "runtime/threads.h"

namespace nsn::runtime {

namespace {

/// Memory on a cache line, all of it there from the begin.
class Memory {
 public:
  explicit Memory(int64_t elements)
      : bytes_(bytes_of(elements)),
        data_(static_cast<float*>(::operator new(addressable(bytes_), kLine))) {
    std::fill_n(data_, elements, 0.0F);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(data_, kLine); }

  static int64_t bytes_of(int64_t elements) {
    return elements * static_cast<int64_t>(sizeof(float));
  }

  float* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  /// Where addresses have 32 bits there may be none for so many bytes.
  static size_t addressable(int64_t bytes) {
    if (bytes > PTRDIFF_MAX) throw std::bad_alloc();
    return static_cast<size_t>(bytes);
  }

  static constexpr std::align_val_t kLine{64};
  int64_t bytes_;
  float* data_;
};

void check_range(const char* name, int64_t value, int64_t most) {
  if (value >= 1 && value <= most) return;
  throw Error(std::string("nsn: a session's ") + name + " must be at least 1 and at most " +
              std::to_string(most) + ", but is " + std::to_string(value) +
              ". Give one in between.");
}

/// Elements.
int64_t memory_of(const File& file, const SessionOptions& options) {
  check_range("max_batch", options.max_batch, SessionOptions::kMostBatch);
  check_range("threads", options.threads, SessionOptions::kMostThreads);
  if (options.parallel_for && options.threads == 1) {
    throw Error(
        "nsn: a session of 1 thread has no use for parallel_for, but is given one. Say in threads "
        "how many compute, or leave it out.");
  }
  int64_t most = 1;
  for (const FileNetwork& network : file.networks) {
    most = std::max(most, plan::memory_for(network.plan, options.max_batch, options.threads));
  }
  return most;
}

}  // namespace

const char* message(Status status) noexcept {
  switch (status) {
    case Status::kOk:
      return "done";
    case Status::kNoSuchSubnetwork:
      return "the model has no sub-network of this place; look it up by its name";
    case Status::kNotInFile:
      return "the file ends before the weights of this sub-network; append the rest, and call "
             "the model's grow, or grow_to";
    case Status::kBatchTooLarge:
      return "there are more samples than the session's max_batch, or fewer than 0; make a session "
             "for as many";
    case Status::kWrongInputType:
      return "the input is of float32 where the sub-network takes int64, or the other way round; "
             "its takes_numbers says which";
    case Status::kOverlap:
      return "the output lies in the input's memory, which is still read when parts of the output "
             "are there; give it memory of its own";
    default:
      return "the input holds a number that is no row of the table that it is embedded by; give "
             "numbers of its rows";
  }
}

struct Session::State {
  State(const Model& model, const SessionOptions& options)
      : model(model.state_),
        max_batch(options.max_batch),
        threads(options.threads),
        memory(memory_of(this->model->file, options)) {
    if (threads == 1) {
      parallel_for = kernels::serially;
    } else if (options.parallel_for) {
      parallel_for = [given = options.parallel_for](int64_t count, int64_t grain,
                                                    const kernels::Task& task) {
        const auto call = [](const void* data, int64_t begin, int64_t end) {
          (*static_cast<const kernels::Task*>(data))(begin, end);
        };
        given(count, grain, call, &task);
      };
    } else {
      own.emplace(threads);
      parallel_for = [this](int64_t count, int64_t grain, const kernels::Task& task) {
        own->run(count, grain, task);
      };
    }
    try {
      kernels::level();  // which is looked up once
    } catch (const std::invalid_argument& error) {
      throw Error(error.what());
    }
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() = default;

  Status run(size_t subnetwork, const void* input, bool is_integral, float* output,
             int64_t samples) const {
    if (subnetwork >= model->file.networks.size()) return Status::kNoSuchSubnetwork;
    const Model::State::Ready* ready = model->ready(subnetwork);
    if (ready == nullptr) return Status::kNotInFile;
    if (samples < 0 || samples > max_batch) return Status::kBatchTooLarge;
    const plan::Plan& plan = model->file.networks[subnetwork].plan;
    if (plan.embeds != is_integral) return Status::kWrongInputType;
    const auto bytes = [&](int64_t elements, size_t each) {
      return static_cast<size_t>(samples * elements) * each;
    };
    const auto x = reinterpret_cast<uintptr_t>(input), y = reinterpret_cast<uintptr_t>(output);
    if (x < y + bytes(plan.outputs, sizeof(float)) &&
        y < x + bytes(plan.inputs, is_integral ? sizeof(int64_t) : sizeof(float))) {
      return Status::kOverlap;
    }
    const plan::Run run{&ready->tensors, samples, input,         output,
                        memory.data(),   threads, &parallel_for, {}};
    return plan::run(plan, run) ? Status::kNoSuchRow : Status::kOk;
  }

  std::shared_ptr<const Model::State> model;
  int64_t max_batch, threads;
  Memory memory;
  std::optional<Threads> own;
  kernels::ParallelFor parallel_for;
};

Session::Session(const Model& model, const SessionOptions& options)
    : state_(std::make_unique<State>(model, options)) {}
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;
Session::~Session() = default;

Status Session::run(size_t subnetwork, const float* input, float* output,
                    int64_t samples) noexcept {
  return state_->run(subnetwork, input, false, output, samples);
}

Status Session::run(size_t subnetwork, const int64_t* input, float* output,
                    int64_t samples) noexcept {
  return state_->run(subnetwork, input, true, output, samples);
}

int64_t Session::bytes_for(const Model& model, const SessionOptions& options) {
  return Memory::bytes_of(memory_of(model.state_->file, options));
}

int64_t Session::bytes() const noexcept { return state_->memory.bytes(); }

}  // namespace nsn::runtime
