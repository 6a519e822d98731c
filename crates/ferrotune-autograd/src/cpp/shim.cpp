// The bridge between torch::autograd::Function and a Rust trait object.
//
// Forward runs in Rust before this file is entered; `ferrotune_attach` only records it in the graph. Backward enters Rust through
// `ferrotune_backward`. Nothing unwinds in either direction: Rust returns a message, which becomes a C++ exception here; C++
// exceptions become a message in `ferrotune_attach`.

#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

extern "C" {
// Implemented in Rust. Gradients and results are heap-allocated tensors or null; on failure a message is returned, else null.
char* ferrotune_backward(void* function, Tensor* const* grad_outputs, size_t grad_output_count, Tensor* const* saved,
                         size_t saved_count, const bool* needs_input_grad, size_t input_count, Tensor** grad_inputs);
void ferrotune_drop_function(void* function);
void ferrotune_free_message(char* message);
void ferrotune_parallel_range(const void* body, int64_t begin, int64_t end);
}

namespace {

// Owns the Rust function for as long as the graph node lives.
struct RustFunction : torch::CustomClassHolder {
  explicit RustFunction(void* function) : function(function) {}
  RustFunction(const RustFunction&) = delete;
  RustFunction& operator=(const RustFunction&) = delete;
  ~RustFunction() override { ferrotune_drop_function(function); }
  void* function;
};

struct Payload {
  c10::intrusive_ptr<RustFunction> function;
  variable_list outputs;
  variable_list saved;
  variable_list non_differentiable;
};

struct RustBackward : torch::autograd::Function<RustBackward> {
  static variable_list forward(AutogradContext* context, at::TensorList inputs, Payload* payload) {
    context->saved_data["function"] = c10::IValue::make_capsule(payload->function);
    context->saved_data["inputs"] = static_cast<int64_t>(inputs.size());
    context->set_materialize_grads(false);
    context->mark_non_differentiable(payload->non_differentiable);
    context->save_for_backward(std::move(payload->saved));
    return std::move(payload->outputs);
  }

  static variable_list backward(AutogradContext* context, variable_list grad_outputs) {
    const bool create_graph = c10::GradMode::is_enabled();
    auto holder = context->saved_data["function"].toCapsule();
    auto* function = static_cast<RustFunction*>(holder.get());
    const auto input_count = static_cast<size_t>(context->saved_data["inputs"].toInt());
    variable_list saved = context->get_saved_variables();

    std::vector<Tensor*> grads, saved_pointers, results(input_count, nullptr);
    for (auto& grad : grad_outputs) grads.push_back(grad.defined() ? &grad : nullptr);
    for (auto& tensor : saved) saved_pointers.push_back(&tensor);
    // std::vector<bool> has no contiguous storage.
    std::unique_ptr<bool[]> needs(new bool[input_count]);
    for (size_t i = 0; i < input_count; i++) needs[i] = context->needs_input_grad(i);

    char* message;
    {
      c10::AutoGradMode no_grad(false);
      message = ferrotune_backward(function->function, grads.data(), grads.size(), saved_pointers.data(),
                                   saved_pointers.size(), needs.get(), input_count, results.data());
    }
    variable_list grad_inputs(input_count);
    for (size_t i = 0; i < input_count; i++) {
      if (results[i] == nullptr) continue;
      grad_inputs[i] = std::move(*results[i]);
      delete results[i];
    }
    if (message != nullptr) {
      std::string text(message);
      ferrotune_free_message(message);
      throw std::runtime_error(text);
    }
    if (create_graph) {
      auto once = c10::make_intrusive<torch::autograd::DelayedError>(
          "this function is differentiable once: its backward, written in Rust, cannot itself be differentiated",
          static_cast<int64_t>(input_count));
      // DelayedError wants defined variables that require a gradient to hang itself on.
      for (auto& grad : grad_inputs) {
        if (grad.defined()) grad = (*once)({grad.detach().requires_grad_(true)})[0];
      }
    }
    // The trailing undefined gradient stands for the payload argument.
    grad_inputs.emplace_back();
    return grad_inputs;
  }
};

char* copy_message(const char* text) { return strdup(text); }

}  // namespace

extern "C" {

// Records a forward that has run already: `outputs` come back attached to the graph (the pointers' tensors are replaced).
// Takes ownership of `function` in every case. Returns a malloc'd message on failure, else null.
char* ferrotune_attach(void* function, Tensor* const* inputs, size_t input_count, Tensor* const* outputs, size_t output_count,
                       const bool* differentiable, Tensor* const* saved, size_t saved_count) {
  try {
    Payload payload;
    payload.function = c10::make_intrusive<RustFunction>(function);
    variable_list input_list;
    for (size_t i = 0; i < input_count; i++) input_list.push_back(*inputs[i]);
    for (size_t i = 0; i < output_count; i++) {
      payload.outputs.push_back(*outputs[i]);
      if (!differentiable[i]) payload.non_differentiable.push_back(*outputs[i]);
    }
    for (size_t i = 0; i < saved_count; i++) payload.saved.push_back(*saved[i]);
    variable_list attached = RustBackward::apply(at::TensorList(input_list), &payload);
    for (size_t i = 0; i < output_count; i++) *outputs[i] = std::move(attached[i]);
    return nullptr;
  } catch (const std::exception& error) {
    return copy_message(error.what());
  } catch (...) {
    return copy_message("unknown C++ exception");
  }
}

void ferrotune_free_attach_message(char* message) { std::free(message); }

// How the libtorch that is loaded was built; freed by `ferrotune_free_configuration`, null without memory.
char* ferrotune_libtorch_configuration() { return strdup(at::show_config().c_str()); }
void ferrotune_free_configuration(char* configuration) { std::free(configuration); }

bool ferrotune_grad_mode_enabled() { return c10::GradMode::is_enabled(); }

// Counts a change of the tensor's numbers that libtorch did not make itself. Inference tensors and undefined ones have no count.
void ferrotune_mark_changed(Tensor* tensor) {
  try {
    if (tensor->defined() && !tensor->is_inference()) tensor->unsafeGetTensorImpl()->bump_version();
  } catch (...) {
  }
}

// Runs `body` on ranges of [begin, end) with libtorch's own thread pool. `body` must not unwind.
void ferrotune_parallel_for(int64_t begin, int64_t end, int64_t grain_size, const void* body) {
  at::parallel_for(begin, end, grain_size,
                   [body](int64_t from, int64_t to) { ferrotune_parallel_range(body, from, to); });
}

}  // extern "C"
