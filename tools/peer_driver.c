/* peer_driver.c: llama.cpp (or ik_llama.cpp, -DIK) as a process that times what it is told on stdin.
 *
 *     peer_driver MODEL THREADS N_CTX FLASH(0|1) KV(f32|f16|q8_0)
 * Prints "ready", then for each line read one line: seconds, or "error ...".
 *     depth D     makes the cache hold D tokens (not timed: answers 0)
 *     pp N        a prompt of N tokens at that depth, in batches of 512
 *     tg N        N tokens one by one
 *     pass K R    R passes of K tokens each, all of them with logits, each at that depth
 * The cache is at `depth` again after every test. tools/bench_driver.py speaks the same for edgellm.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"

enum { BATCH = 512 };

static struct llama_model *model;
static struct llama_context *ctx;
static int n_vocab, depth;

static void silent(enum ggml_log_level level, const char *text, void *user) {
    (void)user;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* the ids that edgellm.bench.tokens_for gives */
static llama_token id_at(int i, int step) {
    int first = n_vocab - 1 < 10 ? n_vocab - 1 : 10, span = n_vocab - first < 1000 ? n_vocab - first : 1000;
    return first + (int)((long long)step * i % (span > 1 ? span : 1));
}

static void cut(int n) {
#ifdef IK
    if (n == 0) llama_kv_cache_clear(ctx);
    else llama_kv_cache_seq_rm(ctx, 0, n, -1);
#else
    llama_memory_t memory = llama_get_memory(ctx);
    if (n == 0) llama_memory_clear(memory, true);
    else llama_memory_seq_rm(memory, 0, n, -1);
#endif
}

/* One batch of n tokens at `position`; logits of all, or of the last one only. 0 on success. */
static int decode(struct llama_batch *batch, int n, int position, int first, int step, int all) {
    batch->n_tokens = n;
    for (int i = 0; i < n; i++) {
        batch->token[i] = id_at(first + i, step);
        batch->pos[i] = position + i;
        batch->n_seq_id[i] = 1;
        batch->seq_id[i][0] = 0;
        batch->logits[i] = (int8_t)(all || i == n - 1);
    }
    int status = llama_decode(ctx, *batch);
    llama_synchronize(ctx);
    return status;
}

static int prompt(struct llama_batch *batch, int n, int position, int step) {
    int status = 0;
    for (int at = 0; at < n && !status; at += BATCH)
        status = decode(batch, n - at < BATCH ? n - at : BATCH, position + at, at, step, 0);
    return status;
}

static int test(struct llama_batch *batch, const char *what, int n, int repeats) {
    int status = 0;
    if (!strcmp(what, "pp")) return prompt(batch, n, depth, 11);
    if (!strcmp(what, "tg"))
        for (int i = 0; i < n && !status; i++) status = decode(batch, 1, depth + i, i, 11, 1);
    else if (!strcmp(what, "pass"))
        for (int i = 0; i < repeats && !status; i++) {
            status = decode(batch, n, depth, i, 11, 1);
            cut(depth);
        }
    else return -1;
    return status;
}

static int load(char **argv) {
    struct llama_model_params mp = llama_model_default_params();
    struct llama_context_params cp = llama_context_default_params();
    mp.n_gpu_layers = 0;
    cp.n_ctx = (uint32_t)atoi(argv[3]);
    cp.n_batch = cp.n_ubatch = BATCH;
    cp.n_threads = cp.n_threads_batch = atoi(argv[2]);
    cp.type_k = cp.type_v = !strcmp(argv[5], "f32") ? GGML_TYPE_F32 : !strcmp(argv[5], "q8_0") ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
#ifdef IK
    mp.repack_tensors = true;
    mp.use_mmap = false; /* repacking needs it */
    cp.flash_attn = argv[4][0] == '1';
#else
    cp.flash_attn_type = argv[4][0] == '1' ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
#endif
    model = llama_model_load_from_file(argv[1], mp);
    if (!model) return 0;
    n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model));
    ctx = llama_init_from_model(model, cp);
    return ctx != NULL;
}

int main(int argc, char **argv) {
    char line[256], what[16];
    if (argc != 6) return fprintf(stderr, "usage: %s MODEL THREADS N_CTX FLASH KV\n", argv[0]), 2;
    llama_log_set(silent, NULL);
    llama_backend_init();
    if (!load(argv)) return fprintf(stderr, "the model or this setting was refused\n"), 1;
    struct llama_batch batch = llama_batch_init(BATCH, 0, 1);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int n = 0, repeats = 1, status = 0;
        if (sscanf(line, "%15s %d %d", what, &n, &repeats) < 2 || n < 0) break;
        double start = now();
        if (!strcmp(what, "depth")) {
            cut(0);
            status = prompt(&batch, n, 0, 7);
            depth = n;
            start = now();
        } else status = test(&batch, what, n, repeats);
        double seconds = now() - start;
        if (status) printf("error status %d\n", status);
        else printf("%.9f\n", strcmp(what, "depth") ? seconds : 0.0);
        fflush(stdout);
        cut(depth);
    }
    return 0;
}
