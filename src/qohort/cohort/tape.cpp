// Plays a tape: calls compiled programs one after the other, without returning to Python between them.
//
// It uses the C interface of PyTorch's compiled programs (aoti_torch, a stable ABI) and their entry point.

#include <cstddef>
#include <cstring>
#include <exception>

struct AtenTensorOpaque;
using Handle = AtenTensorOpaque*;

extern "C" {
int aoti_torch_new_tensor_handle(Handle original, Handle* result);
int aoti_torch_delete_tensor_object(Handle tensor);
}

struct Call {
  void (*entry)(Handle* inputs, Handle* outputs);
  size_t input_count;
  size_t output_count;
  Handle* inputs;   // borrowed, and the same at each call
  Handle* outputs;  // those of the last time that this call was played
};

static thread_local char message[512];

extern "C" const char* play(const Call* calls, size_t count) {
  Handle inputs[1024];
  try {
    for (const Call* call = calls; call != calls + count; ++call) {
      if (call->input_count > sizeof inputs / sizeof *inputs) return "a program has more than 1,024 tensors";
      for (size_t i = 0; i < call->input_count; ++i)  // the entry takes ownership
        if (aoti_torch_new_tensor_handle(call->inputs[i], &inputs[i])) return "a tensor cannot be passed";
      for (size_t i = 0; i < call->output_count; ++i) {
        if (call->outputs[i]) aoti_torch_delete_tensor_object(call->outputs[i]);
        call->outputs[i] = nullptr;
      }
      call->entry(inputs, call->outputs);
    }
    return nullptr;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), sizeof message - 1);
    return message;
  }
}

extern "C" void release(Handle* handles, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (handles[i]) aoti_torch_delete_tensor_object(handles[i]);
}
