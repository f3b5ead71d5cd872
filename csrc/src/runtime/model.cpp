#include "runtime/model.h"

#include <cstdint>
#include <utility>

namespace nsn::runtime {

namespace {

[[noreturn]] void refuse_file(const std::string& name, const std::string& what) {
  throw Error("nsn: " + name + " is no file that the runtime can read: " + what +
              ". Write it with `nsn export --format runtime`.");
}

File header_in(std::string_view bytes, const std::string& name) {
  try {
    return read_header(bytes);
  } catch (const CutHeader& cut) {
    throw Error("nsn: " + name + " ends after " + std::to_string(bytes.size()) + " bytes, in " +
                cut.what() + ". Append the rest, and open it then.");
  } catch (const std::runtime_error& error) {
    refuse_file(name, error.what());
  }
}

/// What a plan reads, where the file has it.
std::unique_ptr<const Model::State::Ready> make(const File& file, const FileNetwork& network,
                                                const char* data) {
  auto result = std::make_unique<Model::State::Ready>();
  for (const auto& [place, out, in] : network.table) {
    const FileTensor& tensor = file.tensors[place];
    if (!tensor.is_panels()) {
      const auto& sizes = tensor.sizes;
      const auto* elements = reinterpret_cast<const float*>(data + tensor.boxes[0].offset);
      result->tensors.push_back({nullptr, elements, sizes[1], sizes[2]});
      continue;
    }
    std::vector<const void*> boxes;
    for (const Box& box : tensor.boxes) boxes.push_back(data + box.offset);
    result->panels.emplace_back(tensor.out_ends, tensor.in_ends, boxes, tensor.type,
                                tensor.sizes[0], out, in);
    result->tensors.push_back({&result->panels.back()});
  }
  return result;
}

}  // namespace

Model::State::State(const std::string& path)
    : name("'" + path + "'"),
      mapped(std::make_unique<MappedFile>(path)),
      file(header_in(mapped->bytes(), name)),
      made(file.networks.size()) {
  mapped->reserve(file.bytes);
  data = mapped->data();
  list_subnetworks();
  make_ready(mapped->size());
}

Model::State::State(std::string_view memory)
    : name("the file in memory"),
      data(memory.data()),
      file(header_in(memory, name)),
      made(file.networks.size()) {
  list_subnetworks();
  make_ready(static_cast<int64_t>(memory.size()));
}

void Model::State::list_subnetworks() {
  owned.resize(file.networks.size());
  for (const FileNetwork& network : file.networks) {
    const plan::Plan& plan = network.plan;
    int64_t weight_bytes = 0;
    file.over_boxes(network, [&](size_t tensor, size_t box) {
      weight_bytes += file.tensors[tensor].boxes[box].bytes;
    });
    const auto& output = plan.values[plan.steps.back().output].shape;
    subnetworks.push_back({network.name, plan.values[0].shape, output, plan.embeds,
                           file.needed_by(network), weight_bytes, plan.flops});
  }
}

void Model::State::make_ready(int64_t now) {
  size = now;
  // What points to panels is smaller than they are; a file in which sub-networks name the same ones
  // over and over is none that nsn writes.
  constexpr int64_t kMost = 64;
  for (size_t i = 0; i < owned.size(); ++i) {
    if (owned[i] != nullptr || subnetworks[i].file_bytes > size) continue;
    for (const auto& [tensor, out, in] : file.networks[i].table) {
      pointers += file.tensors[tensor].pointers(out, in);
    }
    if (pointers > kMost * size) {
      refuse_file(name, kNamedTooOften);
    }
    owned[i] = make(file, file.networks[i], data);
    made[i].store(owned[i].get(), std::memory_order_release);
  }
}

Model::Model(std::shared_ptr<State> state) : state_(std::move(state)) {}

Model Model::open(const std::string& path) { return Model(std::make_shared<State>(path)); }

Model Model::in_memory(const void* data, size_t bytes) {
  const auto beyond = reinterpret_cast<uintptr_t>(data) % alignof(float);
  if (beyond != 0) {
    throw Misuse("nsn: a file in memory has to begin at a multiple of " +
                 std::to_string(alignof(float)) + " bytes, and best at one of " +
                 std::to_string(kAlignment) + ", but begins " + std::to_string(beyond) +
                 " behind one. Align it, or copy it.");
  }
  return Model(std::make_shared<State>(std::string_view(static_cast<const char*>(data), bytes)));
}

const std::vector<Model::Subnetwork>& Model::subnetworks() const { return state_->subnetworks; }

size_t Model::index_of(std::string_view name) const {
  std::string names;
  for (size_t i = 0; i < subnetworks().size(); ++i) {
    if (subnetworks()[i].name == name) return i;
    names += (names.empty() ? "'" : ", '") + subnetworks()[i].name + "'";
  }
  throw Error("nsn: " + state_->name + " has no sub-network '" + std::string(name) + "'. It has " +
              names + ".");
}

bool Model::has(size_t subnetwork) const {
  return subnetwork < subnetworks().size() && state_->ready(subnetwork) != nullptr;
}

void Model::grow() {
  const std::lock_guard<std::mutex> lock(state_->growing);
  if (state_->mapped == nullptr) {
    throw Misuse(
        "nsn: of a file in memory only its owner knows how much is there by now. Say it "
        "with grow_to.");
  }
  state_->mapped->look();
  state_->make_ready(state_->mapped->size());
}

void Model::grow_to(size_t bytes) {
  const std::lock_guard<std::mutex> lock(state_->growing);
  if (state_->mapped != nullptr) {
    throw Misuse("nsn: grow_to is for files in memory, but " + state_->name +
                 " is mapped. Call grow.");
  }
  // No memory has more bytes than addresses can be apart.
  if (bytes > PTRDIFF_MAX || static_cast<int64_t>(bytes) < state_->size) {
    throw Misuse("nsn: " + state_->name + " had " + std::to_string(state_->size) +
                 " bytes, and is said to have " + std::to_string(bytes) +
                 " now. Say how many there are from its beginning on.");
  }
  state_->make_ready(static_cast<int64_t>(bytes));
}

void Model::load(size_t subnetwork) const {
  const size_t count = subnetworks().size();
  if (subnetwork >= count) {
    throw Error("nsn: " + state_->name + " has no sub-network of place " +
                std::to_string(subnetwork) + ", but " + std::to_string(count) +
                " of them. Look it up by its name.");
  }
  if (!has(subnetwork)) {
    throw Error("nsn: " + state_->name + " ends before the weights of '" +
                subnetworks()[subnetwork].name + "', which needs its first " +
                std::to_string(subnetworks()[subnetwork].file_bytes) +
                " bytes. Append the rest, and call the model's grow, or grow_to.");
  }
  constexpr int64_t kPage = 4096;  // the least that there is; ARM has larger ones too
  unsigned sum = 0;
  const File& file = state_->file;
  file.over_boxes(file.networks[subnetwork], [&](size_t tensor, size_t i) {
    const Box& box = file.tensors[tensor].boxes[i];
    const auto* data = reinterpret_cast<const unsigned char*>(state_->data) + box.offset;
    for (int64_t at = 0; at < box.bytes; at += kPage) sum += data[at];
    sum += data[box.bytes - 1];
  });
  // So that reading is not left out.
  const volatile unsigned kept = sum;
  static_cast<void>(kept);
}

}  // namespace nsn::runtime
