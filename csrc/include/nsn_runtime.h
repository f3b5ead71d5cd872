/* The runtime's C interface: sub-networks of a file that `nsn export --format runtime` has written,
 * without LibTorch. docs/runtime.md; the C++ interface is nsn/runtime/session.h.
 *
 * Functions that can fail return a status, NSN_OK where all is well; nsn_message says in words what
 * was wrong in the last call of this thread that failed. Nothing throws. What a call that failed
 * was to open is NULL, other results stay as they were; closing NULL does nothing.
 *
 * The environment's NSN_CPU_LEVEL (v2, v3, v4) names the level of vectors in place of the highest
 * that the processor has; it is read once, by the first session. */
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
  /* More samples than the session was made for, or fewer than 0. */
  NSN_BATCH_TOO_LARGE = 3,
  /* float where the sub-network takes int64_t, or the other way round. */
  NSN_WRONG_INPUT_TYPE = 4,
  /* The input holds a number that is no row of the table that it is embedded by. */
  NSN_NO_SUCH_ROW = 5,
  /* The output lies in the input's memory, which steps behind the first may still read. */
  NSN_OVERLAP = 6,
  /* The file cannot be read, or is none of the runtime's. */
  NSN_BAD_FILE = 7,
  /* A null pointer, an option out of range, memory that begins at no multiple of 4 bytes, a call
   * that is not for this kind of model or names fewer bytes than before, or NSN_CPU_LEVEL. */
  NSN_BAD_ARGUMENT = 8,
  NSN_NO_MEMORY = 9,
  /* The system does not give a session its threads. */
  NSN_NO_THREADS = 10
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
/* Sessions of it may be used on, and keep what they need of it. */
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
  /* Floating-point operations for one sample. */
  double flops;
} nsn_subnetwork;

/* How many sub-networks there are, at the places 0, 1, ..; of NULL 0. */
NSN_C_API size_t nsn_model_count(const nsn_model* model);
NSN_C_API nsn_status nsn_model_subnetwork(const nsn_model* model, size_t place,
                                          nsn_subnetwork* subnetwork);
NSN_C_API nsn_status nsn_model_find(const nsn_model* model, const char* name, size_t* place);
/* Reads what a sub-network needs from the disk, so that no run waits for it. */
NSN_C_API nsn_status nsn_model_load(const nsn_model* model, size_t place);

/* max_batch: the most samples of a run, 1 to 2^30. threads: how many compute it, the caller's among
 * them, 1 to 1024; one computes on the caller's alone. The others are of the process that made
 * them: in a process forked from it, a session of several may be neither run nor closed, since it
 * would wait for them for ever. */
NSN_C_API nsn_status nsn_session_open(const nsn_model* model, int64_t max_batch, int threads,
                                      nsn_session** session);
NSN_C_API void nsn_session_close(nsn_session* session);

/* Bytes of the memory that such a session would take. It is what the file's plans ask for, however
 * small the file is: of a file from strangers, ask first. */
NSN_C_API nsn_status nsn_session_bytes(const nsn_model* model, int64_t max_batch, int threads,
                                       int64_t* bytes);

/* input: (samples, *input_shape); output: (samples, *output_shape); contiguous, each by itself;
 * where there are no samples either may be NULL. With one thread it allocates nothing, takes no
 * lock and calls the system for nothing. */
NSN_C_API nsn_status nsn_session_run(nsn_session* session, size_t place, const float* input,
                                     float* output, int64_t samples);
NSN_C_API nsn_status nsn_session_run_numbers(nsn_session* session, size_t place,
                                             const int64_t* input, float* output, int64_t samples);

#ifdef __cplusplus
}
#endif

#endif
