/* The C interface, as a program in C uses it. Argument: the file that write_sample.cpp writes. */
#include <nsn_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  ++failures;
  fprintf(stderr, "failed: %s (%s)\n", what, nsn_message());
}

/* A file in memory, of which the rest comes after the header. */
static void in_memory(const char* path, const float* x, const float* expected) {
  FILE* file = fopen(path, "rb");
  long size = -1;
  char* bytes;
  nsn_model* model = NULL;
  nsn_session* session = NULL;
  nsn_subnetwork last;
  float y[5];

  if (file != NULL && fseek(file, 0, SEEK_END) == 0) size = ftell(file);
  bytes = size > 0 ? malloc((size_t)size) : NULL;
  expect(bytes != NULL && fseek(file, 0, SEEK_SET) == 0 &&
             fread(bytes, 1, (size_t)size, file) == (size_t)size,
         "reading");
  if (file != NULL) fclose(file);
  if (bytes == NULL) return;
  expect(nsn_model_in_memory(bytes, 100, &model) == NSN_BAD_FILE, "a part of a header");
  expect(nsn_model_in_memory(bytes + 1, 100, &model) == NSN_BAD_ARGUMENT, "memory anywhere");
  expect(nsn_model_in_memory(NULL, 100, &model) == NSN_BAD_ARGUMENT, "no memory");
  expect(nsn_model_in_memory(bytes, (size_t)size - 1, &model) == NSN_OK, "a file in memory");
  expect(nsn_session_open(model, 1, 1, &session) == NSN_OK, "its session");
  expect(nsn_model_subnetwork(model, 1, &last) == NSN_OK && !last.is_there, "that it is not there");
  expect(nsn_session_run(session, 1, x, y, 1) == NSN_NOT_IN_FILE, "a run of what is not there");
  expect(nsn_model_grow(model) == NSN_BAD_ARGUMENT, "growing of its own");
  expect(nsn_model_grow_to(NULL, 0) == NSN_BAD_ARGUMENT, "no model");
  expect(nsn_model_grow_to(model, (size_t)size) == NSN_OK, "the rest");
  expect(nsn_model_subnetwork(model, 1, &last) == NSN_OK && last.is_there, "that it is there");
  expect(nsn_session_run(session, 1, x, y, 1) == NSN_OK, "a run of it");
  expect(memcmp(y, expected, sizeof y) == 0, "the numbers of the mapped file");
  nsn_session_close(session);
  nsn_model_close(model);
  free(bytes);
}

int main(int count, char** arguments) {
  nsn_model* model = (nsn_model*)&count;
  nsn_session* session = (nsn_session*)&count;
  nsn_subnetwork small;
  size_t place = 99;
  float x[2 * 12], y[2 * 5], again[5];
  int64_t number = 0;
  int i;

  if (count != 2) return 2;
  expect(nsn_model_open("/nowhere/at/all", &model) == NSN_BAD_FILE, "no file");
  expect(strstr(nsn_message(), "'/nowhere/at/all' cannot be opened") != NULL, "the message of it");
  expect(model == NULL, "no model of it");
  nsn_model_close(model);
  expect(nsn_model_open(NULL, &model) == NSN_BAD_ARGUMENT, "no path");
  expect(strstr(nsn_message(), "the argument 'path' is null") != NULL, "which is null");
  expect(nsn_model_open("/nowhere", NULL) == NSN_BAD_ARGUMENT, "no place for a model");
  expect(strstr(nsn_message(), "the argument 'model' is null") != NULL, "which other is null");
  expect(nsn_model_open(arguments[1], &model) == NSN_OK, "opening");
  if (model == NULL) return 1;
  expect(nsn_model_count(model) == 2, "the count");
  expect(nsn_model_find(model, "w99", &place) == NSN_NO_SUCH_SUBNETWORK, "an unknown name");
  expect(strstr(nsn_message(), "It has 'w24', 'w60'.") != NULL, "the names of all");
  expect(nsn_model_find(model, "w24", &place) == NSN_OK && place == 0, "a name");
  expect(nsn_model_subnetwork(model, 2, &small) == NSN_NO_SUCH_SUBNETWORK, "a place of none");
  expect(nsn_model_subnetwork(model, place, &small) == NSN_OK, "what it is");
  expect(small.flops == 2.0 * 24 * (12 + 5), "its operations");
  expect(strcmp(small.name, "w24") == 0 && small.input_elements == 12 &&
             small.output_elements == 5 && small.input_dimensions == 1 &&
             small.input_shape[0] == 12 && !small.takes_numbers && small.is_there,
         "its shapes");
  expect(small.file_bytes > small.weight_bytes && small.weight_bytes > 0, "its bytes");
  expect(nsn_model_load(model, place) == NSN_OK, "loading");
  expect(nsn_model_grow(model) == NSN_OK, "growing");

  expect(nsn_session_open(model, 0, 1, &session) == NSN_BAD_ARGUMENT, "an option out of range");
  expect(session == NULL, "no session of it");
  nsn_session_close(session);
  expect(strstr(nsn_message(), "max_batch must be at least 1") != NULL, "the message of it");
  expect(nsn_session_open(model, 2, 1, &session) == NSN_OK, "a session");
  if (session == NULL) return 1;
  expect(nsn_session_bytes(model, 0, 1, &number) == NSN_BAD_ARGUMENT, "no samples");
  expect(nsn_session_bytes(model, 2, 1, NULL) == NSN_BAD_ARGUMENT, "no place for bytes");
  expect(nsn_session_bytes(model, 2, 1, &number) == NSN_OK && number > 0 && number < 1 << 20,
         "what a session takes");
  number = 0;
  nsn_model_close(model); /* the session is used on */
  for (i = 0; i < 24; ++i) x[i] = (float)(i % 12) / 10.0F;
  expect(nsn_session_run(session, place, x, y, 2) == NSN_OK, "a run");
  expect(nsn_session_run(session, place, x, again, 1) == NSN_OK, "a run of one");
  expect(memcmp(y, again, sizeof again) == 0 || y[0] - again[0] < 1e-5F, "the same numbers");
  expect(y[0] != 0.0F && y[0] == y[0], "a number");
  expect(nsn_session_run(session, 1, x, y, 1) == NSN_OK, "the other sub-network");
  expect(y[0] != again[0], "other numbers");
  in_memory(arguments[1], x, y);
  expect(nsn_session_run(session, place, x, y, 3) == NSN_BATCH_TOO_LARGE, "a large batch");
  expect(strstr(nsn_message(), "max_batch") != NULL, "the message of it");
  expect(nsn_session_run(session, place, x, x, 1) == NSN_OVERLAP, "a run in place");
  expect(nsn_session_run(session, place, NULL, y, 1) == NSN_BAD_ARGUMENT, "no input");
  expect(strstr(nsn_message(), "the argument 'input' is null") != NULL, "the message of it");
  expect(nsn_session_run_numbers(session, place, &number, y, 1) == NSN_WRONG_INPUT_TYPE, "numbers");
  expect(strlen(nsn_runtime_version()) >= 5, "the version");
  nsn_session_close(session);
  nsn_session_close(NULL);
  nsn_model_close(NULL);
  if (failures == 0) printf("all is as it should be\n");
  return failures != 0;
}
