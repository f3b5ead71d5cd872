#include "inference/packed_program.h"

#include <ATen/DimVector.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <new>
#include <utility>

#include "inference/evaluate.h"
#include "inference/planning.h"
#include "nsn/blocks/block.h"
#include "operations/autograd.h"
#include "operations/lanes.h"
#include "operations/parallel.h"
#include "plan/run.h"

namespace nsn::detail {

namespace {

/// A block that is not nsn's, as one lane of a pass by itself.
class OwnBlock {
 public:
  OwnBlock(const Step& step, std::string name, size_t subnetwork, PackedTensors& tensors)
      : path_(step.block), name_(std::move(name)), subnetwork_(subnetwork) {
    const auto& own = std::get<primitives::Call>(step.primitive);
    block_ = own.block;
    fit_ = own.fit;
    if (block_->module()) return;  // which holds its tensors itself
    for (const size_t p : c10::irange(step.operands.size())) {
      Operand operand = step.operands[p];
      // A private parameter is there in its own width; of others the block takes its slice.
      const bool is_private = full_shape(operand.slice) != full_shape(fit_->slices[p]);
      places_.push_back({p, is_private});
      operand.slice = whole(full_shape(operand.slice));
      slices_.push_back(tensors.read(operand, PackedForm::kCopy, subnetwork));
    }
  }

  at::Tensor operator()(const std::vector<at::Tensor>& inputs) const {
    std::vector<at::Tensor> table;
    for (const PackedSlice* slice : slices_) table.push_back(slice->plain);
    const BlockPass pass{{{{name_, 0}, subnetwork_, fit_.get(), places_.data(), 0, 1}},
                         merge::sum(),
                         /*training=*/false,
                         /*calibrating=*/false,
                         /*seed=*/0,
                         /*memory=*/{},
                         table,
                         /*tied=*/nullptr,
                         path_};
    return block_->joint(inputs, pass)[0];
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_, name_;
  size_t subnetwork_;
  std::shared_ptr<const Block> block_;
  std::shared_ptr<const Fit> fit_;
  std::vector<ParameterPlace> places_;
  std::vector<const PackedSlice*> slices_;
};

void check_out(const at::Tensor& out, at::IntArrayRef shape, at::ScalarType dtype,
               at::Device device) {
  TORCH_CHECK_VALUE(out.sizes() == shape && out.scalar_type() == dtype && out.device() == device,
                    "nsn::PackedView: `out` must have shape ", to_string(shape.vec()),
                    " and dtype ", dtype, " on ", device, ", but has ",
                    to_string(out.sizes().vec()), " and ", out.scalar_type(), " on ", out.device(),
                    ". Make an empty one of these.");
}

/// Step by step: any device and dtype.
class PlainProgram : public PackedProgram {
 public:
  PlainProgram(const Program& program, const std::string& name, size_t subnetwork,
               PackedTensors& tensors)
      : output_(program.output()) {
    for (const Step& step : program.steps()) {
      PlainStep own{step.primitive, step.inputs, {}, nullptr};
      if (std::holds_alternative<primitives::Call>(step.primitive)) {
        own.block = std::make_shared<const OwnBlock>(step, name, subnetwork, tensors);
      } else {
        for (const Operand& operand : step.operands) {
          own.operands.emplace_back(operand.role,
                                    tensors.read(operand, PackedForm::kCopy, subnetwork));
        }
      }
      steps_.push_back(std::move(own));
    }
    last_use_.assign(steps_.size() + 1, steps_.size());
    for (const size_t i : c10::irange(steps_.size())) {
      for (const size_t input : steps_[i].inputs) last_use_[input] = i;
    }
    last_use_[output_] = steps_.size();
  }

  at::Tensor operator()(const at::Tensor& x) const override {
    std::vector<at::Tensor> values(last_use_.size());
    values[0] = x;
    std::vector<at::Tensor> inputs;
    for (const size_t i : c10::irange(steps_.size())) {
      const PlainStep& step = steps_[i];
      inputs.clear();
      for (const size_t input : step.inputs) inputs.push_back(values[input]);
      for (const size_t input : step.inputs) {
        if (last_use_[input] == i) values[input].reset();
      }
      if (step.block) {
        values[i + 1] = (*step.block)(inputs);
        continue;
      }
      Operands operands;
      for (const auto& [role, slice] : step.operands) operands[role] = slice->plain;
      values[i + 1] = evaluate(step.primitive, std::move(inputs), operands);
    }
    return own_memory(std::move(values[output_]));
  }

  void operator()(const at::Tensor& x, const at::Tensor& out) const override {
    const at::Tensor y = (*this)(x);
    check_out(out, y.sizes(), y.scalar_type(), y.device());
    out.copy_(y);
  }

 private:
  struct PlainStep {
    Primitive primitive;
    std::vector<size_t> inputs;
    std::vector<std::pair<std::string, const PackedSlice*>> operands;
    /// Of a call.
    std::shared_ptr<const OwnBlock> block;
  };
  std::vector<PlainStep> steps_;
  /// For each value the place of the last step that reads it.
  std::vector<size_t> last_use_;
  size_t output_;
};

/// Memory of this thread on a cache line, the most that its calls took, kept until the thread ends.
/// A run takes it along, so that one within another's block has its own.
class Arena {
 public:
  explicit Arena(int64_t elements) : memory_(std::move(kept())) {
    const auto needed = static_cast<size_t>(elements);
    if (memory_.size < needed) memory_ = Memory(needed);
  }
  ~Arena() {
    if (kept().size < memory_.size) kept() = std::move(memory_);
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  float* data() const { return memory_.data.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* data) const { ::operator delete(data, kLine); }
  };
  struct Memory {
    std::unique_ptr<float, Free> data;
    size_t size = 0;

    Memory() = default;
    explicit Memory(size_t elements)
        : data(static_cast<float*>(::operator new(elements * sizeof(float), kLine))),
          size(elements) {}
    Memory(Memory&& other) noexcept
        : data(std::move(other.data)), size(std::exchange(other.size, 0)) {}
    Memory& operator=(Memory&& other) noexcept {
      data = std::move(other.data);
      size = std::exchange(other.size, 0);
      return *this;
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() = default;
  };
  static Memory& kept() {
    thread_local Memory memory;
    return memory;
  }

  Memory memory_;
};

/// A plan: float32 on the CPU.
class PlannedProgram : public PackedProgram {
 public:
  PlannedProgram(const Program& program, const std::string& name, size_t subnetwork,
                 PackedTensors& tensors)
      : output_(program.shape_of(program.output())),
        is_integral_(!at::isFloatingType(program.dtype())) {
    Planned planned = make_plan(program, subnetwork, tensors);
    for (const Step* step : planned.calls) {
      blocks_.emplace_back(*step, name, subnetwork, tensors);
      call_shapes_.emplace_back(program.shape_of(step->inputs[0]), step->shape);
    }
    plan_ = std::move(planned.plan);
    tensors_.resize(planned.tensors.size());
    tensors.when_filled([this, places = std::move(planned.tensors)] {
      for (const size_t i : c10::irange(places.size())) tensors_[i] = tensor_of(places[i]);
    });
  }

  PlannedProgram(const plan::Plan& plan, const std::vector<plan::Tensor>& tensors)
      : plan_(plan),
        output_(plan.values[plan.steps.back().output].shape),
        is_integral_(plan.embeds),
        tensors_(tensors) {}

  at::Tensor operator()(const at::Tensor& x) const override {
    at::Tensor y = at::detail::empty_cpu(shape_of(x), at::kFloat);
    (*this)(x, y);
    return y;
  }

  void operator()(const at::Tensor& given, const at::Tensor& y) const override {
    TORCH_CHECK_VALUE(
        given.device().is_cpu() && given.layout() == at::kStrided && !under_transform(given),
        "nsn::Pack: the pack reads the memory of a dense batch on the CPU, but the "
        "input is on ",
        given.device(), ", of layout ", given.layout(),
        ", or seen through a transform of torch.func. Bring it there, or use "
        "net.extract(name), a plain torch module.");
    TORCH_CHECK_VALUE(is_integral_ || given.scalar_type() == at::kFloat,
                      "nsn::Pack: the input has dtype ", given.scalar_type(),
                      ", but the pack computes in float32. Convert the batch with to().");
    TORCH_CHECK_VALUE(ends_in_storage(given),
                      "nsn::Pack: the input's storage ends before its elements do. Pass a batch "
                      "that has memory.");
    const at::Tensor x = (is_integral_ ? given.to(at::kLong) : given).contiguous();
    check_out(y, shape_of(x), at::kFloat, at::kCPU);
    const int64_t batch = x.size(0), threads = at::in_parallel_region() ? 1 : at::get_num_threads();
    if (batch == 0) return;
    const void* input = x.const_data_ptr();
    TORCH_CHECK_VALUE(
        input != nullptr || x.numel() == 0,
        "nsn::Pack: the input has no memory, as a fake or zero tensor has none. Pass a "
        "batch that has, such as its clone().");
    const Arena memory(plan::memory_for(plan_, batch, threads));
    static const kernels::ParallelFor over_threads = parallel_for;
    plan::Run run{&tensors_,     batch,   input,         y.mutable_data_ptr<float>(),
                  memory.data(), threads, &over_threads, {}};
    if (plan_.calls) {
      run.call = [this](size_t number, int64_t samples, const float* from, float* to) {
        call(number, samples, from, to);
      };
    }
    const auto wrong = plan::run(plan_, run);
    TORCH_CHECK_VALUE(!wrong, "nsn::Pack: the input holds ", wrong->number,
                      ", but the table has the rows 0 to ", wrong->rows - 1,
                      ". Give numbers of its rows.");
  }

 private:
  at::DimVector shape_of(const at::Tensor& x) const {
    at::DimVector shape{x.size(0)};
    shape.append(output_.begin(), output_.end());
    return shape;
  }

  static plan::Tensor tensor_of(const PlanTensor& place) {
    const PackedSlice& slice = *place.slice;
    if (slice.panels) return {&*slice.panels};
    const at::Tensor plain = place.row ? slice.plain[*place.row] : slice.plain;
    const auto* data = plain.const_data_ptr<float>();
    if (plain.dim() == 3) return {nullptr, data, plain.size(1), plain.size(2)};
    return {nullptr, data, plain.size(0), plain.dim() == 2 ? plain.stride(0) : 0};
  }

  void call(size_t number, int64_t samples, const float* from, float* to) const {
    const auto batch_of = [&](const plan::Shape& shape, float* data) {
      std::vector<int64_t> sizes{samples};
      sizes.insert(sizes.end(), shape.begin(), shape.end());
      return at::from_blob(data, sizes, at::TensorOptions().dtype(at::kFloat));
    };
    const auto& [in, out] = call_shapes_[number];
    // A copy: the block may keep what it gets.
    const at::Tensor x = batch_of(in, const_cast<float*>(from)).clone();
    const at::Tensor result = batch_of(out, to), y = blocks_[number]({x});
    TORCH_CHECK_VALUE(
        y.defined() && y.sizes() == result.sizes() && y.scalar_type() == at::kFloat,
        "nsn::Pack: block '", blocks_[number].path(), "' must give a float32 output of ", "shape ",
        to_string(result.sizes().vec()), ", but gave ",
        y.defined() ? to_string(y.sizes().vec()) + " of " + c10::toString(y.scalar_type())
                    : "an undefined tensor",
        ". Change its `fit` (or `output_shape`), or what it computes.");
    result.copy_(y);
  }

  plan::Plan plan_;
  Shape output_;
  bool is_integral_;
  std::vector<plan::Tensor> tensors_;
  std::vector<OwnBlock> blocks_;
  /// Of what they read and make, for one sample.
  std::vector<std::pair<plan::Shape, plan::Shape>> call_shapes_;
};

}  // namespace

std::unique_ptr<const PackedProgram> pack_program(const Program& program, const std::string& name,
                                                  size_t subnetwork, bool has_kernels,
                                                  PackedTensors& tensors) {
  if (has_kernels && has_plan(program)) {
    return std::make_unique<PlannedProgram>(program, name, subnetwork, tensors);
  }
  return std::make_unique<PlainProgram>(program, name, subnetwork, tensors);
}

std::unique_ptr<const PackedProgram> mapped_program(const plan::Plan& plan,
                                                    const std::vector<plan::Tensor>& tensors) {
  return std::make_unique<PlannedProgram>(plan, tensors);
}

}  // namespace nsn::detail
