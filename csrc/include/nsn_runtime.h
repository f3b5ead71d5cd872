/* The runtime's C interface: sub-networks of a file that `nsn export --format runtime` has written,
 * without LibTorch. docs/runtime.md; the C++ interface is nsn/runtime/session.h.
 *
 * Functions that can fail return a status, NSN_OK where all is well; nsn_message says in words what
 * was wrong in the last call of this thread that failed. Nothing throws. */
#ifndef NSN_RUNTIME_H
#define NSN_RUNTIME_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define NSN_C_API __attribute__((visibility("default")))
#else
#define NSN_C_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nsn_status {
  NSN_OK = 0,
  NSN_NO_SUCH_SUBNETWORK = 1,
  /* The file ends before what the sub-network needs: append the rest, and call nsn_model_grow,
   * or nsn_model_grow_to. */
  NSN_NOT_IN_FILE = 2,
  NSN_BATCH_TOO_LARGE = 3,
  NSN_WRONG_INPUT_TYPE = 4,
  /* The input holds a number that is no row of the table that it is embedded by. */
  NSN_NO_SUCH_ROW = 5,
  /* The file cannot be read, or is none of the runtime's. */
  NSN_BAD_FILE = 6,
  /* A null pointer, or an option out of range. */
  NSN_BAD_ARGUMENT = 7,
  NSN_NO_MEMORY = 8
} nsn_status;

/* A file, mapped or in memory; may be used by several threads at once. */
typedef struct nsn_model nsn_model;
/* The memory of one caller's runs; by one thread at a time. */
typedef struct nsn_session nsn_session;

/* What was wrong in the last call of this thread that failed; valid until the next one fails. */
NSN_C_API const char* nsn_message(void);

/* "0.1.0" */
NSN_C_API const char* nsn_runtime_version(void);

NSN_C_API nsn_status nsn_model_open(const char* path, nsn_model** model);
/* A file in memory of the caller's, of which so many bytes are there by now. Nothing is copied: it
 * stays where it is, and as it is, as long as the model or a session is there. It begins at a
 * multiple of 4 bytes, best of 64. */
NSN_C_API nsn_status nsn_model_in_memory(const void* data, size_t bytes, nsn_model** model);
/* Sessions of it may be used on. */
NSN_C_API void nsn_model_close(nsn_model* model);
/* Looks how long the file is by now. */
NSN_C_API nsn_status nsn_model_grow(nsn_model* model);
/* The same for a file in memory, of which so many bytes are there by now. */
NSN_C_API nsn_status nsn_model_grow_to(nsn_model* model, size_t bytes);

typedef struct nsn_subnetwork {
  /* Valid as long as the model. */
  const char* name;
  /* Without the batch. */
  const int64_t* input_shape;
  size_t input_dimensions;
  const int64_t* output_shape;
  size_t output_dimensions;
  /* Elements of one sample. */
  int64_t input_elements, output_elements;
  /* Whether the input is int64_t, and not float. */
  int takes_numbers;
  /* Whether the file holds all of it by now. */
  int is_there;
  /* How much of the file it needs, from its begin on; and what it reads of that. */
  int64_t file_bytes, weight_bytes;
} nsn_subnetwork;

NSN_C_API size_t nsn_model_count(const nsn_model* model);
NSN_C_API nsn_status nsn_model_subnetwork(const nsn_model* model, size_t place,
                                          nsn_subnetwork* subnetwork);
NSN_C_API nsn_status nsn_model_find(const nsn_model* model, const char* name, size_t* place);
/* Reads what a sub-network needs from the disk, so that no run waits for it. */
NSN_C_API nsn_status nsn_model_load(const nsn_model* model, size_t place);

/* threads: 1, or how many of its own, the caller's among them. These are of the process that made
 * them: in a process forked from it, a session of several may be neither run nor closed, since it
 * would wait for them for ever. */
NSN_C_API nsn_status nsn_session_open(const nsn_model* model, int64_t max_batch, int threads,
                                      nsn_session** session);
NSN_C_API void nsn_session_close(nsn_session* session);

/* Bytes of the memory that such a session would take. It is what the file's plans ask for, however
 * small the file is: of a file from strangers, ask first. */
NSN_C_API nsn_status nsn_session_bytes(const nsn_model* model, int64_t max_batch, int threads,
                                       int64_t* bytes);

/* input: (samples, *input_shape); output: (samples, *output_shape). With one thread it allocates
 * nothing, takes no lock and calls the system for nothing. */
NSN_C_API nsn_status nsn_session_run(nsn_session* session, size_t place, const float* input,
                                     float* output, int64_t samples);
NSN_C_API nsn_status nsn_session_run_numbers(nsn_session* session, size_t place,
                                             const int64_t* input, float* output, int64_t samples);

#ifdef __cplusplus
}
#endif

#endif
