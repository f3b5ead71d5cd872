/* What the page calls: the C interface, with numbers that JavaScript can pass and return. */
#include <emscripten.h>
#include <nsn_runtime.h>

#define EXPORT EMSCRIPTEN_KEEPALIVE

/* Null where it cannot be read; nsn_message says why. */
EXPORT nsn_model* web_model(const void* data, size_t bytes) {
  nsn_model* model = NULL;
  return nsn_model_in_memory(data, bytes, &model) == NSN_OK ? model : NULL;
}

EXPORT int web_grow_to(nsn_model* model, size_t bytes) { return nsn_model_grow_to(model, bytes); }

EXPORT nsn_session* web_session(const nsn_model* model) {
  nsn_session* session = NULL;
  return nsn_session_open(model, 1, 1, &session) == NSN_OK ? session : NULL;
}

/* One sample. */
EXPORT int web_run(nsn_session* session, size_t place, const float* input, float* output) {
  return nsn_session_run(session, place, input, output, 1);
}

/* Runs it several times, so that a clock of coarse ticks can time it. */
EXPORT int web_run_often(nsn_session* session, size_t place, const float* input, float* output,
                         int times) {
  int status = NSN_OK;
  while (status == NSN_OK && times-- > 0) status = web_run(session, place, input, output);
  return status;
}

EXPORT size_t web_count(const nsn_model* model) { return nsn_model_count(model); }

static nsn_subnetwork of(const nsn_model* model, size_t place) {
  nsn_subnetwork result = {0};
  nsn_model_subnetwork(model, place, &result);
  return result;
}

EXPORT const char* web_name(const nsn_model* model, size_t place) { return of(model, place).name; }
EXPORT int web_is_there(const nsn_model* model, size_t place) { return of(model, place).is_there; }
EXPORT double web_file_bytes(const nsn_model* model, size_t place) {
  return (double)of(model, place).file_bytes;
}
EXPORT double web_weight_bytes(const nsn_model* model, size_t place) {
  return (double)of(model, place).weight_bytes;
}
/* 0 where it takes numbers in place of float. */
EXPORT double web_inputs(const nsn_model* model, size_t place) {
  return of(model, place).takes_numbers ? 0 : (double)of(model, place).input_elements;
}
EXPORT double web_outputs(const nsn_model* model, size_t place) {
  return (double)of(model, place).output_elements;
}
