// Plays a tape: calls compiled programs one after the other, without returning to Python between them. The members may
// be shared out: each share has calls of its own, which a thread plays from the first to the last.
//
// It uses the C interface of PyTorch's compiled programs (aoti_torch, a stable ABI) and their entry point. That expects
// Python's lock, gives it back at once and takes it again at its end. So a thread has the lock for a moment at both ends
// of a call.

#include <cfenv>
#include <cstddef>
#include <exception>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

struct AtenTensorOpaque;
using Handle = AtenTensorOpaque*;

extern "C" {
int aoti_torch_new_tensor_handle(Handle original, Handle* result);
int aoti_torch_delete_tensor_object(Handle tensor);
bool aoti_torch_grad_mode_is_enabled();
void aoti_torch_grad_mode_set_enabled(bool enabled);
void omp_set_num_threads(int count);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int count);  // PyTorch may be without MKL
int PyGILState_Ensure();
void PyGILState_Release(int state);
void* PyEval_SaveThread();
void PyEval_RestoreThread(void* state);
}

struct Call {
  void (*entry)(Handle* inputs, Handle* outputs);
  size_t input_count;
  size_t output_count;
  Handle* inputs;   // borrowed, and the same at each call
  Handle* outputs;  // those of the last time that this call was played
};

struct Share {
  const Call* calls;
  size_t count;
};

// Has Python's lock when it is called and when it returns.
static std::string play_share(const Share& share) {
  struct Lock {
    void* thread = PyEval_SaveThread();
    void take() { PyEval_RestoreThread(thread); }
    void give_back() { thread = PyEval_SaveThread(); }
    ~Lock() { PyEval_RestoreThread(thread); }
  } lock;
  Handle inputs[1024];
  try {
    for (const Call* call = share.calls; call != share.calls + share.count; ++call) {
      if (call->input_count > sizeof inputs / sizeof *inputs) return "a program has more than 1,024 tensors";
      for (size_t i = 0; i < call->input_count; ++i) {  // the entry takes ownership
        if (!aoti_torch_new_tensor_handle(call->inputs[i], &inputs[i])) continue;
        while (i) aoti_torch_delete_tensor_object(inputs[--i]);
        return "a tensor cannot be passed";
      }
      lock.take();
      try {
        call->entry(inputs, call->outputs);
      } catch (...) {
        lock.give_back();
        throw;
      }
      lock.give_back();
    }
    return "";
  } catch (const std::exception& error) {
    return *error.what() ? error.what() : "an error without a text";
  } catch (...) {
    return "an error that is no std::exception";
  }
}

extern "C" void release(Handle* handles, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const Handle handle = handles[i];
    if (!handle) continue;
    aoti_torch_delete_tensor_object(handle);
    for (size_t j = i; j < count; ++j)  // a program that returns a tensor twice returns its handle twice
      if (handles[j] == handle) handles[j] = nullptr;
  }
}

// Plays all shares, one after the other or each in a thread of its own. Returns what went wrong, if anything did.
extern "C" const char* play(const Share* shares, size_t count, bool in_threads) {
  static std::string message;
  // Here and not in the threads: Python may have known a result, and this thread has Python's lock.
  for (const Share* share = shares; share != shares + count; ++share)
    for (const Call* call = share->calls; call != share->calls + share->count; ++call)
      release(call->outputs, call->output_count);

  std::fenv_t arithmetic;  // of this thread, with what it does with denormal numbers
  std::fegetenv(&arithmetic);
  const bool gradients = aoti_torch_grad_mode_is_enabled();
  std::vector<std::string> problems(count);
  std::vector<std::thread> threads;
  threads.reserve(count);
  for (size_t i = 1; i < count; ++i) {
    if (!in_threads) {
      problems[i] = play_share(shares[i]);
      continue;
    }
    try {
      threads.emplace_back([&, i] {
        std::fesetenv(&arithmetic);
        // Otherwise a new thread's matrix products have threads of their own, which order sums differently.
        omp_set_num_threads(1);
        if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(1);  // it goes before OpenMP's number
        aoti_torch_grad_mode_set_enabled(gradients);
        const int lock = PyGILState_Ensure();
        problems[i] = play_share(shares[i]);
        PyGILState_Release(lock);
      });
    } catch (const std::system_error&) {  // the system allows no more threads
      problems[i] = play_share(shares[i]);
    }
  }
  if (count) problems[0] = play_share(shares[0]);
  void* const lock = PyEval_SaveThread();
  for (std::thread& thread : threads) thread.join();
  PyEval_RestoreThread(lock);
  for (const std::string& problem : problems) {
    if (problem.empty()) continue;
    message = problem;
    return message.c_str();
  }
  return nullptr;
}
