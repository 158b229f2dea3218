/* pack_sparse.c: sparse panels, in which tiles that are zero are not stored. formats/panels.md has the pictures and says
 * which blocks are zero, quants/panels_sparse.py is the twin.
 *
 * In three steps, because sizes must be known before memory is reserved: el_sparse_scan looks for zero tiles (any range of
 * groups, in parallel), el_sparse_place says where each group goes, el_pack_sparse copies (in parallel again).
 */
#include <stdlib.h>

#include "kernels/groups.h"

enum { ROWS = EL_PANEL_ROWS, LINE = 64, MAX_FORMS = 2, MOST_BLOCK_BYTES = 256 };

/* What el_sparse_* needs to know of a matrix */
typedef struct {
    int64_t block_k, block_bytes, row_bytes; /* of rows */
    int64_t tile_k, tile_bytes, half_bytes;
    int64_t n_tiles, n_groups, record_bytes; /* tiles of a group, the half one counted */
} shape;

static int shape_of(int type, int64_t rows, int64_t k, shape *s) {
    if (rows < 1 || k < 1 || el_panel_bytes(type, rows, k) < 0) return 0;
    s->block_k = el_act_format_of(type) == EL_ACTF_Q8_256 ? 256 : 32;
    s->tile_k = s->block_k == 256 ? 256 : 64;
    s->block_bytes = el_row_bytes(type, s->block_k);
    s->row_bytes = el_row_bytes(type, k);
    s->tile_bytes = el_panel_bytes(type, ROWS, s->tile_k);
    s->half_bytes = k % s->tile_k ? el_panel_bytes(type, ROWS, 32) : 0;
    s->n_tiles = k / s->tile_k + (k % s->tile_k != 0);
    s->n_groups = rows / ROWS + (rows % ROWS != 0);
    s->record_bytes = el_record_bytes(s->n_tiles);
    return s->row_bytes <= INT64_MAX / rows && s->n_groups <= (INT64_MAX - LINE) / s->record_bytes;
}

/* Bytes of tile t of a group */
static int64_t bytes_of_tile(const shape *s, int64_t t) {
    return s->half_bytes && t == s->n_tiles - 1 ? s->half_bytes : s->tile_bytes;
}

static int64_t index_bytes(const shape *s) { return (s->n_groups * s->record_bytes + LINE - 1) / LINE * LINE; }

int64_t el_sparse_index_bytes(int type, int64_t rows, int64_t k) {
    shape s;
    return shape_of(type, rows, k, &s) ? index_bytes(&s) : -1;
}

int el_zero_forms(int type) { return type == EL_TYPE_Q4_0 || type == EL_TYPE_Q6_K ? 2 : 1; }

void el_zero_block(int type, int form, uint8_t *out) {
    memset(out, 0, (size_t)el_row_bytes(type, el_act_format_of(type) == EL_ACTF_Q8_256 ? 256 : 32));
    if (type == EL_TYPE_Q4_0) {
        el_block_q4_0 *b = (el_block_q4_0 *)out;
        uint16_t minus_zero = 0x8000;
        if (form == 0) memcpy(&b->d, &minus_zero, 2);
        memset(b->qs, 0x88, sizeof b->qs);
    }
    if (type == EL_TYPE_Q6_K && form == 0) memset(((el_block_q6_k *)out)->qh, 0xaa, sizeof ((el_block_q6_k *)out)->qh);
}

/* Of tiles [t0, t0 + n) of a group, n <= 64, those whose blocks all are `zero`, as bits */
static uint64_t zero_tiles(const shape *s, const uint8_t *rows, int64_t n_rows, int64_t k, int64_t t0, int64_t n,
                           const uint8_t *zero) {
    uint64_t found = n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0;
    for (int64_t r = 0; r < n_rows && found; r++)
        for (uint64_t left = found; left; left &= left - 1) {
            int t = el_lowest_bit(left);
            int64_t at = (t0 + t) * s->tile_k, end = at + s->tile_k < k ? at + s->tile_k : k;
            for (; at < end; at += s->block_k)
                if (memcmp(rows + r * s->row_bytes + at / s->block_k * s->block_bytes, zero, (size_t)s->block_bytes)) {
                    found &= ~((uint64_t)1 << t);
                    break;
                }
        }
    return found;
}

/* Fills in a record but for its offset; returns the bytes of its stored tiles. All zero tiles are of the first one's form. */
static int64_t scan_group(int type, const shape *s, const uint8_t *rows, int64_t n_rows, int64_t k, uint8_t *record) {
    uint8_t zero[MAX_FORMS][MOST_BLOCK_BYTES];
    el_record r = {0, 0, 0};
    int chosen = 0;
    for (int f = 0; f < el_zero_forms(type); f++) el_zero_block(type, f, zero[f]);
    for (int64_t t0 = 0; t0 < s->n_tiles; t0 += 64) {
        int64_t n = s->n_tiles - t0 < 64 ? s->n_tiles - t0 : 64;
        uint64_t found = zero_tiles(s, rows, n_rows, k, t0, n, zero[r.form]);
        for (uint32_t f = 1; f < (uint32_t)el_zero_forms(type) && !chosen; f++) {
            uint64_t other = zero_tiles(s, rows, n_rows, k, t0, n, zero[f]);
            if (other && (!found || el_lowest_bit(other) < el_lowest_bit(found))) found = other, r.form = f;
        }
        chosen |= found != 0;
        uint64_t live = ~found & (n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0);
        memcpy(record + sizeof r + t0 / 64 * 8, &live, 8);
        for (; live; live &= live - 1) r.n++;
    }
    memcpy(record, &r, sizeof r);
    int half_live = s->half_bytes && el_tile_live(record, s->n_tiles - 1);
    return (int64_t)(r.n - (uint32_t)half_live) * s->tile_bytes + half_live * s->half_bytes;
}

static int rows_ok(const void *src, int64_t rows, int64_t row0, int64_t row1) {
    return src && row0 >= 0 && row1 >= row0 && row1 <= rows && row0 % ROWS == 0 && (row1 % ROWS == 0 || row1 == rows);
}

int el_sparse_scan(int type, const void *src, void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !index || !rows_ok(src, rows, row0, row1)) return EL_E_ARGUMENT;
    for (int64_t r = row0; r < row1; r += ROWS)
        scan_group(type, &s, (const uint8_t *)src + r * s.row_bytes, row1 - r < ROWS ? row1 - r : ROWS, k,
                   (uint8_t *)index + r / ROWS * s.record_bytes);
    return EL_OK;
}

int64_t el_sparse_sample(int type, const void *src, int64_t rows, int64_t k, int64_t n_groups, int64_t *bytes) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !src || !bytes || n_groups < 1) return -1;
    uint8_t *record = malloc((size_t)s.record_bytes);
    if (!record) return -1;
    if (n_groups > s.n_groups) n_groups = s.n_groups;
    *bytes = 0;
    for (int64_t i = 0; i < n_groups; i++) {
        int64_t r = s.n_groups / n_groups * i * ROWS + s.n_groups % n_groups * i / n_groups * ROWS;
        *bytes += scan_group(type, &s, (const uint8_t *)src + r * s.row_bytes, rows - r < ROWS ? rows - r : ROWS, k, record);
    }
    free(record);
    return n_groups * el_panel_bytes(type, ROWS, k);
}

/* Bytes of the tiles that a record says are stored; -1: its fields do not fit each other */
static int64_t bytes_of_group(int type, const shape *s, const uint8_t *record) {
    el_record r = el_load_record(record);
    int64_t n = 0, last = s->n_tiles % 64;
    for (int64_t word = 0; word < (s->n_tiles + 63) / 64; word++)
        for (uint64_t left = el_load_word64(record + sizeof r + word * 8); left; left &= left - 1) n++;
    uint64_t end = el_load_word64(record + s->record_bytes - 8);
    if (n != (int64_t)r.n || (last && end >> last) || r.form >= (uint32_t)el_zero_forms(type)) return -1;
    int half_live = s->half_bytes && el_tile_live(record, s->n_tiles - 1);
    return (n - half_live) * s->tile_bytes + half_live * s->half_bytes;
}

int64_t el_sparse_place(int type, void *index, int64_t rows, int64_t k) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !index) return -1;
    int64_t at = index_bytes(&s), used = s.n_groups * s.record_bytes;
    memset((uint8_t *)index + used, 0, (size_t)(at - used));
    for (int64_t g = 0; g < s.n_groups; g++) {
        uint8_t *record = (uint8_t *)index + g * s.record_bytes;
        int64_t bytes = bytes_of_group(type, &s, record);
        if (bytes < 0 || at > INT64_MAX - bytes) return -1;
        uint64_t offset = (uint64_t)(at - g * s.record_bytes);
        memcpy(record, &offset, 8);
        at += bytes;
    }
    return at;
}

int el_sparse_bind(int type, const void *panels, int64_t bytes, int64_t rows, int64_t k, void *index) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !panels || !index || bytes < s.n_groups * s.record_bytes) return EL_E_ARGUMENT;
    memcpy(index, panels, (size_t)(s.n_groups * s.record_bytes)); /* first: the file may change under us */
    for (int64_t g = 0; g < s.n_groups; g++) {
        int64_t start = g * s.record_bytes, room = bytes - start;
        uint8_t *record = (uint8_t *)index + start;
        int64_t size = bytes_of_group(type, &s, record);
        uint64_t at = el_load_record(record).at;
        if (size < 0 || at > (uint64_t)room || size > room - (int64_t)at) return EL_E_ARGUMENT;
        at = (uint64_t)(uintptr_t)((const uint8_t *)panels + start + (int64_t)at);
        memcpy(record, &at, 8);
    }
    return EL_OK;
}

int el_pack_sparse(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !dst || !rows_ok(src, rows, row0, row1)) return EL_E_ARGUMENT;
    uint8_t *group = malloc((size_t)el_panel_bytes(type, ROWS, k)); /* dense */
    if (!group) return EL_E_NOMEM;
    int status = EL_OK;
    for (int64_t r = row0; r < row1 && status == EL_OK; r += ROWS) {
        int64_t n_rows = row1 - r < ROWS ? row1 - r : ROWS;
        const uint8_t *record = (const uint8_t *)dst + r / ROWS * s.record_bytes, *from = group;
        uint8_t *to = (uint8_t *)dst + r / ROWS * s.record_bytes + el_load_record(record).at;
        if (!el_load_record(record).n) continue;
        status = el_pack_panels(type, (const uint8_t *)src + r * s.row_bytes, group, n_rows, k, 0, n_rows);
        for (int64_t t = 0; t < s.n_tiles; from += bytes_of_tile(&s, t), t++) {
            if (!el_tile_live(record, t)) continue;
            memcpy(to, from, (size_t)bytes_of_tile(&s, t));
            to += bytes_of_tile(&s, t);
        }
    }
    free(group);
    return status;
}

int el_sparse_row(int type, const void *index, int64_t rows, int64_t k, int64_t row, float *dst) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !index || !dst || row < 0 || row >= rows) return EL_E_ARGUMENT;
    const uint8_t *record = (const uint8_t *)index + row / ROWS * s.record_bytes;
    const uint8_t *tile = (const uint8_t *)(uintptr_t)el_load_record(record).at;
    uint32_t form = el_load_record(record).form;
    float zero = (type == EL_TYPE_Q4_0 && form == 0) || (type == EL_TYPE_Q6_K && form == 1) ? -0.0f : 0.0f; /* as decoded */
    for (int64_t t = 0; t < s.n_tiles; t++) {
        int64_t at = t * s.tile_k, n = k - at < s.tile_k ? k - at : s.tile_k;
        if (el_tile_live(record, t)) {
            el_panel_row(type, tile, ROWS, n, row % ROWS, dst + at);
            tile += bytes_of_tile(&s, t);
        } else
            for (int64_t i = 0; i < n; i++) dst[at + i] = zero;
    }
    return EL_OK;
}

int el_sparse_expand(int type, const void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1, void *dst) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !dst || !rows_ok(index, rows, row0, row1)) return EL_E_ARGUMENT;
    uint8_t *to = dst;
    for (int64_t g = row0 / ROWS; g * ROWS < row1; g++) {
        const uint8_t *record = (const uint8_t *)index + g * s.record_bytes;
        const uint8_t *tile = (const uint8_t *)(uintptr_t)el_load_record(record).at;
        for (int64_t t = 0; t < s.n_tiles; to += bytes_of_tile(&s, t), t++) {
            if (el_tile_live(record, t)) {
                memcpy(to, tile, (size_t)bytes_of_tile(&s, t));
                tile += bytes_of_tile(&s, t);
            } else
                memset(to, 0, (size_t)bytes_of_tile(&s, t)); /* scales of 0: whatever the codes are, it adds nothing */
        }
    }
    return EL_OK;
}
