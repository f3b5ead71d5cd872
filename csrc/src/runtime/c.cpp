#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <utility>

#include "nsn/runtime/model.h"
#include "nsn/runtime/session.h"
#include "nsn/version.h"
#include "nsn_runtime.h"
#include "plan/plan.h"
#include "runtime/model.h"

using nsn::runtime::Error;
using nsn::runtime::Misuse;
using nsn::runtime::Model;
using nsn::runtime::NoThreads;
using nsn::runtime::Session;
using nsn::runtime::Status;

struct nsn_model {
  Model model;
};

struct nsn_session {
  Session session;
};

namespace {

/// What was wrong last in this thread: text of the library's, or else of `made`.
thread_local const char* last_message = "";

std::string& made_message() {
  thread_local std::string made;
  return made;
}

/// `message`: there as long as the library.
nsn_status fail(nsn_status status, const char* message) noexcept {
  last_message = message;
  return status;
}

/// Keeps a copy of the message.
nsn_status fail_with(nsn_status status, const char* message) noexcept {
  try {
    made_message() = message;
    return fail(status, made_message().c_str());
  } catch (const std::bad_alloc&) {
    return fail(status, "there is not enough memory to say what was wrong");
  }
}

/// Calls `what`; `bad` is what an Error of it means.
template <typename What>
nsn_status guarded(nsn_status bad, const What& what) noexcept {
  try {
    return what();
  } catch (const Misuse& error) {
    return fail_with(NSN_BAD_ARGUMENT, error.what());
  } catch (const NoThreads& error) {
    return fail_with(NSN_NO_THREADS, error.what());
  } catch (const Error& error) {
    return fail_with(bad, error.what());
  } catch (const std::bad_alloc&) {
    return fail(NSN_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& error) {
    return fail_with(NSN_BAD_ARGUMENT, error.what());
  }
}

/// Whether one of a call's arguments is null that may not be; says which.
bool has_null(std::initializer_list<std::pair<const char*, const void*>> arguments) noexcept {
  for (const auto& each : arguments) {
    if (each.second != nullptr) continue;
    guarded(NSN_BAD_ARGUMENT, [&] {
      const std::string name = each.first;
      return fail_with(NSN_BAD_ARGUMENT,
                       ("nsn: the argument '" + name + "' is null. Give a pointer.").c_str());
    });
    return true;
  }
  return false;
}

nsn_status status_of(Status status) noexcept {
  // The numbers are the same.
  const auto result = static_cast<nsn_status>(status);
  return result == NSN_OK ? result : fail(result, message(status));
}
static_assert(static_cast<int>(Status::kOverlap) == NSN_OVERLAP);

template <typename Element>
nsn_status run(nsn_session* session, size_t place, const Element* input, float* output,
               int64_t samples) noexcept {
  if (has_null({{"session", session}}) ||
      (samples != 0 && has_null({{"input", input}, {"output", output}}))) {
    return NSN_BAD_ARGUMENT;
  }
  return status_of(session->session.run(place, input, output, samples));
}

}  // namespace

const char* nsn_message(void) { return last_message; }

const char* nsn_runtime_version(void) { return NSN_VERSION; }

nsn_status nsn_model_open(const char* path, nsn_model** model) {
  if (model != nullptr) *model = nullptr;
  if (has_null({{"path", path}, {"model", model}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_FILE, [&] {
    *model = new nsn_model{Model::open(path)};
    return NSN_OK;
  });
}

nsn_status nsn_model_in_memory(const void* data, size_t bytes, nsn_model** model) {
  if (model != nullptr) *model = nullptr;
  if (has_null({{"data", data}, {"model", model}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_FILE, [&] {
    *model = new nsn_model{Model::in_memory(data, bytes)};
    return NSN_OK;
  });
}

void nsn_model_close(nsn_model* model) { delete model; }

nsn_status nsn_model_grow(nsn_model* model) {
  if (has_null({{"model", model}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_FILE, [&] {
    model->model.grow();
    return NSN_OK;
  });
}

nsn_status nsn_model_grow_to(nsn_model* model, size_t bytes) {
  if (has_null({{"model", model}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_FILE, [&] {
    model->model.grow_to(bytes);
    return NSN_OK;
  });
}

size_t nsn_model_count(const nsn_model* model) {
  return model == nullptr ? 0 : model->model.subnetworks().size();
}

nsn_status nsn_model_subnetwork(const nsn_model* model, size_t place, nsn_subnetwork* subnetwork) {
  if (has_null({{"model", model}, {"subnetwork", subnetwork}})) return NSN_BAD_ARGUMENT;
  if (place >= model->model.subnetworks().size()) return status_of(Status::kNoSuchSubnetwork);
  const Model::Subnetwork& own = model->model.subnetworks()[place];
  *subnetwork = {own.name.c_str(),
                 own.input.data(),
                 own.input.size(),
                 own.output.data(),
                 own.output.size(),
                 nsn::plan::numel(own.input),
                 nsn::plan::numel(own.output),
                 own.takes_numbers,
                 model->model.has(place),
                 own.file_bytes,
                 own.weight_bytes,
                 own.flops};
  return NSN_OK;
}

nsn_status nsn_model_find(const nsn_model* model, const char* name, size_t* place) {
  if (has_null({{"model", model}, {"name", name}, {"place", place}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_NO_SUCH_SUBNETWORK, [&] {
    *place = model->model.index_of(name);
    return NSN_OK;
  });
}

nsn_status nsn_model_load(const nsn_model* model, size_t place) {
  if (has_null({{"model", model}})) return NSN_BAD_ARGUMENT;
  if (place >= model->model.subnetworks().size()) return status_of(Status::kNoSuchSubnetwork);
  return guarded(NSN_NOT_IN_FILE, [&] {
    model->model.load(place);
    return NSN_OK;
  });
}

nsn_status nsn_session_open(const nsn_model* model, int64_t max_batch, int threads,
                            nsn_session** session) {
  if (session != nullptr) *session = nullptr;
  if (has_null({{"model", model}, {"session", session}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_ARGUMENT, [&] {
    const nsn::runtime::SessionOptions options{max_batch, threads, {}};
    try {
      *session = new nsn_session{Session(model->model, options)};
      return NSN_OK;
    } catch (const std::bad_alloc&) {
      const int64_t bytes = Session::bytes_for(model->model, options);
      return fail_with(NSN_NO_MEMORY,
                       ("nsn: a session of " + std::to_string(max_batch) + " samples and " +
                        std::to_string(threads) + " threads takes " + std::to_string(bytes) +
                        " bytes, which there are not. Make one for fewer.")
                           .c_str());
    }
  });
}

nsn_status nsn_session_bytes(const nsn_model* model, int64_t max_batch, int threads,
                             int64_t* bytes) {
  if (has_null({{"model", model}, {"bytes", bytes}})) return NSN_BAD_ARGUMENT;
  return guarded(NSN_BAD_ARGUMENT, [&] {
    *bytes = Session::bytes_for(model->model, {max_batch, threads, {}});
    return NSN_OK;
  });
}

void nsn_session_close(nsn_session* session) { delete session; }

nsn_status nsn_session_run(nsn_session* session, size_t place, const float* input, float* output,
                           int64_t samples) {
  return run(session, place, input, output, samples);
}

nsn_status nsn_session_run_numbers(nsn_session* session, size_t place, const int64_t* input,
                                   float* output, int64_t samples) {
  return run(session, place, input, output, samples);
}
