/* edgellm.h: the one public header of the native library.
 *
 * Everything between the two cffi marks is read by native/build.py as the declaration of the Python
 * binding, so the binding cannot drift from the code. Keep that region free of preprocessor lines.
 *
 * Rules of this interface: plain C11, no Python.h; every function that can fail returns an el_status;
 * nothing calls abort or exit; sizes are int64_t; the caller owns every buffer unless a line says otherwise.
 */
#ifndef EDGELLM_H
#define EDGELLM_H

#include <stddef.h>
#include <stdint.h>

/* [cffi begin] */
enum el_status {
    EL_OK = 0,
    EL_E_ARGUMENT = 1,    /* a length, index or pointer breaks the rules of the call */
    EL_E_NOMEM = 2,       /* an allocation failed; nothing was changed */
    EL_E_CANCELLED = 3,   /* the cancel flag was seen */
    EL_E_NONFINITE = 4,   /* a logit is NaN or infinite; el_pass.bad_step names the first bad step */
    EL_E_UNSUPPORTED = 5, /* no kernel for this combination */
    EL_E_SYSTEM = 6       /* the operating system refused (threads, memory mapping) */
};

/* ---- the machine and the kernel tables -------------------------------------------------------- */
/* el_init reads the CPU and merges the kernel tables once; later calls do nothing. `cap` is a level
 * name ("portable", "avx2") that limits the choice, or NULL for the best one this machine can run. */
int el_init(const char *cap);
const char *el_isa(void);                 /* name of the highest level in use */
int el_n_levels(void);                    /* levels compiled in, lowest first */
const char *el_level_name(int level);
int el_level_usable(int level);           /* 1 usable, 0 the CPU or the OS lacks it, -1 failed its self-test */
/* Features of the CPU as bits: those that may be used, those that it announces (the system may not save their registers), and
 * those that a level needs. The name of bit `number`; NULL: no feature has it. */
uint32_t el_cpu_features(void);
uint32_t el_cpu_announced(void);
uint32_t el_level_needs(int level);
const char *el_cpu_feature_name(int number);
int64_t el_cpu_saved_state(void);         /* XCR0, the registers that the system saves; -1: this CPU does not tell */
const char *el_compiler(void);            /* what built this library, in words */
int el_set_isa(const char *name);         /* switch the tables (tests); no pass may be running */
/* For tests: the self-test of a level runs again, with a fault in one of its functions, and the tables are made anew. */
enum el_fault { EL_FAULT_NONE = 0, EL_FAULT_RESULT = 1, EL_FAULT_ILLEGAL = 2 };
int el_break_level_test(const char *name, int fault);
const char *el_kernel_level(int type, int layout); /* level whose linear kernel runs this type; NULL: none */
const char *el_prefill_kernel_level(int type, int layout); /* the same for passes of many columns; NULL: the exact kernel serves */

/* ---- memory ------------------------------------------------------------------------------------ */
void *el_arena_alloc(int64_t bytes);      /* zeroed, 64-byte aligned, on 2 MB pages where there are any; NULL on failure */
void el_arena_free(void *p, int64_t bytes);

/* Mapped files that may become shorter while they are read (native/guard.c). el_guard_add watches the range of a map: where
 * its pages cannot be read any more, readers get zeros and *slot says so from then on. A range must be removed before it is
 * unmapped. EL_E_UNSUPPORTED: not on this system; EL_E_SYSTEM: too many ranges. el_guard_arm takes SIGBUS again where the
 * program has replaced the handler, and unblocks it in the calling thread; without a watched range it does nothing. */
int el_guard_add(const void *start, int64_t bytes, int32_t *slot);
void el_guard_remove(int32_t slot);
int el_guard_faulted(int32_t slot);       /* 1: zeros were read in place of the file */
int el_guard_arm(void);

/* ---- weights: types, panels, conversion --------------------------------------------------------- */
enum el_layout { EL_ROWS = 0, EL_PANELS = 1, EL_SPARSE = 2, EL_COMPRESSED = 3 };
#define EL_N_LAYOUTS 4

int64_t el_row_bytes(int type, int64_t k);                       /* -1: k does not fit the block */
int64_t el_panel_bytes(int type, int64_t rows, int64_t k);       /* -1: no panel form */
/* rows [row0, row1) of a row-major matrix into panels; row0 is a multiple of 16, row1 one too or the last row */
int el_pack_panels(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1);
/* row `row` of a matrix in panels as floats (embedding lookups) */
int el_panel_row(int type, const void *panels, int64_t rows, int64_t k, int64_t row, float *dst);
/* Compressed panels (EL_COMPRESSED): codes of zeros are not stored. An index, then a stream per group; made in three steps. */
int64_t el_compressed_index_bytes(int type, int64_t rows, int64_t k); /* -1: no such form */
/* 1: counts the codes of rows [row0, row1) at src (as for el_pack_panels) for their records */
int el_compressed_scan(int type, const void *src, void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1);
/* 2: fills in the offsets when all rows were scanned; returns the bytes of the matrix, -1 for an index that cannot be */
int64_t el_compressed_place(int type, void *index, int64_t rows, int64_t k);
/* 3: the streams of rows [row0, row1) behind the index at dst, whose last EL_COMPRESSED_PAD bytes stay as they are */
int el_pack_compressed(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1);
#define EL_COMPRESSED_PAD 1280 /* at a matrix's end: what kernels may read from a tile's first byte on, whatever it says */
/* Looks at n_groups groups here and there: returns their bytes as panels, and *bytes those of their streams; -1 */
int64_t el_compressed_sample(int type, const void *src, int64_t rows, int64_t k, int64_t n_groups, int64_t *bytes);
/* What kernels read: as el_sparse_bind. They read nothing beside `bytes`, whatever the streams say. */
int el_compressed_bind(int type, const void *panels, int64_t bytes, int64_t rows, int64_t k, void *index);
int el_compressed_row(int type, const void *index, int64_t rows, int64_t k, int64_t row, float *dst); /* as el_panel_row */
/* rows [row0, row1) as panels (el_panel_bytes of them) */
int el_compressed_expand(int type, const void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1, void *dst);
/* Sparse panels (EL_SPARSE): zero tiles are not stored. An index, then the tiles; a matrix is made in three steps. */
int64_t el_sparse_index_bytes(int type, int64_t rows, int64_t k); /* -1: no panel form */
/* 1: looks for zero tiles in rows [row0, row1) at src (as for el_pack_panels) and fills in their records, but for offsets */
int el_sparse_scan(int type, const void *src, void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1);
/* 2: fills in the offsets when all rows were scanned; returns the bytes of the matrix, -1 for an index that cannot be */
int64_t el_sparse_place(int type, void *index, int64_t rows, int64_t k);
/* 3: the tiles of rows [row0, row1) behind the index at dst */
int el_pack_sparse(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1);
/* Looks at n_groups groups here and there: returns their bytes as panels, and *bytes those of their live tiles; -1 */
int64_t el_sparse_sample(int type, const void *src, int64_t rows, int64_t k, int64_t n_groups, int64_t *bytes);
/* What kernels read: the index, checked against `bytes` and with addresses of tiles in the place of offsets. Plans bind their
 * sparse weights themselves; the panels stay where they are. `index` has el_sparse_index_bytes. */
int el_sparse_bind(int type, const void *panels, int64_t bytes, int64_t rows, int64_t k, void *index);
int el_sparse_row(int type, const void *index, int64_t rows, int64_t k, int64_t row, float *dst); /* as el_panel_row */
/* rows [row0, row1) as panels (el_panel_bytes of them) that multiply alike */
int el_sparse_expand(int type, const void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1, void *dst);
int el_dequantize(int type, const void *src, float *dst, int64_t rows, int64_t k);
int el_quantize(int type, const float *src, void *dst, int64_t rows, int64_t k);
/* importance (k): how much an error in each column counts, finite and not negative; NULL: all the same */
int el_quantize_weighted(int type, const float *src, const float *importance, void *dst, int64_t rows, int64_t k);

/* y[m][r] (leading dimension ldy) = dot(row r of w, x[m]) for r in [row0, row1), one thread; for tests and
 * tools. Of sparse and compressed panels w is the bound index. */
int el_linear_test(int type, int layout, const void *w, int64_t rows, int64_t k, int64_t row0, int64_t row1,
                   const float *x, int64_t n_cols, float *y, int64_t ldy);
/* The same through the prefill kernel of the type, whatever n_cols is; EL_E_UNSUPPORTED: there is none here. */
int el_prefill_test(int type, int layout, const void *w, int64_t rows, int64_t k, int64_t row0, int64_t row1,
                    const float *x, int64_t n_cols, float *y, int64_t ldy);

/* ---- the plan ------------------------------------------------------------------------------------ */
/* Buffers are float32, (n_rows, cols); n_rows is the number of tokens of the pass, or of wanted outputs. */
enum el_op {
    EL_OP_EMBED = 0,      /* out[0] (tokens, dim) = rows `token id` of w[0] */
    EL_OP_RMSNORM = 1,    /* out[0] = in[0] / rms(in[0]) * w[0], each i[0] columns on their own; f[0] = eps */
    EL_OP_LINEAR = 2,     /* out[j] = in[0] @ w[j]^T (+ b[j]) for j < n; in[1] >= 0: + in[1] (residual, n = 1);
                             i[3] here and in LINEAR_GATED and EXPERTS: 1 if activations are held in two int8 planes */
    EL_OP_LINEAR_GATED = 3, /* out[0] = act(in[0] @ w[0]^T) * (in[0] @ w[1]^T); i[0] = activation; biases b[0], b[1] */
    EL_OP_ROPE = 4,       /* in place on in[0] (and in[1]): i[0] head_dim, i[1] rotary dims, i[2] style, i[3] table */
    EL_OP_ATTENTION = 5,  /* out[0] = attention of in[0] = q, in[1] = k, in[2] = v over the cache; i[0] layer,
                             i[1] n_heads, i[2] n_kv_heads, i[3] head_dim, i[4] window (0: all); f[0] scale, f[1] softcap (0: none);
                             how q and k were turned: i[5] rotary dims (0: not), i[6] style, i[7] table;
                             i[8] 1: not causal, every token sees all up to the end of the pass (i[4] is 0 then) */
    EL_OP_GATED = 6,      /* out[0] = act(in[0]) * in[1]; i[0] activation */
    EL_OP_ADD = 7,        /* out[0] = in[0] + in[1] */
    EL_OP_TAKE_ROWS = 8,  /* out[0] (outputs, cols) = wanted rows of in[0] */
    EL_OP_SCALE = 9,      /* out[0] = in[0] * f[0] */
    EL_OP_SOFTCAP = 10,   /* out[0] = f[0] * tanh(in[0] / f[0]) */
    EL_OP_ROUTE = 11,     /* out[0] = softmax of in[0] at its i[0] largest columns, 0 elsewhere; i[1]: their sum is 1 */
    EL_OP_EXPERTS = 12,   /* out[0] = sum over e ascending, in[1][e] != 0, of in[1][e] * w[2][e] (act(w[0][e] x) * w[1][e] x),
                             x = in[0]; i[0] activation, i[1] experts (their rows follow each other), i[2] most per row */
    EL_OP_ADD_ROWS = 13,  /* out[0] = in[0] + a row of w[0]: i[0] enum el_row_by; out[0] is not in[0] */
    EL_OP_LAYERNORM = 14, /* out[0] = (in[0] - mean) / sqrt(variance + f[0]) * w[0] + w[1], row by row */
    EL_OP_GELU = 15,      /* out[0] = in[0] * Phi(in[0]), Phi the normal distribution function */
    EL_N_OPS = 16
};
enum el_row_by { EL_ROW_FIRST = 0, EL_ROW_POSITION = 1 };
enum el_activation { EL_ACT_SILU = 0, EL_ACT_GELU_TANH = 1 };
enum el_rope_style { EL_ROPE_INTERLEAVED = 0, EL_ROPE_HALVES = 1 };

typedef struct {
    int32_t op;
    int32_t n;            /* LINEAR: how many weights share the input */
    int32_t in[4];        /* buffer ids, -1 none */
    int32_t out[4];
    int32_t w[4];         /* weight ids, -1 none */
    int32_t b[4];         /* bias weight ids (F32 vectors), -1 none */
    int32_t i[9];
    float f[4];
} el_step;

typedef struct {
    int64_t cols;         /* floats per row */
    int32_t rows_kind;    /* 0: one row per token, 1: one row per wanted output */
    int32_t reserved;
} el_buffer;

typedef struct {
    int32_t type;         /* enum el_type (GGUF type id) */
    int32_t layout;       /* enum el_layout */
    int64_t rows;         /* output features; 1 for vectors */
    int64_t cols;         /* input features */
    const void *data;     /* stays valid as long as the plan; owned by the caller */
    int64_t bytes;
} el_weight;

typedef struct {
    const double *inv_freq; /* (rotary_dims / 2) angle per position */
    int64_t n;              /* rotary_dims / 2 */
    double magnitude;       /* factor on cos and sin (yarn's attention factor), 1 else */
} el_rope_table;

typedef struct el_plan el_plan; /* owns its scratch and buffers; steps, tables and weight rows are copied in */

int el_plan_new(el_plan **out, const el_step *steps, int64_t n_steps, const el_buffer *buffers, int64_t n_buffers,
                const el_weight *weights, int64_t n_weights, const el_rope_table *ropes, int64_t n_ropes,
                int64_t max_tokens);
void el_plan_free(el_plan *plan);
int el_plan_has_prefill(const el_plan *plan); /* 1: some of its steps have prefill kernels, so el_pass.exact makes a difference */
/* Bytes of memory that passes of up to n_tokens tokens and n_outputs outputs with n_workers threads write to, in pages of
 * `page` bytes where a buffer has so many (else of 4096): what a plan costs beside its weights. */
int64_t el_plan_bytes(const el_plan *plan, int64_t n_tokens, int64_t n_outputs, int n_workers, int64_t page);
float *el_plan_buffer(el_plan *plan, int32_t buffer); /* for the step-compare mode; NULL: no such buffer */

/* ---- the KV cache ----------------------------------------------------------------------------------- */
enum el_kv_type { EL_KV_F32 = 0, EL_KV_F16 = 1, EL_KV_Q8_0 = 2, EL_KV_Q4_0 = 3, EL_N_KV_TYPES = 4 };
#define EL_PAGE_TOKENS 64

/* One page holds 64 tokens of one layer: for each KV head first K as [head_dim][64] (a lane is a token),
 * then V as [64][head_dim] (a lane is a channel), each in its own type. Q8_0: int8 numbers, and behind them 64 scales
 * (f16), one per token. Q4_0: the same with 4-bit numbers, less 8. Each row of numbers ([64] or [head_dim]) is in groups of
 * 16, the last one may be shorter: byte i of a group of n holds number i (low) and number i + n / 2; head_dim is even.
 *
 * The page table names the page of each block of 64 positions: a ring behind a fixed head, block b in column
 * b < head_blocks ? b : head_blocks + (b - head_blocks) % ring. keep, first and window say what of the sequence a token
 * sees (edgellm/cache/span.py). The tail of token t begins at start = max(first, t - window + 1) (window 0: first). Where
 * start <= keep, t sees [0, t]. Else it sees the head [0, keep) with its query turned back by start - keep positions, and
 * the tail [start, t]. A layer's own window counts over the gap. */
typedef struct {
    void *base;              /* the pool's arena */
    int64_t n_pages;
    int64_t page_bytes;
    int32_t k_type;          /* enum el_kv_type */
    int32_t v_type;
    int32_t n_layers;
    int32_t reserved;
    const int32_t *table;    /* (n_layers, table_stride), -1: no page */
    int64_t table_stride;    /* columns per layer, head_blocks + ring or more */
    int64_t head_blocks;
    int64_t ring;            /* 1 or more */
    int64_t keep;
    int64_t first;           /* 0, or keep .. position: dropped by hand */
    int64_t window;          /* of the sequence; 0: none */
} el_kv;
int64_t el_kv_page_bytes(int k_type, int v_type, int64_t n_kv_heads, int64_t head_dim); /* -1: not possible */

/* ---- one pass ------------------------------------------------------------------------------------------ */
typedef struct {
    const int32_t *tokens;   /* (n_tokens) ids, each in the embedding's range */
    int64_t n_tokens;        /* 1 .. max_tokens */
    int64_t position;        /* of tokens[0] */
    const int32_t *outputs;  /* (n_outputs) ascending indices of tokens whose logits are wanted */
    int64_t n_outputs;
    const el_kv *kv;
    int32_t n_threads;       /* helpers + the caller */
    int32_t check_finite;    /* 1: a non-finite value in the last step's output is an error */
    int32_t exact;           /* 1: no prefill kernels, so that every split of the tokens into passes gives the same bits */
    int32_t reserved;
    int64_t first_step;      /* run steps [first_step, last_step); 0 and n_steps for a whole pass */
    int64_t last_step;
    const int32_t *cancel;   /* polled per chunk; may be NULL */
    int64_t bad_step;        /* set with EL_E_NONFINITE: the first step whose output is not finite */
} el_pass;
int el_forward(el_plan *plan, el_pass *pass);

/* ---- threads --------------------------------------------------------------------------------------------- */
int el_pool_chunks(int64_t *chunks, int n);    /* chunks run so far by worker 0 (the caller), 1, ...; returns how many workers exist */
int64_t el_pool_spin(int64_t ns);              /* sets (ns >= 0) and tells how long idle helpers look for work before they sleep */
void el_pool_shutdown(void);                   /* ends the helper threads (they come back when needed) */

/* ---- measuring the machine (native/probe.c) ---------------------------------------------------------------- */
/* Bytes per second that n_threads threads read together, each over and over its own share of buffer (64-byte aligned, at
 * least el_measure_unit() + 4096 bytes a thread) for ns nanoseconds (at most two seconds): `streams` (1, 2, 4) at once,
 * with software prefetch `ahead` bytes in front into cache `level` (1 or 2; 0: no prefetch). */
int el_measure_read(const void *buffer, int64_t bytes, int n_threads, int streams, int64_t ahead, int level, int64_t ns,
                    double *bytes_per_s);
int64_t el_measure_unit(void);
/* Peaks: instructions that multiply and add, from registers, all chains full. */
int el_n_peaks(void);
const char *el_peak_kind(int peak);   /* "int8", "bf16" or "f32"; NULL: no such peak */
const char *el_peak_name(int peak);
int el_peak_usable(int peak);         /* 1: the CPU and the system allow it */
int el_measure_peak(int peak, int n_threads, int64_t ns, double *per_s); /* multiply-adds per second */

/* ---- text: sampler and tokenizer -------------------------------------------------------------------------- */
/* [text begin] */
/* SentencePiece BPE. Texts are UTF-8 with spaces already written as U+2581; special pieces were cut out before. */
typedef struct el_spm el_spm; /* a vocabulary: piece texts, scores and a hash table over them; read-only after el_spm_new */
enum el_piece_kind {
    EL_PIECE_TEXT = 0,   /* made from text by merges */
    EL_PIECE_UNUSED = 1, /* a merge may pass through it; it is split again at the end */
    EL_PIECE_NEVER = 2   /* control, unknown and byte pieces: text never becomes one by its spelling */
};
/* piece i is text[offsets[i] .. offsets[i + 1]); byte_ids (256) is the piece of each byte or -1; unk_id -1: none.
 * Everything is copied. */
int el_spm_new(el_spm **out, const uint8_t *text, const int64_t *offsets, const float *scores, const uint8_t *kinds,
               int64_t n_pieces, const int32_t *byte_ids, int32_t unk_id);
void el_spm_free(el_spm *spm);
/* ids (capacity >= n_bytes) gets the tokens of text, *n_ids their number. EL_E_UNSUPPORTED: a character has neither a
 * piece, nor byte pieces, nor an unknown token. Any number of threads may call this with one vocabulary. */
int el_spm_encode(const el_spm *spm, const uint8_t *text, int64_t n_bytes, int32_t *ids, int64_t capacity,
                  int64_t *n_ids);

/* Strings of a GGUF array (count of them in data, n_bytes long at most): *n_read bytes. With text (capacity n_bytes - 8 count)
 * and offsets (count + 1) they are copied one after the other. EL_E_ARGUMENT: one of them ends after data. */
int el_gguf_strings(const uint8_t *data, int64_t n_bytes, int64_t count, uint8_t *text, int64_t *offsets,
                    int64_t *n_read);
/* n strings by their text: string i is text[offsets[i] .. offsets[i + 1]), offsets[n] is n_bytes. text and offsets must live as
 * long as *out. EL_E_UNSUPPORTED: a string is empty, there twice, or not UTF-8. */
typedef struct el_strings el_strings;
int el_strings_new(el_strings **out, const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n);
void el_strings_free(el_strings *strings);
int32_t el_strings_find(const el_strings *strings, const uint8_t *text, int64_t n_bytes); /* its number, or -1 */
/* rows (n_merges, 3): ids of left, right and both together of the merges "left right"; EL_E_UNSUPPORTED: merge *bad is the first
 * that has no space after its first byte or names what is no piece. */
int el_bpe_merges(const el_strings *pieces, const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n_merges,
                  int32_t *rows, int64_t *bad);
/* Pieces in GPT-2's byte alphabet as the bytes they stand for: alphabet (EL_ALPHABET) gives the byte of a code point or -1.
 * kinds (n): pieces of EL_PIECE_NEVER are "?", and those with other characters become so. out has room for n_bytes. */
#define EL_ALPHABET 384
int el_bpe_spell(const uint8_t *text, int64_t n_bytes, const int64_t *offsets, int64_t n, const int16_t *alphabet,
                 uint8_t *kinds, uint8_t *out, int64_t *out_offsets);

/* BPE by merge rank, for texts that were cut into words before. */
typedef struct el_bpe el_bpe; /* merges in a hash table, piece texts in another; read-only after el_bpe_new */
enum el_whole_words { EL_WHOLE_NONE = 0, EL_WHOLE_ALL = 1, EL_WHOLE_LINE_FEEDS = 2 }; /* words looked up before any merge */
/* pieces as in el_spm_new (of EL_PIECE_NEVER the text is not looked at); merges (n_merges, 3): ids of left, right and
 * result by rank, or -1 for a merge that is never done; byte_ids (256); unk_id -1: none; characters: 1 when words start as
 * characters, 0: as bytes. Everything is copied. */
int el_bpe_new(el_bpe **out, const uint8_t *text, const int64_t *offsets, const uint8_t *kinds, int64_t n_pieces,
               const int32_t *merges, int64_t n_merges, const int32_t *byte_ids, int32_t unk_id, int32_t whole_words,
               int32_t characters);
void el_bpe_free(el_bpe *bpe);
/* word_ends (n_words): ascending, the last is n_bytes. ids (capacity >= n_bytes) gets the tokens, *n_ids their number.
 * A byte without a piece is the unknown token, or left out where there is none. Any number of threads may call this. */
int el_bpe_encode(const el_bpe *bpe, const uint8_t *text, int64_t n_bytes, const int64_t *word_ends, int64_t n_words,
                  int32_t *ids, int64_t capacity, int64_t *n_ids);

/* Unigram: the spelling with the largest sum of scores. Texts are UTF-8, normalised, with U+2581 for spaces. */
typedef struct el_unigram el_unigram; /* an automaton over the pieces; read-only after el_unigram_new */
/* pieces as in el_spm_new; order (n_used): ids of the pieces that text can become, ascending by their bytes; scores (n_pieces);
 * a character without a piece costs unknown_score and becomes its bytes, or one unk_id for each run where there are none. */
int el_unigram_new(el_unigram **out, const uint8_t *text, const int64_t *offsets, const double *scores, int64_t n_pieces,
                   const int32_t *order, int64_t n_used, double unknown_score, const int32_t *byte_ids, int32_t unk_id);
void el_unigram_free(el_unigram *unigram);
int el_unigram_encode(const el_unigram *unigram, const uint8_t *text, int64_t n_bytes, int32_t *ids, int64_t capacity,
                      int64_t *n_ids); /* as el_spm_encode */

/* WordPiece: words (with spaces between them) spelled with the longest pieces that fit; a word that cannot be spelled, or of
 * more than max_chars characters, is unk_id. Two lists of pieces, each ascending by bytes: those that begin a word and those
 * that continue one. */
typedef struct el_wordpiece el_wordpiece;
int el_wordpiece_new(el_wordpiece **out, const uint8_t *begin_text, const int64_t *begin_offsets,
                     const int32_t *begin_ids, int64_t n_begin, const uint8_t *next_text, const int64_t *next_offsets,
                     const int32_t *next_ids, int64_t n_next, int64_t n_pieces, int32_t unk_id, int32_t max_chars);
void el_wordpiece_free(el_wordpiece *wordpiece);
int el_wordpiece_encode(const el_wordpiece *wordpiece, const uint8_t *text, int64_t n_bytes, int32_t *ids,
                        int64_t capacity, int64_t *n_ids); /* as el_spm_encode */

/* A normalisation map: n strings, ascending by bytes, and what stands for each. */
typedef struct el_charsmap el_charsmap;
int el_charsmap_new(el_charsmap **out, const uint8_t *keys, const int64_t *key_offsets, const uint8_t *values,
                    const int64_t *value_offsets, int64_t n);
void el_charsmap_free(el_charsmap *map);
/* Puts the value of the longest key at each place; out NULL: only *n_out, the bytes of the result, is wanted. */
int el_charsmap_apply(const el_charsmap *map, const uint8_t *text, int64_t n_bytes, uint8_t *out, int64_t capacity,
                      int64_t *n_out);

int64_t el_text_steps(void); /* steps of the inner loops in this thread's last call above: tests see that they are linear */

/* The sampler: logit biases, then the samplers in the order that `samplers` names, then one draw. All sums are in double
 * and in index order. */
enum el_sampler {
    EL_SAMPLER_PENALTIES = 0,
    EL_SAMPLER_DRY = 1,
    EL_SAMPLER_TOP_N_SIGMA = 2,
    EL_SAMPLER_TOP_K = 3,
    EL_SAMPLER_TYPICAL_P = 4,
    EL_SAMPLER_TOP_P = 5,
    EL_SAMPLER_MIN_P = 6,
    EL_SAMPLER_XTC = 7,
    EL_SAMPLER_TEMPERATURE = 8
};
typedef struct {
    double temperature;         /* 0: the largest logit, the lowest id of equals */
    double dynatemp_range;      /* <= 0: off */
    double dynatemp_exponent;
    double top_p;               /* >= 1: off */
    double min_p;               /* <= 0: off */
    double typical_p;           /* >= 1: off */
    double top_n_sigma;         /* <= 0: off */
    double xtc_probability;     /* <= 0: off */
    double xtc_threshold;       /* > 0.5: off */
    double repeat_penalty;      /* 1: off */
    double presence_penalty;    /* 0: off */
    double frequency_penalty;   /* 0: off */
    double dry_multiplier;      /* 0: off */
    double dry_base;
    double mirostat_tau;
    double mirostat_eta;
    int64_t top_k;              /* <= 0: off */
    int64_t repeat_last_n;      /* of the recent ids, so many from the end; < 0: all */
    int64_t dry_penalty_last_n; /* the same, for DRY */
    int64_t dry_allowed_length;
    int32_t mirostat;           /* 2: Mirostat 2.0 draws; 0: off */
    int32_t n_samplers;
    int32_t samplers[9];        /* (n_samplers) el_sampler, none twice */
} el_sampling;
/* What the parameters mean in one vocabulary. Breaker b begins with token heads[b], the rest of it is
 * tails[tail_ends[b - 1] .. tail_ends[b]) (from 0 for the first); heads ascend. */
typedef struct {
    const int32_t *bias_ids;  /* (n_biases) */
    const double *biases;     /* (n_biases) added to the logits; -infinity bans */
    int64_t n_biases;
    const int32_t *heads;     /* (n_breakers) */
    const int64_t *tail_ends; /* (n_breakers) ascending */
    const int32_t *tails;
    int64_t n_breakers;
} el_sampling_tokens;
int64_t el_sample_scratch_bytes(int64_t n_vocab, int64_t n_recent); /* -1: they are not in 1 .. and 0 .. 2^31 - 1 */
/* recent (n_recent): ids so far, the last one at the end. scratch: el_sample_scratch_bytes(n_vocab, n_recent) bytes, 8-byte
 * aligned. mu: Mirostat's state, begun with 2 tau and changed here; NULL without Mirostat.
 * EL_E_NONFINITE: a logit is NaN or +infinity, or all of them are -infinity. */
int el_sample(const el_sampling *params, const el_sampling_tokens *tokens, const float *logits, int64_t n_vocab,
              const int32_t *recent, int64_t n_recent, uint64_t seed, uint64_t counter, double *mu, void *scratch,
              int64_t scratch_bytes, int32_t *token);
void el_philox(const uint32_t *counter, const uint32_t *key, uint32_t *out); /* Philox4x32-10: (4), (2) -> (4) */
void el_exp_log_test(const double *x, double *exp_out, double *log_out, int64_t n); /* the sampler's own exp(x) and log(x) */
/* Drafts: what may come next, by what came behind the same tokens before (native/suffix.c). A negative id is a border that no
 * match goes across. limit: a power of 2, 1024 or more; when so many tokens are there, the older half of them is forgotten, but
 * never what el_suffix_fix found there (half the limit at most). el_suffix_rewind goes back to that. */
#define EL_DRAFT_TOKENS 8
typedef struct el_suffix el_suffix;
typedef struct {
    int32_t n;         /* tokens of the draft; 0: there is nothing to go by */
    int32_t match;     /* so many tokens at the end of the text stood there before, 3 to 16 */
    int32_t tokens[8];
    int32_t votes[8];  /* of totals[i] places where all so far stood before, votes[i] went on with tokens[i] */
    int32_t totals[8];
} el_suffix_draft;
int el_suffix_new(el_suffix **out, int64_t limit);
void el_suffix_free(el_suffix *s);
int el_suffix_append(el_suffix *s, const int32_t *ids, int64_t n);
int el_suffix_fix(el_suffix *s);
void el_suffix_rewind(el_suffix *s);
int64_t el_suffix_bytes(const el_suffix *s);
int el_suffix_propose(const el_suffix *s, int32_t k, el_suffix_draft *draft); /* up to k tokens, k <= EL_DRAFT_TOKENS */
/* [text end] */
/* [cffi end] */

#endif
